"""Find the files that a user's table names: by their path, else below the folder of the table by their name."""

import os
import posixpath
import stat
from collections.abc import Iterable
from pathlib import Path

from fastcxr.data.readers.file_index import FileIndex
from fastcxr.errors import DataError
from fastcxr.io.tables import format_names


def find_table_files(cells: Iterable[str], folder: Path) -> list[str | None]:
    """Return the path of each file, relative to `folder` or absolute, or None if there is no such file.

    A path is tried as it is. If that fails, the file may have another or no extension, and if the path has no folder
    that exists, it may be anywhere below `folder`.

    Raises:
        DataError: several files may be meant, or two names lead to one file (E013).
    """
    cells = list(cells)
    path_by_cell = {cell: _find_direct(cell, folder) for cell in dict.fromkeys(cells)}
    if missing := [cell for cell, path in path_by_cell.items() if path is None]:
        found = _search(missing, FileIndex(folder))  # lists the folder, which a table with correct paths does not need
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
    """Return the path below the root of each file, None if there is none; a folder that exists is part of its name."""
    root = f"{index.root.as_posix()}/"
    names = {cell: posixpath.normpath(cell.strip().replace("\\", "/")).removeprefix(root) for cell in cells}
    groups: dict[str, list[str]] = {}
    for cell, name in names.items():
        groups.setdefault(posixpath.dirname(name), []).append(cell)
    found: dict[str, str | None] = {}
    for parent, group in groups.items():
        is_given = bool(parent) and (index.root / parent).is_dir()  # test/1.png is not train/1.png
        paths = index.find([names[cell] for cell in group], below=parent if is_given else "")
        paths = [path if not is_given or posixpath.dirname(path or "") == parent else None for path in paths]
        found |= dict(zip(group, paths, strict=True))
    return found


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
