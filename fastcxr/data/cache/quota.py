"""Where pictures are kept, how many bytes they may take, and which of them go first.

`$XDG_CACHE_HOME/fastcxr/images` holds a shelf for each size and reader. FASTCXR_CACHE_GB says how many GB pictures
and the banks of features beside them may take; half of the disk that would be free without them is the most anyway.
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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

from PIL import features
from platformdirs import user_cache_path

from fastcxr.data.cache.index import INDEX_FILE
from fastcxr.data.imaging.read import READER_VERSION
from fastcxr.errors import OutputError, RecipeError
from fastcxr.io.formats import IMAGE_CACHE_FORMAT

CACHE_GB_VARIABLE, DEFAULT_LIMIT_GB = "FASTCXR_CACHE_GB", "20"
IMAGE_QUOTA_FRACTION = 0.75  # of the limit; the banks have the rest
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
STORE_NAME_PATTERN = re.compile(r"(\d+)px-.*")
USE_LOCK_NAME = "lock"  # held by everyone who uses the folder; its time is that of the last use
REMOVED_PREFIX = ".gone-"


@dataclass(frozen=True)
class CacheEntry:
    """A shelf as `fastcxr cache` shows it."""

    folder: Path
    size: int
    n_images: int | None  # None: its index cannot be read
    n_bytes: int
    last_used: float  # seconds since 1970


@dataclass(frozen=True)
class CacheDir:
    """A folder for shelves and banks, and the most bytes that they may take together."""

    folder: Path
    max_bytes: float

    @property
    def image_dir(self) -> Path:
        """The folder of all shelves."""
        return self.folder / IMAGE_DIR

    @property
    def feature_dir(self) -> Path:
        """The folder of all banks."""
        return self.folder / "features"


def user_cache() -> CacheDir:
    """The user's, where things are kept for later runs. Raises CannotStoreError for a limit of nothing."""
    limit = read_cache_limit()
    if not limit:
        raise CannotStoreError(f"{CACHE_GB_VARIABLE} is 0")
    return CacheDir(find_image_cache_dir().parent, limit)


def temporary_cache() -> CacheDir:
    """The one that goes with this process, bounded by the disk alone. Raises CannotStoreError."""
    with convert_storage_errors():
        return CacheDir(make_temporary_dir(), math.inf)


def find_image_cache_dir() -> Path:
    """Return the folder of the user's image caches, for example ~/.cache/fastcxr/images. Raises NoHomeFolderError."""
    try:
        folder = user_cache_path("fastcxr", appauthor=False)
    except RuntimeError:
        folder = Path()
    if not folder.is_absolute():  # earlier versions of platformdirs return "~/.cache" instead of raising an error
        raise NoHomeFolderError("this user has no home folder", "Set HOME or XDG_CACHE_HOME to an absolute path")
    return folder / IMAGE_DIR


def find_store_dir(size: int) -> Path:
    """The shelf of a size, for pictures as they are read here and now."""
    return find_image_cache_dir() / make_store_name(size)


def make_store_name(size: int) -> str:
    """What the shelf of a size is called wherever it lies."""
    return f"{size}px-format{IMAGE_CACHE_FORMAT}-reader{READER_VERSION}-{_hash_decoder_versions()}"


def _hash_decoder_versions() -> str:
    """A word that changes with the libraries that decode: another release may round a JPEG otherwise."""
    versions = [str(features.version("libjpeg_turbo"))]
    for name in DECODER_PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return hashlib.sha256(", ".join(versions).encode()).hexdigest()[:8]


def read_cache_limit() -> float:
    """The most bytes that shelves and banks may take together, as the user said it; 0 for none. Raises RecipeError."""
    text = os.environ.get(CACHE_GB_VARIABLE) or DEFAULT_LIMIT_GB
    try:
        limit_gb = float(text)
    except ValueError:
        limit_gb = math.nan
    if not limit_gb >= 0:
        fix = f"Set it to a number such as {DEFAULT_LIMIT_GB}, or to 0 to keep no pictures"
        raise RecipeError(f"{CACHE_GB_VARIABLE} is {text!r}, no number of gigabytes", fix)
    return limit_gb * 1e9


def list_cache_entries(parent: Path | None = None) -> list[CacheEntry]:
    """Every shelf in `parent`, or in the user's cache, of any format; the one that was used last first."""
    parents = [parent] if parent else _list_image_dirs()
    folders = [folder for place in parents for folder in _list_dir(place) if STORE_NAME_PATTERN.fullmatch(folder.name)]
    entries = [_read_entry(folder) for folder in folders]
    return sorted([shelf for shelf in entries if shelf], key=lambda shelf: -shelf.last_used)


def clear_image_cache() -> tuple[int, list[CacheEntry]]:
    """Remove every shelf that nobody uses: how many bytes that freed, and the shelves that stay."""
    for image_dir in _list_image_dirs():
        remove_leftovers(image_dir)
    entries = list_cache_entries()
    freed_bytes = sum(shelf.n_bytes for shelf in entries if remove_if_unused(shelf.folder))
    for old_dir in _list_image_dirs()[1:]:
        with suppress(OSError):  # it is not there, or not empty
            old_dir.rmdir()
    return freed_bytes, list_cache_entries()


def _list_image_dirs() -> list[Path]:
    """The folder of all shelves, then those of earlier versions."""
    image_dir = find_image_cache_dir()
    return [image_dir, *map(image_dir.with_name, OLD_IMAGE_DIRS)]


