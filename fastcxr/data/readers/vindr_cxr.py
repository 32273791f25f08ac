"""Reader of VinDr-CXR (PhysioNet) and of its training images in the VinBigData challenge (Kaggle, 2021).

Nguyen HQ, Lam K, Le LT, et al. VinDr-CXR: An open dataset of chest X-rays with radiologist's annotations.
arXiv:2012.15029, 2020.

Access: https://physionet.org/content/vindr-cxr/1.0.0/ for credentialed users; Kaggle,
https://www.kaggle.com/c/vinbigdata-chest-xray-abnormalities-detection

Traps:
- Three readers label each training image, and disagree on many. The label variant states how they are joined; the test
  images of VinDr-CXR have one consensus.
- An image on which each reader reports something else has neither a finding nor "No finding" by majority: its label is
  blank, and all its findings are 0.
- The images of VinBigData are the training images of VinDr-CXR. Its test labels are not published.
- Files are named .dicom. No patient is published, and sex, age and view are only in the DICOM headers.
"""

import logging
from pathlib import Path

import pandas as pd

from fastcxr.data.findings import (
    FINDING_DTYPE,
    FINDING_PREFIX,
    NO_FINDING,
    list_findings,
    make_finding_labels,
    parse_finding_columns,
)
from fastcxr.data.readers.csv_table import reject_rows
from fastcxr.data.readers.file_index import FileIndex
from fastcxr.data.readers.public import TABLE_COUNTS, PublicDataset, ReaderOptions
from fastcxr.data.readers.tables import assign_images, find_location, find_table, log_unlabelled
from fastcxr.errors import DataError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import FRAME_INDEX, format_names, is_blank, read_table

log = logging.getLogger("fastcxr")
NOTHING_FOUND = "No finding"  # as the readers state it
OTHER_NAMES = {"Other disease": "Other diseases"}  # one column is named differently in the test table
LABEL_TABLES = {split: f"annotations/image_labels_{split}.csv" for split in ("train", "test")}
LABEL_COLUMNS = {"train": ("image_id", "rad_id", NOTHING_FOUND), "test": ("image_id", NOTHING_FOUND)}
BOX_TABLES = {split: f"annotations/annotations_{split}.csv" for split in ("train", "test")}
BOX_COLUMNS = ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max")
VINBIGDATA_TABLE = "train.csv"
VINBIGDATA_COLUMNS = (*BOX_COLUMNS, "class_id", "rad_id")
LABEL_VARIANTS = {
    "majority": "a finding is present if more than half of the readers report it, two of three",
    "any": "a finding is present if at least one reader reports it",
    "all": "a finding is present if every reader reports it",
}


def read_vindr_cxr(location: Path, options: ReaderOptions) -> pd.DataFrame:
    """Return one row per image of the label tables; see PublicDataset. Both tables together give the splits."""
    variant = VINDR_CXR.find_variant(options)
    paths = _find_label_tables(location)
    tables = {split: _join_readers(_read_votes(path), variant, VINDR_CXR.title) for split, path in paths.items()}
    rows = pd.concat([table.assign(split=split) for split, table in tables.items()], ignore_index=True)
    if len(both := rows.loc[rows["image"].duplicated(), "image"]):
        problem = f"{pluralize(len(both), 'image')} in both label tables: {format_names(both, 5)}"
        raise DataError(problem, "Download both tables again", path=location, code="E009")
    names = rows["split"] + "/" + rows["image"] + ".dicom"
    if len(paths) == 1:  # images of one part alone can be split by patient
        rows = rows.drop(columns="split")
    rows = rows.drop(columns="image").rename_axis(FRAME_INDEX)
    rows = rows.assign(source=VINDR_CXR.name)  # the folder is named by its version, 1.0.0
    return assign_images(rows, names, FileIndex(location))


