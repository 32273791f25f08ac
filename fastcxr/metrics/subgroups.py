"""From predictions to figures of groups of people: by source, sex, age band and view, whatever columns say them."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from fastcxr.data.demographics import COLUMNS, find_trait, is_stated, read_sex, read_years
from fastcxr.metrics.classification import measure
from fastcxr.metrics.external import RANK
from fastcxr.metrics.intervals import find_intervals, flatten
from fastcxr.metrics.predictions import Predictions

BANDS = ((18, "0-17"), (40, "18-39"), (65, "40-64"), (float("inf"), "65 and over"))  # years, the upper end excluded
UNSTATED = "not stated"
LEAST = 20  # patients: with fewer, one of them moves any share by five points or more
MOST = 12  # groups of one column, the largest; a column of more values is no trait but a name


def measure_subgroups(predictions: Predictions) -> dict[str, dict[str, dict[str, Any]]]:
    """By column, then by group: `n_images`, `n_patients`, and [value, low, high] of macro AUROC and each sensitivity.

    Of the headline split. A group of fewer than LEAST patients has counts alone. A column that puts all images into one
    group, or says nothing of any, is not there.
    """
    if predictions.headline_split is None:
        return {}
    part = predictions.part(predictions.headline_split).scored()
    found = {}
    for column in COLUMNS:
        groups = name_groups(part.table, column)
        stated = set(groups) - {UNSTATED}
        if stated and groups.nunique() > 1:
            largest = groups.value_counts().index[:MOST]
            found[column] = {name: _measure(part, groups == name) for name in _in_order(largest)}
    return found


def name_groups(table: pd.DataFrame, column: str) -> pd.Series:
    """The group that each row is in by this trait; UNSTATED where nothing says it."""
    name = find_trait(table.columns, column)
    if name is None:
        return pd.Series(UNSTATED, index=table.index)
    read = {"sex": read_sex, "age": _read_band}.get(column, str.strip)
    return table[name].astype(str).map(lambda cell: read(cell) or UNSTATED if is_stated(cell) else UNSTATED)


def _read_band(cell: str) -> str:
    years = read_years(cell)
    return UNSTATED if years is None else next(name for end, name in BANDS if years < end)


def _in_order(names: Iterable[str]) -> list[str]:
    """By name, which is by age for bands; last what nothing is known of."""
    return sorted(names, key=lambda name: (name == UNSTATED, name.zfill(20) if name[:1].isdigit() else name))


def _measure(part: Predictions, chosen: pd.Series) -> dict[str, Any]:
    rows = Predictions(part.table[chosen].reset_index(drop=True), part.labels)
    patients = rows.table["patient"].tolist()
    counts = {"n_images": len(patients), "n_patients": len(set(patients))}
    if counts["n_patients"] < LEAST:
        return counts
    figures = measure(rows.truth, rows.probability, rows.labels)
    intervals = find_intervals(rows.truth, rows.probability, rows.labels, patients, figures)["of"]
    values = flatten(figures)
    names = {"auroc": RANK, "balanced_accuracy": "balanced_accuracy"}
    shown = {key: _with_reach(values, intervals, name) for key, name in names.items()}
    of_class = {label: _with_reach(values, intervals, f"per_class.{label}.sensitivity") for label in rows.labels}
    support = {label: row["support"] for label, row in figures["per_class"].items()}
    return counts | shown | {"sensitivity": of_class, "support": support}


def _with_reach(values: dict[str, Any], intervals: dict[str, Any], name: str) -> list[float | None] | None:
    return None if values.get(name) is None else [values[name], *intervals.get(name, (None, None))]
