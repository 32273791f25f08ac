"""An interrupted and resumed training gives bit-identical results."""

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
from fastcxr.errors import DeviceError, ModelError, StorageError, TrainingError
from fastcxr.models import param_groups
from fastcxr.training import interrupt, resume
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.trainer import train

# on a CPU, where a resumed training is bit-identical; tests/test_gpu.py has those of a GPU
RECIPE = Recipe(NAME, weights="none", image_size=64, batch_size=6, epochs=2, strategy="full", device="cpu")
TWO_STAGES = (Stage(name="head", groups=1, epochs=1), Stage(name="all", epochs=2, batch_norm="frozen"))
RECIPES = {
    "full": RECIPE,
    "stages": RECIPE.replace(strategy=TWO_STAGES, learning_rate=1e-3),
    "learning rate finder": RECIPE.replace(strategy=TWO_STAGES, lr_find_min=1e-4, lr_find_max=1e-1),
    "patience": RECIPE.replace(epochs=4, patience=1, learning_rate=1e-2),
    "adam, steps": RECIPE.replace(optimizer="adam", schedule="step", learning_rate=1e-3),
    "timm": RECIPE.replace(optimizer="timm:adamw", learning_rate=1e-3),
    "bfloat16": RECIPE.replace(precision="bf16", learning_rate=1e-3),
    "float16": RECIPE.replace(precision="fp16", learning_rate=1e-3),
    "weighted sampling": RECIPE.replace(sampler="weighted", learning_rate=1e-3),
    "workers": RECIPE.replace(workers=2, learning_rate=1e-3),
    "lp_ft": RECIPE.replace(strategy="lp_ft", weights="FILE", learning_rate=1e-3),
}


SLOW = (
    "learning rate finder",
    "adam, steps",
    "float16",
    "workers",
    "timm",
    "weighted sampling",
    "stages",
)  # parts of each are in another recipe


class Crash(BaseException):
    """A simulated power failure."""


class CrashAfter(Callback):
    """Crash after a number of batches, including those of validation and the learning rate finder."""

    order = 100

    def __init__(self, batches: int):
        self.n_batches_left = batches

    def after_batch(self) -> None:
        self.n_batches_left -= 1
        if self.n_batches_left < 0:
            raise Crash


@pytest.fixture
def checkpoint_every_batch(monkeypatch):
    """Write a checkpoint after every batch."""
    monkeypatch.setattr(resume, "CHECKPOINT_INTERVAL_MINUTES", 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from safetensors.torch import save_file
    from timm import create_model

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / f"{NAME}.safetensors"
    save_file(create_model(NAME).state_dict(), path)
    return str(path)


def run_training(manifest, recipe, folder, crash_after=None):
    """Train until a crash; return the learner and the TrainingResult, or None after a crash."""
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    if crash_after is not None:
        learner.add_cb(CrashAfter(crash_after))
    try:
        return learner, train(learner, recipe, checkpoints=Checkpoints(folder))
    except Crash:
        return learner, None


def hash_weights(learner) -> str:
    digest = hashlib.sha256()
    for name, tensor in learner.model.state_dict().items():
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in RECIPES])
def test_a_resumed_training_gives_the_same_weights_and_history(
    toy_manifest, tmp_path, checkpoint_every_batch, name, weights
):
    recipe = RECIPES[name]
    recipe = recipe.replace(weights=weights) if recipe.weights == "FILE" else recipe
    uninterrupted, expected = run_training(toy_manifest, recipe, tmp_path / "uninterrupted")
    crashes = 0
    for batches in (3, 1, 4, 7, 2, 100, 9, None):
        resumed, result = run_training(toy_manifest, recipe, tmp_path / "resumed", batches)
        crashes += result is None
        if result:
            break
    assert crashes > 1
    assert hash_weights(resumed) == hash_weights(uninterrupted)
    assert resumed.mixed_precision.state_dict() == uninterrupted.mixed_precision.state_dict()
    histories = [r.history.drop(columns="seconds") for r in (expected, result)]
    assert histories[0].equals(histories[1])
    assert (expected.best, expected.rates) == (result.best, result.rates)
    assert expected.curves.reset_index(drop=True).equals(result.curves.reset_index(drop=True))


def test_a_signal_ends_the_training_after_the_batch_with_a_checkpoint(toy_manifest, tmp_path, monkeypatch):
    recipe = RECIPE.replace(learning_rate=1e-3)
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    batches = []

    class RaiseSignal(Callback):
        def after_loss(self) -> None:
            batches.append(self.training)
            if len(batches) == 2:
                signal.raise_signal(signal.SIGTERM)

    learner.add_cb(RaiseSignal())
    with pytest.raises(interrupt.Interrupted), interrupt.handle_signals(print, "resume"):
        train(learner, recipe, checkpoints=Checkpoints(tmp_path))
    state = Checkpoints(tmp_path).read()
    assert (state["epoch"], state["batch"], len(batches)) == (0, 2, 2)


