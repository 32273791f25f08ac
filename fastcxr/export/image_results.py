"""What a model states about one image, as values that a DICOM result contains: probabilities, thresholds, decisions."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fastcxr.io.formatting import pluralize
from fastcxr.metrics.predictions import IN_DISTRIBUTION_COLUMN, OOD_SCORE_COLUMN, Predictions

RESEARCH_TEXT = "For research, not for diagnosis"


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """The model that made a result.

    Attributes:
        name: name of the model, such as `fastcxr timm:resnet50`.
        checksum: identifies the model; results of models with different checksums are in different series.
        parameters: one text each, such as `sha256 of model.json: 5f0c...`.
        version: version of fastcxr.
        notices: titles of the critical notices on the model.
    """

    name: str
    checksum: str
    parameters: tuple[str, ...]
    version: str
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LabelResult:
    """One class or finding.

    Attributes:
        label: its name.
        probability: calibrated, as in predictions.csv.
        threshold: None for a class without one.
        is_reached: whether the probability reaches the threshold; None if there is no decision.
    """

    label: str
    probability: float
    threshold: float | None
    is_reached: bool | None


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """One readable image.

    Attributes:
        labels: the classes or findings in the order of the model.
        is_multi_label: whether they are findings, of which an image may have several.
        is_ood: whether the image is out-of-distribution: it has no decisions and no predicted class.
        ood_score: above 1 for an out-of-distribution image; None without a detector.
        predicted: the most probable class; empty for findings and out-of-distribution images.
        is_uncertain: see metrics.decisions.apply_thresholds; None for findings.
        warnings: on the image, as in predictions.csv; may be empty.
    """

    labels: tuple[LabelResult, ...]
    is_multi_label: bool
    is_ood: bool
    ood_score: float | None
    predicted: str
    is_uncertain: bool | None
    warnings: str = ""

    @property
    def top(self) -> LabelResult:
        """The most probable class or finding."""
        return max(self.labels, key=lambda one: one.probability)

    @property
    def reached(self) -> list[LabelResult]:
        """The classes or findings that reach their thresholds, the most probable first."""
        return sorted((one for one in self.labels if one.is_reached), key=lambda one: -one.probability)

    def describe(self, n_listed: int) -> str:
        """Return the decision in words, with at most `n_listed` classes or findings that reach their thresholds.

        An out-of-distribution image has neither a decision nor a class.
        """
        if self.is_ood:
            return "Out-of-distribution image: no decision"
        top = f"{self.top.label}: probability {self.top.probability:.3f}"
        if self.is_multi_label:
            n_thresholds = sum(one.threshold is not None for one in self.labels)
            most_probable = f"; most probable: {self.top.label} {self.top.probability:.3f}"
            listed = f": {self._list_reached(n_listed)}" if self.reached else most_probable
            return f"Threshold reached by {len(self.reached)} of {pluralize(n_thresholds, 'finding')}{listed}"
        if self.top.threshold is not None:
            top += f", threshold {self.top.threshold:.3f} {'reached' if self.top.is_reached else 'not reached'}"
        return f"{top}; uncertain: {self._explain_uncertain(n_listed)}" if self.is_uncertain else top

    def _explain_uncertain(self, n_listed: int) -> str:
        n_reached = len(self.reached)
        if n_reached > 1:
            return f"threshold reached by {n_reached} classes: {self._list_reached(n_listed)}"
        has_thresholds = any(one.threshold is not None for one in self.labels)
        return "threshold reached by no class" if has_thresholds and not n_reached else "below the abstention threshold"

    def _list_reached(self, n_listed: int) -> str:
        text = ", ".join(f"{one.label} {one.probability:.3f}" for one in self.reached[:n_listed])
        n_more = len(self.reached) - n_listed
        return f"{text} and {n_more:,} more" if n_more > 0 else text


def list_image_results(predictions: Predictions, thresholds: Mapping[str, float]) -> list[ImageResult | None]:
    """Return the result of each image; None for an unreadable one.

    Args:
        predictions: n images, with the columns of apply_thresholds.
        thresholds: by class or finding; see inference.scores.list_shown_thresholds.
    """
    rows = predictions.table.to_dict("records")
    return [
        None if row["error"] else _make_result(row, probability, predictions, thresholds)
        for row, probability in zip(rows, predictions.probability, strict=True)
    ]


def _make_result(
    row: Mapping, probability: np.ndarray, predictions: Predictions, thresholds: Mapping[str, float]
) -> ImageResult:
    is_ood = row.get(IN_DISTRIBUTION_COLUMN) == "no"
    labels = []
    for label, value in zip(predictions.labels, map(float, probability), strict=True):
        threshold = thresholds.get(label)
        is_reached = None if is_ood or threshold is None else value >= threshold
        labels.append(LabelResult(label=label, probability=value, threshold=threshold, is_reached=is_reached))
    is_multi_label = predictions.is_multi_label
    return ImageResult(
        labels=tuple(labels),
        is_multi_label=is_multi_label,
        is_ood=is_ood,
        ood_score=float(row[OOD_SCORE_COLUMN]) if OOD_SCORE_COLUMN in row else None,
        predicted="" if is_multi_label or is_ood else str(row["predicted"]),
        is_uncertain=None if is_multi_label else row.get("uncertain") == "yes",
        warnings=str(row.get("warnings") or ""),
    )
