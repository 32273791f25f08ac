"""Metrics of findings, of which an image may have several, from the known labels; equal to those of scikit-learn.

Every metric is computed from weights of the images, so the metrics of metrics.json are the draw in which each image has
the weight 1. An unknown label has the weight 0. A metric of a finding with one class in the split is None, with a
reason under its dotted name in `reasons`; it is not part of the means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastcxr.errors import DataError
from fastcxr.metrics.bootstrap import MetricDraws, Ranking, average_defined
from fastcxr.metrics.scored_images import ScoredImages
from fastcxr.metrics.scoring_rules import compute_label_losses

RANKING_METRICS = ("auroc", "average_precision")
COUNT_METRICS = ("sensitivity", "specificity", "ppv", "npv", "f1")
# the five findings of the CheXpert challenge (Irvin 2019, arXiv:1901.07031); each with other names of the same finding
CHEXPERT_FINDINGS = (
    ("Atelectasis",),
    ("Cardiomegaly",),
    ("Consolidation",),
    ("Edema",),
    ("Pleural Effusion", "Pleural_Effusion", "Effusion"),
)


def compute_image_metrics(images: ScoredImages) -> dict[str, Any]:
    """Return every metric of one split, for one class per image or for findings."""
    # scikit-learn takes a second to import, and predict does not need it
    from fastcxr.metrics.classification import compute_metrics

    if images.is_multi_label:
        return compute_finding_metrics(images)
    return compute_metrics(images.truth, images.probability, images.labels)


def compute_finding_metrics(images: ScoredImages) -> dict[str, Any]:
    """Return every metric of one split, counts of each finding, and the co-occurrence of findings.

    `auroc` and `average_precision` have `macro` and `weighted` means (by the number of positives) over the findings of
    `averaged`, which have both classes. `auroc.chexpert5` is present if all five findings of CheXpert are.

    Raises:
        DataError: an image has no probability.
    """
    if not np.isfinite(images.probability).all():
        raise DataError("an image has no probability", "Exclude it with Predictions.scorable()", code="E309")
    draws = FindingInputs.of(images).compute(np.ones((1, len(images.truth))))
    values = {name: float(column[0]) if np.isfinite(column[0]) else None for name, column in draws.items()}
    positives, negatives = images.positive.sum(axis=0), images.negative.sum(axis=0)
    averaged = [label for k, label in enumerate(images.labels) if positives[k] and negatives[k]]
    metrics: dict[str, Any] = {name: _collect_ranking(values, name, images.labels) for name in RANKING_METRICS}
    metrics["auroc"]["averaged"] = averaged
    metrics["per_class"] = {
        label: {
            "positives": int(positives[k]),
            "negatives": int(negatives[k]),
            "unknown": int(len(images.truth) - positives[k] - negatives[k]),
        }
        | {name: values[f"per_class.{label}.{name}"] for name in (*COUNT_METRICS, "brier")}
        for k, label in enumerate(images.labels)
    }
    metrics |= {name: values[name] for name in ("exact_match", "hamming_loss")}
    metrics["co_occurrence"] = {"truth": _count_pairs(images.positive), "predicted": _count_pairs(images.predicted)}
    metrics["reasons"] = _explain_undefined_metrics(images, positives, negatives, metrics)
    return {"task": "multi_label", "labels": list(images.labels), **metrics}


def _collect_ranking(values: Mapping[str, float | None], name: str, labels: Sequence[str]) -> dict[str, Any]:
    means = {
        mean: values[f"{name}.{mean}"] for mean in ("macro", "weighted", "chexpert5") if f"{name}.{mean}" in values
    }
    return means | {"per_class": {label: values[f"{name}.per_class.{label}"] for label in labels}}


def _count_pairs(is_present: np.ndarray) -> list[list[int]]:
    """Return the number of images with both findings, k x k."""
    table = is_present.astype(np.float64)
    return (table.T @ table).astype(int).tolist()


@dataclass(frozen=True)
class FindingInputs:
    """Inputs of the metrics of n images and k findings, computed once for all draws.

    rankings: one per finding, of the images whose label is known, or none without AUROC and average precision. sums:
    values of which a metric needs the weighted sum, shape (n, 6 k + 3): for each finding positive, known, predicted,
    hit, squared error and log-loss (0 for an unknown label); for each image whether all known labels are predicted,
    wrong labels and known labels.
    """

    labels: Sequence[str]
    rankings: list[Ranking]
    sums: np.ndarray

    @classmethod
    def of(cls, images: ScoredImages, *, with_rankings: bool = True) -> "FindingInputs":
        """Prepare the inputs."""
        known, positive, predicted = images.known, images.positive, images.predicted & images.known
        squared_errors, log_losses = compute_label_losses(positive, images.probability)
        is_wrong = positive != predicted
        per_finding = (positive, known, predicted, positive & predicted, squared_errors * known, log_losses * known)
        per_image = (~is_wrong.any(axis=1), is_wrong.sum(axis=1), known.sum(axis=1))
        return cls(
            labels=images.labels,
            rankings=[
                Ranking.of(positive[:, k], images.probability[:, k], known[:, k])
                for k in range(len(images.labels) if with_rankings else 0)
            ],
            sums=np.column_stack([*per_finding, *per_image]).astype(float),
        )

    def compute(self, weights: np.ndarray) -> MetricDraws:
        """Return every metric of each draw, shape (draws,), NaN where it is undefined; `weights`: (draws, n)."""
        totals, columns, k = weights @ self.sums, np.ascontiguousarray(weights.T), len(self.labels)
        positives, known, predicted, hits, squared_errors, log_losses = np.split(totals[:, : 6 * k], 6, axis=1)
        n_exact, n_wrong, n_known = totals[:, 6 * k :].T
        negatives = known - positives
        has_both_classes = (positives > 0) & (negatives > 0)
        metrics: MetricDraws = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            rankings = np.array([ranking.compute(columns) for ranking in self.rankings])  # (k, 2, draws)
            for number, name in enumerate(RANKING_METRICS if self.rankings else ()):
                table = np.where(has_both_classes, rankings[:, number].T, np.nan)
                metrics |= _average_findings(name, table, positives, self.labels)
            rows = {
                "sensitivity": hits / positives,
                "specificity": (negatives - (predicted - hits)) / negatives,
                "ppv": hits / predicted,
                "npv": (negatives - (predicted - hits)) / (known - predicted),
                "f1": np.where(positives > 0, 2 * hits / (positives + predicted), np.nan),
                "brier": squared_errors / known,
            }
            log_loss = np.where(has_both_classes, log_losses / known, np.nan)
            metrics |= {"exact_match": n_exact / weights.sum(axis=1), "hamming_loss": n_wrong / n_known}
        for name, table in rows.items():
            metrics |= {f"per_class.{label}.{name}": table[:, k] for k, label in enumerate(self.labels)}
        brier = np.where(has_both_classes, rows["brier"], np.nan)
        means = {"calibration.brier": brier, "calibration.log_loss": log_loss}
        return metrics | {name: average_defined(table.T) for name, table in means.items()}


def _average_findings(name: str, table: np.ndarray, positives: np.ndarray, labels: Sequence[str]) -> MetricDraws:
    """Return a ranking metric of each finding and its means; `table` and `positives`: shape (draws, k)."""
    n_positives = np.where(np.isfinite(table), positives, 0.0)
    metrics = {
        f"{name}.macro": average_defined(table.T),
        f"{name}.weighted": (np.nan_to_num(table) * n_positives).sum(axis=1) / n_positives.sum(axis=1),
    }
    five = find_chexpert_findings(labels)
    if five and name == "auroc":
        metrics["auroc.chexpert5"] = table[:, five].mean(axis=1)
    return metrics | {f"{name}.per_class.{label}": table[:, k] for k, label in enumerate(labels)}


def find_chexpert_findings(labels: Sequence[str]) -> list[int]:
    """Return the positions of CheXpert's five findings; empty if one of them is missing."""
    found = [next((labels.index(name) for name in names if name in labels), -1) for names in CHEXPERT_FINDINGS]
    return [] if -1 in found else found


