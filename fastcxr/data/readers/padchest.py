"""Reader of PadChest.

Bustos A, Pertusa A, Salinas JM, de la Iglesia-Vayá M. PadChest: A large chest x-ray image dataset with multi-label
annotated reports. 2019. https://arxiv.org/abs/1901.07441

Access: form of BIMCV. The zip files contain 16-bit PNG files; `ImageDir` is the number of the folder of each.

`Labels` is a Python list in text. This reader turns it into findings as follows; the counts are those of the table of
160,861 images:
- Every label is a finding with one column, rare ones included (189 columns): 1 if listed, else 0. Spaces
  around a name and empty names are dropped.
- "normal" is the label "No Finding". In 232 images, the list names it with others; all are kept.
- "unchanged", "suboptimal study" and "exclude" describe the report (17,314 images) and are no findings. Such a report
  may omit a finding, e.g. one of the report before. A finding that it does not name is therefore unknown instead of
  absent, unless it names "normal". The column `markers` lists them for filters.
- Without any label name, all findings are unknown: 103 blank cells and 777 lists of an empty name.

Known traps: 24 % of the images were labelled by physicians, the others by a network that read the reports
(`MethodLabel`). A finding does not imply the more general one: 5,190 images have "laminar atelectasis", 2,905
"atelectasis". The projections COSTAL, EXCLUDE and UNK are neither frontal nor lateral chest radiographs. The projection
AP_horizontal is read as AP; `published_view` keeps it. Ages above 90 years are read as 90. A few PNG files of the
download are damaged. There is no official split. The column Report is never returned.
"""

import ast
import logging
from collections import Counter
from pathlib import Path

import pandas as pd

from fastcxr.data.demographics import MAX_AGE_YEARS
from fastcxr.data.findings import LABEL_SEPARATOR, NO_FINDING, expand_label_lists, make_finding_labels
from fastcxr.data.readers.csv_table import clear_blank_cells, reject_rows
from fastcxr.data.readers.file_index import FileIndex
from fastcxr.data.readers.public import TABLE_COUNTS, PublicDataset, ReaderOptions
from fastcxr.data.readers.tables import (
    find_dataset_folder,
    find_table,
    make_path_columns,
    parse_view,
    reject_repeated_rows,
)
from fastcxr.errors import InputMissingError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import BLANK_VALUES, TEXT_DTYPE, format_names, is_blank, read_table, to_text

log = logging.getLogger("fastcxr")
TABLE_NAME = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
REQUIRED_COLUMNS = (
    "ImageID", "ImageDir", "StudyDate_DICOM", "PatientID", "PatientBirth", "PatientSex_DICOM", "Projection", "Labels",
)  # fmt: skip
FILTER_COLUMNS = ("MethodLabel", "MethodProjection", "Pediatric", "Modality_DICOM", "Manufacturer_DICOM")
NORMAL = "normal"
MARKERS = ("unchanged", "suboptimal study", "exclude")


def read_padchest(location: Path, options: ReaderOptions) -> pd.DataFrame:  # noqa: ARG001
    """Return a row per image of the table, with a column for each label; `location`: the folder of the table.

    Raises:
        DataError: a cell of Labels is no list (E012), or two rows name an image (E014).
        InputMissingError: the folder has no table (E001).
    """
    path = find_table(location, [TABLE_NAME], REQUIRED_COLUMNS)
    if path is None:
        problem = f"no {TABLE_NAME} with the columns {format_names(REQUIRED_COLUMNS)}"
        raise InputMissingError(problem, "Copy PadChest's table to the folder", path=location, code="E001")
    table = read_table(path, [*REQUIRED_COLUMNS, *FILTER_COLUMNS])
    reject_repeated_rows(table, "ImageID", path)
    labels = _parse_labels(table["Labels"], path)
    names = table["ImageDir"].str.strip() + "/" + table["ImageID"].str.strip()
    index = FileIndex(location)
    rows = make_path_columns(names, index.find(names, any_folder=True), index.root).assign(
        split=pd.Series(index=table.index, dtype=TEXT_DTYPE),
        patient=table["PatientID"].str.strip(),
        sex=table["PatientSex_DICOM"].str.strip(),
        age=_compute_ages(table),
        view=parse_view(table["Projection"]),
        published_view=table["Projection"].str.strip(),
    )
    rows = rows.join(table[[name for name in FILTER_COLUMNS if name in table]])
    rows = clear_blank_cells(rows, [name for name in rows.columns if name not in ("path", "file", "split")])
    return rows.join(_make_findings(labels))


