"""Where pictures are kept, how many bytes they may take, and which of them go first.

`$XDG_CACHE_HOME/fastcxr/pictures` holds a shelf for each size and reader. FASTCXR_CACHE_LIMIT says how many GB pictures
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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

from PIL import features

from fastcxr.data.cache.index import INDEX
from fastcxr.data.imaging.read import READER_VERSION
from fastcxr.errors import RecipeError

VARIABLE, DEFAULT = "FASTCXR_CACHE_LIMIT", "20"
SHARE_OF_PICTURES = 0.75  # of the limit; the banks have the rest
DECODERS = (
    "pillow",
    "pydicom",
    "python-gdcm",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "pyjpegls",
)
FORMAT = 2  # raise it when the tables of the index change: shelves of another format are not read
NAME = re.compile(r"(\d+)px-.*")
LOCK = "lock"  # held by everyone who uses the folder; its time is that of the last use
GONE = ".gone-"


@dataclass(frozen=True)
class Kept:
    """A shelf as `fastcxr cache` shows it."""

    folder: Path
    size: int
    images: int | None  # None: its index cannot be read
    bytes: int
    used: float  # seconds since 1970


@dataclass(frozen=True)
class Cache:
    """A folder for shelves and banks, and the most bytes that they may take together."""

    folder: Path
    limit: float

    @property
    def pictures(self) -> Path:
        """The folder of all shelves."""
        return self.folder / "pictures"

    @property
    def features(self) -> Path:
        """The folder of all banks."""
        return self.folder / "features"


def own_cache() -> Cache:
    """The user's, where things are kept for later runs. Raises CannotStoreError for a limit of nothing."""
    limit = find_limit()
    if not limit:
        raise CannotStoreError(f"{VARIABLE} is 0")
    return Cache(pictures_folder().parent, limit)


def passing_cache() -> Cache:
    """The one that goes with this process, bounded by the disk alone. Raises CannotStoreError."""
    with storing():
        return Cache(passing_folder(), math.inf)


def pictures_folder() -> Path:
    """The folder of all shelves that are kept."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise CannotStoreError("this user has no home folder") from error
    return cache / "fastcxr" / "pictures"


def shelf_folder(size: int) -> Path:
    """The shelf of a size, for pictures as they are read here and now."""
    return pictures_folder() / name_shelf(size)


def name_shelf(size: int) -> str:
    """What the shelf of a size is called wherever it lies."""
    return f"{size}px-format{FORMAT}-reader{READER_VERSION}-{_name_decoders()}"


def _name_decoders() -> str:
    """A word that changes with the libraries that decode: another release may round a JPEG otherwise."""
    versions = [str(features.version("libjpeg_turbo"))]
    for name in DECODERS:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return hashlib.sha256(", ".join(versions).encode()).hexdigest()[:8]


def find_limit() -> float:
    """The most bytes that shelves and banks may take together, as the user said it; 0 for none. Raises RecipeError."""
    words = os.environ.get(VARIABLE) or DEFAULT
    try:
        limit = float(words)
    except ValueError:
        limit = math.nan
    if not limit >= 0:
        fix = f"Set it to a number such as {DEFAULT}, or to 0 to keep no pictures"
        raise RecipeError(f"{VARIABLE} is {words!r}, no number of gigabytes", fix)
    return limit * 1e9


def list_kept(parent: Path | None = None) -> list[Kept]:
    """Every shelf in `parent`, or in the user's cache, the one that was used last first."""
    folders = [folder for folder in _glob(parent or pictures_folder()) if NAME.fullmatch(folder.name)]
    kept = [_describe(folder) for folder in folders]
    return sorted([shelf for shelf in kept if shelf], key=lambda shelf: -shelf.used)


def clear() -> tuple[int, list[Kept]]:
    """Remove every shelf that nobody uses: how many bytes that freed, and the shelves that stay."""
    sweep(pictures_folder())
    kept = list_kept()
    freed = sum(shelf.bytes for shelf in kept if remove(shelf.folder))
    return freed, list_kept()


