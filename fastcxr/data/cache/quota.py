"""Folders of the image and feature caches, their quota, and eviction of the least recently used ones.

The folder images has a subfolder for each image size and reader version. FASTCXR_CACHE_GB is the limit of both caches
together, in GB. They also use at most half of the disk space that is free without them.
"""

import atexit
import hashlib
import math
import os
import re
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

from PIL import features

from fastcxr.data.cache.index import INDEX_FILE
from fastcxr.data.imaging.read import READER_VERSION
from fastcxr.errors import OutputError, RecipeError
from fastcxr.io.formats import IMAGE_CACHE_FORMAT

try:
    import fcntl
except ImportError:  # Windows, which does not remove open files
    fcntl = None

CACHE_GB_VARIABLE, DEFAULT_LIMIT_GB = "FASTCXR_CACHE_GB", "20"
IMAGE_QUOTA_FRACTION = 0.75  # of the limit; the rest is for features
DECODER_PACKAGES = (
    "pillow",
    "pydicom",
    "python-gdcm",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "pyjpegls",
)
IMAGE_DIR, OLD_IMAGE_DIRS = "images", ("pictures",)  # old: of earlier versions, only listed and removed
STORE_NAME_PATTERN = re.compile(r"\d+px-.*")
USE_LOCK_NAME = "lock"  # locked by every process that uses the folder; its mtime is the time of the last use
REMOVED_PREFIX = ".gone-"


class CannotStoreError(Exception):
    """Nothing can be stored in a folder; the message is the reason."""


class NoHomeFolderError(OutputError, CannotStoreError):
    """No folder for the cache, because the user has no home folder."""


class DamagedStoreError(CannotStoreError):
    """Damaged cache that may be removed."""


@contextmanager
def convert_storage_errors() -> Iterator[None]:
    """Convert errors of the disk and of the index in this block to CannotStoreError."""
    try:
        yield
    except sqlite3.OperationalError as error:  # locked for too long, read-only, full
        raise CannotStoreError(str(error)) from error
    except sqlite3.Error as error:
        raise DamagedStoreError(str(error)) from error
    except OSError as error:
        raise CannotStoreError(error.strerror or str(error)) from error


def make_size_error(needed_bytes: float, limit_bytes: float, disk_bytes: float, fraction: float) -> CannotStoreError:
    """Return the error for data that exceeds the quota, with the value of FASTCXR_CACHE_GB that is large enough.

    `fraction`: share of the limit that `limit_bytes` are.
    """
    text = f"{needed_bytes / 1e6:,.0f} MB are needed, {min(limit_bytes, disk_bytes) / 1e6:,.0f} MB are available"
    if needed_bytes > disk_bytes:
        return CannotStoreError(f"{text}, half of the free disk space. Choose a larger disk with XDG_CACHE_HOME")
    enough_gb = math.ceil(10 * needed_bytes / fraction / 1e9) / 10
    return CannotStoreError(f"{text}. Set {CACHE_GB_VARIABLE}={enough_gb:g} to cache them")


@dataclass(frozen=True)
class CacheEntry:
    """Image cache of one size, for `fastcxr cache`."""

    folder: Path
    size: int
    n_images: int | None  # None: its index cannot be read
    n_bytes: int
    last_used: float  # seconds since 1970


@dataclass(frozen=True)
class CacheDir:
    """Folder of the image and feature caches, and the limit of both together."""

    folder: Path
    max_bytes: float

    @property
    def image_dir(self) -> Path:
        """Folder of the image caches of all sizes."""
        return self.folder / IMAGE_DIR

    @property
    def feature_dir(self) -> Path:
        """Folder of all feature files."""
        return self.folder / "features"


def user_cache() -> CacheDir:
    """Return the cache of the user, which later runs use. Raises CannotStoreError if its limit is 0."""
    limit = read_cache_limit()
    if not limit:
        raise CannotStoreError(f"{CACHE_GB_VARIABLE} is 0")
    return CacheDir(find_image_cache_dir().parent, limit)


def temporary_cache() -> CacheDir:
    """Return the temporary cache of this process, which only the disk limits. Raises CannotStoreError."""
    with convert_storage_errors():
        return CacheDir(make_temporary_dir(), math.inf)


