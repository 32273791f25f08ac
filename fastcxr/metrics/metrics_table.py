"""The main metrics of one split as a table, with confidence intervals."""

import logging
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from fastcxr.metrics.findings import compute_image_metrics
from fastcxr.metrics.intervals import confidence_intervals, flatten
from fastcxr.metrics.scored_images import ScoredImages

log = logging.getLogger("fastcxr")
ALL_CLASSES, ALL_FINDINGS = "all classes", "all findings"
OVERALL_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "auroc": "auroc.macro",
    "average_precision": "average_precision.macro",
    "top2_accuracy": "top2_accuracy",
}
CLASS_METRICS = {
    "auroc": "auroc.per_class.{}",
    "average_precision": "average_precision.per_class.{}",
    "sensitivity": "per_class.{}.sensitivity",
    "specificity": "per_class.{}.specificity",
    "precision": "per_class.{}.precision",
    "f1": "per_class.{}.f1",
}
OVERALL_FINDING_METRICS = {
    "auroc": "auroc.macro",
    "auroc_weighted": "auroc.weighted",
    "average_precision": "average_precision.macro",
    "average_precision_weighted": "average_precision.weighted",
    "exact_match": "exact_match",
    "hamming_loss": "hamming_loss",
}
FINDING_METRICS = {
    "auroc": "auroc.per_class.{}",
    "average_precision": "average_precision.per_class.{}",
    **{name: f"per_class.{{}}.{name}" for name in ("sensitivity", "specificity", "ppv", "npv", "f1", "brier")},
}


def make_split_metrics_table(images_by_split: Mapping[str, ScoredImages]) -> pd.DataFrame:
    """Return the rows of make_metrics_table for each split, with the column `split`; log if no image has a label."""
    if not any(len(images.truth) for images in images_by_split.values()):
        log.warning("no metrics: no image has both a split and a known label of the model")
    tables = [make_metrics_table(images).assign(split=split) for split, images in images_by_split.items()]
    columns = ["split", "class", "metric", "value", "low", "high", "n_images"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def make_metrics_table(images: ScoredImages) -> pd.DataFrame:
    """Return a row for each metric, of all classes and of each class.

    Columns class, metric, value, low, high (95 % confidence interval) and n_images: all images, or those with the
    label of the row.
    """
    metrics = compute_image_metrics(images)
    values = flatten(metrics)
    intervals = confidence_intervals(images, metrics)["of"]
    n_images = dict(zip(images.labels, images.positive.sum(axis=0).tolist(), strict=True))
    rows = [
        (label, metric, values[name], *intervals.get(name, (np.nan, np.nan)), n_images.get(label, len(images.truth)))
        for label, metric, name in _list_metrics(images)
    ]
    table = pd.DataFrame(rows, columns=["class", "metric", "value", "low", "high", "n_images"])
    return table.astype({"value": float, "low": float, "high": float})


def _list_metrics(images: ScoredImages) -> Iterator[tuple[str, str, str]]:
    """Yield class, name in the table, and dotted name of each metric."""
    is_multi_label = images.is_multi_label
    for metric, name in (OVERALL_FINDING_METRICS if is_multi_label else OVERALL_METRICS).items():
        if len(images.labels) > 2 or metric != "top2_accuracy":  # of two classes, the two most probable are both
            yield ALL_FINDINGS if is_multi_label else ALL_CLASSES, metric, name
    for label in images.labels:
        for metric, name in (FINDING_METRICS if is_multi_label else CLASS_METRICS).items():
            yield label, metric, name.format(label)
