"""Metrics of subgroups of patients and images: by source, sex, age band and view."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from fastcxr.data.demographics import DEMOGRAPHIC_COLUMNS, find_demographic_column, parse_age, parse_cells, parse_sex
from fastcxr.metrics.external import MACRO_AUROC
from fastcxr.metrics.findings import compute_image_metrics
from fastcxr.metrics.intervals import Estimate, confidence_intervals, flatten, make_estimate
from fastcxr.metrics.predictions import Predictions

AGE_BANDS = ((18, "0-17"), (40, "18-39"), (65, "40-64"), (float("inf"), "65 and over"))  # years, upper bound excluded
UNSTATED = "not stated"
MIN_GROUP_PATIENTS = 20  # with fewer, one patient changes a proportion by at least 5 points
MAX_GROUPS = 12  # the largest groups of a column; a column with more values is an identifier


def compute_subgroup_metrics(
    predictions: Predictions, thresholds: Mapping[str, Any] | None = None
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return counts and metrics of the primary split, by column and group.

    Each group has `n_images`, `n_patients`, and `auroc` (macro), `balanced_accuracy` and `sensitivity` of each class as
    [value, low, high]; with fewer than MIN_GROUP_PATIENTS patients only the counts. A column with one group is omitted.
    Findings have no `balanced_accuracy`, but `auroc_per_class`, `specificity` and `averaged`, the findings of `auroc`.
    `thresholds`: of the findings, as in the calibration of model.json.
    """
    if predictions.primary_split is None:
        return {}
    scorable = predictions.for_split(predictions.primary_split).scorable()
    metrics_by_column = {}
    for column in DEMOGRAPHIC_COLUMNS:
        groups = assign_groups(scorable.table, column)
        known_groups = set(groups.unique()) - {UNSTATED}
        if known_groups and groups.nunique() > 1:
            largest_groups = groups.value_counts().index[:MAX_GROUPS]
            metrics_by_column[column] = {
                name: _compute_group_metrics(scorable, groups == name, thresholds)
                for name in _sort_groups(largest_groups)
            }
    return metrics_by_column


def assign_groups(table: pd.DataFrame, column: str) -> pd.Series:
    """Return the group of each row for a column of DEMOGRAPHIC_COLUMNS; UNSTATED if the cell is blank or invalid."""
    table_column = find_demographic_column(table.columns, column)
    if table_column is None:
        return pd.Series(UNSTATED, index=table.index)
    parse = {"sex": parse_sex, "age": _parse_age_band}.get(column, str.strip)
    groups = [group or UNSTATED for group in parse_cells(table[table_column].astype(str), parse).tolist()]
    return pd.Series(groups, index=table.index, dtype=str)


def _parse_age_band(cell: str) -> str:
    years = parse_age(cell)
    return UNSTATED if years is None else next(name for end, name in AGE_BANDS if years < end)


def _sort_groups(names: Iterable[str]) -> list[str]:
    """Sort by name, age bands by age, UNSTATED last."""
    return sorted(names, key=lambda name: (name == UNSTATED, name.zfill(20) if name[:1].isdigit() else name))


def _compute_group_metrics(
    predictions: Predictions, is_selected: pd.Series, thresholds: Mapping[str, Any] | None
) -> dict[str, Any]:
    group_predictions = Predictions(predictions.table[is_selected].reset_index(drop=True), predictions.labels)
    counts = {
        "n_images": len(group_predictions.table),
        "n_patients": int(group_predictions.table["patient"].nunique()),
    }
    if counts["n_patients"] < MIN_GROUP_PATIENTS:
        return counts
    images = group_predictions.to_arrays(thresholds)
    metrics = compute_image_metrics(images)
    n_patients = int(predictions.table["patient"].nunique())  # one method for all groups
    values = flatten(metrics)
    intervals = confidence_intervals(images, metrics, n_patients, with_rankings=False)["of"]

    def list_estimates(name: str) -> dict[str, Estimate | None]:
        return {label: make_estimate(name.format(label), values, intervals) for label in images.labels}

    estimates: dict[str, Any] = {"auroc": make_estimate(MACRO_AUROC, values, intervals)}
    if images.is_multi_label:
        estimates |= {"averaged": metrics["auroc"]["averaged"]}
        estimates |= {"auroc_per_class": list_estimates("auroc.per_class.{}")}
        estimates |= {"specificity": list_estimates("per_class.{}.specificity")}
    else:
        estimates["balanced_accuracy"] = make_estimate("balanced_accuracy", values, intervals)
    support = dict(zip(images.labels, images.positive.sum(axis=0).tolist(), strict=True))
    return counts | estimates | {"sensitivity": list_estimates("per_class.{}.sensitivity"), "support": support}
