"""The main metrics of one split as a table, with confidence intervals."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from fastcxr.metrics.classification import compute_metrics
from fastcxr.metrics.intervals import confidence_intervals, flatten

ALL_CLASSES = "all classes"
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


def make_metrics_table(
    truth: np.ndarray, probability: np.ndarray, labels: Sequence[str], patients: Sequence[str] | pd.Series
) -> pd.DataFrame:
    """Return a row for each metric, of all classes and of each class.

    Columns class, metric, value, low, high (95 % confidence interval) and n_images: all images, or those with the
    label of the row. For the arguments see confidence_intervals.
    """
    metrics = compute_metrics(truth, probability, labels)
    values = flatten(metrics)
    intervals = confidence_intervals(truth, probability, labels, np.asarray(patients), metrics)["of"]
    n_images = {ALL_CLASSES: len(truth)} | {label: int((truth == k).sum()) for k, label in enumerate(labels)}
    rows = [
        (label, metric, values[name], *intervals.get(name, (np.nan, np.nan)), n_images[label])
        for label, metric, name in _list_metrics(labels)
    ]
    table = pd.DataFrame(rows, columns=["class", "metric", "value", "low", "high", "n_images"])
    return table.astype({"value": float, "low": float, "high": float})


def _list_metrics(labels: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield class, name in the table, and dotted name of each metric."""
    for metric, name in OVERALL_METRICS.items():
        if len(labels) > 2 or metric != "top2_accuracy":  # of two classes, the two most probable are both of them
            yield ALL_CLASSES, metric, name
    for label in labels:
        for metric, name in CLASS_METRICS.items():
            yield label, metric, name.format(label)