def read_vinbigdata(location: Path, options: ReaderOptions) -> pd.DataFrame:
    """Return one row per image of train.csv; see PublicDataset."""
    variant = VINBIGDATA.find_variant(options)
    path = _find_vinbigdata_table(location) or location / VINBIGDATA_TABLE
    table = read_table(path)
    for name in ("image_id", "class_name", "rad_id"):
        reject_rows(is_blank(table[name]), f"have no {name}", "Download the table again", path)
    table = table.apply(lambda cells: cells.str.strip())
    reported = pd.crosstab([table["image_id"], table["rad_id"]], table["class_name"]) > 0
    reported = reported.reindex(columns=sorted({NOTHING_FOUND, *map(str, reported)}), fill_value=False)
    votes = reported.astype(FINDING_DTYPE).add_prefix(FINDING_PREFIX).rename_axis(columns=None)
    lines = table.reset_index().groupby(["image_id", "rad_id"])["line"].first()
    votes = votes.assign(image=votes.index.get_level_values("image_id")).set_index(lines).sort_index()
    rows = _join_readers(votes, variant, VINBIGDATA.title)
    index = FileIndex(location)
    log_unlabelled(VINBIGDATA.title, index, "test")
    return assign_images(rows.drop(columns="image"), "train/" + rows["image"] + ".dicom", index)


def read_vindr_cxr_boxes(location: Path) -> pd.DataFrame:
    """Return path, finding, x, y, width and height [pixels of the DICOM image] of the boxes of all readers."""
    found = {split: find_table(location, [name], BOX_COLUMNS) for split, name in BOX_TABLES.items()}
    return _read_boxes({split: path for split, path in found.items() if path}, location)


def read_vinbigdata_boxes(location: Path) -> pd.DataFrame:
    """Return path, finding, x, y, width and height [pixels of the DICOM image] of the boxes of all readers."""
    return _read_boxes({"train": _find_vinbigdata_table(location) or location / VINBIGDATA_TABLE}, location)


def _read_boxes(paths: dict[str, Path], location: Path) -> pd.DataFrame:
    """Return the boxes of the tables, each of the images in the folder that is its key."""
    tables = {folder: read_table(path) for folder, path in paths.items()}
    columns = [*BOX_COLUMNS, "folder"]
    rows = pd.concat([pd.DataFrame(columns=columns, dtype="str"),
                      *(table.assign(folder=folder)[columns] for folder, table in tables.items())])  # fmt: skip
    rows = rows[~is_blank(rows["x_min"])].reset_index(drop=True)
    names = rows["folder"] + "/" + rows["image_id"].str.strip() + ".dicom"
    x_min, y_min, x_max, y_max = (pd.to_numeric(rows[name]) for name in BOX_COLUMNS[2:])
    sides = {"x": x_min, "y": y_min, "width": x_max - x_min, "height": y_max - y_min}
    path = assign_images(rows, names, FileIndex(location))["path"]
    return pd.DataFrame({"path": path, "finding": rows["class_name"].str.strip(), **sides})


def _read_votes(path: Path) -> pd.DataFrame:
    """Return image and finding columns of a label table, one row per image and reader."""
    table = read_table(path).rename(columns=OTHER_NAMES)
    names = [name for name in table.columns if name not in ("image_id", "rad_id")]
    keys = table[[name for name in ("image_id", "rad_id") if name in table]]
    reject_rows(keys.duplicated(keep=False), "repeat an image and its reader", "Download the table again", path)
    return parse_finding_columns(table, names, path).assign(image=table["image_id"].str.strip())


