"""Where pictures are kept, how many bytes they may take, and which of them go first.

`$XDG_CACHE_HOME/fastcxr/pictures` holds a shelf for each size and reader. FASTCXR_CACHE_LIMIT says how many GB pictures
and the banks of features beside them may take; half of the disk that would be free without them is the most anyway.
"""

import hashlib
import math
import os
import re
import shutil
import sqlite3
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from PIL import features

from fastcxr.data.cache.folders import LOCK, CannotStoreError, measure, remove, storing, sweep
from fastcxr.data.cache.passing import passing_folder
from fastcxr.data.cache.shelf import INDEX
from fastcxr.data.images import READER_VERSION
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
