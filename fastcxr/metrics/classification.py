"""Classification metrics of metrics.json, equal to those of scikit-learn.

A metric that is undefined, because a class has no image in the split, is None (never NaN), with a reason under its
dotted name in `reasons` (`auroc.per_class.Covid-19`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score, top_k_accuracy_score

from fastcxr.errors import DataError

_RANKING_METRICS = ("auroc", "average_precision")
_MACRO_NAMES = tuple(f"{name}.macro" for name in _RANKING_METRICS)
_MICRO_NAMES = tuple(f"{name}.micro" for name in _RANKING_METRICS)


def summarize_folds(folds: pd.DataFrame) -> dict[str, Any]:
    """Return mean, standard deviation (n - 1) and values of each metric over the folds, one row per fold."""
    names = [name for name in folds.columns if name not in ("fold", "n_images", "n_patients")]
    fold_values = {name: [float(value) for value in folds[name].dropna()] for name in names}
    return {"count": len(folds)} | {
        name: {"mean": float(np.mean(v)), "sd": float(np.std(v, ddof=1)) if len(v) > 1 else None, "values": v}
        for name, v in fold_values.items()
        if v
    }


def compute_metrics(truth: np.ndarray, probability: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Return every metric of one split. The predicted class is the most probable one, the first in a tie.

    `truth`: positions in `labels`, shape (n,). `probability`: shape (n, k), rows sum to one.

    Raises:
        DataError: the shapes differ, or an image has no label or no probability.
    """
    truth, probability, labels = np.asarray(truth), np.asarray(probability, dtype=float), list(labels)
    _validate_inputs(truth, probability, len(labels))
    confusion = _compute_confusion_matrix(truth, probability.argmax(axis=1), len(labels))
    reasons = _explain_undefined_metrics(confusion, labels)
    per_class = {label: _compute_class_metrics(confusion, k) for k, label in enumerate(labels)}
    metrics = {
        "accuracy": _divide(int(np.trace(confusion)), len(truth)),
        "balanced_accuracy": _average_known(row["recall"] for row in per_class.values()),
        "auroc": _compute_ranking_metric(truth, probability, labels, roc_auc_score),
        "average_precision": _compute_ranking_metric(truth, probability, labels, average_precision_score),
        "top2_accuracy": _compute_top2_accuracy(truth, probability),
        "per_class": per_class,
    }
    return {"labels": labels, **metrics, "confusion_matrix": confusion.tolist(), "reasons": reasons}


def _validate_inputs(truth: np.ndarray, probability: np.ndarray, n_classes: int) -> None:
    if probability.shape != (len(truth), n_classes):
        problem = f"the probabilities have the shape {probability.shape}, expected {(len(truth), n_classes)}"
        raise DataError(problem, "Pass one row per image and one column per class")
    if not np.isfinite(probability).all() or (len(truth) and (truth.min() < 0 or truth.max() >= n_classes)):
        fix = "Exclude it with Predictions.scorable()"
        raise DataError("an image has no label or no probability", fix, code="E309")


def _compute_confusion_matrix(truth: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Return image counts, one row per true class and one column per predicted class."""
    counts = np.bincount(truth.astype(int) * n_classes + predicted, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def _divide(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None


def _average_known(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _compute_class_metrics(confusion: np.ndarray, k: int) -> dict[str, float | int | None]:
    """Return one-vs-rest metrics. A class without predictions has precision and F1 of 0, as in scikit-learn."""
    n_correct, support, n_predicted = (int(n) for n in (confusion[k, k], confusion[k].sum(), confusion[:, k].sum()))
    n_others = int(confusion.sum()) - support
    recall = _divide(n_correct, support)
    return {
        "precision": (_divide(n_correct, n_predicted) or 0.0) if support else None,
        "recall": recall,
        "f1": 2 * n_correct / (support + n_predicted) if support else None,
        "sensitivity": recall,
        "specificity": _divide(n_others - (n_predicted - n_correct), n_others),
        "support": support,
    }


def _compute_ranking_metric(
    truth: np.ndarray, probability: np.ndarray, labels: list[str], metric_function: Callable
) -> dict[str, Any]:
    """Return a one-vs-rest ranking metric; `macro` is the mean over the classes for which it is defined."""
    one_hot = truth[:, None] == np.arange(len(labels))
    is_defined = one_hot.any(axis=0) & ~one_hot.all(axis=0)
    per_class = {
        label: float(metric_function(one_hot[:, k], probability[:, k])) if is_defined[k] else None
        for k, label in enumerate(labels)
    }
    micro = float(metric_function(one_hot.ravel(), probability.ravel())) if is_defined.any() else None
    return {"macro": _average_known(per_class.values()), "micro": micro, "per_class": per_class}


def _compute_top2_accuracy(truth: np.ndarray, probability: np.ndarray) -> float | None:
    n_classes = probability.shape[1]
    if n_classes < 3 or not len(truth):
        return None
    return float(top_k_accuracy_score(truth, probability, k=2, labels=range(n_classes)))


def _explain_undefined_metrics(confusion: np.ndarray, labels: list[str]) -> dict[str, str]:
    """Return, by dotted name, why a metric is None or does not include all classes."""
    support = confusion.sum(axis=1)
    absent = [label for label, n in zip(labels, support, strict=True) if n == 0]
    two_classes = "with two classes, the label is always among the two most probable"
    reasons = {} if len(labels) > 2 else {"top2_accuracy": two_classes}
    if not support.any():
        all_names = ("accuracy", "balanced_accuracy", "top2_accuracy", *_MACRO_NAMES, *_MICRO_NAMES)
        reasons |= {name: reasons.get(name, "no image to measure in this split") for name in all_names}
    elif len(labels) - len(absent) == 1:
        only_label = next(label for label in labels if label not in absent)
        reason = f"every image of this split is {only_label}: there is no other class to compare with"
        reasons |= dict.fromkeys((*_MACRO_NAMES, *_MICRO_NAMES, f"per_class.{only_label}.specificity"), reason)
        reasons |= {f"{name}.per_class.{only_label}": reason for name in _RANKING_METRICS}
    elif absent:
        reason = f"mean over the {len(labels) - len(absent)} of {len(labels)} classes that have an image in this split"
        reasons |= dict.fromkeys(("balanced_accuracy", *_MACRO_NAMES), reason)
    for label in absent:
        names = (f"per_class.{label}.{name}" for name in ("precision", "recall", "f1", "sensitivity"))
        names = [*names, *(f"{name}.per_class.{label}" for name in _RANKING_METRICS)]
        reasons |= dict.fromkeys(names, f"no image of class {label} in this split")
        if not support.any():
            reasons[f"per_class.{label}.specificity"] = "no image to measure in this split"
    for label, n, n_label_predictions in zip(labels, support, confusion.sum(axis=0), strict=True):
        if n and not n_label_predictions:
            reason = f"no image was predicted to be {label}: counted as 0"
            reasons |= {f"per_class.{label}.{name}": reason for name in ("precision", "f1")}
    return reasons
