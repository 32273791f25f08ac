"""CoronaHack's table and its train/ and test/ come in; a row an image, under its finest certain label, goes out.

The table gives three labels an image: `Label` (Normal or Pnemonia), the kind of pathogen, and for a few its name.
COVID-19 is a class of its own; every other named pathogen counts as its kind, as the table itself does.
"""

import logging
import re
from pathlib import Path

import pandas as pd

from fastcxr.data.readers.csv_table import find_patient, place_files, refuse_repeats, rename_reserved
from fastcxr.data.readers.folders import SPLIT_NAMES, list_folders, list_loose
from fastcxr.errors import DataError
from fastcxr.io.tables import TEXT, is_blank, name_lines, name_some, read_table, texts

log = logging.getLogger("fastcxr")

NAME, LABEL, SPLIT, KIND, VIRUS = COLUMNS = (
    "X_ray_image_name",
    "Label",
    "Dataset_type",
    "Label_1_Virus_category",
    "Label_2_Virus_category",
)
KAGGLE = "Coronahack-Chest-XRay-Dataset"
NESTS = ("", f"{KAGGLE}/{KAGGLE}", KAGGLE)  # Kaggle's archive unpacks into a folder inside a folder of the same name
COARSE = {"normal": "Normal", "pnemonia": "Pneumonia", "pneumonia": "Pneumonia"}
KINDS = {"bacteria": "Bacteria", "virus": "Virus"}
KERMANY = re.compile(r"person\d+_|(NORMAL\d*-)?IM-\d+")  # the Guangzhou children; all others were added from elsewhere


def read_coronahack(path: Path) -> pd.DataFrame:
    """Columns path, label, split, source, file, patient where the table has it, and its two virus categories."""
    table = read_table(path)
    table = table.rename(columns={column: name for name, column in find_patient(table, path).items()})
    table = table.assign(path=table[NAME].str.strip(), label=_read_labels(table, path), split=_read_splits(table, path))
    places = _list_places(path.absolute().parent)
    _say_unlisted(places, set(table["path"]))
    table = rename_reserved(table[table["label"].notna()].drop(columns=[NAME, LABEL, SPLIT]))
    source = table["path"].map(lambda name: "kermany" if KERMANY.match(name) else "other").astype(TEXT)
    found = [_find(name, split, places) for name, split in zip(table["path"], table["split"], strict=True)]
    found = texts(pd.Series(found, index=table.index, dtype="object"))
    fix = "The table names images in train/ and test/ beside it: unpack the whole archive, or remove the rows"
    table = place_files(table.assign(source=source), found, path, fix)
    refuse_repeats(table, path)
    said = {name: texts(table[name].where(~is_blank(table[name]))) for name in (KIND, VIRUS)}
    return table.assign(**said).reset_index(drop=True)


def _read_labels(table: pd.DataFrame, path: Path) -> pd.Series:
    """Normal, Bacteria, Virus or COVID-19; missing where the table says none of them."""
    coarse, kind, virus = (table[name].where(~is_blank(table[name])).str.strip() for name in (LABEL, KIND, VIRUS))
    label, pathogen = coarse.str.casefold().map(COARSE), kind.str.casefold().map(KINDS)
    if (strange := coarse.notna() & label.isna()).any():
        said = name_some(map(repr, sorted(set(coarse[strange]))), 5)
        what = f"{strange.sum():,} rows have a Label that CoronaHack does not know: {said}"
        fix = "Write Normal or Pnemonia, or leave the cell empty"
        raise DataError(f"{what} ({name_lines(table.index[strange])})", fix, path=path, code="E012")
    is_normal, is_covid = label == "Normal", virus.str.casefold() == "covid-19"
    if (torn := is_normal & (kind.notna() | virus.notna())).any():
        what = f"{torn.sum():,} rows are Normal and name a pathogen ({name_lines(table.index[torn])})"
        raise DataError(what, "Correct the Label, or empty the virus categories", path=path, code="E012")
    labels = texts(pathogen.mask(is_covid, "COVID-19").mask(is_normal, "Normal"))
    _say_labels(labels, pd.DataFrame({"label": coarse, "kind": kind, "virus": virus}))
    return labels


def _say_labels(labels: pd.Series, given: pd.DataFrame) -> None:
    folded = given["virus"][labels.isin(list(KINDS.values()))].dropna()
    if len(folded):
        pairs = (folded + " as " + labels[folded.index]).value_counts()
        log.info("CoronaHack: other pathogens that are named count as their kind: %s",
                 name_some(f"{n:,} {pair}" for pair, n in pairs.items()))  # fmt: skip
    lost = given[labels.isna()]
    if len(lost):
        words = lost.apply(lambda row: " ".join(row.dropna()) or "nothing at all", axis=1).value_counts()
        log.warning("CoronaHack: %s rows have no label of Normal, Bacteria, Virus or COVID-19 and are left out: %s",
                    f"{len(lost):,}", name_some(f"{n:,} say {word}" for word, n in words.items()))  # fmt: skip


def _read_splits(table: pd.DataFrame, path: Path) -> pd.Series:
    splits = table[SPLIT].str.strip().str.casefold().map(SPLIT_NAMES)
    if (bad := splits.isna()).any():
        what = f"{bad.sum():,} rows have a {SPLIT} that is neither TRAIN nor TEST ({name_lines(table.index[bad])})"
        raise DataError(what, "Write TRAIN or TEST", path=path, code="E012")
    return texts(splits)


def _list_places(root: Path) -> dict[str, dict[str, str]]:
    """Of train and test, each file name with its path below the root."""
    for nest in NESTS:
        if not (root / nest).is_dir():
            continue
        names = [name for name in list_folders(str(root), nest) if name.casefold() in SPLIT_NAMES]
        folders = {SPLIT_NAMES[name.casefold()]: f"{nest}/{name}".lstrip("/") for name in names}
        if folders:
            return {split: {name: f"{folder}/{name}" for name in list_loose(str(root), folder)}
                    for split, folder in folders.items()}  # fmt: skip
    return {}


def _find(name: str, split: str, places: dict[str, dict[str, str]]) -> str | None:
    """Where the table says, and nowhere else: of an image in the other folder nobody knows which is right."""
    return places.get(split, {}).get(name)


def _say_unlisted(places: dict[str, dict[str, str]], listed: set[str]) -> None:
    names = sorted(path for files in places.values() for name, path in files.items() if name not in listed)
    if names:
        log.info("CoronaHack: %s files are not in the table, so they have no label and are left out: %s",
                 f"{len(names):,}", name_some(names, 5))  # fmt: skip
