"""From predictions to figures of groups of people: by source, sex, age band and view, whatever columns say them."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from fastcxr.data.demographics import DEMOGRAPHIC_COLUMNS, find_demographic_column, has_value, parse_age, parse_sex
from fastcxr.metrics.classification import compute_metrics
from fastcxr.metrics.external import MACRO_AUROC
from fastcxr.metrics.intervals import confidence_intervals, flatten
from fastcxr.metrics.predictions import Predictions

AGE_BANDS = ((18, "0-17"), (40, "18-39"), (65, "40-64"), (float("inf"), "65 and over"))  # years, the upper end excluded
UNSTATED = "not stated"
MIN_GROUP_PATIENTS = 20  # patients: with fewer, one of them moves any share by five points or more
MAX_GROUPS = 12  # groups of one column, the largest; a column of more values is no trait but a name


def compute_subgroup_metrics(predictions: Predictions) -> dict[str, dict[str, dict[str, Any]]]:
    """By column, then by group: `n_images`, `n_patients`, and [value, low, high] of macro AUROC and each sensitivity.

    Of the headline split. A group of fewer than LEAST patients has counts alone. A column that puts all images into one
    group, or says nothing of any, is not there.
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
    """The group that each row is in by this trait; UNSTATED where nothing says it."""
    table_column = find_demographic_column(table.columns, column)
    if table_column is None:
        return pd.Series(UNSTATED, index=table.index)
    parse = {"sex": parse_sex, "age": _parse_age_band}.get(column, str.strip)
    return table[table_column].astype(str).map(lambda cell: parse(cell) or UNSTATED if has_value(cell) else UNSTATED)


def _parse_age_band(cell: str) -> str:
    years = parse_age(cell)
    return UNSTATED if years is None else next(name for end, name in AGE_BANDS if years < end)


def _sort_groups(names: Iterable[str]) -> list[str]:
    """By name, which is by age for bands; last what nothing is known of."""
    return sorted(names, key=lambda name: (name == UNSTATED, name.zfill(20) if name[:1].isdigit() else name))


def _compute_group_metrics(predictions: Predictions, is_selected: pd.Series) -> dict[str, Any]:
    group_predictions = Predictions(predictions.table[is_selected].reset_index(drop=True), predictions.labels)
    patients = group_predictions.table["patient"].tolist()
    counts = {"n_images": len(patients), "n_patients": len(set(patients))}
    if counts["n_patients"] < MIN_GROUP_PATIENTS:
        return counts
    metrics = compute_metrics(group_predictions.truth, group_predictions.probability, group_predictions.labels)
    intervals = confidence_intervals(
        group_predictions.truth, group_predictions.probability, group_predictions.labels, patients, metrics
    )["of"]
    values = flatten(metrics)
    names = {"auroc": MACRO_AUROC, "balanced_accuracy": "balanced_accuracy"}
    estimates = {key: _get_estimate(values, intervals, name) for key, name in names.items()}
    sensitivities = {
        label: _get_estimate(values, intervals, f"per_class.{label}.sensitivity") for label in group_predictions.labels
    }
    support = {label: row["support"] for label, row in metrics["per_class"].items()}
    return counts | estimates | {"sensitivity": sensitivities, "support": support}


def _get_estimate(values: dict[str, Any], intervals: dict[str, Any], name: str) -> list[float | None] | None:
    return None if values.get(name) is None else [values[name], *intervals.get(name, (None, None))]
