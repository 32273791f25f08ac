"""Worker processes and Dask: folds and variants equal those of this process, also after a worker was killed."""

import json
import os
import signal
import threading
import time

import pytest
from toy_images import write_toys

from fastcxr.config.recipe import Recipe
from fastcxr.errors import InputMissingError
from fastcxr.executors.local_pool import LocalPool
from fastcxr.progress.base import Progress
from fastcxr.workflows.cross_validate import cross_validate
from fastcxr.workflows.train import run
from fastcxr.workflows.variants import run_variants

pytestmark = pytest.mark.slow
BACKBONE = "test_byobnet"  # of timm: a worker process has it too
COMPARED = ("predictions.csv", "metrics.json", "folds.csv", "manifest.csv")
COMPARED_IN_RUNS = ("predictions.csv", "metrics.json", "model.safetensors", "features.npz")


def assert_equal_results(found, expected):
    for name in COMPARED:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    for fold_dir in expected.glob("fold-*"):
        for name in COMPARED_IN_RUNS:
            assert (found / fold_dir.name / name).read_bytes() == (fold_dir / name).read_bytes(), name


@pytest.fixture
def pool():
    with LocalPool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Return recipe and folder of three folds of a trained network, run in this process."""
    folder = tmp_path_factory.mktemp("full")
    data = write_toys(folder / "toys", per_class=12)
    options = {"weights": "none", "image_size": 32, "strategy": "full", "batch_size": 4, "epochs": 4, "folds": 3}
    recipe = Recipe(BACKBONE, data=str(data), **options)
    cross_validate(recipe, folder / "run")
    return recipe, folder / "run"


def test_a_worker_killed_in_a_fold_costs_only_the_last_batches(full, tmp_path, pool, caplog):
    recipe, expected = full

    def kill():
        history = tmp_path / "run" / "fold-2" / "history.csv"
        while not history.exists() or len(history.read_text().splitlines()) < 3:
            time.sleep(0.01)
        os.kill(int((history.parent / ".lock").read_text()), signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    cross_validate(recipe, tmp_path / "run", executor=pool)
    thread.join()
    assert_equal_results(tmp_path / "run", expected)
    messages = json.loads((tmp_path / "run" / "fold-2" / "run.json").read_text())["messages"]
    assert any(line["text"].startswith("resuming after ") for line in messages)
    assert "was killed: a new one continues its piece" in caplog.text


def test_variants_on_workers_equal_those_of_this_process(full, tmp_path, pool):
    recipe = full[0].replace(folds=0)
    recipes = {"full": recipe, "probe": recipe.replace(strategy="linear_probe"), "focal": recipe.replace(loss="focal")}
    recipes["broken"] = recipe.replace(data=str(tmp_path / "nowhere"))
    errors = []
    variants = {name: (one, tmp_path / "study" / name, None) for name, one in recipes.items()}
    run_variants(variants, pool, Progress(), "command", lambda *error: errors.append(error))
    assert [name for name, _ in errors] == ["broken"]
    assert isinstance(errors[0][1], InputMissingError)
    for name, one in recipes.items():
        if name != "broken":
            run(one, tmp_path / "here" / name)
            for file in COMPARED_IN_RUNS:
                there, here = (tmp_path / place / name / file for place in ("study", "here"))
                assert there.read_bytes() == here.read_bytes(), (name, file)
    assert not (tmp_path / "study" / ".pieces").exists()


@pytest.mark.needs("distributed")
def test_folds_on_dask_equal_those_of_this_process(full, tmp_path):
    from distributed import LocalCluster

    from fastcxr.executors.dask_cluster import connect_dask

    options = {"dashboard_address": None, "local_directory": str(tmp_path / "dask"), "memory_limit": 0}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster,
        connect_dask(cluster.scheduler_address) as executor,
    ):
        cross_validate(full[0], tmp_path / "run", executor=executor)
    assert_equal_results(tmp_path / "run", full[1])
