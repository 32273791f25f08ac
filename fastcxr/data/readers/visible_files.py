"""Walk through the visible folders and files below a folder without masks, for detection: links are not resolved."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from fastcxr.data.imaging.sniff import IMAGE_SUFFIXES, looks_like_image
from fastcxr.data.readers.folders import find_split_folders, is_hidden, list_folders, list_loose_files
from fastcxr.data.readers.masks import find_masks, is_mask_folder
from fastcxr.io.tables import is_table_name

MAX_DEPTH = 3  # of folders that each contain only the next one
MAX_FIRST = 3  # images of a folder that iterate_first_files yields


def enter_only_folders(folder: Path) -> Path:
    """Return the first folder with several folders, of up to three that each contain only the next, else `folder`."""
    inner = folder
    for _ in range(MAX_DEPTH):
        names = list_folders(str(inner))
        if len(names) != 1:
            return inner if len(names) > 1 else folder
        inner /= names[0]
    return inner if len(list_folders(str(inner))) > 1 else folder


def list_only_folders(path: Path) -> list[Path]:
    """Return the path and up to three folders inside it of which each is the only one, besides masks and documents.

    A folder with a table or an image beside it is not the only content.
    """
    paths = [path]
    while len(paths) <= MAX_DEPTH and paths[-1].is_dir():
        names = [name for name in list_folders(str(paths[-1])) if not is_mask_folder(name)]
        if len(names) != 1 or find_split_folders(names) or any(map(_is_content, list_loose_files(str(paths[-1])))):
            break
        paths.append(paths[-1] / names[0])
    return paths


def _is_content(name: str) -> bool:
    return is_table_name(name) or name.casefold().endswith(IMAGE_SUFFIXES)


def iterate_files(folder: Path) -> Iterator[str]:
    """Yield the paths of the visible files below a folder in a fixed order, without masks."""
    for parent, _, files in _walk(folder):
        yield from (f"{parent}/{name}" for name in files)


def iterate_first_files(folder: Path) -> Iterator[str]:
    """Yield the paths of three images of each folder below a folder; of folders with the same name, those of one."""
    names = set()
    for parent, _, files in _walk(folder):
        images = islice((path for name in files if looks_like_image(path := f"{parent}/{name}")), MAX_FIRST)
        if (name := os.path.basename(parent)) not in names:
            found = list(images)
            names |= {name} if found else set()
            yield from found


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each folder with its visible subfolders and files, sorted, without masks."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name) and not is_mask_folder(name))
        yield parent, folders, sorted({name for name in files if not is_hidden(name)} - find_masks(files))
