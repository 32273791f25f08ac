"""Read the columns of 0 and 1 of a user's table: one per finding, or one per class with exactly one 1 in each row."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from fastcxr.data.findings import (
    FINDING_PREFIX,
    NO_FINDING,
    VALUE_BY_CELL,
    make_finding_labels,
    parse_finding_columns,
    split_labels,
)
from fastcxr.data.readers.label_cells import is_no_finding, warn_contradictions
from fastcxr.data.readers.table_columns import ROLE_NAMES
from fastcxr.errors import DataError
from fastcxr.io.tables import TEXT_DTYPE, format_names, is_blank, normalize_name

log = logging.getLogger("fastcxr")
MIN_COLUMNS = 2  # one column of 0 and 1 may be anything
MIN_INDICATOR_FRACTION = 0.9  # of the cells; the other cells are an error, because a finding must not be dropped
BOOLEANS = {"true": "1", "false": "0"}
# columns of 0 and 1 that are no findings, by their name in lower case, letters and digits only
OTHER_NAMES = re.compile(
    r"(is|has)?(male|female|train|training|valid|val|validation|test|testing|frontal|lateral|ap|pa|portable|labell?ed)"
    r"|(cv|k)?fold\d*|unnamed\d*|num(ber)?of\w+|\w*(count|index)|id|followup"
)
# findings of NIH, CheXpert, PadChest and VinDr-CXR, in lower case, letters only
FINDING_NAMES = {
    "aorticenlargement", "atelectasia", "atelectasis", "calcification", "cardiomegaly", "claviclefracture",
    "consolidation", "copd", "copdsigns", "covid", "covid19", "edema", "effusion", "emphysema",
    "enlargedcardiomediastinum", "enlargedpa", "fibrosis", "fibrosisscarring", "fracture", "hernia", "hiatalhernia",
    "ild", "infiltrate", "infiltrates", "infiltration", "interstitialpattern", "laminaratelectasis", "lungcancer",
    "lungcavity", "lungcyst", "lunglesion", "lungopacity", "lungtumor", "mass", "mediastinalshift", "nodule",
    "nodulemass", "opacity", "otherdisease", "otherlesion", "pleuraleffusion", "pleuralother", "pleuralthickening",
    "pneumonia", "pneumothorax", "pulmonaryfibrosis", "pulmonarymass", "ribfracture", "scoliosis", "supportdevices",
    "tb", "tuberculosis",
}  # fmt: skip
MAX_CLASSES, MAX_CLASS_CHARACTERS = 50, 40  # of a column of text that may contain the label


def reject_two_readings(table: pd.DataFrame, indicators: list[str], without: Iterable[str], path: Path) -> None:
    """Raise DataError (E029) if a column of text may be the label, and few columns of 0 and 1 are known findings."""
    is_known = [is_no_finding(name) or normalize_name(name) in FINDING_NAMES for name in indicators]
    if 2 * sum(is_known) > len(indicators):
        return
    others = table.columns.difference([*indicators, *without], sort=False)
    if labels := [name for name in others if not _has_other_name(name) and _has_classes(table[name])]:
        problem = f"the labels may be the column {labels[0]!r} or the findings {format_names(indicators, 5)}"
        options = [[f"label={labels[0]}"], [f"label={','.join(indicators)}"]]
        fix = "Pass " + " or ".join(f"`columns={option}`" for option in options)
        raise DataError(problem, fix, path=path, code="E029")


def _has_classes(cells: pd.Series) -> bool:
    """Return whether a column may be a label: 2 to 50 short texts, each in at least two rows."""
    given = cells[~is_blank(cells)].str.strip()
    counts = given.value_counts()
    is_text = bool(given.str.contains("[^\\W\\d_]").all()) and bool((given.str.len() <= MAX_CLASS_CHARACTERS).all())
    return is_text and 2 <= len(counts) <= MAX_CLASSES and bool((counts >= 2).all())


def find_indicator_columns(
    table: pd.DataFrame, without: Iterable[str] = (), min_columns: int = MIN_COLUMNS
) -> list[str]:
    """Return the columns of 0, 1, -1 and blanks that may be findings: at least `min_columns`, or none.

    Columns of a known role, with a name such as `fold`, or with the same value in every row and a name that is no known
    finding are left out.
    """
    skipped = {*without, *(name for name in table.columns if _has_other_name(name))}
    names = [name for name in table.columns if name not in skipped and _has_indicators(table[name])]
    names = [
        name
        for name in names
        if table[name].fillna("").str.strip().nunique() > 1 or normalize_name(name) in FINDING_NAMES
    ]
    return names if len(names) >= min_columns else []


def _has_other_name(column: str) -> bool:
    name = normalize_name(column)
    return OTHER_NAMES.fullmatch(name) is not None or any(name in names for names in ROLE_NAMES.values())


def _has_indicators(cells: pd.Series) -> bool:
    values = _normalize_cells(cells)
    given = values[~is_blank(values)]
    return len(given) > 0 and given.isin(list(VALUE_BY_CELL)).mean() >= MIN_INDICATOR_FRACTION


def _normalize_cells(cells: pd.Series) -> pd.Series:
    values = cells.fillna("").str.strip()
    return values.mask(values.str.casefold().isin(list(BOOLEANS)), values.str.casefold().map(BOOLEANS))


def parse_indicator_columns(table: pd.DataFrame, columns: list[str], path: Path) -> pd.DataFrame:
    """Return `label` if each row has exactly one 1, else the finding columns with `label`; log the columns.

    A column such as "No Finding" or "Normal" is a class, but no finding.
    """
    if others := [name for name in table.columns if name not in columns and _has_indicators(table[name])]:
        text = "%s: columns of 0 and 1 that are no findings by their name, or have one value: %s"
        log.info(text, path.name, format_names(others))
    cells = table[columns].apply(_normalize_cells)
    values = parse_finding_columns(cells, columns, path)
    is_one_hot = len(columns) > 1 and bool(
        (values.isin([0, 1]) & values.notna()).all(axis=None) and (values.sum(axis=1) == 1).all()
    )
    if is_one_hot:
        log.info("%s: classes from the columns %s, with one 1 per row", path.name, format_names(columns))
        positions = values.astype(int).to_numpy().argmax(axis=1)
        return pd.DataFrame({"label": [columns[k] for k in positions]}, values.index, dtype=TEXT_DTYPE)
    absent = [name for name in columns if is_no_finding(name)]
    log.info("%s: findings from %s", path.name, format_names(name for name in columns if name not in absent))
    states_none = (values[[FINDING_PREFIX + name for name in absent]] == 1).any(axis=1)
    findings = values.drop(columns=[FINDING_PREFIX + name for name in absent])
    warn_contradictions(findings, states_none.fillna(False), path)
    return findings.assign(label=make_finding_labels(findings, states_none))


def find_written_columns(table: pd.DataFrame) -> list[str]:
    """Return the finding columns that fastcxr wrote, if the table is a manifest with several labels per image."""
    names = [name for name in table.columns if name.startswith(FINDING_PREFIX) and name != FINDING_PREFIX]
    return names if all(has_only_indicators(table[name]) for name in names) else []


def has_only_indicators(cells: pd.Series) -> bool:
    """Return whether all cells are 1, 0, -1 or blank."""
    return bool((is_blank(cells) | cells.str.strip().isin(list(VALUE_BY_CELL))).all())


def parse_written_columns(table: pd.DataFrame, columns: list[str], path: Path) -> pd.DataFrame:
    """Return the finding columns of a manifest with `label`, as they were written."""
    names = {name: name.removeprefix(FINDING_PREFIX) for name in columns}
    findings = parse_finding_columns(table, names, path)
    states_none = [NO_FINDING in split_labels(label) for label in table["label"].fillna("")]
    return findings.assign(label=make_finding_labels(findings, pd.Series(states_none, table.index)))
