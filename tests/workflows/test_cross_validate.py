"""Folds are finished runs of their own; the pool scores every image once, and one fold can be redone alone."""

import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from tiny_network import NAME
from toy_images import write_toys

from fastcxr.config.recipe import Recipe, read_recipe
from fastcxr.data.cache import index
from fastcxr.errors import DataError, InputMissingError, OutputError, RecipeError
from fastcxr.models.bundle import load_model
from fastcxr.progress.base import log_to
from fastcxr.training import feature_cache, loaders
from fastcxr.workflows import load
from fastcxr.workflows.cross_validate import cross_validate, pool_manifest, pool_skipped, pool_warnings, write_skipped
from fastcxr.workflows.train import run
from fastcxr.workflows.verify import verify

pytestmark = pytest.mark.usefixtures("without_figures")


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    place = tmp_path_factory.mktemp("folds")
    data = write_toys(place / "toys", per_class=18)
    recipe = Recipe(
        NAME,
        data=str(data),
        weights="none",
        image_size=64,
        epochs=1,
        strategy="full",
        batch_size=8,
        folds=3,
    )
    cross_validate(recipe, place / "run")
    return recipe, place / "run"


def test_every_image_is_scored_once_by_a_model_that_never_saw_it(pooled):
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


def test_a_pooled_report_names_the_weights_that_every_fold_began_with(pooled):
    assert json.loads((pooled[1] / "run.json").read_text())["first_weights"] == "random weights"


def test_a_figure_of_the_pool_that_cannot_be_made_is_named_in_its_report(pooled, tmp_path, monkeypatch):
    def fail(*given, **options):
        raise MemoryError("no room")

    recipe, folder = pooled[0], shutil.copytree(pooled[1], tmp_path / "run")
    (folder / "report.html").unlink()
    monkeypatch.setattr("fastcxr.workflows.run_dir.measure_images", fail)
    page = cross_validate(recipe, folder).read_text(encoding="utf-8")
    assert "gray values, kinds and sizes of the images left out: MemoryError: no room" in page


def test_pooled_figures_are_those_of_scikit_learn_and_folds_have_mean_and_spread(pooled):
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


def test_one_fold_is_redone_alone_and_gives_the_same(pooled):
    recipe, folder = pooled
    before = (folder / "fold-2" / "predictions.csv").read_bytes()
    stamp = (folder / "fold-1" / "predictions.csv").stat().st_mtime_ns
    shutil.rmtree(folder / "fold-2")
    cross_validate(recipe, folder)
    assert (folder / "fold-2" / "predictions.csv").read_bytes() == before
    assert (folder / "fold-1" / "predictions.csv").stat().st_mtime_ns == stamp
    assert verify(folder)[0] == []


def test_folds_of_another_recipe_are_left_alone(pooled):
    recipe, folder = pooled
    with pytest.raises(OutputError, match=r"a run of another recipe is here \(seed was 42, is 1\)"):
        cross_validate(recipe.replace(seed=1), folder)


def test_folds_of_other_images_are_not_pooled():
    written = {"1": pd.DataFrame({"source": "s", "path": ["a.png", "b.png"], "split": ["test", "train"]})}
    read = pd.DataFrame({"source": "s", "path": ["a.png"], "file": ["/x/a.png"]})
    with pytest.raises(DataError, match="1 images of the finished folds are not in the data.*choose another --out"):
        pool_manifest(written, read, "fold")


@pytest.mark.parametrize(
    "choices", [{"folds": 1}, {"folds": 3, "fold": 4}, {"fold": 1}, {"folds": 3, "reuse_split": "runs/x"}]
)
def test_folds_that_cannot_be_are_refused(choices):
    with pytest.raises(RecipeError, match="--folds"):
        Recipe(**choices)


@pytest.fixture(scope="module")
def of_two_kinds(pooled, tmp_path_factory):
    """Image-level folds of a head that costs seconds."""
    recipe, _ = pooled
    folder = tmp_path_factory.mktemp("apart") / "run"
    cross_validate(recipe.replace(strategy="linear_probe", split="image"), folder)
    return folder


def test_image_level_folds_are_run_with_patients_apart_too_and_the_report_gives_the_gap(of_two_kinds):
    here, apart = (
        json.loads((folder / "metrics.json").read_text())["oof"]
        for folder in (of_two_kinds, of_two_kinds / "patient_split")
    )
    table = pd.read_csv(of_two_kinds / "patient_split" / "predictions.csv", dtype=str)
    assert table.groupby("patient")["fold"].nunique().max() == 1
    page = (of_two_kinds / "report.html").read_text()
    assert "by the model that was trained without it." in page and "without its patient" not in page
    gap = 100 * (apart["accuracy"] - here["accuracy"])
    assert f"With a patient-level split: accuracy {100 * apart['accuracy']:.1f} % ({gap:+.1f} points)" in page


