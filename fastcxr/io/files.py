"""Bytes go into a file whole or not at all: a crash leaves the old file or the new one, never half of either."""

import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastcxr.errors import FastcxrError, OutputError, StorageError

SUMS = "SHA256SUMS"
STATE = "state"  # folder of an unfinished run, which no checksum covers
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
NO_SUCH_CALL = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems that cannot sync a folder
MOST_JSON = 64_000_000  # bytes; the metrics of a thousand classes take a tenth of it


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write a file beside its place and move it there in one step. Raises OutputError where that is impossible."""
    path = Path(path)
    content = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    draft = None
    try:
        handle, draft = _open_draft(path)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if draft:
            draft.unlink(missing_ok=True)
        raise _trouble(error, path) from error


def _trouble(error: OSError, path: Path) -> OutputError:
    kind = StorageError if error.errno in DISK_FAULTS else OutputError
    return kind(f"cannot be written ({error.strerror or error})", "Free some room or choose another --out", path=path)


def _open_draft(path: Path) -> tuple[int, Path]:
    """Create an empty hidden file beside `path`; return its handle and name.

    The system applies the umask: Python can read it only by changing it, for all threads of the process.
    """
    draft = path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex[:16]}")
    return os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), draft


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to disk, so that a rename survives a power failure; Windows has no such call."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # a folder that can be written to but not listed
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SUCH_CALL:
            raise
    finally:
        os.close(handle)


@contextmanager
def draft_beside(path: str | Path) -> Iterator[Path]:
    """For what is too large to hold at once: an empty file to fill, which takes its place when the block ends well.

    Raises OutputError for a place that is taken, or cannot be written to; then and after an error no draft is left.
    """
    path = Path(path)
    if path.exists():
        raise OutputError("this file is there already", "Choose another name, or remove it", path=path)
    try:
        handle, draft = _open_draft(path)
        os.close(handle)
    except OSError as error:
        fix = "Choose a folder that is there and may be written to"
        raise OutputError(f"cannot be written ({error.strerror or error})", fix, path=path) from error
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, FastcxrError):
            raise
        raise _trouble(error, path) from error
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Strict JSON, indented for people."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file that anyone may have written. Raises OSError where there is no file,
    ValueError for anything else than JSON: NaN, a number without end, brackets too deep.
    """
    path = Path(path)
    if not path.is_file():  # opening a FIFO would wait for ever
        raise FileNotFoundError(f"no such file: {path.name}")
    if path.stat().st_size > MOST_JSON:
        raise ValueError(f"{path.stat().st_size:,} bytes, over the limit of {MOST_JSON:,}")
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("brackets too deep") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def sha256_of(path: str | Path) -> str:
    """The checksum of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(folder: Path, anew: Collection[str] | None = None) -> None:
    """SHA256SUMS of a folder, as `sha256sum --check` reads it: of all its files, or where it is there already only of
    those in `anew`. A folder inside that has one of its own answers for itself.
    """
    known = read_sums(folder) if anew is not None else {}
    for name in list_files(folder) if anew is None or not known else anew:
        if (folder / name).is_file():
            known[name] = sha256_of(folder / name)
    lines = [f"{checksum}  {name}\n" for name, checksum in sorted(known.items())]
    write_whole(folder / SUMS, "".join(lines))


def read_sums(folder: Path) -> dict[str, str]:
    """File -> checksum, as SHA256SUMS has them; nothing where there is none. Raises OutputError for a damaged one."""
    path = folder / SUMS
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    found = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines]
    if None in found:
        fix = "Restore the folder from a copy"
        raise OutputError(f"line {found.index(None) + 1} is no checksum and name", fix, path=path)
    return {match[2]: match[1] for match in found}


def list_files(folder: Path) -> list[str]:
    """Every file below, by its path with slashes, without hidden ones and folders that have checksums of their own."""
    names = []
    for place, below, files in os.walk(folder):
        inside = Path(place)
        below[:] = [name for name in below if name != STATE and not (inside / name / SUMS).exists()]
        names += [(inside / name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return sorted(set(names) - {SUMS})
