"""Report, model card and checklist describe the training from the records of the run, not from the recipe."""

import json

import pandas as pd
import pytest
from html_page import Page
from synthetic_run import build_run, make_history

from fastcxr.report.run_page import write_run_report
from fastcxr.report.run_reader import read_run_record
from fastcxr.report.training_summary import describe_training, find_fitted_on

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")
PROBE = {"solver": "L-BFGS", "l2": 0.3, "l2_tried": [3.0, 1.0, 0.3], "views": 2}
RATE = {"stage": "all", "rate": 0.0003, "found": False, "reason": "given by the recipe", "group_rates": [3e-5, 3e-4]}
REFITTED = {"splits": ["train", "valid"], "images": 850, "patients": 340, "valid_predictions": "train_only_head"}
NOT_REFITTED = {"splits": ["train"], "images": 700, "patients": 280, "valid_predictions": "saved_model"}
OUT_OF_SAMPLE = "out-of-sample predictions of the head fitted without these images"


def build(folder, stages, choices, **model):
    """Write a run with these stages in history.csv and these entries of model.json."""
    recipe = {"strategy": "lp_ft", "learning_rate": 0.002, "label_smoothing": 0.1, "epochs": 9}
    build_run(folder, recipe=recipe, history=make_history(stages), thumbnails=False)
    content = json.loads((folder / "model.json").read_text()) | model
    content["choices"] |= choices
    (folder / "model.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def probe(tmp_path):
    choices = {"learning_rates": [], "probe": PROBE, "best_epoch": 1, "monitor": "valid_loss"}
    return build(tmp_path / "run", (("probe", 1),), choices, fitted_on=REFITTED)


@pytest.fixture
def fine_tuned(tmp_path):
    choices = {"learning_rates": [RATE], "probe": PROBE, "best_epoch": 3, "monitor": "auroc"}
    return build(tmp_path / "run", (("probe", 1), ("all", 4)), choices, fitted_on=NOT_REFITTED)


def read_texts(folder) -> dict[str, str]:
    write_run_report(folder)
    texts = {name: (folder / f"{name}.md").read_text() for name in ("CLAIM", "MODEL_CARD")}
    return texts | {"report": Page((folder / "report.html").read_text()).text}


def test_a_linear_probe_is_described_as_a_ridge_fit(probe):
    for text in read_texts(probe).values():
        assert "multinomial logistic regression with label smoothing 0.1" in text and "L-BFGS" in text
        assert "ridge (L2) penalty 0.3, the one of 3, 1 and 0.3 with the lowest validation loss" in text
        assert "Fitted on 850 images of 340 patients (train and validation splits" in text
        assert f"Validation rows of predictions.csv: {OUT_OF_SAMPLE}." in text
    for name in ("CLAIM", "MODEL_CARD"):
        assert "radam" not in (probe / f"{name}.md").read_text() and "0.002" not in (probe / f"{name}.md").read_text()


def test_the_report_states_a_refit_in_the_header_and_at_validation_metrics(probe):
    text = read_texts(probe)["report"]
    assert "Trained on 850 images of 340 patients (train and validation splits: the final head was refitted" in text
    assert f"Validation split (used for model selection; {OUT_OF_SAMPLE})" in text
    assert "its head was refitted" not in text and "Row 1 of history.csv is the fit of the head." in text


def test_fine_tuned_weights_are_described_with_the_epochs_and_rates_that_ran(fine_tuned):
    for text in read_texts(fine_tuned).values():
        assert "Stage probe: multinomial logistic regression" in text
        assert "Stage all: 4 epochs, learning rates 3e-05 to 0.0003 by layer group, optimizer radam" in text
        assert "Weights of epoch 3 of 5 (stage all), selected by macro AUROC on validation images." in text
        assert "Fitted on 700 images of 280 patients (train split)." in text
        assert "out-of-sample" not in text and "refitted" not in text
    assert "learning rate 0.002" not in (fine_tuned / "CLAIM.md").read_text()


def test_weights_that_were_fitted_on_validation_images_are_not_called_out_of_sample(fine_tuned):
    content = json.loads((fine_tuned / "model.json").read_text())
    content["fitted_on"] = REFITTED | {"valid_predictions": "saved_model"}
    (fine_tuned / "model.json").write_text(json.dumps(content))
    text = read_texts(fine_tuned)["report"]
    assert "not out-of-sample: the weights were also fitted on these images" in text


def test_an_earlier_run_with_a_refitted_head_is_recognized(tmp_path):
    choices = {"learning_rates": [], "best_epoch": 1}
    folder = build(tmp_path / "run", (("probe", 1),), choices, head={"hidden": [], "multi_scale": True})
    record = read_run_record(folder)
    fitted = record.manifest[record.manifest["split"] != "test"]
    expected = {"splits": ["train", "valid"], "images": len(fitted), "patients": fitted["patient"].nunique()}
    assert find_fitted_on(record) == expected | {"valid_predictions": "train_only_head"}
    assert "ridge (L2) penalty selected by validation loss" in describe_training(record)[1]


def test_an_earlier_run_without_a_refitted_head_names_the_train_split(tmp_path):
    folder = build_run(tmp_path / "run", thumbnails=False)
    assert find_fitted_on(read_run_record(folder))["splits"] == ["train"]
    text = read_texts(folder)["CLAIM"]
    assert "Stage upper: 2 epochs, learning rate 0.00069 (learning rate finder)" in text


def test_an_external_test_names_the_images_of_the_model(fine_tuned):
    (fine_tuned / "history.csv").unlink()
    manifest = pd.read_csv(fine_tuned / "manifest.csv", dtype=str).assign(split="test")
    manifest.to_csv(fine_tuned / "manifest.csv", index=False)
    run = json.loads((fine_tuned / "run.json").read_text()) | {"tested": {"run": "first", "failed": []}}
    (fine_tuned / "run.json").write_text(json.dumps(run))
    texts = read_texts(fine_tuned)
    assert "model of run first. Trained on 700 images of 280 patients (train split)" in texts["report"]
    assert "Weights of epoch 3, selected by macro AUROC" in texts["CLAIM"]


def test_a_fallback_to_full_is_stated(fine_tuned):
    recipe = json.loads((fine_tuned / "recipe.json").read_text()) | {"weights": "none"}
    (fine_tuned / "recipe.json").write_text(json.dumps(recipe))
    for text in read_texts(fine_tuned).values():
        assert "Strategy full instead of lp_ft, because the initial weights are random." in text


def test_a_stage_without_a_recorded_learning_rate_has_no_options_of_the_recipe(tmp_path):
    folder = build(tmp_path / "run", (("fine_tune", 3),), {"learning_rates": [], "best_epoch": 3})
    text = read_texts(folder)["CLAIM"]
    assert "Stage fine_tune: 3 epochs." in text and "radam" not in text


def test_a_folder_without_model_json_states_the_size_of_the_train_split_only(tmp_path):
    folder = build_run(tmp_path / "run", thumbnails=False)
    (folder / "model.json").unlink()
    text = read_texts(folder)["report"]
    assert "Training split: " in text and "Trained on" not in text


def test_the_checklist_does_not_claim_that_file_names_contain_no_names(tmp_path):
    folder = build_run(tmp_path / "run", recipe={"keep_columns": ["referrer"]}, thumbnails=False)
    text = read_texts(folder)["CLAIM"]
    assert "contains no patient names" not in text
    assert "File paths, labels, the columns referrer and identifiers of tables and file names are copied" in text
    assert "fastcxr does not check whether they contain names of persons" in text


def test_a_training_by_own_calls_has_no_stages_of_the_recipe(tmp_path):
    folder = build(tmp_path / "run", (("own", 2),), {"own_training": True, "learning_rates": []})
    assert describe_training(read_run_record(folder)) == [
        "Trained by own calls of fastai; history.csv has their epochs."
    ]


def test_a_chosen_batch_size_is_shown_instead_of_auto(tmp_path):
    folder = build(tmp_path / "run", (("all", 2),), {"learning_rates": [RATE], "batch_size": 128})
    recipe = json.loads((folder / "recipe.json").read_text()) | {"batch_size": "auto"}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    text = " ".join(describe_training(read_run_record(folder)))
    assert "batch size 128" in text
    assert "auto" not in text
