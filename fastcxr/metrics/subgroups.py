"""Metrics of subgroups of patients and images: by source, sex, age band and view."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from fastcxr.data.demographics import DEMOGRAPHIC_COLUMNS, find_demographic_column, has_value, parse_age, parse_sex
from fastcxr.metrics.classification import compute_metrics
from fastcxr.metrics.external import MACRO_AUROC
from fastcxr.metrics.intervals import confidence_intervals, flatten, make_estimate
from fastcxr.metrics.predictions import Predictions

AGE_BANDS = ((18, "0-17"), (40, "18-39"), (65, "40-64"), (float("inf"), "65 and over"))  # years, upper bound excluded
UNSTATED = "not stated"
MIN_GROUP_PATIENTS = 20  # with fewer, one patient changes a proportion by at least 5 points
MAX_GROUPS = 12  # the largest groups of a column; a column with more values is an identifier


def compute_subgroup_metrics(predictions: Predictions) -> dict[str, dict[str, dict[str, Any]]]:
    """Return counts and metrics of the primary split, by column and group.

    Each group has `n_images`, `n_patients`, and `auroc` (macro), `balanced_accuracy` and `sensitivity` of each class as
    [value, low, high]; with fewer than MIN_GROUP_PATIENTS patients only the counts. A column with one group is omitted.
    """
    if predictions.primary_split is None:
        return {}
    scorable = predictions.for_split(predictions.primary_split).scorable()
    metrics_by_column = {}
    for column in DEMOGRAPHIC_COLUMNS:
        groups = assign_groups(scorable.table, column)
        known_groups = set(groups) - {UNSTATED}
        if known_groups and groups.nunique() > 1:
            largest_groups = groups.value_counts().index[:MAX_GROUPS]
            metrics_by_column[column] = {
                name: _compute_group_metrics(scorable, groups == name) for name in _sort_groups(largest_groups)
            }
    return metrics_by_column


def assign_groups(table: pd.DataFrame, column: str) -> pd.Series:
    """Return the group of each row for a column of DEMOGRAPHIC_COLUMNS; UNSTATED if the cell is blank or invalid."""
    table_column = find_demographic_column(table.columns, column)
    if table_column is None:
        return pd.Series(UNSTATED, index=table.index)
    parse = {"sex": parse_sex, "age": _parse_age_band}.get(column, str.strip)
    groups = [has_value(cell) and parse(cell) or UNSTATED for cell in table[table_column].astype(str)]
    return pd.Series(groups, index=table.index, dtype=str)


def _parse_age_band(cell: str) -> str:
    years = parse_age(cell)
    return UNSTATED if years is None else next(name for end, name in AGE_BANDS if years < end)


def _sort_groups(names: Iterable[str]) -> list[str]:
    """Sort by name, age bands by age, UNSTATED last."""
    return sorted(names, key=lambda name: (name == UNSTATED, name.zfill(20) if name[:1].isdigit() else name))


def _compute_group_metrics(predictions: Predictions, is_selected: pd.Series) -> dict[str, Any]:
    group_predictions = Predictions(predictions.table[is_selected].reset_index(drop=True), predictions.labels)
    patients = group_predictions.table["patient"].tolist()
    counts = {"n_images": len(patients), "n_patients": len(set(patients))}
    if counts["n_patients"] < MIN_GROUP_PATIENTS:
        return counts
    truth, probability, labels = group_predictions.class_index, group_predictions.probability, group_predictions.labels
    metrics = compute_metrics(truth, probability, labels)
    intervals = confidence_intervals(truth, probability, labels, patients, metrics)["of"]
    values = flatten(metrics)
    return counts | {
        "auroc": make_estimate(MACRO_AUROC, values, intervals),
        "balanced_accuracy": make_estimate("balanced_accuracy", values, intervals),
        "sensitivity": {label: make_estimate(f"per_class.{label}.sensitivity", values, intervals) for label in labels},
        "support": {label: row["support"] for label, row in metrics["per_class"].items()},
    }