def _explain_undefined_metrics(
    images: ScoredImages, positives: np.ndarray, negatives: np.ndarray, metrics: Mapping[str, Any]
) -> dict[str, str]:
    """Return, by dotted name, why a metric is None or does not include all findings."""
    reasons: dict[str, str] = {}
    for label, n_positives, n_negatives in zip(images.labels, positives, negatives, strict=True):
        reason = _explain_one_class(label, n_positives, n_negatives)
        if reason:
            reasons |= {f"{name}.per_class.{label}": reason for name in RANKING_METRICS}
        for name, value in metrics["per_class"][label].items():
            if value is None:
                state = "predicted to have" if name == "ppv" else "predicted to be without"
                is_predictive_value = name in ("ppv", "npv") and n_positives + n_negatives
                no_prediction = f"no image with a known label is {state} {label} in this split"
                reasons[f"per_class.{label}.{name}"] = no_prediction if is_predictive_value else reason
    return reasons | _explain_means(images.labels, metrics)


def _explain_one_class(label: str, n_positives: int, n_negatives: int) -> str:
    if n_positives and n_negatives:
        return ""
    if not n_positives and not n_negatives:
        return f"no label of {label} is known in this split"
    return f"no image has {label} in this split" if n_negatives else f"every image has {label} in this split"


def _explain_means(labels: Sequence[str], metrics: Mapping[str, Any]) -> dict[str, str]:
    averaged = metrics["auroc"]["averaged"]
    names = [f"{name}.{mean}" for name in RANKING_METRICS for mean in ("macro", "weighted")]
    names += ["calibration.brier", "calibration.log_loss"]
    reasons: dict[str, str] = {}
    if not averaged:
        reasons |= dict.fromkeys(names, "no finding has both present and absent labels in this split")
    elif len(averaged) < len(labels):
        reason = f"mean over the {len(averaged)} of {len(labels)} findings that have both classes in this split"
        reasons |= dict.fromkeys(names, reason)
    if "chexpert5" in metrics["auroc"] and metrics["auroc"]["chexpert5"] is None:
        missing = [labels[k] for k in find_chexpert_findings(labels) if labels[k] not in averaged]
        reasons["auroc.chexpert5"] = f"{', '.join(missing)}: not both classes in this split"
    if metrics["exact_match"] is None:
        reasons |= dict.fromkeys(("exact_match", "hamming_loss"), "no image to measure in this split")
    return reasons