def test_folds_that_cost_hours_and_folds_by_patient_are_run_once(pooled, of_two_kinds):
    assert not (pooled[1] / "patient_split").exists()
    assert not (of_two_kinds / "patient_split" / "patient_split").exists()


def test_a_failed_check_of_the_data_stands_on_the_pooled_report(pooled, tmp_path):
    recipe, _ = pooled
    first, second = (tmp_path / name for name in ("one", "other"))
    write_toys(first, per_class=12, labels=("clear",))
    write_toys(second, per_class=12, labels=("haze",), first=50)
    page = cross_validate(recipe.replace(data=(str(first), str(second)), folds=2), tmp_path / "run")
    assert "Confounded: do not use these metrics" in page.read_text()
    assert "Every class has its own sources" in page.read_text()


NOBODYS = "no patient identifiers found"


@pytest.fixture(scope="module")
def damaged(pooled, tmp_path_factory):
    """Folds of images that nobody is named for, two of them damaged; the folder of all and its data."""
    place = tmp_path_factory.mktemp("damaged")
    data = write_toys(place / "toys", per_class=14)
    for number, file in enumerate(sorted(data.glob("*/*.png"))):
        file.rename(file.with_name(f"{number}.png"))
    for name in ("clear/2.png", "haze/20.png"):
        (data / name).write_bytes((data / name).read_bytes()[:90])
    recipe = pooled[0].replace(data=str(data), folds=2, strategy="linear_probe", skip_bad=True)
    cross_validate(recipe, place / "run")
    return place / "run"


def test_images_that_were_left_out_are_counted_once_in_everything_that_is_said_of_all_folds(damaged):
    assert pd.read_csv(damaged / "skipped.csv")["path"].tolist() == ["clear/2.png", "haze/20.png"]
    assert len(pd.read_csv(damaged / "predictions.csv")) == 40
    assert "2 images left out" in (damaged / "report.html").read_text()
    assert "- Left out (CLAIM 10): 2 images, reasons in skipped.csv" in (damaged / "MODEL_CARD.md").read_text()
    claim = (damaged / "CLAIM.md").read_text()
    assert "2 images left out, reasons in skipped.csv" in claim and "left out and counted; 2 images here" in claim
    assert verify(damaged)[0] == []


def test_a_warning_about_the_cohort_stands_once_on_the_pooled_report(damaged):
    said = json.loads((damaged / "run.json").read_text())["messages"]
    assert [line["text"].startswith(NOBODYS) for line in said if NOBODYS in line["text"]] == [True]
    assert (damaged / "report.html").read_text().count(NOBODYS) == 2, "as a notice, and in the list of what was said"
    assert NOBODYS in (damaged / "MODEL_CARD.md").read_text()


def test_two_images_of_one_path_that_were_left_out_stay_two():
    table = pd.DataFrame({"path": ["a.png", "a.png", "b.png"], "code": "E102", "reason": "not a picture"})
    assert pool_skipped([table, table, table[:0]])["path"].tolist() == ["a.png", "a.png", "b.png"]


def test_nothing_is_left_out_any_more_once_the_images_were_mended_and_the_folds_run_again(tmp_path):
    table = pd.DataFrame({"path": ["a.png"], "code": "E102", "reason": "not a picture"})
    write_skipped(tmp_path, table)
    assert (tmp_path / "skipped.csv").exists()
    write_skipped(tmp_path, table[:0])
    assert not (tmp_path / "skipped.csv").exists()


def test_a_warning_that_not_every_fold_gave_names_those_that_did():
    all_of_them, some, info = ({"level": level, "text": text} for level, text in
                               (("warning", "whose?"), ("warning", "no haze"), ("info", "3 classes")))  # fmt: skip
    found = pool_warnings({"1": [all_of_them, some, some], "2": [info, all_of_them], "3": [some, all_of_them]}, "fold")
    assert [line["text"] for line in found] == ["whose?", "fold 1, 3: no haze"]


def test_where_nothing_can_be_kept_all_folds_decode_each_picture_once_and_share_one_pass(
    toy_folder, tmp_path, temporary, monkeypatch
):
    decoded, looked, read, fill = [], [], index.read_open_image, feature_cache.fill_feature_cache
    monkeypatch.setattr(index, "read_open_image", lambda *asked: (decoded.append(asked[1]), read(*asked))[1])
    monkeypatch.setattr(
        feature_cache, "fill_feature_cache", lambda found, *rest: (looked.append(len(found[0])), fill(found, *rest))
    )
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0")
    recipe = Recipe(NAME, data=str(toy_folder), weights="none", image_size=64, strategy="linear_probe", folds=2)
    cross_validate(recipe, tmp_path / "run")
    assert len(decoded) == len(set(decoded)) == 30
    assert looked == [30]


