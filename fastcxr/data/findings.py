"""Findings: the labels of a dataset with several labels per image, one manifest column per finding.

The column of Edema is `finding_Edema`, of the data type Int8: 1 present, 0 absent, -1 uncertain, -2 blank and read as
absent (see label_policy), missing unknown. The column `label` then holds the names of the present findings, joined by
"|" ("No Finding" if the dataset states it, empty if no finding is known to be present). A dataset without such columns
has one label per image.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.errors import DataError
from fastcxr.io.tables import TEXT_DTYPE, format_line_numbers, format_names, is_blank, suggest_name

log = logging.getLogger("fastcxr")
FINDING_PREFIX = "finding_"
FINDING_DTYPE = "Int8"
LABEL_SEPARATOR = "|"  # between the findings in `label`
NO_FINDING = "No Finding"
BLANK_AS_ABSENT = -2
JOIN_ORDER = (BLANK_AS_ABSENT, -1, 0, 1)  # of the values that duplicates of an image have, the last one is kept
MAX_SHOWN_LABELS = 8  # groups of images in a report if there are several labels per image
VALUE_BY_CELL = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1, "-2": BLANK_AS_ABSENT}
VALUE_BY_CELL |= {"-2.0": BLANK_AS_ABSENT}  # the text of a column with missing values


def list_findings(rows: pd.DataFrame) -> list[str]:
    """Return the names of the findings, in the order of their columns; empty if there is one label per image."""
    return [name.removeprefix(FINDING_PREFIX) for name in rows.columns if name.startswith(FINDING_PREFIX)]


def is_multi_label(rows: pd.DataFrame) -> bool:
    """Return whether the rows have a column per finding."""
    return any(name.startswith(FINDING_PREFIX) for name in rows.columns)


def parse_finding_columns(table: pd.DataFrame, columns: Iterable[str] | Mapping[str, str], path: Path) -> pd.DataFrame:
    """Return a finding column for each column of text with 1, 0, -1 or blank cells.

    Args:
        table: table of text.
        columns: columns to parse; a mapping also renames them (column to finding).
        path: name of the table in errors.

    Raises:
        DataError: another value (E012), with its lines.
    """
    names = columns if isinstance(columns, Mapping) else {column: column for column in columns}
    return pd.DataFrame(
        {FINDING_PREFIX + finding: _parse_values(table[column], path) for column, finding in names.items()},
        index=table.index,
    )


def _parse_values(cells: pd.Series, path: Path) -> pd.Series:
    codes, texts = pd.factorize(cells)  # a column has few distinct texts; -1: a missing cell
    parsed = [VALUE_BY_CELL.get(text.strip()) for text in texts]
    unread = [k for k, value in enumerate(parsed) if value is None]
    is_blank_text = is_blank(pd.Series(texts[unread], dtype=TEXT_DTYPE))
    if unknown := [k for k, blank in zip(unread, is_blank_text, strict=True) if not blank]:
        is_other = np.isin(codes, unknown)
        examples = format_names(map(repr, sorted(texts[unknown])), 5)
        lines = format_line_numbers(cells.index[is_other])
        problem = f"{is_other.sum():,} cells of {cells.name} are not 1, 0, -1 or blank: {examples} ({lines})"
        raise DataError(problem, "Use 1 present, 0 absent, -1 uncertain, blank unknown", path=path, code="E012")
    values = np.array([value or 0 for value in (*parsed, None)], np.int8)  # the last one is that of the code -1
    is_missing = np.array([value is None for value in (*parsed, None)])
    return pd.Series(pd.arrays.IntegerArray(values[codes], is_missing[codes]), cells.index, name=cells.name)


def expand_label_lists(
    labels: Sequence[Iterable[str] | None], index: pd.Index, findings: Iterable[str] = ()
) -> pd.DataFrame:
    """Return a finding column for each label in the lists: 1 in the rows that list it, 0 in the others.

    Args:
        labels: labels of each row; None if they are unknown, which leaves every finding of the row missing.
        index: index of the rows.
        findings: names and order of the columns; default: all labels in alphabetical order, without "No Finding".
    """
    given = [None if row is None else set(row) for row in labels]
    names = list(findings) or sorted(set().union(*(row for row in given if row)) - {NO_FINDING})
    is_unknown = np.array([row is None for row in given], bool)
    values = np.zeros((len(names), len(given)), np.int8)
    number_by_name = {name: number for number, name in enumerate(names)}
    for row, listed in enumerate(given):
        for name in listed or ():
            if name in number_by_name:
                values[number_by_name[name], row] = 1
    columns = {
        FINDING_PREFIX + name: pd.arrays.IntegerArray(values[number], is_unknown.copy())
        for name, number in number_by_name.items()
    }
    return pd.DataFrame(columns, index=index)


def make_finding_labels(findings: pd.DataFrame, no_finding: pd.Series | None = None) -> pd.Series:
    """Return the text of `label`: the present findings of each row, joined by "|".

    Args:
        findings: table with finding columns.
        no_finding: whether the dataset states for a row that there is no finding; the text is then "No Finding" if no
            finding is present, and both if one is.
    """
    names = list_findings(findings)
    parts = [[] for _ in range(len(findings))]
    if no_finding is not None:
        for row in no_finding.fillna(False).astype(bool).to_numpy().nonzero()[0]:
            parts[row].append(NO_FINDING)
    for name in names:
        for row in (findings[FINDING_PREFIX + name] == 1).fillna(False).to_numpy(bool).nonzero()[0]:
            parts[row].append(name)
    return pd.Series([LABEL_SEPARATOR.join(row) for row in parts], index=findings.index, dtype=TEXT_DTYPE)


def split_labels(label: Any) -> list[str]:
    """Return the findings in a cell of `label`, which is a text or missing."""
    return [part for part in label.split(LABEL_SEPARATOR) if part] if isinstance(label, str) else []


def encode_labels(rows: pd.DataFrame, findings: Iterable[str] | None = None) -> pd.Series:
    """Return the label of each row as text that differs if any finding does: ` Edema=1 Mass=? Nodule=-1`.

    `findings`: those that count; default: all. Without findings the text is the class.
    """
    names = list_findings(rows) if findings is None else list(findings)
    if not names:
        return rows["label"]
    text = pd.Series("", index=rows.index, dtype=TEXT_DTYPE)
    for name in sorted(names):
        text += f" {name}=" + rows[FINDING_PREFIX + name].astype(TEXT_DTYPE).fillna("?")
    return text


def explode_labels(rows: pd.DataFrame, labels: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a row for each image and label in `label`, only the given ones; "A|B" of an image becomes two rows.

    Rows with one label per image are returned unchanged.
    """
    if not is_multi_label(rows):
        return rows
    exploded = rows.assign(label=rows["label"].map(split_labels)).explode("label")
    is_kept = exploded["label"].notna() if labels is None else exploded["label"].isin(labels)
    return exploded[is_kept].astype({"label": TEXT_DTYPE})


