"""Displays hold the numbers that they draw, into given axes or a new figure."""

import matplotlib
import numpy as np
import pytest
from finding_run import make_finding_manifest, make_finding_probability
from matplotlib import pyplot
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve
from synthetic_run import LABELS, make_manifest, make_probability

from fastcxr import plot_calibration, plot_confusion, plot_roc
from fastcxr.errors import DataError
from fastcxr.metrics.calibration import compute_calibration
from fastcxr.metrics.predictions import make_predictions
from fastcxr.report.style import class_color


@pytest.fixture(scope="module")
def predictions():
    manifest = make_manifest(LABELS, 200, 0)
    return make_predictions(manifest, make_probability(manifest, LABELS, 0), LABELS)


@pytest.fixture
def axes():
    return Figure().add_subplot()


def test_the_roc_display_has_the_curves_of_scikit_learn(predictions, axes):
    display, part = plot_roc(predictions, axes), predictions.for_split("test")
    assert display.split == "test" and display.ax_ is axes
    for k, label in enumerate(LABELS):
        expected = roc_curve(part.class_index == k, part.probability[:, k])[:2]
        np.testing.assert_allclose(display.curves[label], expected)
        assert display.scores[label] == pytest.approx(roc_auc_score(part.class_index == k, part.probability[:, k]))
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(texts) == len(LABELS) and f"(AUROC {display.scores[LABELS[0]]:.3f})" in texts[0]


def test_the_confusion_display_has_the_matrix_of_scikit_learn(predictions, axes):
    display, part = plot_confusion(predictions, axes, split="valid"), predictions.for_split("valid")
    predicted = part.probability.argmax(axis=1)
    expected = confusion_matrix(part.class_index, predicted, labels=range(len(LABELS)))
    np.testing.assert_array_equal(display.matrix, expected)
    assert f"{expected.max():,}" in {text.get_text() for text in axes.texts}


def test_the_calibration_display_has_the_slope_of_the_report(predictions, axes):
    display, part = plot_calibration(predictions, axes), predictions.for_split("test")
    lines = compute_calibration(part.class_index, part.probability, LABELS, part.table["patient"].tolist())["per_class"]
    assert display.scores == {label: line["slope"][0] for label, line in lines.items()}
    for label in LABELS:
        predicted, observed = display.curves[label]
        assert (np.diff(predicted) > 0).all() and ((observed >= 0) & (observed <= 1)).all()


def test_an_absent_class_has_no_curve_and_the_others_keep_their_colors(predictions, axes):
    absent = make_manifest(LABELS, 200, 0).query(f"label != {LABELS[0]!r}").reset_index(drop=True)
    display = plot_roc(make_predictions(absent, make_probability(absent, LABELS, 0), LABELS), axes)
    assert set(display.curves) == set(LABELS[1:])
    assert [line.get_color() for line in axes.lines[1:]] == [class_color(k) for k in range(1, len(LABELS))]


def test_without_axes_a_new_figure_is_drawn(predictions):
    matplotlib.use("Agg")
    axes = [plot(predictions).ax_ for plot in (plot_roc, plot_confusion, plot_calibration)]
    assert len({one.figure.number for one in axes}) == 3
    pyplot.close("all")


def test_a_split_without_images_names_those_that_there_are(predictions):
    with pytest.raises(DataError, match="in the split 'tset'; the predictions have .*valid.*test"):
        plot_roc(predictions, split="tset")


@pytest.fixture(scope="module")
def finding_predictions():
    findings = ("Edema", "Mass")
    manifest = make_finding_manifest(findings, 200).assign(split="test")
    return make_predictions(manifest, make_finding_probability(manifest, findings), findings, findings=True)


def test_curves_of_findings_leave_out_unknown_labels(finding_predictions, axes):
    display = plot_roc(finding_predictions, axes)
    truth, is_known = finding_predictions.truth[:, 0], ~np.isnan(finding_predictions.truth[:, 0])
    expected = roc_auc_score(truth[is_known], finding_predictions.probability[is_known, 0])
    assert not is_known.all()
    assert display.scores["Edema"] == pytest.approx(expected, abs=1e-12)
    assert set(plot_calibration(finding_predictions, Figure().add_subplot()).curves) == {"Edema", "Mass"}


def test_findings_have_no_confusion_matrix(finding_predictions, axes):
    with pytest.raises(DataError, match="several findings, so there is no confusion matrix"):
        plot_confusion(finding_predictions, axes)
