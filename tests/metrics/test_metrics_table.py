"""The table of metrics has the values and intervals of metrics.json."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, recall_score, roc_auc_score
from synthetic_run import LABELS, make_manifest, make_probability

from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.intervals import flatten
from fastcxr.metrics.metrics_table import CLASS_METRICS, OVERALL_METRICS
from fastcxr.metrics.predictions import make_predictions

pytestmark = pytest.mark.usefixtures("few_draws")


@pytest.fixture(scope="module")
def predictions():
    manifest = make_manifest(LABELS, 200, 0)
    return make_predictions(manifest, make_probability(manifest, LABELS, 0), LABELS)


def find_value(table: pd.DataFrame, split: str, label: str, metric: str) -> pd.Series:
    (row,) = [
        row for _, row in table.iterrows() if (row["split"], row["class"], row["metric"]) == (split, label, metric)
    ]
    return row


def test_the_values_agree_with_scikit_learn(predictions):
    table, part = predictions.metrics(), predictions.for_split("test")
    truth, predicted = part.class_index, part.probability.argmax(axis=1)
    accuracy = find_value(table, "test", "all classes", "accuracy")
    assert accuracy["value"] == pytest.approx(accuracy_score(truth, predicted))
    assert accuracy["n_images"] == len(truth)
    recalls = recall_score(truth, predicted, average=None, labels=range(len(LABELS)))
    for k, label in enumerate(LABELS):
        assert find_value(table, "test", label, "sensitivity")["value"] == pytest.approx(recalls[k])
        auroc = roc_auc_score(truth == k, part.probability[:, k])
        assert find_value(table, "test", label, "auroc")["value"] == pytest.approx(auroc)


def test_values_and_intervals_are_those_of_metrics_json_for_every_split(predictions):
    table, metrics = predictions.metrics(), evaluate_predictions(predictions)
    names = [("all classes", metric, name) for metric, name in OVERALL_METRICS.items()]
    names += [(label, metric, name.format(label)) for label in LABELS for metric, name in CLASS_METRICS.items()]
    assert len(table) == len(names) * len(predictions.splits)
    for split in predictions.splits:
        values, intervals = flatten(metrics[split]), metrics[split]["intervals"]["of"]
        for label, metric, name in names:
            row = find_value(table, split, label, metric)
            expected = np.array([values[name], *intervals.get(name, (None, None))], float)
            np.testing.assert_allclose(row[["value", "low", "high"]].to_numpy(float), expected)


def test_predictions_without_splits_have_an_empty_table_and_a_warning(predictions, caplog):
    manifest = make_manifest(LABELS, 20, 0).assign(split="")
    table = make_predictions(manifest, make_probability(manifest, LABELS, 0), LABELS).metrics()
    assert "no metrics: no image has both a split and a known label" in caplog.text
    caplog.clear()
    assert table.empty and list(table.columns) == list(predictions.metrics().columns)
    assert not caplog.text


def test_two_classes_have_no_top2_accuracy():
    manifest = make_manifest(("no", "yes"), 60, 0)
    predictions = make_predictions(manifest, make_probability(manifest, ("no", "yes"), 0), ("no", "yes"))
    assert "top2_accuracy" not in set(predictions.metrics()["metric"])
