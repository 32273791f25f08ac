"""Folds as pieces: the tasks of an executor, separate commands and their merge equal a run in one process."""

import json
import shutil
import threading
import time
from concurrent.futures import Executor, Future

import pytest
from tiny_network import NAME
from toy_images import write_toys

from fastcxr.config.recipe import Recipe
from fastcxr.errors import BusyError, DataError, InputMissingError, OutputError, RecipeError
from fastcxr.io.files import STATE_DIR
from fastcxr.io.lock import directory_lock
from fastcxr.workflows import pieces
from fastcxr.workflows.cross_validate import cross_validate
from fastcxr.workflows.fold_plan import find_shared_batch_size
from fastcxr.workflows.load import Dataset
from fastcxr.workflows.merge import reject_unfinished_pieces
from fastcxr.workflows.pieces import TimeShare, claim_piece
from fastcxr.workflows.scout import scout
from fastcxr.workflows.train_dir import RunDir

pytestmark = pytest.mark.usefixtures("without_figures", "without_pages", "without_maps", "few_draws")

COMPARED = ("predictions.csv", "metrics.json", "folds.csv", "manifest.csv")
COMPARED_IN_FOLDS = ("predictions.csv", "metrics.json", "model.safetensors", "features.npz")


class Worker(Executor):
    """An executor that runs each call in `submit`, as a worker would, and records the names of the folders."""

    def __init__(self):
        self.folders = []

    def submit(self, fn, /, task, token):
        self.folders.append(task.args[1].name)
        assert all(not hasattr(one, "read_manifest") for one in (*task.args, *task.kwargs)), "workers read the data"
        future = Future()
        try:
            future.set_result(fn(task, token))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
    """Return recipe and folder of two folds that were run in this process."""
    folder = tmp_path_factory.mktemp("sequential")
    data = write_toys(folder / "toys", per_class=10)
    options = {"weights": "none", "image_size": 32, "strategy": "linear_probe", "folds": 2}
    recipe = Recipe(NAME, data=str(data), **options)
    cross_validate(recipe, folder / "run")
    return recipe, folder / "run"


def assert_equal_results(found, expected):
    for name in COMPARED:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    for fold_dir in expected.glob("fold-*"):
        for name in COMPARED_IN_FOLDS:
            assert (found / fold_dir.name / name).read_bytes() == (fold_dir / name).read_bytes(), name
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in expected.iterdir())


def test_folds_of_an_executor_equal_those_of_this_process(sequential, tmp_path):
    recipe, expected = sequential
    worker = Worker()
    cross_validate(recipe, tmp_path / "run", executor=worker)
    assert worker.folders == ["fold-1", "fold-2"]
    assert_equal_results(tmp_path / "run", expected)


def test_claimed_pieces_and_their_merge_equal_a_run_in_this_process(sequential, tmp_path):
    recipe, expected = sequential
    folder = tmp_path / "run"
    with pytest.raises(InputMissingError, match="the folder does not exist"):
        reject_unfinished_pieces_of(folder)
    for fold in ("2", "1"):
        command = f"fastcxr train --folds 2 --fold {fold} --out {folder}"
        fold_recipe, fold_dir = claim_piece(recipe, fold, folder, command)
        assert (fold_recipe, fold_dir) == (recipe.replace(fold=int(fold)), folder / f"fold-{fold}")
        if fold == "1":
            with pytest.raises(InputMissingError, match=rf"E616 .*fold 1 is not finished. Run: {command}$"):
                reject_unfinished_pieces(folder, recipe)
        pieces.run(fold_recipe, fold_dir)
    reject_unfinished_pieces(folder, recipe)
    cross_validate(recipe, folder)
    assert_equal_results(folder, expected)


def reject_unfinished_pieces_of(folder):
    from fastcxr.workflows.run_state import read_run_config

    reject_unfinished_pieces(folder, read_run_config(folder))


def test_a_fold_of_another_recipe_or_of_a_running_run_cannot_be_claimed(sequential, tmp_path, monkeypatch):
    recipe, folder = sequential[0], tmp_path / "run"
    monkeypatch.setattr(pieces, "CLAIM_SECONDS", 0)
    claim_piece(recipe, "1", folder, None)
    with pytest.raises(OutputError, match="a run with a different recipe"):
        claim_piece(recipe.replace(seed=1), "2", folder, None)
    with directory_lock(folder), pytest.raises(BusyError, match="is writing into this folder"):
        claim_piece(recipe, "2", folder, None)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file.txt").touch()
    with pytest.raises(OutputError, match="this folder is not empty"):
        claim_piece(recipe, "2", tmp_path / "other", None)
    with pytest.raises(RecipeError, match="no source '3' can be held out. Choose one of: 1, 2"):
        claim_piece(recipe, "3", folder, None)


