"""A person's table of paths and labels comes in; one row and one label an image, or an error, goes out."""

import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from fastcxr.data.patients import FILE_NAMES, PATIENT_NAMES
from fastcxr.data.readers.folders import SPLIT_NAMES, identify, refuse_pairs, refuse_undecodable
from fastcxr.errors import DataError, InputMissingError
from fastcxr.io.tables import NOBODY, TEXT, find_column, is_blank, name_lines, name_some, read_table, suggest, texts

log = logging.getLogger("fastcxr")

LABEL_NAMES = ("label", "labels", "class", "finding", "findinglabels", "diagnosis", "target", "category")
COLUMNS = ("path", "label", "patient", "source", "split")
RESERVED = {"file", "predicted", "error", "strangeness", "like_training", "patient_from", "split_from"}
SEVERAL = "this table gives several labels an image; fastcxr trains one label an image (kind: single_label)"
ONE_LABEL = "Give one label column with one label in each cell, and leave out images that have several"


def read_labelled(path: str | Path) -> pd.DataFrame:
    """Columns path, label, split and file, patient and source where the table has them, and its further ones."""
    path = Path(path)
    table = read_table(path)
    columns = _find_columns(table, path)
    if table.empty:
        raise InputMissingError("0 images: a header without rows", "Give a row for each image", path=path, code="E002")
    table = rename_reserved(table.rename(columns={name: wanted for wanted, name in columns.items()}))
    _refuse_cells(table, path)
    table = table.assign(label=table["label"].str.strip(), split=_read_splits(table, path))
    _refuse_several(table, path)
    table = _find_files(table, path)
    refuse_repeats(table, path)
    further = [name for name in table.columns if name not in {*COLUMNS, "file"}]
    table = table.assign(**{name: texts(table[name].where(~is_blank(table[name], {""}))) for name in further})
    return table.reset_index(drop=True)


def _find_columns(table: pd.DataFrame, path: Path) -> dict[str, str]:
    """Which column of the table is which of ours."""
    columns = {name: column for name in COLUMNS if (column := find_column(table.columns, [name]))}
    if "label" not in columns:
        _refuse_indicators(table, path)
    for name, aliases in (("path", FILE_NAMES), ("label", LABEL_NAMES)):
        if name not in columns:
            what = f"no column called {name}{suggest(name, table.columns, aliases)}"
            raise DataError(what, f"Rename the column that holds it to {name}", path=path, code="E011")
    if "patient" not in columns:
        columns |= find_patient(table, path)
    for name in COLUMNS:
        if name not in columns and (near := suggest(name, set(table.columns) - set(columns.values()))):
            log.warning("%s: no column called %s%s It is not used", path.name, name, near)
    return columns


def find_patient(table: pd.DataFrame, path: Path) -> dict[str, str]:
    """The column that names patients under another name, as {"patient": column}, said aloud; {} if there is none."""
    named = [column for name in PATIENT_NAMES[1:] if (column := find_column(table.columns, [name]))]
    if len(named) > 1:
        what = f"several columns could be the patient: {name_some(map(repr, named))}"
        raise DataError(what, "Rename the right one to patient", path=path, code="E011")
    if named:
        log.info("%s: the column %r is taken as the patient", path.name, named[0])
    return {"patient": named[0]} if named else {}


def rename_reserved(table: pd.DataFrame) -> pd.DataFrame:
    """Columns under names that fastcxr writes itself become given_<name>."""
    taken = {name: name for name in table.columns if name in RESERVED or name.startswith("prob_")}
    for name in taken:
        while taken[name] in table.columns:
            taken[name] = f"given_{taken[name]}"
    if taken:
        log.info("columns renamed: %s", name_some(f"{old} to {new}" for old, new in taken.items()))
    return table.rename(columns=taken)


def _refuse_cells(table: pd.DataFrame, path: Path) -> None:
    for name in ("path", "label"):
        if (blank := is_blank(table[name])).any():
            what = f"{blank.sum():,} rows have no {name} ({name_lines(table.index[blank])})"
            raise DataError(what, f"Fill in every {name}, or remove the rows", path=path, code="E012")


def _read_splits(table: pd.DataFrame, path: Path) -> pd.Series:
    if "split" not in table:
        return pd.Series(index=table.index, dtype=TEXT)
    names = table["split"].str.strip().str.casefold()
    blank = is_blank(names, NOBODY)
    splits = texts(names.map(SPLIT_NAMES).where(~blank))
    if (bad := splits.isna() & ~blank).any():
        said = name_some(map(repr, sorted(set(table.loc[bad, "split"]))), 5)
        what = f"{bad.sum():,} rows have no split that is known: {said} ({name_lines(table.index[bad])})"
        raise DataError(what, "Call each train, valid or test", path=path, code="E012")
    return splits