def find_image_cache_dir() -> Path:
    """Return the folder of the user's image caches, for example ~/.cache/fastcxr/images. Raises NoHomeFolderError."""
    from platformdirs import user_cache_path  # only training needs it, and an exported model may run without it

    try:
        folder = user_cache_path("fastcxr", appauthor=False)
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():  # early versions of platformdirs return "~/.cache" instead of raising an error
        raise NoHomeFolderError("this user has no home folder", "Set HOME or XDG_CACHE_HOME to an absolute path")
    return folder / IMAGE_DIR


def find_store_dir(size: int) -> Path:
    """Return the folder of the image cache of a size, for the installed reader and decoders."""
    return find_image_cache_dir() / make_store_name(size)


def make_store_name(size: int) -> str:
    """Return the folder name of the image cache of a size."""
    return f"{size}px-format{IMAGE_CACHE_FORMAT}-reader{READER_VERSION}-{_hash_decoder_versions()}"


def _hash_decoder_versions() -> str:
    """Return a hash of the versions of all decoders: another version may round a JPEG differently."""
    versions = [str(features.version("libjpeg_turbo"))]
    for name in DECODER_PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return hashlib.sha256(", ".join(versions).encode()).hexdigest()[:8]


def read_cache_limit() -> float:
    """Return the limit of both caches in bytes, from FASTCXR_CACHE_GB; 0 turns them off. Raises RecipeError."""
    text = os.environ.get(CACHE_GB_VARIABLE) or DEFAULT_LIMIT_GB
    try:
        limit_gb = float(text)
    except ValueError:
        limit_gb = math.nan
    if not limit_gb >= 0:
        fix = f"Set it to a number such as {DEFAULT_LIMIT_GB}, or to 0 to turn the cache off"
        raise RecipeError(f"{CACHE_GB_VARIABLE} is {text!r}, expected a number of gigabytes", fix)
    return limit_gb * 1e9


def list_cache_entries(parent: Path | None = None) -> list[CacheEntry]:
    """Return the image caches of any format in `parent`, or of the user, the most recently used first."""
    parents = [parent] if parent else _list_image_dirs()
    folders = [folder for place in parents for folder in _list_dir(place) if STORE_NAME_PATTERN.fullmatch(folder.name)]
    entries = [_read_entry(folder) for folder in folders]
    return sorted([entry for entry in entries if entry], key=lambda entry: -entry.last_used)


def clear_image_cache() -> tuple[int, list[CacheEntry]]:
    """Remove all image caches that no process uses; return the freed bytes and the remaining caches."""
    for image_dir in _list_image_dirs():
        _remove_leftovers(image_dir)
    entries = list_cache_entries()
    freed_bytes = sum(entry.n_bytes for entry in entries if remove_if_unused(entry.folder))
    for old_dir in _list_image_dirs()[1:]:
        with suppress(OSError):  # missing, or not empty
            old_dir.rmdir()
    return freed_bytes, list_cache_entries()


def _list_image_dirs() -> list[Path]:
    """Return the folder of the image caches, then the folders of earlier versions."""
    image_dir = find_image_cache_dir()
    return [image_dir, *map(image_dir.with_name, OLD_IMAGE_DIRS)]


def evict(folder: Path, needed_bytes: int, full_bytes: int, limit: float) -> bool:
    """Remove the least recently used image caches until there is space in this one; return False if it must be emptied.

    Args:
        folder: The image cache that the caller has locked.
        needed_bytes: Size of the images to add.
        full_bytes: Size of all images of the caller.
        limit: The limit of all image caches together.

    Raises CannotStoreError if `full_bytes` exceed the limit or half of the disk.
    """
    with convert_storage_errors():
        _remove_leftovers(folder.parent)
        entries = list_cache_entries(folder.parent)
        total_bytes = sum(entry.n_bytes for entry in entries)
        disk_bytes = (shutil.disk_usage(folder).free + total_bytes) / 2
    budget_bytes = min(limit, disk_bytes)
    for entry in reversed(entries):
        # the cache at `folder` is never removed, because the caller has locked it
        if total_bytes + needed_bytes > budget_bytes and remove_if_unused(entry.folder):
            total_bytes -= entry.n_bytes
    if total_bytes + needed_bytes <= budget_bytes or not needed_bytes:
        return True
    own_bytes = sum(entry.n_bytes for entry in entries if entry.folder == folder)
    if total_bytes - own_bytes + full_bytes > budget_bytes:
        in_use_bytes = total_bytes - own_bytes
        raise make_size_error(in_use_bytes + full_bytes, limit, disk_bytes, IMAGE_QUOTA_FRACTION)
    return False


