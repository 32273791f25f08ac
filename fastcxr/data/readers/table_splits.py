"""Find the splits of a user's table that has no column called split: in another column, or in the paths."""

import logging
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.file_index import normalize_path
from fastcxr.data.readers.folders import SPLIT_ALIASES
from fastcxr.errors import DataError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import MISSING_VALUES, TEXT_DTYPE, format_names, is_blank, to_text

log = logging.getLogger("fastcxr")
MIN_SPLIT_FRACTION = 0.5  # of the cells or paths that name a split; with fewer, the names mean something else


def find_split_column(table: pd.DataFrame, without: Iterable[str], path: Path) -> dict[str, str]:
    """Return {"split": column} for the column whose cells all name a split, and log it; {} if there is none.

    A column of which only some cells name a split is not used, with a warning.

    Raises:
        DataError: several columns give different splits (E029).
    """
    found: dict[str, pd.Series] = {}
    for name in table.columns.difference(list(without), sort=False):
        cells = table[name][~is_blank(table[name], MISSING_VALUES)]
        splits = _parse_names(cells)
        if len(cells) and splits.notna().all():
            found[name] = splits
        elif len(cells) and splits.notna().mean() >= MIN_SPLIT_FRACTION:
            others = format_names(sorted(set(map(repr, cells[splits.isna()]))), 3)
            text = (
                "%s: the column %r is not used as split, because of the values %s. Use train, valid or test in all rows"
            )
            log.warning(text, path.name, name, others)
    if not found:
        return {}
    first, *_ = found
    if any(not splits.equals(found[first]) for splits in found.values()):
        problem = f"several columns may contain the split: {format_names(map(repr, found))}"
        raise DataError(problem, f"Pass `columns={[f'split={first}']}`", path=path, code="E029")
    log.info("%s: split from %s, whose cells name splits", path.name, first)
    return {"split": first}


def find_path_splits(paths: pd.Series, path: Path) -> pd.Series:
    """Return the split of each path with a folder such as train/ at the same depth, and log it; else missing splits.

    All paths must have such a folder, and together at least two splits. Otherwise a warning names the folders.
    """
    folders = paths.map(normalize_path).str.rpartition("/")[0].str.split("/", expand=True)
    for depth in folders.columns:
        splits = _parse_names(folders[depth])
        names = format_names((f"{name}/" for name in sorted(set(folders[depth][splits.notna()]))), 5)
        if splits.nunique() > 1 and splits.notna().all():
            log.info("%s: splits from the folders %s of the paths", path.name, names)
            return splits
        if splits.nunique() > 1 and splits.notna().mean() >= MIN_SPLIT_FRACTION:
            text = "%s: %s in the folders %s, which are not used as splits, because other paths are not. %s"
            count = pluralize(int(splits.notna().sum()), "path is", "paths are")
            log.warning(text, path.name, count, names, "Add a column split to use them")
    return pd.Series(index=paths.index, dtype=TEXT_DTYPE)


def _parse_names(cells: pd.Series) -> pd.Series:
    return to_text(cells.str.strip().str.casefold().map(SPLIT_ALIASES))