def test_pieces_that_start_at_the_same_time_claim_the_same_run(sequential, tmp_path):
    errors = []

    def claim(fold):
        try:
            claim_piece(sequential[0].replace(folds=9), str(fold), tmp_path / "run", None)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=claim, args=(fold,)) for fold in range(1, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert Recipe.from_json(tmp_path / "run" / STATE_DIR / "recipe.json").folds == 9


def test_the_second_process_of_a_piece_is_rejected(sequential, tmp_path):
    fold_recipe, fold_dir = claim_piece(sequential[0], "1", tmp_path / "run", None)
    fold_dir.mkdir()
    (fold_dir / "recipe.json").write_text(fold_recipe.to_json())
    with directory_lock(fold_dir), pytest.raises(BusyError, match="is writing into this folder"):
        pieces.run(fold_recipe, fold_dir)


def test_a_chosen_batch_size_is_that_of_a_finished_fold(sequential, tmp_path):
    recipe, folder = sequential[0].replace(batch_size="auto"), tmp_path / "run"
    assert claim_piece(recipe, "1", folder, None)[1].name == "fold-1", "the first fold chooses it"
    with pytest.raises(RecipeError, match="E617 .*none is finished. Run fold 1 first"):
        claim_piece(recipe, "2", folder, None)
    (folder / "fold-1").mkdir()
    (folder / "fold-1" / "report.html").touch()
    (folder / "fold-1" / "model.json").write_text(json.dumps({"choices": {"batch_size": 4}}))
    assert find_shared_batch_size(recipe, claim_piece(recipe, "2", folder, None)[1]) == 4
    assert find_shared_batch_size(recipe, tmp_path / "fold-2") is None, "not a piece"
    assert find_shared_batch_size(sequential[0], folder / "fold-2") is None, "a given size"


def test_the_first_fold_finishes_before_others_take_its_batch_size(sequential, tmp_path, monkeypatch):
    recipe = sequential[0].replace(batch_size="auto", folds=3)
    waves = []
    monkeypatch.setattr(pieces, "run_tasks", lambda tasks, *rest, **options: waves.append(list(tasks)))
    run_dir = RunDir(tmp_path, recipe)
    folds = {str(n): (recipe.replace(fold=n), tmp_path / f"fold-{n}") for n in (1, 2, 3)}
    pieces.run_pieces(run_dir, folds, pieces.FoldOptions(Dataset(recipe), None, None, None))
    assert waves == [["fold 1"], ["fold 2", "fold 3"]]


def test_a_failing_fold_is_named(sequential, tmp_path):
    (tmp_path / "toys").mkdir()
    shutil.copytree(sequential[0].data, tmp_path / "toys", dirs_exist_ok=True)
    next((tmp_path / "toys" / "haze").iterdir()).write_bytes(b"no image")
    with pytest.raises(DataError, match="fold 1: 1 of the images cannot be read"):
        cross_validate(sequential[0].replace(data=str(tmp_path / "toys")), tmp_path / "run", executor=Worker())
    assert not (tmp_path / "run" / STATE_DIR / ".pieces").exists()


def test_the_time_of_a_worker_is_shared_by_the_pieces_that_it_runs():
    assert TimeShare(time.time() + 90, 3).make_deadline().seconds == pytest.approx(30, abs=1)
    assert TimeShare(float("inf"), 3).make_deadline().seconds == float("inf")


def test_scout_measures_candidates_on_an_executor(sequential, tmp_path, monkeypatch):
    rows = {"auroc": 0.5, "note": "", "image_size": 32, "parameters": 9, "images_per_second": 1.0, "accuracy": 0.5}
    names = []

    def evaluate(recipe, manifest, progress=None):
        names.append((recipe.backbone, progress))
        return {"backbone": recipe.backbone} | rows

    monkeypatch.setattr("fastcxr.workflows.scout.evaluate_candidate", evaluate)
    recipe = Recipe(data=sequential[0].data, strategy="linear_probe", image_size=32)

    class Candidates(Worker):
        def submit(self, fn, /, task, token):
            future = Future()
            future.set_result(fn(task, token))
            return future

    table = scout(recipe, ("resnet18", "resnet34"), {}, tmp_path / "out", executor=Candidates())
    assert names == [("resnet18", None), ("resnet34", None)]
    assert table["backbone"].tolist() == ["resnet18", "resnet34"]
    assert not (tmp_path / "out" / ".pieces").exists()
