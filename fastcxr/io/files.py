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

CHECKSUMS_FILE = "SHA256SUMS"
STATE_DIR = "state"  # folder of an unfinished run, which no checksum covers
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
NO_SUCH_CALL = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems that cannot sync a folder
MAX_JSON_BYTES = 64_000_000  # bytes; the metrics of a thousand classes take a tenth of it


def atomic_write(path: str | Path, content: bytes | str) -> None:
    """Write a file beside its place and move it there in one step. Raises OutputError where that is impossible."""
    path = Path(path)
    content = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    temporary_path = None
    try:
        descriptor, temporary_path = _open_draft(path)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary_path.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if temporary_path:
            temporary_path.unlink(missing_ok=True)
        raise _make_write_error(error, path) from error


def _make_write_error(error: OSError, path: Path) -> OutputError:
    error_class = StorageError if error.errno in DISK_ERRNOS else OutputError
    return error_class(
        f"cannot be written ({error.strerror or error})", "Free some room or choose another --out", path=path
    )


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
def atomic_file(path: str | Path) -> Iterator[Path]:
    """For what is too large to hold at once: an empty file to fill, which takes its place when the block ends well.

    Raises OutputError for a place that is taken, or cannot be written to; then and after an error no draft is left.
    """
    path = Path(path)
    if path.exists():
        raise OutputError("this file is there already", "Choose another name, or remove it", path=path)
    try:
        descriptor, temporary_path = _open_draft(path)
        os.close(descriptor)
    except OSError as error:
        fix = "Choose a folder that is there and may be written to"
        raise OutputError(f"cannot be written ({error.strerror or error})", fix, path=path) from error
    try:
        yield temporary_path
        with temporary_path.open("rb+") as file:
            os.fsync(file.fileno())
        temporary_path.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, FastcxrError):
            raise
        raise _make_write_error(error, path) from error
    finally:
        temporary_path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Strict JSON, indented for people."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The value in a JSON file that anyone may have written. Raises OSError where there is no file,
    ValueError for anything else than JSON: NaN, a number without end, brackets too deep.
    """
    path = Path(path)
    if not path.is_file():  # opening a FIFO would wait for ever
        raise FileNotFoundError(f"no such file: {path.name}")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes, over the limit of {MAX_JSON_BYTES:,}")
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_reject_constant)
    except RecursionError as error:
        raise ValueError("brackets too deep") from error


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def compute_sha256(path: str | Path) -> str:
    """The checksum of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path, changed_files: Collection[str] | None = None) -> None:
    """SHA256SUMS of a folder, as `sha256sum --check` reads it: of all its files, or where it is there already only of
    those in `anew`. A folder inside that has one of its own answers for itself.
    """
    checksums = read_checksums(folder) if changed_files is not None else {}
    for name in list_files(folder) if changed_files is None or not checksums else changed_files:
        if (folder / name).is_file():
            checksums[name] = compute_sha256(folder / name)
    lines = [f"{checksum}  {name}\n" for name, checksum in sorted(checksums.items())]
    atomic_write(folder / CHECKSUMS_FILE, "".join(lines))


def read_checksums(folder: Path) -> dict[str, str]:
    """File -> checksum, as SHA256SUMS has them; nothing where there is none. Raises OutputError for a damaged one."""
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    matches = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines]
    if None in matches:
        fix = "Restore the folder from a copy"
        raise OutputError(f"line {matches.index(None) + 1} is no checksum and name", fix, path=path)
    return {match[2]: match[1] for match in matches}


def list_files(folder: Path) -> list[str]:
    """Every file below, by its path with slashes, without hidden ones and folders that have checksums of their own."""
    names = []
    for directory, subdirectories, files in os.walk(folder):
        parent = Path(directory)
        subdirectories[:] = [
            name for name in subdirectories if name != STATE_DIR and not (parent / name / CHECKSUMS_FILE).exists()
        ]
        names += [(parent / name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return sorted(set(names) - {CHECKSUMS_FILE})