def test_images_that_a_fold_could_not_read_do_not_make_it_another(damaged):
    recipe = read_recipe(damaged / "recipe.json").replace(data=str(damaged.parent / "toys"))
    before = (damaged / "predictions.csv").read_bytes()
    cross_validate(recipe, damaged)
    shutil.rmtree(damaged / "fold-2")
    cross_validate(recipe, damaged)
    assert (damaged / "predictions.csv").read_bytes() == before


class Listener(logging.Handler):
    """What a terminal would show."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.heard = []

    def emit(self, record):
        self.heard.append(record.getMessage())


ANEW = "the splits that the data gives are not used: folds are drawn anew"


@pytest.mark.parametrize(("ignored", "said"), [(False, [ANEW]), (True, [])])
def test_that_folds_override_given_splits_is_said_once_of_all_of_them(pooled, tmp_path, ignored, said):
    write_toys(tmp_path / "toys" / "train", per_class=6)
    write_toys(tmp_path / "toys" / "test", per_class=4, first=50)
    recipe = pooled[0].replace(
        data=str(tmp_path / "toys"), folds=2, strategy="linear_probe", ignore_given_splits=ignored
    )
    with log_to(listener := Listener()):
        cross_validate(recipe, tmp_path / "run")
    assert [line for line in listener.heard if line.startswith("the splits that")] == said
    for place in (tmp_path / "run", tmp_path / "run" / "fold-1", tmp_path / "run" / "fold-2"):
        lines = json.loads((place / "run.json").read_text())["messages"]
        assert [line for line in lines if line["text"] == ANEW] == [{"level": "info", "text": ANEW}] * len(said)


def test_folds_of_data_without_splits_say_nothing_of_them(pooled):
    assert "are not used" not in (pooled[1] / "run.json").read_text()


def test_one_fold_is_told_to_be_no_folds():
    with pytest.raises(RecipeError, match="folds is 1, it must be 0 or at least 2. Pass --folds 2"):
        Recipe(folds=1)


def test_the_folder_of_all_folds_has_no_model_and_says_where_one_is(pooled):
    with pytest.raises(InputMissingError, match=r"3 subfolders are runs with a model. Pass one of them, .*run/fold-1$"):
        load_model(pooled[1])


@pytest.fixture
def counted(monkeypatch):
    """How often a manifest was read, and the image cache opened, through the workflows."""
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
        assert any(text.startswith("data format: ") for text in texts), "what was said while it was read, too"
        assert sum(" patients from " in text for text in texts) == 1


@pytest.mark.parametrize("split", ["patient", "image"])
def test_all_folds_share_one_reading_of_manifest_and_images(counted, tmp_path, split):
    data = write_toys(tmp_path / "toys", per_class=8)
    recipe = Recipe(NAME, data=str(data), weights="none", image_size=64, batch_size=8, folds=2, strategy="probe")
    cross_validate(recipe.replace(split=split), tmp_path / "run")
    assert counted == {"manifest": 1, "images": 1}
    assert_logged_in_every_run(sorted((tmp_path / "run").rglob("fold-*")))
    shutil.rmtree(tmp_path / "run" / "fold-1")
    cross_validate(recipe.replace(split=split), tmp_path / "run")
    assert counted == {"manifest": 2, "images": 2}, "also where some folds are finished"


def test_all_sources_share_one_reading_of_manifest_and_images(counted, tmp_path):
    homes = [str(write_toys(tmp_path / name, 8, first=first)) for name, first in (("ward", 0), ("clinic", 50))]
    recipe = Recipe(NAME, data=tuple(homes), weights="none", image_size=64, batch_size=8, strategy="probe")
    cross_validate(recipe.replace(leave_one_source_out=True), tmp_path / "run")
    assert counted == {"manifest": 1, "images": 1}


def test_a_single_run_reads_its_manifest_once(counted, tmp_path):
    data = write_toys(tmp_path / "toys", per_class=8)
    recipe = Recipe(NAME, data=str(data), weights="none", image_size=64, batch_size=8, strategy="probe")
    run(recipe, tmp_path / "run")
    assert counted == {"manifest": 1, "images": 1}
    run(recipe, tmp_path / "run")
    assert counted == {"manifest": 2, "images": 1}, "a finished run is compared with its data, and reads no image"
