"""Predictions and predictions.csv keep every digit, and reject invalid rows."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import LABELS, make_manifest, make_probability

from fastcxr.errors import DataError, InputMissingError
from fastcxr.metrics.predictions import (
    BASE_COLUMNS,
    Predictions,
    make_predictions,
    read_predictions,
    select_most_wrong,
    write_predictions,
)

UNUSUAL_LABELS = ("a,b", "prob_x", 'q"uote', "_under", "中文", "NA", "=1+1", "x y")


def make_example(labels=LABELS, n=40, seed=0):
    manifest = make_manifest(labels, n, seed)
    return make_predictions(manifest, make_probability(manifest, labels, seed), labels)


def rows(*truth_and_probability, split="test"):
    truth, probability = zip(*truth_and_probability, strict=True)
    labels = [chr(ord("a") + k) for k in range(len(probability[0]))]
    manifest = pd.DataFrame({"path": [f"{i}.png" for i in range(len(truth))], "label": [labels[t] for t in truth]})
    manifest = manifest.assign(source="s", patient=manifest["path"], split=split)
    return make_predictions(manifest, np.array(probability), labels)


@pytest.mark.parametrize("labels", [LABELS, UNUSUAL_LABELS, ("yes", "no")])
def test_written_predictions_are_read_back_in_full_precision(tmp_path, labels):
    before = make_example(labels)
    write_predictions(before, tmp_path / "p.csv")
    after = read_predictions(tmp_path / "p.csv")
    assert after.labels == tuple(labels)
    assert list(after.table.columns) == list(before.table.columns)
    assert (after.probability == before.probability).all()
    assert (after.truth == before.truth).all()
    assert (after.table.astype(str) == before.table.astype(str)).all(axis=None)


@settings(max_examples=30, deadline=None)
@given(
    paths=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), min_size=1),
    first=st.floats(0, 1),
)
def test_any_path_and_any_probability_is_read_back_unchanged(tmp_path_factory, paths, first):
    manifest = pd.DataFrame({"source": "s", "path": paths, "label": "a", "patient": paths, "split": "test"})
    before = make_predictions(manifest, np.tile([first, 1 - first], (len(paths), 1)), ("a", "b"))
    path = tmp_path_factory.mktemp("any") / "p.csv"
    write_predictions(before, path)
    after = read_predictions(path)
    assert list(after.table["path"]) == paths
    assert (after.probability == before.probability).all()


@pytest.mark.usefixtures("without_pyarrow")
@pytest.mark.parametrize("path", ["=cmd|' /C calc'!A0", "+1.png", "-x.png", "@sum.png", "\udce9.png"])
def test_a_path_like_a_formula_or_not_in_utf8_is_read_back_unchanged(tmp_path, path):
    before = rows((0, [0.9, 0.1]))
    before = Predictions(before.table.assign(path=np.array([path], dtype=object)), before.labels)
    write_predictions(before, tmp_path / "p.csv")
    assert read_predictions(tmp_path / "p.csv").table["path"][0] == path


def test_columns_are_in_the_documented_order_without_the_absolute_path():
    manifest = make_manifest(n=10).assign(age=60, file="/secret/place.png")
    table = make_predictions(manifest, make_probability(manifest), LABELS).table
    scores = [f"prob_{label}" for label in LABELS]
    assert list(table.columns) == [*BASE_COLUMNS, *scores, "patient_origin", "split_origin", "age"]


def test_a_further_column_with_a_reserved_name_is_renamed(tmp_path):
    manifest = make_manifest(n=10).assign(prob_x="7", error="none", predicted="?")
    predictions = make_predictions(manifest, make_probability(manifest), LABELS)
    write_predictions(predictions, tmp_path / "p.csv")
    after = read_predictions(tmp_path / "p.csv")
    assert after.labels == LABELS
    assert (after.table["manifest_prob_x"] == "7").all() and (after.table["manifest_error"] == "none").all()


def test_a_row_with_an_error_has_no_probability_and_is_not_scored(tmp_path):
    manifest = make_manifest(n=10)
    errors = ["FCX-E101 empty file", *[""] * 9]
    predictions = make_predictions(manifest, make_probability(manifest), LABELS, errors)
    write_predictions(predictions, tmp_path / "p.csv")
    after = read_predictions(tmp_path / "p.csv")
    assert np.isnan(after.probability[0]).all() and after.table["predicted"][0] == ""
    assert len(after.scorable().table) == 9


def test_a_missing_label_or_split_becomes_an_empty_cell_and_truth_minus_one():
    manifest = make_manifest(n=4)
    manifest = manifest.assign(label=[None, *manifest["label"][1:]], split=None)
    predictions = make_predictions(manifest, make_probability(manifest.assign(label=LABELS[0])), LABELS)
    assert predictions.class_index[0] == -1 and predictions.table["label"][0] == ""
    assert predictions.splits == () and predictions.primary_split is None


def test_the_primary_split_is_test_else_valid_else_the_first():
    manifest = make_manifest(n=200)
    for splits, expected in (
        (("train", "valid", "test"), "test"),
        (("train", "valid"), "valid"),
        (("train",), "train"),
    ):
        part = manifest[manifest["split"].isin(splits)].reset_index(drop=True)
        assert make_predictions(part, make_probability(part), LABELS).primary_split == expected


def test_most_wrong_starts_with_the_lowest_probability_of_the_true_class():
    found = select_most_wrong(rows((0, [0.4, 0.6]), (1, [0.9, 0.1]), (0, [0.8, 0.2]), (1, [0.7, 0.3])), 5)
    assert list(found["path"]) == ["1.png", "3.png", "0.png"]


def test_most_wrong_prefers_higher_confidence_in_a_tie_up_to_the_limit():
    found = select_most_wrong(rows((0, [0.1, 0.5, 0.4]), (0, [0.1, 0.8, 0.1]), (0, [0.2, 0.7, 0.1])), 2)
    assert list(found["path"]) == ["1.png", "0.png"]


def test_most_wrong_uses_only_the_primary_split():
    valid, test = rows((0, [0.0, 1.0]), split="valid"), rows((0, [0.3, 0.7]))
    both = Predictions(pd.concat([valid.table, test.table], ignore_index=True), test.labels)
    assert list(select_most_wrong(both, 9)["split"]) == ["test"]


def test_a_label_that_is_not_a_class_of_the_model_raises_an_error_with_a_fix():
    manifest = make_manifest(n=5).assign(label="Gout")
    with pytest.raises(DataError, match="Gout.*Rename the labels to classes of the model") as caught:
        make_predictions(manifest, np.full((5, 3), 1 / 3), LABELS)
    assert caught.value.code == "E302"


@pytest.mark.parametrize("row", [[0.5, 0.6], [np.nan, 0.5], [np.inf, 0.0]])
def test_probabilities_that_do_not_sum_to_one_raise_an_error_with_the_path(row):
    with pytest.raises(DataError, match="1.png. Predict again"):
        rows((0, [0.5, 0.5]), (1, row))


def test_a_missing_or_invalid_file_raises_an_error_with_a_fix(tmp_path):
    with pytest.raises(InputMissingError, match="Pass a predictions.csv"):
        read_predictions(tmp_path / "p.csv")
    for content in (
        "",
        "a,b\n1,2\n",
        'source,path\n"x',
        ",".join(BASE_COLUMNS) + ",prob_a,prob_b\n" + "x," * 8 + "y\n",
    ):
        (tmp_path / "p.csv").write_text(content)
        with pytest.raises(DataError, match="Pass a predictions.csv") as caught:
            read_predictions(tmp_path / "p.csv")
        assert str(tmp_path / "p.csv") in str(caught.value)


def test_one_class_or_duplicate_classes_are_refused():
    for labels in (("a",), ("a", "a")):
        with pytest.raises(DataError, match="two or more different classes"):
            Predictions(rows((0, [0.5, 0.5])).table, labels)


def test_the_predictions_of_a_run_folder_are_read(run_folder, tmp_path):
    assert len(read_predictions(run_folder).table) == len(read_predictions(run_folder / "predictions.csv").table) > 0
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "empty", "not a run: no predictions.csv in this folder"),
        (tmp_path / "empty" / "predictions.csv", "not a run: no predictions.csv in this folder"),
        (tmp_path / "nowhere", "the folder does not exist"),
        (tmp_path / "out.csv", "no such file. Pass a predictions.csv written by fastcxr, or its run folder"),
    ):
        with pytest.raises(InputMissingError, match=message):
            read_predictions(path)
