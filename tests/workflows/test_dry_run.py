"""A dry run states images, steps, time and space of a training, and starts nothing."""

import json
import math
import shutil

import pytest
from toy_findings import FINDINGS, write_finding_toys

from fastcxr.config.recipe import Recipe
from fastcxr.errors import InputMissingError, StorageError
from fastcxr.training.timed_steps import TimedStage, TimedSteps, time_steps
from fastcxr.workflows import dry_run as module
from fastcxr.workflows.dry_run import dry_run

OPTIONS = {"weights": "none", "image_size": 64, "strategy": "full", "batch_size": 6, "precision": "fp32"}
SECONDS = 0.5  # of a training step
TIMED = TimedSteps(
    stages=(TimedStage(name="all", epochs=4, step_seconds=SECONDS, search_steps=0),),
    batch_size=6,
    forward_seconds=0.01,
    weights_bytes=1_000_000,
    n_features=100,
    step_bytes=5_000_000,
    is_measured=False,
    precision="precision: float32",
)


def make_recipe(folder, **options) -> Recipe:
    return Recipe("test_byobnet", data=str(folder), epochs=4, **OPTIONS | options)


@pytest.fixture
def timed(monkeypatch):
    """The steps take SECONDS, without a network; 100 images are decoded per second."""
    monkeypatch.setattr(module, "time_steps", lambda recipe, sample, n_train_rows: TIMED)
    decode = module._decode_sample
    monkeypatch.setattr(module, "_decode_sample", lambda *arguments: (decode(*arguments)[0], 100.0, 0))


def test_the_times_are_those_of_steps_and_images(toy_folder, tmp_path, timed):
    plan = dry_run(make_recipe(toy_folder, hflip_tta=True), tmp_path / "run")
    splits = plan.data["splits"]
    n_train, n_valid, n_test = (splits[split]["n_images"] for split in ("train", "valid", "test"))
    assert n_train + n_valid + n_test == plan.data["n_images"] == 30
    assert sum(numbers["train"] for numbers in plan.data["images_per_class"].values()) == n_train
    stage = plan.times["stages"][0]
    assert (stage["steps_per_epoch"], stage["epochs"]) == (n_train // 6, 4)
    assert stage["epoch_seconds"] == pytest.approx(SECONDS * (n_train // 6) + 0.01 * n_valid)
    # the images of valid and test are predicted in two views, and train and valid are those of the OOD detector
    after = 10 + 0.01 * (2 * (n_valid + n_test) + n_train + n_valid)
    assert plan.times["run_seconds"] == pytest.approx(30 / 100 + 4 * stage["epoch_seconds"] + after)
    assert plan.disk["image_cache_bytes"] == 30 * 64**2 and plan.disk["run_bytes"] == 9_000_000
    assert plan.error is None
    assert not list(tmp_path.iterdir())


def test_the_processes_of_one_training_are_those_given(toy_folder, tmp_path, timed):
    assert dry_run(make_recipe(toy_folder), tmp_path / "run", n_processes=4).machine["processes"] == 4


def test_folds_are_counted_and_run_side_by_side(toy_folder, tmp_path, timed):
    one = dry_run(make_recipe(toy_folder, folds=5), tmp_path / "run")
    assert one.runs == {"n_runs": 5, "unit": "fold", "jobs": 1}
    decode = one.times["decode_seconds"]
    assert one.times["all_runs_seconds"] == pytest.approx(decode + 5 * (one.times["run_seconds"] - decode))
    two = dry_run(make_recipe(toy_folder, folds=5), tmp_path / "run", n_jobs=2)
    assert two.times["all_runs_seconds"] == pytest.approx(decode + 3 * (one.times["run_seconds"] - decode))
    assert not list(tmp_path.iterdir())


def test_a_time_limit_leaves_the_epochs_that_fit(toy_folder, tmp_path, timed):
    epoch_seconds = dry_run(make_recipe(toy_folder), tmp_path / "run").times["stages"][0]["epoch_seconds"]
    plan = dry_run(make_recipe(toy_folder, time_limit="15s"), tmp_path / "run")
    left = 15 - plan.times["decode_seconds"] - plan.times["after_seconds"]
    stage = plan.times["stages"][0]
    assert stage["requested_epochs"] == 4
    assert stage["epochs"] == math.floor(left / epoch_seconds) < 4


def test_findings_and_oversampling_are_counted(tmp_path, toy_folder, timed):
    labels = write_finding_toys(tmp_path / "findings", 40)
    data = dry_run(make_recipe(labels), tmp_path / "run").data
    assert data["task"] == "multi_label" and set(data["images_per_class"]) <= set(FINDINGS)
    plain = dry_run(make_recipe(toy_folder, batch_size=1), tmp_path / "run")
    more = dry_run(make_recipe(toy_folder, batch_size=1, oversample=("haze=3",)), tmp_path / "run")
    n_haze = plain.data["images_per_class"]["haze"]["train"]
    steps = [6 * plan.times["stages"][0]["steps_per_epoch"] for plan in (plain, more)]
    assert steps[1] == steps[0] + 2 * n_haze // 6 * 6


def test_an_image_cache_that_is_too_small_is_a_line_with_the_limit(toy_folder, tmp_path, timed, monkeypatch):
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0.0001")
    plan = dry_run(make_recipe(toy_folder), tmp_path / "run")
    assert not plan.disk["image_cache_fits"] and "Set FASTCXR_CACHE_GB=" in plan.disk["image_cache_advice"]


def test_a_full_disk_is_the_error_of_the_run(toy_folder, tmp_path, timed, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1_000))
    plan = dry_run(make_recipe(toy_folder), tmp_path / "run")
    assert isinstance(plan.error, StorageError) and plan.error.exit_code == 74
    assert "the run needs 9.0 MB, 0.0 MB are free" in str(plan.error)


def test_weights_that_do_not_exist_are_an_error_before_images_are_read(toy_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_decode_sample", None)
    with pytest.raises(InputMissingError):
        dry_run(make_recipe(toy_folder, weights=str(tmp_path / "no.pth")), tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "n_stages"),
    [({}, 1), ({"strategy": "linear_probe"}, 0), ({"batch_size": "auto", "learning_rate": "find"}, 1)],
)
def test_steps_of_a_network_are_timed_and_nothing_of_it_is_kept(toy_manifest, options, n_stages):
    recipe = Recipe("test_byobnet", epochs=2, **OPTIONS | options)
    timed = time_steps(recipe, toy_manifest, n_train_rows=1000)
    assert len(timed.stages) == n_stages
    assert all(stage.step_seconds > 0 for stage in timed.stages) and timed.forward_seconds > 0
    assert timed.weights_bytes > 100_000 and timed.n_features > 0
    assert timed.batch_size == (32 if recipe.batch_size == "auto" else 6)
    assert bool(timed.step_bytes) == bool(n_stages)
    json.dumps([vars(stage) for stage in timed.stages])
