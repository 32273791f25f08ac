"""A training that is broken off anywhere and gone on with ends as one that was left in peace, bit for bit."""

import hashlib
import multiprocessing
import shutil
import signal
from collections import namedtuple

import pytest
import torch
from fastai.callback.core import Callback
from tiny_network import NAME

from fastcxr.config.recipe import Recipe, Stage
from fastcxr.errors import StorageError, TrainingError
from fastcxr.training import interrupt, resume
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.trainer import train

RECIPE = Recipe(NAME, weights="none", image_size=64, batch_size=6, epochs=2, strategy="full")
TWO_STAGES = (Stage(name="head", groups=1, epochs=1), Stage(name="all", epochs=2, batch_norm="frozen"))
RECIPES = {
    "deep": RECIPE,
    "stages": RECIPE.replace(strategy=TWO_STAGES, learning_rate=1e-3),
    "found rate": RECIPE.replace(strategy=TWO_STAGES, lr_find_min=1e-4, lr_find_max=1e-1),
    "patience": RECIPE.replace(epochs=4, patience=1, learning_rate=1e-2),
    "adam, steps": RECIPE.replace(optimizer="adam", schedule="step", learning_rate=1e-3),
    "timm's": RECIPE.replace(optimizer="timm:adamw", learning_rate=1e-3),
    "bfloat16": RECIPE.replace(precision="bf16", learning_rate=1e-3),
    "weighted draws": RECIPE.replace(sampler="weighted", learning_rate=1e-3),
    "workers": RECIPE.replace(workers=2, learning_rate=1e-3),
    "bank": RECIPE.replace(strategy="lp_ft", weights="FILE", learning_rate=1e-3),
}


class Crash(BaseException):
    """Somebody pulled the plug."""


class CrashAfter(Callback):
    """Breaks off after so many batches, those of validation and of the search for a rate too."""

    order = 100

    def __init__(self, batches: int):
        self.left = batches

    def after_batch(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash


@pytest.fixture
def often(monkeypatch):
    """A state after every batch."""
    monkeypatch.setattr(resume, "CHECKPOINT_INTERVAL_MINUTES", 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from safetensors.torch import save_file
    from timm import create_model

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / f"{NAME}.safetensors"
    save_file(create_model(NAME).state_dict(), path)
    return str(path)


def learn(manifest, recipe, folder, crash_after=None):
    """Train until a crash; returns the learner and what training told, or None."""
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    if crash_after is not None:
        learner.add_cb(CrashAfter(crash_after))
    try:
        return learner, train(learner, recipe, checkpoints=Checkpoints(folder))
    except Crash:
        return learner, None


def fingerprint(learner) -> str:
    digest = hashlib.sha256()
    for name, tensor in learner.model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", RECIPES)
def test_it_ends_with_the_same_weights_and_the_same_history(toy_manifest, tmp_path, often, name, weights):
    recipe = RECIPES[name]
    recipe = recipe.replace(weights=weights) if recipe.weights == "FILE" else recipe
    whole, told = learn(toy_manifest, recipe, tmp_path / "whole")
    crashes = 0
    for batches in (3, 1, 4, 7, 2, 100, 9, None):
        broken, result = learn(toy_manifest, recipe, tmp_path / "broken", batches)
        crashes += result is None
        if result:
            break
    assert crashes > 1
    assert fingerprint(broken) == fingerprint(whole)
    both = [t.history.drop(columns="seconds") for t in (told, result)]
    assert both[0].equals(both[1])
    assert (told.best, told.rates) == (result.best, result.rates)
    assert told.curves.reset_index(drop=True).equals(result.curves.reset_index(drop=True))


def test_a_wish_to_stop_ends_after_the_batch_with_its_state_kept(toy_manifest, tmp_path, monkeypatch):
    recipe = RECIPE.replace(learning_rate=1e-3)
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    seen = []

    class Wish(Callback):
        def after_loss(self) -> None:
            seen.append(self.training)
            if len(seen) == 2:
                signal.raise_signal(signal.SIGTERM)

    learner.add_cb(Wish())
    with pytest.raises(interrupt.Interrupted), interrupt.handle_signals(print, "resume"):
        train(learner, recipe, checkpoints=Checkpoints(tmp_path))
    found = Checkpoints(tmp_path).read()
    assert (found["epoch"], found["batch"], len(seen)) == (0, 2, 2)


def test_a_killed_worker_costs_a_worker_and_nothing_else(toy_manifest, tmp_path, caplog):
    recipe = RECIPE.replace(learning_rate=1e-3, workers=2, batch_size=2)
    whole, _ = learn(toy_manifest, recipe, tmp_path / "whole")
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)

    class KillWorker(Callback):
        done = False

        def after_batch(self) -> None:
            workers = multiprocessing.active_children()
            if self.training and workers and not KillWorker.done and self.iter == 1:
                KillWorker.done = True
                workers[0].kill()

    learner.add_cb(KillWorker())
    train(learner, recipe, checkpoints=Checkpoints(tmp_path / "broken"))
    assert KillWorker.done
    assert "on from the last state with 1" in caplog.text
    assert fingerprint(learner) == fingerprint(whole)


@pytest.mark.parametrize(
    "error", [ConnectionResetError("by peer"), EOFError("the end"), RuntimeError("DataLoader worker 1")]
)
def test_every_word_of_a_lost_worker_is_understood_twice_too(toy_manifest, tmp_path, monkeypatch, error):
    recipe = RECIPE.replace(learning_rate=1e-3)
    whole, _ = learn(toy_manifest, recipe, tmp_path / "whole")
    learner, told = make_learner(make_loaders(toy_manifest, recipe), recipe), []

    class Lost(Callback):
        def after_step(self) -> None:
            if not told:
                told.append("in training")
                raise error

    def find(self):
        if told and len(told) == 1:
            told.append("while it was mended")
            raise RuntimeError("DataLoader worker 2")
        return look(self)

    look = resume.CheckpointCallback.load_state
    monkeypatch.setattr(resume.CheckpointCallback, "load_state", find)
    learner.add_cb(Lost())
    train(learner, recipe, checkpoints=Checkpoints(tmp_path / "broken"))
    assert len(told) == 2
    assert fingerprint(learner) == fingerprint(whole)


def test_no_room_is_told_before_the_first_step(toy_manifest, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 10_000))
    recipe = RECIPE.replace(learning_rate=1e-3)
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    learner.add_cb(CrashAfter(0))
    with pytest.raises(StorageError, match=r"this run needs \d+\.\d MB, 0\.0 MB are free"):
        train(learner, recipe, checkpoints=Checkpoints(tmp_path))


@pytest.mark.parametrize("words", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory"])
def test_too_little_memory_is_told_with_what_would_fit(toy_manifest, tmp_path, words):
    recipe = RECIPE.replace(learning_rate=1e-3, precision="bf16")
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)

    class Full(Callback):
        def after_pred(self) -> None:
            raise torch.cuda.OutOfMemoryError(words) if "CUDA" in words else RuntimeError(words)

    learner.add_cb(Full())
    with pytest.raises(TrainingError, match="out of memory: 6 images of 64 px at a time.*Give --batch-size 3"):
        train(learner, recipe)
    assert not torch.is_autocast_enabled("cpu")  # whatever the rest of the session computes
