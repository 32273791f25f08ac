"""Tests of cross-validation: pooled predictions, repeated folds, messages, and data read once."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from tiny_network import NAME
from toy_images import write_toys

from fastcxr.cli.models import predict as predict_command
from fastcxr.config.recipe import Recipe
from fastcxr.data.cache import index
from fastcxr.errors import DataError, InputMissingError, ModelError, OutputError, RecipeError
from fastcxr.inference.explain import explain
from fastcxr.inference.predict import predict
from fastcxr.inference.scores import Scores
from fastcxr.metrics.predictions import read_predictions
from fastcxr.models.bundle import Ensemble, load_classifier, load_model
from fastcxr.models.device_images import DeviceImages
from fastcxr.progress.base import log_to
from fastcxr.training import feature_cache, loaders, trainer
from fastcxr.training.batch_size import set_batch_size
from fastcxr.workflows import load, overlap
from fastcxr.workflows.cross_validate import cross_validate, pool_manifest, pool_messages, pool_skipped, write_skipped
from fastcxr.workflows.train import run
from fastcxr.workflows.verify import verify

pytestmark = pytest.mark.usefixtures("without_figures", "without_maps", "few_draws")


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    data = write_toys(folder / "toys", per_class=18)
    options = {"weights": "none", "image_size": 64, "epochs": 1, "strategy": "full", "batch_size": 8, "folds": 3}
    recipe = Recipe(NAME, data=str(data), **options)
    cross_validate(recipe, folder / "run")
    return recipe, folder / "run"


def test_every_image_is_scored_once_by_a_model_trained_without_it(pooled):
    table = pd.read_csv(pooled[1] / "predictions.csv", dtype={"error": str})
    assert len(table) == 54
    assert not table.duplicated(["source", "path"]).any()
    assert set(table["split"]) == {"oof"}
    for fold in (1, 2, 3):
        manifest = pd.read_csv(pooled[1] / f"fold-{fold}" / "manifest.csv", dtype=str)
        held_out = set(manifest.loc[manifest["split"] == "test", "path"])
        assert set(table.loc[table["fold"] == fold, "path"]) == held_out
        assert not set(manifest.loc[manifest["split"] == "train", "patient"]) & set(
            table.loc[table["fold"] == fold, "patient"]
        )


def test_run_json_of_the_pool_names_the_initial_weights(pooled):
    assert json.loads((pooled[1] / "run.json").read_text())["first_weights"] == "random weights"


def test_the_pooled_report_names_an_output_that_failed(pooled, tmp_path, monkeypatch):
    def fail(*given, **options):
        raise MemoryError("out of memory")

    recipe, folder = pooled[0], shutil.copytree(pooled[1], tmp_path / "run")
    (folder / "report.html").unlink()
    monkeypatch.setattr("fastcxr.workflows.run_dir.measure_images", fail)
    page = cross_validate(recipe, folder).read_text(encoding="utf-8")
    assert "gray values, file types and sizes of the images left out: MemoryError: out of memory" in page


def test_pooled_auroc_agrees_with_scikit_learn_and_folds_have_mean_and_sd(pooled):
    metrics = json.loads((pooled[1] / "metrics.json").read_text())
    table = pd.read_csv(pooled[1] / "predictions.csv", dtype={"error": str})
    labels = metrics["oof"]["labels"]
    expected = roc_auc_score(
        table["label"], table[[f"prob_{label}" for label in labels]], multi_class="ovr", labels=labels
    )
    assert metrics["oof"]["auroc"]["macro"] == pytest.approx(expected, abs=1e-9)
    each = [json.loads((pooled[1] / f"fold-{k}" / "metrics.json").read_text())["test"]["accuracy"] for k in (1, 2, 3)]
    assert metrics["folds"]["count"] == 3
    assert metrics["folds"]["accuracy"]["mean"] == pytest.approx(np.mean(each))
    assert metrics["folds"]["accuracy"]["sd"] == pytest.approx(np.std(each, ddof=1))


def test_the_pooled_report_shows_the_folds(pooled):
    page = (pooled[1] / "report.html").read_text()
    assert "out-of-fold images" in page
    assert "±" in page
    assert "Neither test nor validation split" not in page
    assert "Files missing from the run folder" not in page


def test_a_removed_fold_is_run_again_with_the_same_result(pooled):
    recipe, folder = pooled
    before = (folder / "fold-2" / "predictions.csv").read_bytes()
    modified = (folder / "fold-1" / "predictions.csv").stat().st_mtime_ns
    shutil.rmtree(folder / "fold-2")
    cross_validate(recipe, folder)
    assert (folder / "fold-2" / "predictions.csv").read_bytes() == before
    assert (folder / "fold-1" / "predictions.csv").stat().st_mtime_ns == modified
    assert verify(folder)[0] == []


def test_only_the_pages_of_the_folds_state_how_to_draw_their_figures(pooled):
    pages = [pooled[1] / name / "report.html" for name in ("", "fold-1", "fold-2", "fold-3")]
    assert ["fastcxr report FOLDER" in page.read_text() for page in pages] == [False, True, True, True]


@pytest.mark.parametrize(
    ("figures", "fold", "expected"),
    [("main", None, True), ("main", 2, False), ("all", 2, True), ("none", None, False), ("none", 2, False)],
)
def test_main_reports_have_figures_and_those_of_folds_have_none(figures, fold, expected):
    assert Recipe(folds=3, fold=fold, figures=figures).draws_figures == expected


def test_folds_of_another_recipe_are_not_overwritten(pooled):
    recipe, folder = pooled
    with pytest.raises(OutputError, match=r"a run with a different recipe \(seed was 42, is 1\)"):
        cross_validate(recipe.replace(seed=1), folder)


def test_folds_of_other_images_are_not_pooled():
    manifests = {"1": pd.DataFrame({"source": "s", "path": ["a.png", "b.png"], "split": ["test", "train"]})}
    current = pd.DataFrame({"source": "s", "path": ["a.png"], "file": ["/x/a.png"]})
    with pytest.raises(DataError, match="1 image of the finished folds not found in the data.*choose another `folder`"):
        pool_manifest(manifests, current, "fold")


@pytest.mark.parametrize(
    "options", [{"folds": 1}, {"folds": 3, "fold": 4}, {"fold": 1}, {"folds": 3, "reuse_split": "runs/x"}]
)
def test_invalid_fold_options_are_rejected(options):
    with pytest.raises(RecipeError, match="folds"):
        Recipe(**options)


@pytest.fixture(scope="module")
def image_level(pooled, tmp_path_factory):
    """Return the run folder of image-level folds of a linear probe."""
    recipe, _ = pooled
    folder = tmp_path_factory.mktemp("image_level") / "run"
    cross_validate(recipe.replace(strategy="linear_probe", split="image"), folder)
    return folder


def test_image_level_folds_are_also_run_with_a_patient_level_split(image_level):
    by_image, by_patient = (
        json.loads((folder / "metrics.json").read_text())["oof"]
        for folder in (image_level, image_level / "patient_split")
    )
    table = pd.read_csv(image_level / "patient_split" / "predictions.csv", dtype=str)
    assert table.groupby("patient")["fold"].nunique().max() == 1
    page = (image_level / "report.html").read_text()
    assert "by the model that was trained without it." in page and "without its patient" not in page
    gap = 100 * (by_patient["accuracy"] - by_image["accuracy"])
    assert f"With a patient-level split: accuracy {100 * by_patient['accuracy']:.1f} % ({gap:+.1f} points)" in page


def test_trained_networks_and_patient_level_folds_are_run_once(pooled, image_level):
    assert not (pooled[1] / "patient_split").exists()
    assert not (image_level / "patient_split" / "patient_split").exists()


@pytest.mark.slow
def test_a_failed_audit_is_a_critical_notice_of_the_pooled_report(pooled, tmp_path):
    recipe, _ = pooled
    first, second = (tmp_path / name for name in ("one", "other"))
    write_toys(first, per_class=12, labels=("clear",))
    write_toys(second, per_class=12, labels=("haze",), first=50)
    page = cross_validate(recipe.replace(data=(str(first), str(second)), folds=2), tmp_path / "run")
    assert "Confounded: do not use these metrics" in page.read_text()
    assert "Every class has its own sources" in page.read_text()


NO_PATIENTS = "no patient identifiers found"


@pytest.fixture(scope="module")
def damaged(pooled, tmp_path_factory):
    """Return the run folder of folds of images without patient identifiers, two of them damaged."""
    folder = tmp_path_factory.mktemp("damaged")
    data = write_toys(folder / "toys", per_class=14)
    for number, file in enumerate(sorted(data.glob("*/*.png"))):
        file.rename(file.with_name(f"{number}.png"))
    for name in ("clear/2.png", "haze/20.png"):
        (data / name).write_bytes((data / name).read_bytes()[:90])
    recipe = pooled[0].replace(data=str(data), folds=2, strategy="linear_probe", skip_bad=True)
    cross_validate(recipe, folder / "run")
    return folder / "run"


def test_images_left_out_are_counted_once_in_all_pooled_files(damaged):
    assert pd.read_csv(damaged / "skipped.csv")["path"].tolist() == ["clear/2.png", "haze/20.png"]
    assert len(pd.read_csv(damaged / "predictions.csv")) == 40
    assert "2 images left out" in (damaged / "report.html").read_text()
    assert "- Left out (CLAIM 10): 2 images, reasons in skipped.csv" in (damaged / "MODEL_CARD.md").read_text()
    claim = (damaged / "CLAIM.md").read_text()
    assert "2 images left out, reasons in skipped.csv" in claim and "left out and counted; 2 images here" in claim
    assert verify(damaged)[0] == []


def test_the_pooled_report_shows_a_warning_of_all_folds_once(damaged):
    messages = json.loads((damaged / "run.json").read_text())["messages"]
    assert [line["text"].startswith(NO_PATIENTS) for line in messages if NO_PATIENTS in line["text"]] == [True]
    assert (damaged / "report.html").read_text().count(NO_PATIENTS) == 2, "as a notice and in the log"
    assert NO_PATIENTS in (damaged / "MODEL_CARD.md").read_text()


def test_two_skipped_images_with_the_same_path_are_both_kept():
    table = pd.DataFrame({"path": ["a.png", "a.png", "b.png"], "code": "E102", "reason": "not an image"})
    assert pool_skipped([table, table, table[:0]])["path"].tolist() == ["a.png", "a.png", "b.png"]


def test_an_old_skipped_csv_is_removed_when_all_images_are_readable(tmp_path):
    table = pd.DataFrame({"path": ["a.png"], "code": "E102", "reason": "not an image"})
    write_skipped(tmp_path, table)
    assert (tmp_path / "skipped.csv").exists()
    write_skipped(tmp_path, table[:0])
    assert not (tmp_path / "skipped.csv").exists()


def test_a_warning_of_some_folds_is_prefixed_with_their_names():
    in_all, in_some, info = ({"level": level, "text": text} for level, text in
                               (("warning", "no patients"), ("warning", "no haze"), ("info", "3 classes")))  # fmt: skip
    messages = {"1": [in_all, in_some, in_some], "2": [info, in_all], "3": [in_some, in_all]}
    assert [line["text"] for line in pool_messages(messages, "fold")] == ["no patients", "fold 1, 3: no haze"]


@pytest.mark.slow
def test_without_a_cache_all_folds_share_one_decoding_and_one_pass_for_each_type_of_features(
    toy_folder, tmp_path, temporary, monkeypatch
):
    decoded, passes, read, fill = [], [], index.read_open_image, feature_cache.fill_feature_cache
    compared, extract = [], overlap.extract_features
    monkeypatch.setattr(
        overlap, "extract_features", lambda *given: (compared.append(len(given[0])), extract(*given))[1]
    )
    monkeypatch.setattr(index, "read_open_image", lambda *asked: (decoded.append(asked[1]), read(*asked))[1])
    monkeypatch.setattr(
        feature_cache,
        "fill_feature_cache",
        lambda given, *rest: (passes.append(len(given[0].values)), fill(given, *rest)),
    )
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0")
    recipe = Recipe(NAME, data=str(toy_folder), weights="none", image_size=64, strategy="linear_probe", folds=2)
    cross_validate(recipe, tmp_path / "run")
    assert len(decoded) == len(set(decoded)) == 30
    assert passes == compared == [30]
    features = [(tmp_path / "run" / f"fold-{fold}" / "features.npz").read_bytes() for fold in (1, 2)]
    assert features[0] == features[1]


@pytest.mark.slow
def test_the_pooled_report_states_that_the_heads_of_the_folds_were_refitted(pooled, toy_folder, tmp_path):
    assert json.loads((pooled[1] / "run.json").read_text())["refitted_heads"] == []
    assert "refitted" not in (pooled[1] / "report.html").read_text()
    recipe = Recipe(NAME, data=str(toy_folder), weights="none", image_size=64, strategy="linear_probe", folds=2)
    cross_validate(recipe, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["refitted_heads"] == ["1", "2"]
    sentence = "The final head of each model was refitted on its training and validation images."
    for name in ("report.html", "CLAIM.md", "MODEL_CARD.md"):
        assert sentence in (tmp_path / "run" / name).read_text()


def test_unreadable_images_do_not_count_as_changed_data(damaged):
    recipe = Recipe.from_json(damaged / "recipe.json").replace(data=str(damaged.parent / "toys"))
    before = (damaged / "predictions.csv").read_bytes()
    cross_validate(recipe, damaged)
    shutil.rmtree(damaged / "fold-2")
    cross_validate(recipe, damaged)
    assert (damaged / "predictions.csv").read_bytes() == before


class MessageList(logging.Handler):
    """The messages that a terminal shows."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


