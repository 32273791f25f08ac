"""Bytes go into a file whole or not at all: a crash leaves the old file or the new one, never half of either."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from fastcxr.errors import OutputError


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write a file beside its place and move it there in one step. Raises OutputError where that is impossible."""
    path = Path(path)
    content = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    draft = None
    try:
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).chmod(0o666 & ~_umask())  # mkstemp keeps the file to its owner
        Path(draft).replace(path)
    except OSError as error:
        if draft:
            Path(draft).unlink(missing_ok=True)
        raise OutputError(
            f"cannot be written ({error.strerror or error})", "Free some room or choose another --out", path=path
        ) from error


def write_json(path: str | Path, value: Any) -> None:
    """Strict JSON, indented for people."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_of(path: str | Path) -> str:
    """The checksum of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
