"""Tests for what is read from a run folder for a tracker."""

import json
import math

import pandas as pd
import pytest

from fastcxr.config.recipe import Recipe
from fastcxr.tracking.run_log import (
    clean_name,
    find_store_dir,
    read_description,
    read_epochs,
    read_final_metrics,
    read_learning_rates,
)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "runs" / "first"
    path.mkdir(parents=True)
    (path / "recipe.json").write_text(Recipe("resnet18", data="/home/someone/xrays.csv", filter=("ward=3",)).to_json())
    return path


def write_metrics(folder, **splits):
    (folder / "metrics.json").write_text(json.dumps(splits))


def test_the_parameters_are_the_options_that_are_set_without_folders_and_private_values(folder):
    parameters = read_description(folder).parameters
    assert parameters["data"] == "xrays" and parameters["epochs"] == Recipe().epochs
    assert parameters["augment.max_rotate"] == Recipe().augment.max_rotate
    assert parameters["filter"] == '["ward=not shared"]'
    assert not {"format", "patient_table", "classes"} & set(parameters)
    assert "someone" not in str(parameters)


def test_a_fold_has_the_name_and_the_group_of_its_run(folder):
    (folder / "recipe.json").write_text(Recipe("resnet18", data="x", folds=3).to_json())
    (folder / "fold-2").mkdir()
    (folder / "fold-2" / "recipe.json").write_text(Recipe("resnet18", data="x", folds=3, fold=2).to_json())
    whole, fold = read_description(folder), read_description(folder / "fold-2")
    assert (whole.name, whole.group, whole.tags["fastcxr.kind"]) == ("first", "first", "pooled")
    assert (fold.name, fold.group, fold.tags["fastcxr.kind"]) == ("first/fold-2", "first", "fold")


def test_a_single_run_has_no_group(folder):
    description = read_description(folder)
    assert (description.project, description.group, description.tags["fastcxr.kind"]) == ("xrays", None, "run")


@pytest.mark.parametrize(
    ("run", "expected"),
    [("runs/a", "."), ("runs/study/a", "."), ("out/a", "out"), ("out/a/fold-1", "out"), ("runs/a/fold-1", ".")],
)
def test_local_files_of_trackers_are_beside_runs_or_beside_the_run(tmp_path, run, expected):
    (tmp_path / run).mkdir(parents=True)
    if "fold" in run:
        (tmp_path / run).parent.joinpath("recipe.json").touch()
    assert find_store_dir(tmp_path / run) == (tmp_path / expected).resolve()


def test_an_epoch_has_its_numbers_its_stage_as_a_number_and_no_nan(folder):
    rows = {"epoch": [1, 2, 3], "stage": ["head", "all", "all"], "train_loss": [1.0, 0.5, 0.4]}
    rows |= {"auroc": [math.nan, 0.5, 0.6], "seconds": [1.5, 2.0, 2.5], "best": [True, False, False]}
    pd.DataFrame(rows).to_csv(folder / "history.csv", index=False)
    assert read_epochs(folder)[0] == {"train_loss": 1.0, "seconds": 1.5, "stage": 1.0, "elapsed": 1.5}
    assert read_epochs(folder)[2] == {
        "train_loss": 0.4, "auroc": 0.6, "seconds": 2.5, "stage": 2.0, "elapsed": 6.0,
    }  # fmt: skip
    rates = [{"stage": "all", "rate": 0.01, "found": True, "reason": "valley"}]
    (folder / "model.json").write_text(json.dumps({"choices": {"learning_rates": rates}}))
    assert read_learning_rates(folder) == [None, 0.01, 0.01]


def test_a_run_without_epochs_has_none(folder):
    assert read_epochs(folder) == [] and read_learning_rates(folder) == []


def test_the_final_metrics_are_those_of_the_test_split_with_the_ends_of_their_intervals(folder):
    test = {
        "n_images": 5,
        "task": "x",
        "accuracy": 0.5,
        "auroc": {"macro": 0.7, "micro": None, "per_class": {"a": 0.6}},
    }
    test |= {"intervals": {"unit": "patient", "of": {"accuracy": [0.25, 0.75], "auroc.per_class.a": None}}}
    test |= {"subgroups": {"ward 3": {"accuracy": 0.1}}, "confusion_matrix": [[1]], "calibration": {"brier": 0.2}}
    write_metrics(folder, valid={"n_images": 4, "accuracy": 0.9}, test=test, sources={"clinic": 1})
    assert read_final_metrics(folder) == {
        "test/n_images": 5.0, "test/accuracy": 0.5, "test/accuracy.low": 0.25, "test/accuracy.high": 0.75,
        "test/auroc.macro": 0.7, "test/auroc.per_class.a": 0.6, "test/calibration.brier": 0.2,
    }  # fmt: skip


def test_without_a_test_split_the_metrics_are_those_of_validation(folder):
    write_metrics(folder, valid={"n_images": 4, "accuracy": 0.9})
    assert read_final_metrics(folder) == {"valid/n_images": 4.0, "valid/accuracy": 0.9}


def test_two_classes_that_differ_in_a_rejected_character_have_two_names(folder):
    write_metrics(folder, test={"n_images": 4, "auroc": {"per_class": {"a+b": 0.1, "a/b": 0.2}}})
    metrics = read_final_metrics(folder)
    assert [metrics["test/auroc.per_class.a_b"], metrics["test/auroc.per_class.a_b_"]] == [0.1, 0.2]
    assert clean_name("Pneumonie (später)") == "Pneumonie _später_"
