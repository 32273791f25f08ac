"""Index of the files below a folder: find the file of each table row by path, by file name or without its extension."""

from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

from fastcxr.data.imaging.sniff import IMAGE_SUFFIXES
from fastcxr.data.readers.folders import is_mask_folder, list_files_below
from fastcxr.errors import DataError
from fastcxr.io.tables import format_names


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
    def _known_folders(self) -> frozenset[str]:
        return frozenset(path.rpartition("/")[0] for path in self.paths)

    @cached_property
    def _paths_by_stem(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for path in self.paths:
            groups.setdefault(get_image_stem(path).casefold(), []).append(path)
        return groups

    def find(self, names: Iterable[str], *, any_folder: bool = False) -> list[str | None]:
        """Return the path of each name, or None if there is no such file.

        A name with folders is found only in these folders: at a path that ends with them, or below the root if the
        name begins with folders above it (`/old/set/a/1.png` is a/1.png). A name without folders may be anywhere,
        except in mask folders. Without a file of exactly this name, that with another or no extension is found, then
        one that differs in upper and lower case only.

        Args:
            names: paths or file names, as in a table.
            any_folder: whether the file name alone identifies an image, as in many public datasets: an image that is
                not in the folders of its name may then be in any other folder.

        Raises:
            DataError: several files have the name (E013).
        """
        return [self._find_one(name, any_folder) for name in names]

    def _find_one(self, name: str, any_folder: bool) -> str | None:
        path = normalize_path(name)
        if path in self._known_paths:
            return path
        candidates = self._find_candidates(path)
        if not candidates and any_folder:
            candidates = self._find_candidates(get_file_name(path))
        if len(candidates) > 1:
            problem = f"several files may be {name!r}: {format_names(candidates, 5)}"
            raise DataError(problem, "Give the path below the folder in the table", path=self.root, code="E013")
        return candidates[0] if candidates else None

    def _find_candidates(self, path: str) -> list[str]:
        """Return the paths that fit best: by the exact name, else by the stem, else by the stem in any case."""
        candidates = self._paths_by_stem.get(get_image_stem(path).casefold(), ())
        for make_key, fold in ((get_file_name, str), (get_image_stem, str), (get_image_stem, str.casefold)):
            key = fold(make_key(path))
            ranks = {name: self._rank(path, name, fold) for name in candidates if fold(make_key(name)) == key}
            if best := max(ranks.values(), default=0):
                return [name for name, rank in ranks.items() if rank == best]
        return []

    def _rank(self, path: str, candidate: str, fold: Callable[[str], str]) -> int:
        """Return one more than the number of folders that agree, or 0 if a candidate is not in the folders of a path.

        Folders are compared as `fold` returns them.
        """
        parent = path.rpartition("/")[0]
        given, folders = fold(path).split("/")[:-1], fold(candidate).split("/")[:-1]
        if parent in self._known_folders and parent and given != folders:  # test/1.png is not old/test/1.png
            return 0
        n_given, n_folders = len(given), len(folders)
        if any(map(is_mask_folder, folders[: max(0, n_folders - n_given)])):
            return 0
        root = [fold(part) for part in self.root.parts]
        is_below = [*root, *folders][len(root) + n_folders - n_given :] == given
        is_moved = n_folders > 0 and given[-n_folders:] == folders
        is_moved = is_moved or given[-n_folders - 1 :] == [root[-1], *folders]
        return (is_below or is_moved) * (1 + min(n_given, n_folders))


def normalize_path(name: str) -> str:
    """Return a path of a table with slashes, without empty parts."""
    return "/".join(part for part in name.strip().replace("\\", "/").split("/") if part not in ("", "."))


def get_file_name(path: str) -> str:
    """Return the last part of a path."""
    return path.rpartition("/")[2]


def get_image_stem(path: str) -> str:
    """Return the file name without the suffix of an image: a name such as 1.2.840 has no suffix."""
    stem, dot, suffix = get_file_name(path).rpartition(".")
    return stem if stem and f"{dot}{suffix}".casefold() in IMAGE_SUFFIXES else get_file_name(path)