def _join_readers(votes: pd.DataFrame, variant: str, title: str) -> pd.DataFrame:
    """Return image, label and finding columns, one row per image, indexed by its first line.

    Args:
        votes: image and finding columns, one row per image and reader, indexed by line.
        variant: one of LABEL_VARIANTS.
        title: name of the dataset in the log.
    """
    names = [FINDING_PREFIX + name for name in list_findings(votes)]
    images = votes["image"]
    reported = votes[names].eq(1).fillna(False).astype("int64").groupby(images, sort=False).sum()
    given = votes[names].notna().astype("int64").groupby(images, sort=False).sum()
    rules = {"majority": 2 * reported > given, "any": reported > 0, "all": reported == given}
    present = rules[variant].astype(FINDING_DTYPE).where(given > 0)
    disagrees = ((reported > 0) & (reported < given)).any(axis=1)
    if images.duplicated().any():  # several readers, unlike the consensus of the test images
        log.info("%s: %s", title, LABEL_VARIANTS[variant])
        log.info("%s: the readers disagree on %s of %s images", title, f"{disagrees.sum():,}", f"{len(present):,}")
    rows = present.reset_index().set_index(images.index[~images.duplicated()])
    nothing_found = rows.pop(FINDING_PREFIX + NOTHING_FOUND).eq(1).fillna(False).astype(bool)
    labels = make_finding_labels(rows)
    labels = labels.mask(nothing_found & (labels == ""), NO_FINDING)
    if n_blank := int((labels == "").sum()):
        log.info("%s: %s with neither a finding nor %r", title, pluralize(n_blank, "image"), NOTHING_FOUND)
    return rows.assign(label=labels)


def _find_label_tables(folder: Path) -> dict[str, Path]:
    found = {split: find_table(folder, [name], LABEL_COLUMNS[split]) for split, name in LABEL_TABLES.items()}
    return {split: path for split, path in found.items() if path}


def _find_vinbigdata_table(folder: Path) -> Path | None:
    return find_table(folder, [VINBIGDATA_TABLE], VINBIGDATA_COLUMNS)


def _detect_vindr_cxr(path: Path) -> Path | None:
    tables = [*LABEL_TABLES.values(), *BOX_TABLES.values()]
    inner = ("annotations", "train", "test")
    return find_location(path, lambda folder: bool(_find_label_tables(folder)), tables=tables, inner=inner)


def _detect_vinbigdata(path: Path) -> Path | None:
    tables, inner = [VINBIGDATA_TABLE], ("train", "test")
    return find_location(path, lambda folder: bool(_find_vinbigdata_table(folder)), tables=tables, inner=inner)


CITATION = "Nguyen et al., arXiv:2012.15029, 2020"
VINDR_CXR = PublicDataset(
    name="vindr_cxr",
    title="VinDr-CXR",
    required=f"{LABEL_TABLES['train']} or {LABEL_TABLES['test']}",
    detect=_detect_vindr_cxr,
    read=read_vindr_cxr,
    labels="27 findings (several per image), of three readers",
    page="https://physionet.org/content/vindr-cxr/1.0.0/",
    access="PhysioNet credentialed",
    terms="its agreement with PhysioNet forbids to share access to the data; read whether it covers models",
    citation=CITATION,
    files={
        LABEL_TABLES["train"]: "one row per image and reader",
        LABEL_TABLES["test"]: "one row per image",
        "train/*.dicom": "training images",
        "test/*.dicom": "test images",
    },
    label_variants=LABEL_VARIANTS,
    overlaps={"vinbigdata": "its images are the training images of VinDr-CXR"},
    read_boxes=read_vindr_cxr_boxes,
)
VINBIGDATA = PublicDataset(
    name="vinbigdata",
    title="VinBigData",
    required=f"{VINBIGDATA_TABLE} with the columns {', '.join(VINBIGDATA_COLUMNS)}",
    detect=_detect_vinbigdata,
    read=read_vinbigdata,
    labels="14 findings (several per image), of three readers",
    n_images=15_000,
    counts_from=TABLE_COUNTS,
    page="https://www.kaggle.com/c/vinbigdata-chest-xray-abnormalities-detection",
    access="Kaggle",
    citation=CITATION,
    files={VINBIGDATA_TABLE: "one row per box", "train/*": "labelled images"},
    label_variants=LABEL_VARIANTS,
    overlaps={"vindr_cxr": "the images are the training images of VinDr-CXR"},
    read_boxes=read_vinbigdata_boxes,
)
