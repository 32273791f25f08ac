"""Find copies of a dataset inside it, as some archives contain, and leave them out."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from fastcxr.data.imaging.sniff import IMAGE_SUFFIXES
from fastcxr.data.readers.folders import list_folders, list_loose_files
from fastcxr.data.readers.masks import is_mask_folder
from fastcxr.data.readers.visible_files import enter_only_folders, iterate_files
from fastcxr.errors import DataError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import format_names

log = logging.getLogger("fastcxr")
MIN_SIBLINGS = 2  # folders of a copy that have the names of those beside it
MAX_SEARCHED = 200  # more folders are no classes


def find_copies(root: Path, names: Sequence[str]) -> dict[str, Path]:
    """Return the folders that contain folders with the names of those beside them, each with the folder of these.

    Args:
        root: folder above the folders.
        names: folders to search.
    """
    copies: dict[str, Path] = {}
    for name in names if MIN_SIBLINGS < len(names) <= MAX_SEARCHED else ():
        siblings = {other.casefold() for other in names if other != name and not is_mask_folder(other)}
        folder = enter_only_folders(root / name)
        if _has_images(root / name) or _is_link(root, folder):  # a class, perhaps with a link to the data folder
            continue
        if len(siblings & {inner.casefold() for inner in list_folders(str(folder))}) >= MIN_SIBLINGS:
            copies[name] = folder
    return copies


def _has_images(folder: Path) -> bool:
    return any(name.casefold().endswith(IMAGE_SUFFIXES) for name in list_loose_files(str(folder)))


def _is_link(root: Path, folder: Path) -> bool:
    """Return whether a folder below the root is reached through a link."""
    return folder.resolve() != root.resolve() / folder.relative_to(root)


def leave_out_copies(root: Path, names: Sequence[str]) -> list[str]:
    """Return the names without those of copies, and log the number of their files.

    Raises:
        DataError: a file of a copy is not in the original, or has another size (E019).
    """
    copies = find_copies(root, names)
    originals = [name for name in names if name not in copies]
    for name, folder in copies.items():
        inner = [found for found in list_folders(str(folder)) if found not in copies]
        copied = _read_sizes(folder, inner)
        different = copied.items() - _read_sizes(root, originals).items()
        reject_difference(root, folder, (path for path, _ in different))
        log.info("left out %s of the folder %s, a copy of the others", pluralize(len(copied), "file"), name)
    return originals


def reject_difference(root: Path, copy: Path, paths: Iterable[str]) -> None:
    """Raise DataError (E019) with the paths, if any, in which a copy inside a dataset differs from it."""
    if different := sorted(paths):
        name = copy.relative_to(root).as_posix()
        problem = f"the inner folder {name} differs from the outer one in {pluralize(len(different), 'file')}"
        fix = f"Remove one of the two, or pass `data={str(copy)!r}`"
        raise DataError(f"{problem} ({format_names(different, 3)})", fix, path=root, code="E019")


def _read_sizes(root: Path, folders: Iterable[str]) -> dict[str, int]:
    """Return the size [bytes] of each file below some folders of the root, by its path in lower case."""
    files = (Path(file) for folder in folders for file in iterate_files(root / folder))
    return {file.relative_to(root).as_posix().casefold(): file.stat().st_size for file in files}