SPLITS_IGNORED = "given splits are not used: new folds are drawn"


@pytest.mark.parametrize(("ignored", "expected"), [
    (False, [SPLITS_IGNORED]), pytest.param(True, [], marks=pytest.mark.slow),
])  # fmt: skip
def test_ignored_given_splits_are_logged_once_for_all_folds(pooled, tmp_path, ignored, expected):
    write_toys(tmp_path / "toys" / "train", per_class=6)
    write_toys(tmp_path / "toys" / "test", per_class=4, first=50)
    recipe = pooled[0].replace(
        data=str(tmp_path / "toys"), folds=2, strategy="linear_probe", ignore_given_splits=ignored
    )
    with log_to(handler := MessageList()):
        cross_validate(recipe, tmp_path / "run")
    assert [line for line in handler.lines if line.startswith("given splits")] == expected
    for folder in (tmp_path / "run", tmp_path / "run" / "fold-1", tmp_path / "run" / "fold-2"):
        lines = json.loads((folder / "run.json").read_text())["messages"]
        found = [line for line in lines if line["text"] == SPLITS_IGNORED]
        assert found == [{"level": "info", "text": SPLITS_IGNORED}] * len(expected)


def test_folds_of_data_without_splits_log_no_ignored_splits(pooled):
    assert "are not used" not in (pooled[1] / "run.json").read_text()