def _refuse_indicators(table: pd.DataFrame, path: Path) -> None:
    """Refuse a table with a column of 0 and 1 for each finding."""
    marks = {"0", "1", "0.0", "1.0", "-1", "-1.0"}
    names = [name for name in table.columns if _is_within(table[name], marks)]
    if len(names) > 1:
        what = f"{SEVERAL}. No column is called label, and {name_some(map(repr, names), 5)} hold 0 and 1"
        raise DataError(what, ONE_LABEL, path=path, code="E015")


def _is_within(cells: pd.Series, values: set[str]) -> bool:
    said = set(cells[~is_blank(cells)].str.strip())
    return bool(said) and said <= values


def _refuse_several(table: pd.DataFrame, path: Path) -> None:
    """Refuse cells such as `A|B`; a comma or a slash separates only labels that stand alone elsewhere."""
    labels = set(table["label"])
    several = {label for label in labels if _is_several(label, labels)}
    if (bad := table["label"].isin(several)).any():
        said = name_some(map(repr, sorted(several)), 5)
        raise DataError(f"{SEVERAL}: {said} ({name_lines(table.index[bad])})", ONE_LABEL, path=path, code="E015")


def _is_several(label: str, labels: set[str]) -> bool:
    pieces = [piece.strip() for piece in re.split(r"[|;]", label)]
    if len(pieces) > 1:
        return True
    pieces = [piece.strip() for piece in re.split(r"[,/+&]", label)]
    return len(pieces) > 1 and set(pieces) <= labels


def _find_files(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The path of each row as it is on disk, and its file. Raises DataError with every line whose file is not there."""
    folder = path.absolute().parent
    found = table["path"].map(lambda cell: _find_file(cell, folder))
    return place_files(table, found, path, f"Paths are looked up from {folder}: correct them, or remove the rows")


def place_files(table: pd.DataFrame, found: pd.Series, path: Path, fix: str) -> pd.DataFrame:
    """The table with `path` as found below its folder, and `file`. Raises DataError with the lines of all missing."""
    if (missing := found.isna()).any():
        names = name_some(map(repr, table.loc[missing, "path"]), 5)
        what = f"{missing.sum():,} files are not there: {names} ({name_lines(table.index[missing])})"
        raise DataError(what, fix, path=path, code="E013")
    refuse_undecodable(path, found)
    folder = path.absolute().parent
    return table.assign(path=found, file=[str(folder / name) for name in found])


def _find_file(cell: str, folder: Path) -> str | None:
    spellings = (cell, cell.strip(), cell.strip().replace("\\", "/"))
    return next((name for name in spellings if _exists(folder / name)), None)


def _exists(file: Path) -> bool:
    try:
        return file.exists()
    except (OSError, ValueError):  # no right to look, or no possible name
        return False


def refuse_repeats(table: pd.DataFrame, path: Path) -> None:
    """Each image once: no second label, no second split, no second row."""
    key = table["file"].map(identify)
    rows = table.assign(key=key)[key.duplicated(keep=False)]
    groups = rows.groupby("key", sort=False)
    _refuse_rows(rows[groups["label"].transform("nunique") > 1], path)
    torn = rows[groups["split"].transform(lambda splits: splits.fillna("").nunique()) > 1]
    refuse_pairs(path, _pair(torn, lambda row: f"line {row.Index} {row.split} {row.path}"), "E009")
    if len(rows):
        lines = name_lines(rows.index)
        what = f"{len(rows):,} rows repeat an image ({lines})"
        raise DataError(what, "Keep one row an image", path=path, code="E014")


def _refuse_rows(torn: pd.DataFrame, path: Path) -> None:
    """Refuse images with two labels, under one name or under two."""
    if torn.empty:
        return
    if (torn.groupby("key")["path"].nunique() == 1).all():
        named = name_some(dict.fromkeys(torn["path"]), 5)
        raise DataError(f"{SEVERAL}: {named} ({name_lines(torn.index)})", ONE_LABEL, path=path, code="E015")
    refuse_pairs(path, _pair(torn, lambda row: f"line {row.Index} {row.label} {row.path}"), "E008")


def _pair(rows: pd.DataFrame, name: Callable) -> list[tuple[str, str]]:
    groups: Iterable = (list(map(name, group.itertuples())) for _, group in rows.groupby("key", sort=False))
    return [(group[0], other) for group in groups for other in group[1:]]