@pytest.mark.slow
def test_after_the_loss_of_a_worker_training_resumes_with_fewer_workers(toy_manifest, tmp_path, caplog):
    recipe = RECIPE.replace(learning_rate=1e-3, workers=2, batch_size=2)
    uninterrupted, _ = run_training(toy_manifest, recipe, tmp_path / "uninterrupted")
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)

    class KillWorker(Callback):
        done = False

        def after_batch(self) -> None:
            workers = multiprocessing.active_children()
            if self.training and workers and not KillWorker.done and self.iter == 1:
                KillWorker.done = True
                workers[0].kill()

    learner.add_cb(KillWorker())
    train(learner, recipe, checkpoints=Checkpoints(tmp_path / "resumed"))
    assert KillWorker.done
    assert "resuming from the last checkpoint (workers reduced to 1)" in caplog.text
    assert hash_weights(learner) == hash_weights(uninterrupted)


@pytest.mark.parametrize(
    "error", [ConnectionResetError("by peer"), EOFError("the end"), RuntimeError("DataLoader worker 1")]
)
def test_two_errors_of_the_same_lost_worker_are_handled(toy_manifest, tmp_path, monkeypatch, error):
    recipe = RECIPE.replace(learning_rate=1e-3)
    uninterrupted, _ = run_training(toy_manifest, recipe, tmp_path / "uninterrupted")
    learner, raised = make_learner(make_loaders(toy_manifest, recipe), recipe), []

    class LoseWorker(Callback):
        def after_step(self) -> None:
            if not raised:
                raised.append("in training")
                raise error

    def raise_once(self):
        if len(raised) == 1:
            raised.append("during recovery")
            raise RuntimeError("DataLoader worker 2")
        return load_state(self)

    load_state = resume.CheckpointCallback.load_state
    monkeypatch.setattr(resume.CheckpointCallback, "load_state", raise_once)
    learner.add_cb(LoseWorker())
    train(learner, recipe, checkpoints=Checkpoints(tmp_path / "resumed"))
    assert len(raised) == 2
    assert hash_weights(learner) == hash_weights(uninterrupted)


def test_missing_disk_space_raises_before_the_first_step(toy_manifest, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 10_000))
    recipe = RECIPE.replace(learning_rate=1e-3)
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    learner.add_cb(CrashAfter(0))
    with pytest.raises(StorageError, match=r"the run needs \d+\.\d MB, 0\.0 MB are free"):
        train(learner, recipe, checkpoints=Checkpoints(tmp_path))


@pytest.mark.parametrize("message", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory"])
def test_out_of_memory_raises_with_a_smaller_batch_size(toy_manifest, message):
    recipe = RECIPE.replace(learning_rate=1e-3, precision="bf16")
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)

    class RunOutOfMemory(Callback):
        def after_pred(self) -> None:
            raise torch.cuda.OutOfMemoryError(message) if "CUDA" in message else RuntimeError(message)

    learner.add_cb(RunOutOfMemory())
    with pytest.raises(TrainingError, match="out of memory: 6 images of 64 px per batch.*Pass `batch_size=3`"):
        train(learner, recipe)
    assert not torch.is_autocast_enabled("cpu")  # later computations of the session are not affected


def test_a_lost_gpu_ends_the_training_with_resume_as_the_fix(toy_manifest, tmp_path):
    recipe = RECIPE.replace(learning_rate=1e-3)
    learner, checkpoints = make_learner(make_loaders(toy_manifest, recipe), recipe), Checkpoints(tmp_path)

    class LoseGpu(Callback):
        def after_pred(self) -> None:
            if self.epoch == 1:
                raise RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be asynchronous")

    learner.add_cb(LoseGpu())
    with pytest.raises(DeviceError, match=r"the GPU was lost \(unspecified launch failure\).*`fastcxr resume`"):
        train(learner, recipe, checkpoints=checkpoints)
    assert checkpoints.read()["epoch"] == 1  # the first epoch is saved


def test_a_checkpoint_with_other_layer_groups_is_refused(toy_manifest, tmp_path, checkpoint_every_batch, monkeypatch):
    run_training(toy_manifest, RECIPE, tmp_path, crash_after=2)
    monkeypatch.setattr(param_groups, "N_BACKBONE_GROUPS", 2)
    with pytest.raises(ModelError, match="the checkpoint has 5 layer groups, expected 3. Resume with the fastcxr"):
        run_training(toy_manifest, RECIPE, tmp_path)
