"""From truth and probabilities to the numbers of metrics.json: plain floats, or None with a reason, never a nan.

Every number equals scikit-learn's where scikit-learn has one. Where a split leaves a number undefined, because a class
has no image in it, the number is None and `reasons` says why under its dotted name (`auroc.per_class.Covid-19`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score, top_k_accuracy_score

from fastcxr.errors import DataError

_RANKINGS = ("auroc", "average_precision")
_MACRO = tuple(f"{name}.macro" for name in _RANKINGS)
_MICRO = tuple(f"{name}.micro" for name in _RANKINGS)


def summarize_folds(folds: pd.DataFrame) -> dict[str, Any]:
    """Mean, standard deviation (n - 1) and values of each figure over the folds. `folds`: a row a fold."""
    names = [name for name in folds.columns if name not in ("fold", "n_images", "n_patients")]
    figures = {name: [float(value) for value in folds[name].dropna()] for name in names}
    return {"count": len(folds)} | {
        name: {"mean": float(np.mean(v)), "sd": float(np.std(v, ddof=1)) if len(v) > 1 else None, "values": v}
        for name, v in figures.items()
        if v
    }


def measure(truth: np.ndarray, probability: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Every figure of one split.

    `truth`: positions in `labels`, shape (n,). `probability`: shape (n, k), rows sum to one. The predicted class is
    the most probable one, the first of them in a tie.
    """
    truth, probability, labels = np.asarray(truth), np.asarray(probability, dtype=float), list(labels)
    _check(truth, probability, len(labels))
    confusion = _confusion(truth, probability.argmax(axis=1), len(labels))
    reasons = _absences(confusion, labels)
    per_class = {label: _class_figures(confusion, k) for k, label in enumerate(labels)}
    figures = {
        "accuracy": _share(int(np.trace(confusion)), len(truth)),
        "balanced_accuracy": _mean(figure["recall"] for figure in per_class.values()),
        "auroc": _ranking(truth, probability, labels, roc_auc_score),
        "average_precision": _ranking(truth, probability, labels, average_precision_score),
        "top2_accuracy": _top2(truth, probability),
        "per_class": per_class,
    }
    return {"labels": labels, **figures, "confusion_matrix": confusion.tolist(), "reasons": reasons}


def _check(truth: np.ndarray, probability: np.ndarray, k: int) -> None:
    if probability.shape != (len(truth), k):
        raise DataError(
            f"probabilities have the shape {probability.shape}, not {(len(truth), k)}",
            "Give one row per image and one column per class",
        )
    if not np.isfinite(probability).all() or (len(truth) and (truth.min() < 0 or truth.max() >= k)):
        raise DataError(
            "an image has no label or no probability", "Leave it out first, as measure_predictions does", code="E302"
        )


def _confusion(truth: np.ndarray, predicted: np.ndarray, k: int) -> np.ndarray:
    """Counts; a row for each true class, a column for each predicted one."""
    return np.bincount(truth.astype(int) * k + predicted, minlength=k * k).reshape(k, k)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def _class_figures(confusion: np.ndarray, k: int) -> dict[str, float | int | None]:
    """One class against the rest. A class that is never predicted has precision and F1 of 0, as in scikit-learn."""
    hits, support, predicted = (int(n) for n in (confusion[k, k], confusion[k].sum(), confusion[:, k].sum()))
    others = int(confusion.sum()) - support
    recall = _share(hits, support)
    return {
        "precision": (_share(hits, predicted) or 0.0) if support else None,
        "recall": recall,
        "f1": 2 * hits / (support + predicted) if support else None,
        "sensitivity": recall,
        "specificity": _share(others - (predicted - hits), others),
        "support": support,
    }


def _ranking(truth: np.ndarray, probability: np.ndarray, labels: list[str], score) -> dict[str, Any]:
    """A figure of ranking, each class against the rest; macro is the mean over the classes that are present."""
    hot = truth[:, None] == np.arange(len(labels))
    present = hot.any(axis=0) & ~hot.all(axis=0)
    per_class = {
        label: float(score(hot[:, k], probability[:, k])) if present[k] else None for k, label in enumerate(labels)
    }
    micro = float(score(hot.ravel(), probability.ravel())) if present.any() else None
    return {"macro": _mean(per_class.values()), "micro": micro, "per_class": per_class}


def _top2(truth: np.ndarray, probability: np.ndarray) -> float | None:
    k = probability.shape[1]
    return float(top_k_accuracy_score(truth, probability, k=2, labels=range(k))) if k > 2 and len(truth) else None


def _absences(confusion: np.ndarray, labels: list[str]) -> dict[str, str]:
    """Why a figure is None, or is less than its name says, under the dotted name of the figure."""
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    absent = [label for label, n in zip(labels, support, strict=True) if n == 0]
    reasons = {} if len(labels) > 2 else {"top2_accuracy": "two classes: the two most probable are always both of them"}
    if not support.any():
        everything = ("accuracy", "balanced_accuracy", "top2_accuracy", *_MACRO, *_MICRO)
        reasons |= {name: reasons.get(name, "no image to measure in this split") for name in everything}
    elif len(labels) - len(absent) == 1:
        only = next(label for label in labels if label not in absent)
        why = f"every image of this split is {only}: there is nothing to tell it from"
        reasons |= dict.fromkeys((*_MACRO, *_MICRO, f"per_class.{only}.specificity"), why)
        reasons |= {f"{name}.per_class.{only}": why for name in _RANKINGS}
    elif absent:
        why = f"mean over the {len(labels) - len(absent)} of {len(labels)} classes that have an image in this split"
        reasons |= dict.fromkeys(("balanced_accuracy", *_MACRO), why)
    for label in absent:
        names = (f"per_class.{label}.{name}" for name in ("precision", "recall", "f1", "sensitivity"))
        names = [*names, *(f"{name}.per_class.{label}" for name in _RANKINGS)]
        reasons |= dict.fromkeys(names, f"no image of class {label} in this split")
        if not support.any():
            reasons[f"per_class.{label}.specificity"] = "no image to measure in this split"
    for label, n, guesses in zip(labels, support, predicted, strict=True):
        if n and not guesses:
            why = f"no image was predicted to be {label}: counted as 0"
            reasons |= {f"per_class.{label}.{name}": why for name in ("precision", "f1")}
    return reasons