def _list_dir(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # the folder does not exist yet
        return []


def _read_entry(folder: Path) -> CacheEntry | None:
    try:
        size, last_used = int(folder.name.partition("px-")[0]), (folder / USE_LOCK_NAME).stat().st_mtime
        return CacheEntry(folder, size, _count_images(folder / INDEX_FILE), _measure_bytes(folder), last_used)
    except OSError:  # another process has removed it
        return None


def _count_images(index: Path) -> int | None:
    try:
        with closing(sqlite3.connect(f"{index.absolute().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            return connection.execute("SELECT count(*) FROM images").fetchone()[0]
    except sqlite3.Error:
        return None


@cache
def make_temporary_dir() -> Path:
    """Return the temporary folder of this process, created by the first call. Raises OSError."""
    folder = Path(tempfile.mkdtemp(prefix="fastcxr-"))
    atexit.register(_remove_in_owner, folder, os.getpid())
    return folder


def _remove_in_owner(folder: Path, owner_pid: int) -> None:
    if os.getpid() == owner_pid:  # not in a forked worker, which ends before its parent
        shutil.rmtree(folder, ignore_errors=True)


def acquire_shared_lock(folder: Path) -> BinaryIO:
    """Create the folder if it is missing, and protect it from removal until the returned file is closed."""
    while True:
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        folder.parent.mkdir(mode=0o700, exist_ok=True)  # images of patients: no access for other users
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            file = (folder / USE_LOCK_NAME).open("ab")
        except FileNotFoundError:  # another process has removed it after mkdir
            continue
        _flock(file, "LOCK_SH")
        if _is_same_file(folder / USE_LOCK_NAME, file):
            os.utime(folder / USE_LOCK_NAME)
            return file
        file.close()


def lock_now(path: Path) -> BinaryIO | None:
    """Create a file, and lock it until the result is closed; None if another process has locked it.

    On a file system without locks no process finds it locked. Raises OSError.
    """
    while True:
        file = path.open("ab")
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same_file(path, file):
                return file
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # no locks
            return file
        file.close()  # the previous owner removed it after it was opened


def remove_if_unused(folder: Path) -> bool:
    """Remove a folder that no process uses; return False if it is in use."""
    removed_dir = folder.with_name(f"{REMOVED_PREFIX}{uuid.uuid4().hex}")
    try:
        if fcntl is None:
            folder.rename(removed_dir)
        else:
            with (folder / USE_LOCK_NAME).open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder.rename(removed_dir)  # atomic: no process sees a half-removed folder
    except OSError:  # in use, or on a file system without locks
        return False
    shutil.rmtree(removed_dir, ignore_errors=True)
    return True


def remove_if_empty(folder: Path) -> None:
    """Remove an image cache without images, unless a process uses it."""
    if _count_images(folder / INDEX_FILE) == 0:
        remove_if_unused(folder)


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders of which a killed process has removed only a part."""
    for removed_dir in parent.glob(f"{REMOVED_PREFIX}*"):
        shutil.rmtree(removed_dir, ignore_errors=True)


def _measure_bytes(folder: Path) -> int:
    """Return the disk usage of a folder in bytes."""
    statuses = [path.stat() for path in folder.glob("*") if path.is_file()]
    # st_blocks counts units of 512 bytes; Windows has no st_blocks
    return sum(getattr(status, "st_blocks", 0) * 512 or status.st_size for status in statuses)


def _flock(file: BinaryIO, operation: str) -> None:
    try:
        if fcntl:
            fcntl.flock(file, getattr(fcntl, operation))
    except OSError:  # some network disks have no locks; remove_if_unused never succeeds on them
        pass


def _is_same_file(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