def list_shown_labels(rows: pd.DataFrame) -> list[str]:
    """Return the labels whose images are shown: all classes, or "No Finding" and the most frequent findings."""
    if not is_multi_label(rows):
        return sorted(set(rows["label"]) - {""})
    counts = explode_labels(rows)["label"].value_counts()
    return sorted(counts.index, key=lambda name: (name != NO_FINDING, -counts[name], name))[:MAX_SHOWN_LABELS]


def count_findings(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the number of images of each finding by the state of its label, and the patients with the finding.

    Columns present, absent, blank (read as absent), uncertain, unknown, patients.
    """
    counts = {}
    for name in list_findings(rows):
        values = rows[FINDING_PREFIX + name]
        is_present = (values == 1).fillna(False).astype(bool)
        counts[name] = {
            "present": int(is_present.sum()),
            "absent": int((values == 0).sum()),
            "blank": int((values == BLANK_AS_ABSENT).sum()),
            "uncertain": int((values == -1).sum()),
            "unknown": int(values.isna().sum()),
            "patients": rows.loc[is_present, "patient"].nunique() if "patient" in rows else 0,
        }
    columns = ["present", "absent", "blank", "uncertain", "unknown", "patients"]
    return pd.DataFrame.from_dict(counts, orient="index", columns=columns)


def rename_findings(rows: pd.DataFrame, new_names: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows with renamed findings; findings that get one name become one.

    The merged finding is present if one is, else uncertain if one is, else unknown if one is, else absent.
    """
    merged: dict[str, pd.Series] = {}
    for name in list_findings(rows):
        column, values = FINDING_PREFIX + new_names.get(name, name), rows[FINDING_PREFIX + name]
        merged[column] = _merge_values(merged[column], values) if column in merged else values
    labels = rows["label"].map(
        lambda label: LABEL_SEPARATOR.join(dict.fromkeys(new_names.get(n, n) for n in split_labels(label)))
    )
    others = rows.drop(columns=[name for name in rows.columns if name.startswith(FINDING_PREFIX)])
    return others.assign(label=labels.astype(TEXT_DTYPE), **merged)


def _merge_values(one: pd.Series, other: pd.Series) -> pd.Series:
    is_present = ((one == 1) | (other == 1)).fillna(False).astype(bool)
    is_uncertain = ((one == -1) | (other == -1)).fillna(False).astype(bool)
    merged = one.mask(one == BLANK_AS_ABSENT, other).mask(other.isna(), pd.NA).mask(one.isna(), pd.NA)
    return merged.mask(is_uncertain, -1).mask(is_present, 1).astype(FINDING_DTYPE)


def keep_findings(rows: pd.DataFrame, findings: Sequence[str]) -> pd.DataFrame:
    """Return the rows with these findings only; "No Finding" of an image stays. Raises DataError for unknown names."""
    known = list_findings(rows)
    for name in findings:
        if name not in (*known, NO_FINDING):
            problem = f"no finding is called {name!r}{suggest_name(name, known)}"
            raise DataError(problem, f"Choose from {format_names(known)}", code="E022")
    kept = {NO_FINDING, *findings}
    labels = [LABEL_SEPARATOR.join(name for name in split_labels(label) if name in kept) for label in rows["label"]]
    dropped = [FINDING_PREFIX + name for name in known if name not in kept]
    return rows.drop(columns=dropped).assign(label=pd.Series(labels, rows.index, dtype=TEXT_DTYPE))


def have_contrary_findings(rows: pd.DataFrame, one: Any, other: Any) -> bool:
    """Return whether a finding is present in one row and labelled absent in the other; both are index labels."""
    columns = [FINDING_PREFIX + name for name in list_findings(rows)]
    pair = [rows.loc[row, columns].fillna(BLANK_AS_ABSENT).to_numpy(int) for row in (one, other)]
    return bool((((pair[0] == 1) & (pair[1] == 0)) | ((pair[0] == 0) & (pair[1] == 1))).any())


def join_findings(rows: pd.DataFrame, groups: Iterable[Sequence[Any]]) -> pd.DataFrame:
    """Return the rows with the labels of all rows of a group in each of them; the groups are duplicates of an image.

    A finding is present or absent if it is in one of the rows, else uncertain, else blank and read as absent.
    """
    groups = [list(group) for group in groups]
    if not groups or not is_multi_label(rows):
        return rows
    columns = [FINDING_PREFIX + name for name in list_findings(rows)]
    joined = rows.copy()
    for group in groups:
        for column in columns:
            values = set(rows.loc[group, column].dropna().astype(int))
            if values:
                joined.loc[group, column] = max(values, key=JOIN_ORDER.index)
        is_normal = any(NO_FINDING in split_labels(label) for label in rows.loc[group, "label"])
        flags = pd.Series(is_normal, index=group)
        joined.loc[group, "label"] = make_finding_labels(joined.loc[group, columns], flags)
    return joined


def keep_single_labels(rows: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Return the rows with exactly one of these labels, as a dataset with one label per image.

    A label is a finding that is present, or "No Finding". Other findings of the image do not matter.
    """
    chosen = [[name for name in split_labels(label) if name in classes] for label in rows["label"]]
    is_kept = pd.Series([len(names) == 1 for names in chosen], rows.index, dtype=bool)
    n_several = sum(len(names) > 1 for names in chosen)
    log.info(
        "images with exactly one of %s: %s of %s (%s have several of them, the others none)",
        format_names(classes), f"{int(is_kept.sum()):,}", f"{len(rows):,}", f"{n_several:,}",
    )  # fmt: skip
    labels = pd.Series([names[0] if names else None for names in chosen], rows.index, dtype=TEXT_DTYPE)
    others = rows.drop(columns=[name for name in rows.columns if name.startswith(FINDING_PREFIX)])
    return others.assign(label=labels)[is_kept]


def require_single_label(rows: pd.DataFrame) -> None:
    """Raise DataError (E015) for a dataset with several labels per image, if the task is one label per image."""
    if findings := list_findings(rows):
        counts = count_findings(rows)["present"].sort_values(ascending=False, kind="stable")
        text = format_names((f"{name} ({n:,})" for name, n in counts.items()), 5)
        problem = f"`task='single_label'`, but the data has several labels per image, {len(findings)} findings: {text}"
        examples = [str(name) for name in counts.index[:2]]
        is_normal = [NO_FINDING in split_labels(label) for label in rows["label"]]
        classes = [NO_FINDING, examples[0]] if any(is_normal) else examples
        fix = f"Leave out `task`, or pass `classes={classes}`, which keeps the images with exactly one of these"
        raise DataError(problem, fix, code="E015")
