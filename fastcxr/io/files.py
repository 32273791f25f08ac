"""Atomic writes (after a crash a file has its old or its new content), strict JSON, and checksums."""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastcxr.errors import FastcxrError, OutputError, StorageError

CHECKSUMS_FILE = "SHA256SUMS"
STATE_DIR = "state"  # folder of an unfinished run, without checksums
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
NO_SUCH_CALL = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems without folder sync
MAX_JSON_BYTES = 64_000_000  # bytes; ten times the metrics of a thousand classes


@contextmanager
def atomic_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield the path of an empty temporary file, which is renamed to `path` if the block succeeds, else removed.

    Raises OutputError if `path` exists (without `overwrite`) or cannot be written.
    """
    path = Path(path)
    if not overwrite:
        reject_existing(path)
    temporary_path = _name_temporary(path)
    try:
        with convert_write_errors(path):
            temporary_path.touch(exist_ok=False)  # with the umask, which Python can read only by changing it
            yield temporary_path
            with temporary_path.open("rb+") as file:
                os.fsync(file.fileno())
            temporary_path.replace(path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary_path.unlink()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder, which is renamed to `path` if the block succeeds, else removed.

    Folders above `path` are created, and removed again after an error.

    Raises OutputError if `path` is a file or a folder with files, or cannot be written.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        problem = "this folder is not empty" if path.is_dir() else "a file, expected a new folder"
        raise OutputError(problem, "Choose another `folder`, or remove it", path=path)
    temporary_path, created = _name_temporary(path), [parent for parent in path.parents if not parent.exists()]
    try:
        with convert_write_errors(path):
            temporary_path.mkdir(parents=True)
            yield temporary_path
            if path.is_dir():
                path.rmdir()  # some systems cannot rename to an existing empty folder
            temporary_path.rename(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary_path, ignore_errors=True)
        for parent in created:
            with suppress(OSError):  # it has files, such as the new folder
                parent.rmdir()


def reject_existing(path: Path) -> None:
    """Raise OutputError if there is a file of this name."""
    if path.exists():
        raise OutputError("this file exists already", "Choose another name, or remove it", path=path)


def validate_writable(path: str | Path) -> None:
    """Raise the error of atomic_file, before a long computation, if `path` is a folder or its folder is read-only."""
    path = Path(path)
    temporary_path = _name_temporary(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary_path.touch(exist_ok=False)
        temporary_path.unlink()
    except OSError as error:
        raise _make_write_error(path, error) from error


def _name_temporary(path: Path) -> Path:
    return path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex[:16]}")


@contextmanager
def convert_write_errors(path: Path) -> Iterator[None]:
    """Raise OutputError, or StorageError for a full disk, for an OSError in the block."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FastcxrError):
            raise
        raise _make_write_error(path, error) from error


def require_free_space(folder: Path, needed_bytes: int, purpose: str, fix: str, addition: str = "") -> None:
    """Raise StorageError if the disk of an existing folder has fewer free bytes.

    `purpose`: what needs them; `addition`: end of the problem.
    """
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        needed, free = (f"{n_bytes / 1e6:,.1f} MB" for n_bytes in (needed_bytes, free_bytes))
        raise StorageError(f"{purpose} needs {needed}, {free} are free{addition}", fix, path=folder)


def _make_write_error(path: Path, error: OSError) -> OutputError:
    error_class = StorageError if error.errno in DISK_ERRNOS else OutputError
    problem = f"cannot be written ({error.strerror or error})"
    return error_class(problem, "Free disk space, or choose another folder", path=path)


def atomic_write(path: str | Path, content: bytes | str) -> None:
    """Write a file through a temporary file in the same folder. Raises OutputError if that fails."""
    content = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    with atomic_file(path, overwrite=True) as temporary_path:
        temporary_path.write_bytes(content)


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk: then a rename survives a power failure. Windows has no such call."""
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


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON without NaN or infinity."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file from an untrusted source.

    Raises OSError if there is no such file, ValueError for invalid JSON, NaN, infinity, too many bytes or brackets.
    """
    path = Path(path)
    if not path.is_file():  # opening a FIFO would block
        raise FileNotFoundError(f"no such file: {path.name}")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes, over the limit of {MAX_JSON_BYTES:,}")
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_reject_constant)
    except RecursionError as error:
        raise ValueError("brackets nested too deeply") from error


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


def compute_sha256(path: str | Path) -> str:
    """Return the SHA-256 checksum of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path, changed_files: Collection[str] | None = None) -> None:
    """Write SHA256SUMS of a folder, in the format of `sha256sum --check`.

    Args:
        folder: its subfolders with their own SHA256SUMS are skipped.
        changed_files: names of files to update in an existing SHA256SUMS; by default all files are listed.
    """
    checksums = read_checksums(folder) if changed_files is not None else {}
    for name in list_files(folder) if changed_files is None or not checksums else changed_files:
        if (folder / name).is_file():
            checksums[name] = compute_sha256(folder / name)
    atomic_write(folder / CHECKSUMS_FILE, format_checksums(checksums))


def format_checksums(checksums: Mapping[str, str]) -> str:
    """Return the content of SHA256SUMS for the checksum of each file."""
    return "".join(f"{checksum}  {name}\n" for name, checksum in sorted(checksums.items()))


def read_checksums(folder: Path) -> dict[str, str]:
    """Return the checksum of each file in SHA256SUMS; empty if there is none. Raises OutputError if it is damaged."""
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        return {}
    checksums = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if match is None:
            problem = f"line {number} is not a checksum and a name"
            raise OutputError(problem, "Restore the folder from a copy", path=path)
        checksums[match[2]] = match[1]
    return checksums


def list_files(folder: Path) -> list[str]:
    """Return the relative paths of all files, except hidden ones and subfolders with their own checksums."""
    names = []
    for directory, subdirectories, files in os.walk(folder):
        parent = Path(directory)
        subdirectories[:] = [
            name
            for name in subdirectories
            if name != STATE_DIR and not name.startswith(".") and not (parent / name / CHECKSUMS_FILE).exists()
        ]
        names += [(parent / name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return sorted(set(names) - {CHECKSUMS_FILE})