def evict(folder: Path, needed_bytes: int, full_bytes: int, limit: float) -> bool:
    """Remove the shelves used longest ago until this one may grow by `need` bytes; False if it must begin anew.

    `full_bytes`: its size when it is complete; `limit`: the most bytes that it may take with the shelves beside
    it. Raises CannotStoreError where that is too much as well.
    """
    with convert_storage_errors():
        remove_leftovers(folder.parent)
        entries = list_cache_entries(folder.parent)
        total_bytes = sum(shelf.n_bytes for shelf in entries)
        budget_bytes = min(limit, (shutil.disk_usage(folder).free + total_bytes) / 2)
    for entry in reversed(entries):
        if total_bytes + needed_bytes > budget_bytes and remove_if_unused(
            entry.folder
        ):  # never this one, which its caller holds
            total_bytes -= entry.n_bytes
    if total_bytes + needed_bytes <= budget_bytes or not needed_bytes:
        return True
    own_bytes = sum(shelf.n_bytes for shelf in entries if shelf.folder == folder)
    if total_bytes - own_bytes + full_bytes > budget_bytes:
        raise CannotStoreError(f"{full_bytes / 1e6:,.0f} MB are wanted, and {budget_bytes / 1e6:,.0f} MB may be used")
    return False


def _list_dir(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # nothing was ever kept
        return []


def _read_entry(folder: Path) -> CacheEntry | None:
    try:
        size, last_used = int(STORE_NAME_PATTERN.fullmatch(folder.name)[1]), (folder / USE_LOCK_NAME).stat().st_mtime
        return CacheEntry(folder, size, _count_images(folder / INDEX_FILE), measure_bytes(folder), last_used)
    except OSError:  # removed just now
        return None


def _count_images(index: Path) -> int | None:
    try:
        connection = sqlite3.connect(f"{index.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            return connection.execute("SELECT count(*) FROM images").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error:
        return None


@cache
def make_temporary_dir() -> Path:
    """The temporary folder of this process, made when it is first asked for. Raises OSError."""
    folder = Path(tempfile.mkdtemp(prefix="fastcxr-"))
    atexit.register(_remove_in_owner, folder, os.getpid())
    return folder


def _remove_in_owner(folder: Path, owner_pid: int) -> None:
    if os.getpid() == owner_pid:  # a forked worker ends before its parent does
        shutil.rmtree(folder, ignore_errors=True)


try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None


class CannotStoreError(Exception):
    """Pictures cannot be kept in this place; the text says why."""


class NoHomeFolderError(OutputError, CannotStoreError):
    """No folder for the cache, because the user has no home folder."""


class DamagedStoreError(CannotStoreError):
    """What is kept in this place cannot be used, and may be removed."""


@contextmanager
def convert_storage_errors() -> Iterator[None]:
    """Whatever the disk or the index says against it, in this block, becomes a CannotStoreError."""
    try:
        yield
    except sqlite3.OperationalError as error:  # locked for too long, read-only, full
        raise CannotStoreError(str(error)) from error
    except sqlite3.Error as error:
        raise DamagedStoreError(str(error)) from error
    except OSError as error:
        raise CannotStoreError(error.strerror or str(error)) from error


def acquire_shared_lock(folder: Path) -> BinaryIO:
    """Make the folder if need be, and keep it from being removed for as long as the file that comes back is open."""
    while True:
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        folder.parent.mkdir(mode=0o700, exist_ok=True)  # pictures of patients: for their owner alone
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            file = (folder / USE_LOCK_NAME).open("ab")
        except FileNotFoundError:  # removed between the two lines
            continue
        _flock(file, "LOCK_SH")
        if _is_same_file(folder, file):
            os.utime(folder / USE_LOCK_NAME)
            return file
        file.close()


def remove_if_unused(folder: Path) -> bool:
    """Remove a folder that nobody holds; False for one that is in use."""
    removed_dir = folder.with_name(f"{REMOVED_PREFIX}{uuid.uuid4().hex}")
    try:
        if fcntl is None:
            folder.rename(removed_dir)
        else:
            with (folder / USE_LOCK_NAME).open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder.rename(removed_dir)  # in one step: nobody sees half of it
    except OSError:  # in use, or in a place where locks do not work
        return False
    shutil.rmtree(removed_dir, ignore_errors=True)
    return True


def remove_leftovers(parent: Path) -> None:
    """Finish what a process that was killed while removing left behind."""
    for removed_dir in parent.glob(f"{REMOVED_PREFIX}*"):
        shutil.rmtree(removed_dir, ignore_errors=True)


def measure_bytes(folder: Path) -> int:
    """Bytes that a folder takes on the disk."""
    statuses = [path.stat() for path in folder.glob("*") if path.is_file()]
    # blocks are told in units of 512 bytes everywhere; Windows does not tell them
    return sum(getattr(status, "st_blocks", 0) * 512 or status.st_size for status in statuses)


def _flock(file: BinaryIO, operation: str) -> None:
    try:
        if fcntl:
            fcntl.flock(file, getattr(fcntl, operation))
    except OSError:  # some network disks have no locks; there `remove` never succeeds
        pass


def _is_same_file(folder: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), (folder / USE_LOCK_NAME).stat())
    except FileNotFoundError:
        return False
