"""Compare the scores of an exported model with those of the model in PyTorch, before the export is kept."""

from typing import Any

import numpy as np
import pandas as pd

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.errors import ModelError
from fastcxr.inference.scores import Scorer, Scores, make_scored_predictions, score_images_or_errors
from fastcxr.metrics.decisions import apply_thresholds
from fastcxr.metrics.predictions import DECISION_PREFIX, IN_DISTRIBUTION_COLUMN

TOLERANCE = 1e-4  # largest difference of a probability; float32 rounding is a hundredth of it
# largest difference of an OOD score, relative to scores above 1: small variances magnify the rounding of the features
OOD_TOLERANCE = 1e-3
REFUSED_FIX = "Predict with the run itself, or export it with other versions of torch and onnxruntime"


def compare_scorers(expected: Scorer, exported: Scorer, images: np.ndarray) -> dict[str, Any]:
    """Return the entry `check` of export.json, without `data`.

    Args:
        expected: the model in PyTorch, in float32.
        exported: the exported model.
        images: gray bytes, shape (n, size, size), n >= 1.

    Raises:
        ModelError: probabilities differ by more than TOLERANCE, OOD scores by more than OOD_TOLERANCE, or an image gets
            another class, other decisions or another OOD verdict.
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
    else:
        scores = Scores(scores.probability, None)
    tables = [_decide(expected, one) for one in (scores, exported_scores)]
    is_same = (tables[0] == tables[1]).all(axis=1)
    if not is_same.all():
        text = f"the class, a decision or the OOD verdict of {int((~is_same).sum())} of {len(images)} images differs"
        raise _make_refusal(text)
    return {
        "images": len(images), "precision": "fp32", "max_difference": difference, "max_ood_difference": ood_difference,
        "same_class": int(is_same.sum()), "tolerance": TOLERANCE,
    }  # fmt: skip


def _decide(scorer: Scorer, scores: Scores) -> pd.DataFrame:
    """Return the columns of the predictions that state classes, decisions and OOD verdicts, a row per image."""
    table = pd.DataFrame({"source": "", "path": map(str, range(len(scores.probability)))})
    predictions = apply_thresholds(make_scored_predictions(table, scores, scorer), scorer.thresholds).table
    names = [
        name
        for name in predictions.columns
        if name in ("predicted", IN_DISTRIBUTION_COLUMN) or name.startswith(DECISION_PREFIX)
    ]
    classes = pd.DataFrame({"argmax": scores.probability.argmax(axis=1)} if scorer.task != MULTI_LABEL else {})
    return pd.concat([predictions[names], classes], axis=1)


def _make_refusal(reason: str) -> ModelError:
    problem = f"the exported model does not agree with the model in PyTorch: {reason}"
    return ModelError(problem, REFUSED_FIX, code="E315")