def make_room(folder: Path, need: int, whole: int, limit: float) -> bool:
    """Remove the shelves used longest ago until this one may grow by `need` bytes; False if it must begin anew.

    `whole`: what it would grow to if it began anew; `limit`: the most bytes that it may take with the shelves beside
    it. Raises CannotStoreError where that is too much as well.
    """
    with storing():
        sweep(folder.parent)
        kept = list_kept(folder.parent)
        total = sum(shelf.bytes for shelf in kept)
        budget = min(limit, (shutil.disk_usage(folder).free + total) / 2)
    for shelf in reversed(kept):
        if total + need > budget and remove(shelf.folder):  # never this one, which its caller holds
            total -= shelf.bytes
    if total + need <= budget or not need:
        return True
    own = sum(shelf.bytes for shelf in kept if shelf.folder == folder)
    if total - own + whole > budget:
        raise CannotStoreError(f"{whole / 1e6:,.0f} MB are wanted, and {budget / 1e6:,.0f} MB may be used")
    return False


def _glob(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # nothing was ever kept
        return []


def _describe(folder: Path) -> Kept | None:
    try:
        size, used = int(NAME.fullmatch(folder.name)[1]), (folder / LOCK).stat().st_mtime
        return Kept(folder, size, _count(folder / INDEX), measure(folder), used)
    except OSError:  # removed just now
        return None


def _count(index: Path) -> int | None:
    try:
        base = sqlite3.connect(f"{index.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
        try:
            return base.execute("SELECT count(*) FROM squares").fetchone()[0]
        finally:
            base.close()
    except sqlite3.Error:
        return None


@cache
def passing_folder() -> Path:
    """The temporary folder of this process, made when it is first asked for. Raises OSError."""
    folder = Path(tempfile.mkdtemp(prefix="fastcxr-"))
    atexit.register(_remove_own, folder, os.getpid())
    return folder


def _remove_own(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked worker ends before its parent does
        shutil.rmtree(folder, ignore_errors=True)


try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed anyway
    fcntl = None


class CannotStoreError(Exception):
    """Pictures cannot be kept in this place; the text says why."""


class DamagedStoreError(CannotStoreError):
    """What is kept in this place cannot be used, and may be removed."""


@contextmanager
def storing() -> Iterator[None]:
    """Whatever the disk or the index says against it, in this block, becomes a CannotStoreError."""
    try:
        yield
    except sqlite3.OperationalError as error:  # locked for too long, read-only, full
        raise CannotStoreError(str(error)) from error
    except sqlite3.Error as error:
        raise DamagedStoreError(str(error)) from error
    except OSError as error:
        raise CannotStoreError(error.strerror or str(error)) from error


def hold(folder: Path) -> BinaryIO:
    """Make the folder if need be, and keep it from being removed for as long as the file that comes back is open."""
    while True:
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        folder.parent.mkdir(mode=0o700, exist_ok=True)  # pictures of patients: for their owner alone
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            file = (folder / LOCK).open("ab")
        except FileNotFoundError:  # removed between the two lines
            continue
        _lock(file, "LOCK_SH")
        if _is_still(folder, file):
            os.utime(folder / LOCK)
            return file
        file.close()


def remove(folder: Path) -> bool:
    """Remove a folder that nobody holds; False for one that is in use."""
    gone = folder.with_name(f"{GONE}{uuid.uuid4().hex}")
    try:
        if fcntl is None:
            folder.rename(gone)
        else:
            with (folder / LOCK).open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder.rename(gone)  # in one step: nobody sees half of it
    except OSError:  # in use, or in a place where locks do not work
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True


def sweep(parent: Path) -> None:
    """Finish what a process that was killed while removing left behind."""
    for gone in parent.glob(f"{GONE}*"):
        shutil.rmtree(gone, ignore_errors=True)


def measure(folder: Path) -> int:
    """Bytes that a folder takes on the disk."""
    statuses = [path.stat() for path in folder.glob("*") if path.is_file()]
    # blocks are told in units of 512 bytes everywhere; Windows does not tell them
    return sum(getattr(status, "st_blocks", 0) * 512 or status.st_size for status in statuses)


def _lock(file: BinaryIO, kind: str) -> None:
    try:
        if fcntl:
            fcntl.flock(file, getattr(fcntl, kind))
    except OSError:  # some network disks have no locks; there `remove` never succeeds
        pass


def _is_still(folder: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat())
    except FileNotFoundError:
        return False
