"""Find the files that a user's table names: by their path, else below the folder of the table."""

import logging
import os
import posixpath
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from fastcxr.data.readers.file_index import FileIndex, get_file_name, normalize_path
from fastcxr.errors import DataError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import format_names

log = logging.getLogger("fastcxr")
ABSOLUTE_PATH = re.compile(r"[/\\]|[a-z]:", re.IGNORECASE)  # also of Windows
MIN_FOUND_FRACTION = 0.5  # of the files of a table whose common folder has moved


def find_table_files(cells: Iterable[str], folder: Path) -> list[str | None]:
    """Return the path of each file, relative to `folder` or absolute, or None if there is no such file.

    A path is tried as it is. If that fails, the file is looked for below `folder` as `FileIndex.find` does: in the
    folders that the path names, or anywhere if it names none.

    Raises:
        DataError: several files may be meant, or two names lead to one file (E013).
    """
    cells = list(cells)
    path_by_cell = {cell: _find_direct(cell, folder) for cell in dict.fromkeys(cells)}
    if missing := [cell for cell, path in path_by_cell.items() if path is None]:
        index = FileIndex(folder)  # lists the folder, which a table with correct paths does not need
        found = _search(missing, index)
        if len(missing) == len(path_by_cell) and not any(found.values()):
            found |= _search_without_folder(missing, index)
        _reject_shared_files(path_by_cell, found, folder)
        path_by_cell |= found
    return [path_by_cell[cell] for cell in cells]


def _find_direct(cell: str, folder: Path) -> str | None:
    spellings = dict.fromkeys((cell, cell.strip(), cell.strip().replace("\\", "/")))
    return next((name for name in spellings if _is_file(os.path.join(folder, name))), None)


def _is_file(path: str) -> bool:
    try:
        return not stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError):  # no such file, no permission, or not a valid file name
        return False


def _search(cells: list[str], index: FileIndex) -> dict[str, str | None]:
    """Return the path below the root of each file, None if there is none."""
    names = [posixpath.normpath(cell.strip().replace("\\", "/")) for cell in cells]
    return dict(zip(cells, index.find(names), strict=True))


def _search_without_folder(cells: list[str], index: FileIndex) -> dict[str, str | None]:
    """Return the path below the root of each file by its name alone, or {} if its folder may matter.

    It does not if all files were in one absolute folder, which is not there, and are now in one folder.
    """
    folder = find_common_folder(cells)
    names = [get_file_name(normalize_path(cell)) for cell in cells]
    if folder is None or len(set(names)) < len(names):
        return {}
    found = dict(zip(cells, index.find(names), strict=True))
    paths = [path for path in found.values() if path is not None]
    parents = {posixpath.dirname(path) for path in paths}
    if len(parents) != 1 or len(paths) < MIN_FOUND_FRACTION * len(cells):
        return {}
    text = "the folder %s of all paths does not exist: %s found by their names in %s"
    log.warning(text, folder, pluralize(len(paths), "file"), index.root / parents.pop())
    return found


def find_common_folder(names: list[str]) -> str | None:
    """Return the absolute folder in which all paths are, or None."""
    folders = {normalize_path(name).rpartition("/")[0] for name in names if ABSOLUTE_PATH.match(name.strip())}
    is_common = len(folders) == 1 and all(ABSOLUTE_PATH.match(name.strip()) for name in names)
    return folders.pop() if is_common else None


def _reject_shared_files(direct: dict[str, str | None], found: dict[str, str | None], folder: Path) -> None:
    """Raise DataError if two names lead to one file, of which at most one can be correct."""
    names_by_file: dict[str, list[str]] = {}
    for cell, path in (direct | found).items():
        if path is not None:
            names_by_file.setdefault(posixpath.normpath(path), []).append(cell)
    for file in filter(None, found.values()):
        if len(names := names_by_file[file]) > 1:
            problem = f"several names in the table may be the file {file}: {format_names(map(repr, names), 5)}"
            raise DataError(problem, "Give the path below the folder in the table", path=folder, code="E013")
