"""Compare the scores of an exported model with those of the model in PyTorch, before the export is kept."""

from typing import Any

import numpy as np

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.errors import ModelError
from fastcxr.inference.scores import Scorer, Scores, score_images_or_errors
from fastcxr.metrics.scored_images import list_thresholds

TOLERANCE = 1e-4  # largest difference of a probability; float32 rounding is a hundredth of it
# largest difference of an OOD score, relative to scores above 1: small variances magnify the rounding of the features
OOD_TOLERANCE = 1e-3
# a verdict may differ if the score is so near its limit that rounding decides it: that was so for 1 of 200 images and a
# network that was trained for one epoch, whose probabilities were nearly equal
PROBABILITY_TIE, OOD_TIE = 1e-5, 1e-4
REFUSED_FIX = "Predict with the run itself, or export it with other versions of torch and onnxruntime"


def compare_scorers(expected: Scorer, exported: Scorer, images: np.ndarray) -> dict[str, Any]:
    """Return the entry `check` of export.json, without `data`.

    Args:
        expected: the model in PyTorch, in float32.
        exported: the exported model.
        images: gray bytes, shape (n, size, size), n >= 1.

    Raises:
        ModelError: probabilities differ by more than TOLERANCE, OOD scores by more than OOD_TOLERANCE, or an image gets
            another class, decision or OOD verdict, other than by a tie.
    """
    scores, exported_scores = (score_images_or_errors(one, images, len(images))[0] for one in (expected, exported))
    difference = float(np.abs(exported_scores.probability - scores.probability).max())
    if not difference <= TOLERANCE:  # NaN is refused too
        raise _make_refusal(f"its probabilities differ by {difference:.2g}, expected at most {TOLERANCE:g}")
    ood_difference = None
    if scores.ood_score is not None and exported_scores.ood_score is not None:
        differences = np.abs(exported_scores.ood_score - scores.ood_score)
        ood_difference = float(differences.max())
        if not (differences <= OOD_TOLERANCE * np.maximum(1, scores.ood_score)).all():
            raise _make_refusal(f"its OOD scores differ by {ood_difference:.2g}")
    differs, is_tied = _compare_verdicts(expected, scores, exported_scores)
    if n_wrong := int((differs & ~is_tied).any(axis=1).sum()):
        text = f"the class, a decision or the OOD verdict of {n_wrong} of {len(images)} images differs"
        raise _make_refusal(text)
    return {
        "images": len(images), "precision": "fp32", "max_difference": difference, "max_ood_difference": ood_difference,
        "same_class": int((~differs.any(axis=1)).sum()), "tolerance": TOLERANCE,
    }  # fmt: skip


def _compare_verdicts(scorer: Scorer, expected: Scores, found: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Return which verdicts differ, and which are ties, both booleans of shape (n, verdicts).

    The verdicts on an image are its class, or a decision on each finding, and whether it is out of distribution.
    """
    if scorer.task == MULTI_LABEL:
        limits = list_thresholds(scorer.thresholds.get("thresholds", {}), scorer.labels)
        differs = (expected.probability >= limits) != (found.probability >= limits)
        is_tied = np.abs(expected.probability - limits) <= PROBABILITY_TIE
    else:
        rows = np.arange(len(expected.probability))
        classes, found_classes = expected.probability.argmax(axis=1), found.probability.argmax(axis=1)
        margins = expected.probability[rows, classes] - expected.probability[rows, found_classes]
        differs, is_tied = (classes != found_classes)[:, None], (margins <= PROBABILITY_TIE)[:, None]
    if expected.ood_score is not None and found.ood_score is not None:
        is_other = (expected.ood_score <= 1) != (found.ood_score <= 1)
        differs = np.column_stack([differs, is_other])
        is_tied = np.column_stack([is_tied, np.abs(expected.ood_score - 1) <= OOD_TIE])
    return differs, is_tied


def _make_refusal(reason: str) -> ModelError:
    problem = f"the exported model does not agree with the model in PyTorch: {reason}"
    return ModelError(problem, REFUSED_FIX, code="E315")