def test_a_single_fold_is_rejected():
    with pytest.raises(RecipeError, match="folds is 1, it must be 0 or at least 2. Pass `folds=2`"):
        Recipe(folds=1)


def test_the_ensemble_averages_the_calibrated_probabilities_of_the_folds(pooled, toy_manifest):
    ensemble, members = load_model(pooled[1]), [load_model(pooled[1] / f"fold-{k}") for k in (1, 2, 3)]
    found = predict(ensemble, toy_manifest, splits=None)
    expected = np.mean([predict(member, toy_manifest, splits=None).probability for member in members], axis=0)
    np.testing.assert_allclose(found.probability, expected, atol=1e-12)
    limits = [member.thresholds["thresholds"]["haze"]["threshold"] for member in members]
    assert ensemble.thresholds["thresholds"]["haze"]["threshold"] == pytest.approx(np.mean(limits))
    assert ensemble.dtype_and_device.startswith("mean of 3 models, ")


def test_the_ood_score_of_an_ensemble_is_the_mean_score(pooled, toy_manifest, monkeypatch):
    scores = {}

    def score_constant(classifier, images):
        value = scores.setdefault(id(classifier.network), 0.4 + 0.5 * len(scores))
        return Scores(np.full((len(images), 3), 1 / 3), np.full(len(images), value))

    monkeypatch.setattr("fastcxr.inference.torch_scorer.score_batch", score_constant)
    members = [replace(one, ood_detector=object()) for one in load_model(pooled[1]).members]
    table = predict(Ensemble(members=tuple(members)), toy_manifest, splits=None).table
    np.testing.assert_allclose(table["ood_score"], 0.9)  # of 0.4, 0.9 and 1.4
    assert set(table["in_distribution"]) == {"yes"}
    without_detector = Ensemble(members=(*members[:2], replace(members[2], ood_detector=None)))
    assert "ood_score" not in predict(without_detector, toy_manifest, splits=None).table


