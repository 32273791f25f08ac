"""Index of the files below a folder: find the file of each table row by path, by file name or without its extension."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from fastcxr.data.readers.folders import list_files_below
from fastcxr.errors import DataError
from fastcxr.io.tables import format_names

OTHER_SUFFIXES = {
    ".csv",
    ".gz",
    ".htm",
    ".html",
    ".json",
    ".jsonl",
    ".md",
    ".npy",
    ".pdf",
    ".tsv",
    ".txt",
    ".xlsx",
    ".xml",
}


class FileIndex:
    """Files of a folder and its subfolders, listed once; hidden files and output folders of fastcxr are left out.

    Paths are relative to `root`, with slashes. No file is opened.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root).absolute()

    @cached_property
    def paths(self) -> list[str]:
        """Paths of all files, sorted."""
        return list_files_below(self.root)

    @cached_property
    def _known_paths(self) -> frozenset[str]:
        return frozenset(self.paths)

    @cached_property
    def _paths_by_name(self) -> dict[str, list[str]]:
        return _group_paths(self.paths, lambda path: path.rpartition("/")[2])

    @cached_property
    def _image_paths_by_stem(self) -> dict[str, list[str]]:
        paths = (path for path in self.paths if PurePosixPath(path).suffix.casefold() not in OTHER_SUFFIXES)
        return _group_paths(paths, lambda path: PurePosixPath(path).stem)

    def find(self, names: Iterable[str], *, below: str = "") -> list[str | None]:
        """Return the path of each name, or None if there is no such file.

        A name is looked for as a path below the root (also without its first folders, which may be those above the
        root), then as the only file of this name, then as the only one of this name with another or no extension.

        Args:
            names: paths or file names, as in a table.
            below: folder below the root to which the search by file name is limited.

        Raises:
            DataError: several files have the name (E013).
        """
        prefix = f"{below.strip('/')}/" if below else ""
        return [self._find_one(name, prefix) for name in names]

    def _find_one(self, name: str, prefix: str) -> str | None:
        path = name.strip().replace("\\", "/").removeprefix("./")
        shorter = path
        while shorter:
            for candidate in (prefix + shorter, shorter):
                if candidate in self._known_paths:
                    return candidate
            shorter = shorter.partition("/")[2]
        for same_name in self._list_candidates(path.rstrip("/")):
            candidates = [candidate for candidate in same_name if candidate.startswith(prefix)]
            if len(candidates) > 1:
                problem = f"several files may be {name!r}: {format_names(candidates, 5)}"
                raise DataError(problem, "Give the path below the folder in the table", path=self.root, code="E013")
            if candidates:
                return candidates[0]
        return None

    def _list_candidates(self, path: str) -> Iterator[list[str]]:
        """Yield the files with the name of a path, then those with its stem, which are indexed only if needed."""
        name = path.rpartition("/")[2]
        yield self._paths_by_name.get(name, [])
        yield self._image_paths_by_stem.get(name.rpartition(".")[0] or name, [])
        yield self._image_paths_by_stem.get(name, [])  # a name without extension may contain dots


def _group_paths(paths: Iterable[str], make_key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(make_key(path), []).append(path)
    return groups
