"""An export whose scores, classes or verdicts differ from those of the model is refused."""

import numpy as np
import pytest

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.data.bit_depth import BitDepths
from fastcxr.errors import ModelError
from fastcxr.export.check import compare_scorers
from fastcxr.inference.scores import Scorer, Scores

LABELS = ("clear", "haze", "opacity")
PROBABILITY = np.array([[0.5, 0.3, 0.2], [0.1, 0.45002, 0.44998], [0.2, 0.2, 0.6], [0.7, 0.1, 0.2]])
OOD_SCORE = np.array([0.4, 0.9995, 1.5, 3000.0])
IMAGES = np.zeros((4, 16, 16), np.uint8)


class FixedScorer(Scorer):
    """A scorer whose scores do not depend on the images."""

    image_size, batch_size, bit_depths = 16, 4, BitDepths()

    def __init__(self, probability, ood_score=None, task="single_label"):
        self.labels, self.task, self.has_ood_detector = LABELS, task, ood_score is not None
        self.probability, self.ood_score = probability, ood_score
        self.thresholds = {"thresholds": {"haze": {"threshold": 0.30002}}}

    def score(self, images):
        return Scores(self.probability, self.ood_score)


def changed(values, index, value):
    copy = values.copy()
    copy[index] = value
    return copy


def compare(probability=PROBABILITY, ood_score=OOD_SCORE, task="single_label", expected=(PROBABILITY, OOD_SCORE)):
    return compare_scorers(FixedScorer(*expected, task), FixedScorer(probability, ood_score, task), IMAGES)


def test_rounding_is_accepted_and_measured():
    check = compare(PROBABILITY + [-5e-5, 5e-5, 0], OOD_SCORE * (1 + 1e-6))
    assert check["max_difference"] == pytest.approx(5e-5)
    assert check["max_ood_difference"] == pytest.approx(0.003, rel=1e-3)
    assert check | {"max_difference": 0, "max_ood_difference": 0} == {
        "images": 4, "precision": "fp32", "max_difference": 0, "max_ood_difference": 0, "same_class": 4,
        "tolerance": 1e-4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("probability", "ood_score", "reason"),
    [
        (
            changed(PROBABILITY, (0, 1), 0.3002),
            OOD_SCORE,
            "probabilities differ by 0.0002, expected at most 0.0001",
        ),
        (changed(PROBABILITY, (0, 1), np.nan), OOD_SCORE, "its probabilities differ by nan"),
        (changed(PROBABILITY, 1, [0.1, 0.44999, 0.45001]), OOD_SCORE, "of 1 of 4 images differs"),
        (PROBABILITY, changed(OOD_SCORE, 0, 0.402), "its OOD scores differ by 0.002"),
        (PROBABILITY, changed(OOD_SCORE, 3, 2996.0), "its OOD scores differ by 4"),
        (PROBABILITY, changed(OOD_SCORE, 2, np.nan), "its OOD scores differ by nan"),
        (PROBABILITY, changed(OOD_SCORE, 1, 1.0004), "of 1 of 4 images differs"),
    ],
)
def test_a_difference_is_refused(probability, ood_score, reason):
    with pytest.raises(ModelError, match=f"FCX-E315: the exported model does not agree .*: .*{reason}"):
        compare(probability, ood_score)


def test_the_decisions_on_findings_are_compared():
    moved = changed(PROBABILITY, (0, 1), 0.30004)  # above the threshold of haze
    with pytest.raises(ModelError, match="of 1 of 4 images differs"):
        compare(moved, task=MULTI_LABEL)
    assert compare(moved)["same_class"] == 4, "the thresholds of classes are no decisions"
    reversed_order = changed(PROBABILITY, 1, [0.1, 0.44999, 0.45001])
    assert compare(reversed_order, task=MULTI_LABEL)["same_class"] == 4, "an image may have several findings"


@pytest.mark.parametrize(
    ("task", "index", "values", "found"),
    [
        ("single_label", 1, [0.1, 0.450002, 0.449998], [0.1, 0.449998, 0.450002]),
        (MULTI_LABEL, (0, 1), 0.300019, 0.300021),
        ("single_label", None, 0.99996, 1.00004),
    ],
)
def test_rounding_at_a_limit_is_accepted_and_counted(task, index, values, found):
    if index is None:
        pairs = (PROBABILITY, changed(OOD_SCORE, 1, values)), (PROBABILITY, changed(OOD_SCORE, 1, found))
    else:
        pairs = (changed(PROBABILITY, index, values), OOD_SCORE), (changed(PROBABILITY, index, found), OOD_SCORE)
    assert compare(*pairs[1], task, expected=pairs[0])["same_class"] == 3


def test_an_export_without_ood_score_is_compared_without_it():
    check = compare(ood_score=None)
    assert check["max_ood_difference"] is None
    assert check["same_class"] == 4
