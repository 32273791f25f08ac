"""Splits from outside the labels: lists with the names of the images of a split, and data that is named as a split."""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from fastcxr.data.readers.file_index import get_file_name, get_image_stem, normalize_path
from fastcxr.data.readers.folders import SPLIT_ALIASES, reject_image_pairs
from fastcxr.data.readers.table_columns import find_role_columns, has_role
from fastcxr.data.readers.table_files import find_common_folder
from fastcxr.errors import DataError, InputMissingError, RecipeError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import (
    TEXT_DTYPE,
    find_table_stem,
    format_line_numbers,
    format_names,
    is_blank,
    is_table_name,
    read_table,
    suggest_path,
)

log = logging.getLogger("fastcxr")
LIST_NAME = re.compile(rf"({'|'.join(sorted(SPLIT_ALIASES, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)


def name_split(path: str | Path) -> str | None:
    """Return the split that a table or folder is named for (train of train.csv, valid of val/), else None."""
    path = Path(path)
    return SPLIT_ALIASES.get((find_table_stem(path) or path.name).casefold())


def apply_split_files(rows: pd.DataFrame, files: Sequence[str]) -> pd.DataFrame:
    """Return the rows with the splits of the lists in `files`, and log names and images without a counterpart.

    Args:
        rows: table with `path` and perhaps `split`.
        files: text files with the name of an image on each line, whose own name begins with a split
            (train_val_list.txt: train), or after its split ("test=holdout.txt"); or tables with path and split.
            A name may lack folders or the extension of a path.

    Raises:
        DataError: an image is in two splits (E009), no name or several images match (E032), or a file is unreadable.
        InputMissingError: a file does not exist.
        RecipeError: the split of a file is unknown (E022).
    """
    entries = [
        (position, split, Path(name).name) for text in files for position, split, name in _read_entries(text, rows)
    ]
    given = rows["split"] if "split" in rows else pd.Series(index=rows.index, dtype=TEXT_DTYPE)
    entries += [(position, split, "the data") for position, split in enumerate(given) if isinstance(split, str)]
    split_by_position: dict[int, tuple[str, str]] = {}
    conflicts = []
    for position, split, name in entries:
        first_split, first_name = split_by_position.setdefault(position, (split, name))
        if split != first_split:
            image = rows["path"].iloc[position]
            conflicts.append((f"{image} is {first_split} in {first_name}", f"{split} in {name}"))
    reject_image_pairs(", ".join(files), conflicts, "E009")
    splits = [split_by_position.get(position, (None, ""))[0] for position in range(len(rows))]
    splits = pd.Series(splits, rows.index, dtype=TEXT_DTYPE)
    _log_counts(splits, files)
    return rows.assign(split=splits)


def _read_entries(text: str, rows: pd.DataFrame) -> list[tuple[int, str, str]]:
    """Return the position of each image in a list, its split and the path of the list."""
    split, path = _parse_option(text)
    entries = _read_list(path, split)
    paths = rows["path"].tolist()
    find_images = _make_finder(paths)
    if not any(find_images(name) for name, _ in entries) and find_common_folder([name for name, _ in entries]):
        entries = [(get_file_name(normalize_path(name)), split) for name, split in entries]  # the folder has moved
    found = [(find_images(name), split, name) for name, split in entries]
    for positions, _, name in found:
        if len(positions) > 1:
            problem = f"the name {name!r} fits several images: {format_names((paths[k] for k in positions), 5)}"
            raise DataError(problem, "Give the path of each image as in the data", path=path, code="E032")
    unknown = [name for positions, _, name in found if not positions]
    if len(unknown) == len(found):
        examples = format_names(map(repr, unknown), 3) or "no name"
        problem = f"the split list names no image of the data: it has {examples}, the data {format_names(paths, 1)}"
        raise DataError(problem, "Pass the list of these images, with one name per line", path=path, code="E032")
    if unknown:
        text = "%s: %s of the list are not in the data: %s"
        log.warning(text, path.name, pluralize(len(unknown), "name"), format_names(unknown, 5))
    return [(positions[0], split, str(path)) for positions, split, _ in found if positions]


def _parse_option(text: str) -> tuple[str | None, Path]:
    """Return the split of a list and its path; the split is None for a table that has a column for it."""
    name, separator, file = text.partition("=")
    is_prefixed = bool(separator) and not Path(text).exists()
    path = Path(file if is_prefixed else text).expanduser()
    if is_prefixed and name.strip().casefold() not in SPLIT_ALIASES:
        problem = f"split_file: no split is called {name.strip()!r}"
        raise RecipeError(problem, "Use train, valid or test", code="E022")
    if is_prefixed:
        return SPLIT_ALIASES[name.strip().casefold()], path
    match = LIST_NAME.match(path.name)
    return SPLIT_ALIASES[match[1].casefold()] if match else None, path


def _read_list(path: Path, split: str | None) -> list[tuple[str, str]]:
    """Return the names in a list, each with its split."""
    if is_table_name(path):
        return _read_table_list(path, split)
    if split is None:
        fix = f"Pass its split too, such as `split_file={[f'test={path.name}']}`"
        raise RecipeError(f"the name of {path.name} does not begin with a split", fix, code="E022")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        problem = f"no such file{suggest_path(path)}"
        raise InputMissingError(problem, "Check the name", path=path, code="E001") from error
    except (OSError, UnicodeDecodeError) as error:
        problem = f"the split list cannot be read as text ({type(error).__name__})"
        raise DataError(problem, "Save the file as UTF-8", path=path, code="E010") from error
    return [(name, split) for line in lines if (name := line.strip())]


def _read_table_list(path: Path, split: str | None) -> list[tuple[str, str]]:
    table = read_table(path)
    columns = find_role_columns([name for name in table.columns if has_role([name], "path", "split")], path)
    if "path" not in columns or ("split" not in columns and split is None):
        problem = f"no columns path and split: the columns are {format_names(map(repr, table.columns), 8)}"
        raise DataError(problem, "Name the columns of a split list path and split", path=path, code="E011")
    names = table[columns["path"]].str.strip()
    if "split" not in columns:
        return [(name, split or "") for name in names[~is_blank(names)]]
    splits = table[columns["split"]].str.strip().str.casefold().map(SPLIT_ALIASES)
    if (is_bad := splits.isna()).any():
        problem = f"{is_bad.sum():,} rows have no split or an unknown one ({format_line_numbers(table.index[is_bad])})"
        raise DataError(problem, "Use train, valid or test", path=path, code="E012")
    return list(zip(names, splits, strict=True))


def _make_finder(paths: list[str]) -> Callable[[str], list[int]]:
    """Return a function that finds the positions of the paths that a name denotes."""
    by_name, by_stem = defaultdict(list), defaultdict(list)
    for position, path in enumerate(paths):
        by_name[PurePosixPath(path).name].append(position)
        by_stem[get_image_stem(path)].append(position)

    def find(name: str) -> list[int]:
        name = normalize_path(name)
        for positions, key in ((by_name, get_file_name(name)), (by_stem, get_image_stem(name))):
            fitting = [position for position in positions.get(key, ()) if _have_same_folders(name, paths[position])]
            if fitting:
                return [position for position in fitting if paths[position] == name] or fitting
        return []

    return find


def _have_same_folders(one: str, two: str) -> bool:
    """Return whether the folders of two paths agree as far as both name them: test/1.png is not train/1.png."""
    folders, others = one.split("/")[:-1], two.split("/")[:-1]
    n = min(len(folders), len(others))
    return folders[len(folders) - n :] == others[len(others) - n :]


def _log_counts(splits: pd.Series, files: Sequence[str]) -> None:
    counts = format_names(f"{split} {n:,}" for split, n in splits.value_counts(sort=False).items())
    log.info("splits from %s: %s", format_names(PurePosixPath(name).name for name in files), counts)
    if n_without := int(splits.isna().sum()):
        log.warning("%s without a split: no list names them", pluralize(n_without, "image"))
