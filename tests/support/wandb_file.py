"""Reader for the offline file of a W&B run: records in the log format of LevelDB, each a protobuf message."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK_BYTES, FILE_HEADER_BYTES, HEADER = 32768, 7, struct.Struct("<IHB")  # header of a part: checksum, length, type
FULL, LAST = 1, 4


def read_records(path: Path) -> Iterator:
    """Yield the records of a .wandb file."""
    from wandb.proto import wandb_internal_pb2

    content, start, parts = path.read_bytes(), FILE_HEADER_BYTES, b""
    assert content.startswith(b":W&B")
    while start + HEADER.size <= len(content):
        if BLOCK_BYTES - start % BLOCK_BYTES < HEADER.size:  # the rest of a block is padding
            start += BLOCK_BYTES - start % BLOCK_BYTES
            continue
        _, length, kind = HEADER.unpack_from(content, start)
        parts += content[start + HEADER.size : start + HEADER.size + length]
        start += HEADER.size + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def read_history(path: Path) -> list[dict]:
    """Return the values of each call of log, without those that W&B adds."""
    rows = []
    for record in read_records(path):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows.append({name: value for name, value in items.items() if not name.startswith("_")})
    return rows


def read_summary(path: Path) -> dict:
    """Return the last value of each entry of the summary."""
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in read_records(path)
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }


def read_config(path: Path) -> dict:
    """Return the configuration of the run."""
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in read_records(path)
        if record.WhichOneof("record_type") == "run"
        for item in record.run.config.update
    }