def test_the_command_predict_takes_the_folder_of_all_folds(pooled, toy_manifest, tmp_path, capsys):
    file = toy_manifest["file"].iloc[0]
    assert predict_command(pooled[1], Path(file), csv=tmp_path / "out.csv") == 0
    row = read_predictions(tmp_path / "out.csv")
    expected = predict(load_model(pooled[1]), toy_manifest[:1], splits=None)
    np.testing.assert_allclose(row.probability, expected.probability, atol=1e-9)
    assert "mean of 3 models" in capsys.readouterr().err


def test_an_ensemble_needs_all_folds_and_the_same_classes_and_has_no_saliency_map(pooled, toy_manifest, tmp_path):
    folder = shutil.copytree(pooled[1], tmp_path / "run")
    (folder / "fold-2" / "model.json").unlink()
    with pytest.raises(InputMissingError, match="2 of 3 folds have a model. Run `fastcxr resume` first"):
        load_model(folder)
    members = load_model(pooled[1]).members
    with pytest.raises(ModelError, match="models of the folds differ .* Run all folds again"):
        Ensemble(members=(members[0], replace(members[1], labels=("clear", "haze", "other"))))
    with pytest.raises(ModelError, match="this is an ensemble. Pass the model of one fold"):
        explain(load_model(pooled[1]), toy_manifest[:1])