def _parse_labels(cells: pd.Series, path: Path) -> pd.Series:
    """Return the names in each list; an empty list for a blank cell."""
    names_by_cell = {cell: [] if cell.strip().casefold() in BLANK_VALUES else _parse_list(cell) for cell in set(cells)}
    labels = cells.map(names_by_cell)
    # the cells are not shown: in a damaged table they may be a part of a report
    reject_rows(labels.isna(), "have Labels that are not a list of names", "Restore the published table", path)
    return labels


def _parse_list(cell: str) -> list[str] | None:
    """Return the names in a Python list, without empty ones, or None for other text."""
    try:
        names = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return [name.strip() for name in names if name.strip().casefold() not in BLANK_VALUES]


def _make_findings(labels: pd.Series) -> pd.DataFrame:
    """Return the finding columns, `label` and `markers`, and log how the labels are read."""
    markers = [[name for name in MARKERS if name in names] for names in labels]
    is_normal = pd.Series([NORMAL in names for names in labels], index=labels.index)
    is_complete = is_normal | pd.Series([not names for names in markers], index=labels.index)
    listed = [[name for name in names if name != NORMAL and name not in MARKERS] or None for names in labels]
    stated = [names or ([] if normal else None) for names, normal in zip(listed, is_normal, strict=True)]
    findings = expand_label_lists(stated, labels.index)
    findings = findings.apply(lambda values: values.where(is_complete | (values == 1)))
    _log_labels(findings, markers, is_normal, labels)
    text = pd.Series([LABEL_SEPARATOR.join(names) or None for names in markers], index=labels.index)
    return findings.assign(label=make_finding_labels(findings, is_normal), markers=to_text(text))


def _log_labels(findings: pd.DataFrame, markers: list[list[str]], is_normal: pd.Series, labels: pd.Series) -> None:
    n_normal, n_blank = int(is_normal.sum()), int((labels.str.len() == 0).sum())
    log.info("PadChest: %s; %r is read as %s: %s", pluralize(findings.shape[1], "finding"), NORMAL, NO_FINDING,
             pluralize(n_normal, "image"))  # fmt: skip
    if counts := Counter(name for names in markers for name in names):
        shown = format_names(f"{name} ({n:,})" for name, n in counts.most_common())
        log.info(
            "PadChest: no findings, but notes on the report: %s; what such a report does not name is unknown", shown
        )
    if n_blank:
        log.warning("PadChest: %s without a name in Labels: the findings are unknown", pluralize(n_blank, "image"))


def _compute_ages(table: pd.DataFrame) -> pd.Series:
    """Return the year of the study less the year of birth, at most MAX_AGE_YEARS, missing if one is unknown."""
    birth = pd.to_numeric(table["PatientBirth"].where(~is_blank(table["PatientBirth"])), errors="coerce")
    study = pd.to_numeric(table["StudyDate_DICOM"].str.strip().str[:4], errors="coerce")
    years = (study - birth).clip(upper=MAX_AGE_YEARS)
    return to_text(years.where(years >= 0).astype("Int64").astype("string"))


def _detect(path: Path) -> Path | None:
    """Return the folder of the table, for itself, the table or the folder above."""
    if path.is_file():
        return path.parent if path.name.removesuffix(".gz") == TABLE_NAME and _has_table(path.parent) else None
    return find_dataset_folder(path, _has_table)


def _has_table(folder: Path) -> bool:
    return find_table(folder, [TABLE_NAME], REQUIRED_COLUMNS) is not None


DATASET = PublicDataset(
    name="padchest",
    title="PadChest",
    required=f"{TABLE_NAME} and the images below the same folder",
    detect=_detect,
    read=read_padchest,
    labels="189 findings (several per image)",
    n_images=160_861,
    n_patients=67_625,
    counts_from=TABLE_COUNTS,
    page="https://bimcv.cipf.es/bimcv-projects/padchest/",
    access="form",
    citation="Bustos et al., PadChest, arXiv 1901.07441, 2019",
    files={"PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv*": "labels and patients", "**/*.png": "images"},
)