def test_loading_one_classifier_of_all_folds_suggests_a_fold(pooled):
    with pytest.raises(InputMissingError, match=r"3 subfolders are runs with a model. Pass one of them, .*run/fold-1$"):
        load_classifier(pooled[1])


@pytest.fixture
def counted(monkeypatch):
    """Return counters of manifest reads and image cache openings."""
    counts = {"manifest": 0, "images": 0}

    def count(name, function):
        def counting(*given, **options):
            counts[name] += 1
            return function(*given, **options)

        return counting

    monkeypatch.setattr(load, "read_manifest", count("manifest", load.read_manifest))
    for module in (load, loaders):
        monkeypatch.setattr(module, "open_dataset_images", count("images", module.open_dataset_images))
    return counts


def assert_logged_in_every_run(parts):
    lines = [[line["text"] for line in json.loads((part / "run.json").read_text())["messages"]] for part in parts]
    for texts in lines:
        assert any(text.startswith("data format: ") for text in texts), "messages of the manifest reader are included"
        assert sum(" patients from " in text for text in texts) == 1


@pytest.mark.parametrize("split", ["patient", "image"])
@pytest.mark.slow
def test_all_folds_read_manifest_and_images_once(counted, tmp_path, split):
    data = write_toys(tmp_path / "toys", per_class=8)
    recipe = Recipe(NAME, data=str(data), weights="none", image_size=64, batch_size=8, folds=2, strategy="probe")
    cross_validate(recipe.replace(split=split), tmp_path / "run")
    assert counted == {"manifest": 1, "images": 1}
    assert_logged_in_every_run(sorted((tmp_path / "run").rglob("fold-*")))
    shutil.rmtree(tmp_path / "run" / "fold-1")
    cross_validate(recipe.replace(split=split), tmp_path / "run")
    assert counted == {"manifest": 2, "images": 2}, "even if some folds are finished"


@pytest.mark.slow
def test_all_held_out_sources_read_manifest_and_images_once(counted, tmp_path):
    folders = [str(write_toys(tmp_path / name, 8, first=first)) for name, first in (("ward", 0), ("clinic", 50))]
    recipe = Recipe(NAME, data=tuple(folders), weights="none", image_size=64, batch_size=8, strategy="probe")
    cross_validate(recipe.replace(leave_one_source_out=True), tmp_path / "run")
    assert counted == {"manifest": 1, "images": 1}


@pytest.mark.slow
def test_a_single_run_reads_its_manifest_once(counted, tmp_path):
    data = write_toys(tmp_path / "toys", per_class=8)
    recipe = Recipe(NAME, data=str(data), weights="none", image_size=64, batch_size=8, strategy="probe")
    run(recipe, tmp_path / "run")
    assert counted == {"manifest": 1, "images": 1}
    run(recipe, tmp_path / "run")
    assert counted == {"manifest": 2, "images": 1}, "a finished run is compared with the manifest only"


@pytest.mark.slow
def test_all_folds_use_the_batch_size_that_the_first_one_chose(tmp_path, monkeypatch):
    chosen, released = [], []

    def choose(learner):
        chosen.append(learner)
        set_batch_size(learner, 4)
        return 4

    monkeypatch.setattr(trainer, "choose_batch_size", choose)
    monkeypatch.setattr(DeviceImages, "release", lambda images: released.append(images))
    data = write_toys(tmp_path / "toys", per_class=8)
    options = {"weights": "none", "image_size": 64, "epochs": 1, "strategy": "full", "batch_size": "auto", "folds": 2}
    recipe = Recipe(NAME, data=str(data), **options)
    cross_validate(recipe, tmp_path / "run")
    assert len(chosen) == 1
    assert len(released) == 2, "the GPU memory of a fold is free for the next one"
    shutil.rmtree(tmp_path / "run" / "fold-2")
    cross_validate(recipe, tmp_path / "run")
    assert len(chosen) == 1
    for fold in ("fold-1", "fold-2"):
        choices = json.loads((tmp_path / "run" / fold / "model.json").read_text())["choices"]
        assert choices["batch_size"] == 4
        assert choices["learning_rates"][0]["rate"] == pytest.approx(recipe.learning_rate * (4 / 32) ** 0.5)
        assert json.loads((tmp_path / "run" / fold / "recipe.json").read_text())["batch_size"] == "auto"
