"""Training and inference on a GPU give the results of a CPU within stated tolerances."""

import gc
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from fake_processes import one_connected_process
from safetensors.torch import save_file
from timm import create_model
from toy_images import write_toys

from fastcxr import (
    Augmentation,
    Recipe,
    load_model,
    make_learner,
    make_loaders,
    predict,
    read_manifest,
    split_by_patient,
    train,
)
from fastcxr.errors import TrainingError
from fastcxr.metrics.classification import compute_metrics
from fastcxr.models.bundle import Classifier, extract_classifier, save_model
from fastcxr.models.fitting_batches import GPU_BATCH_SIZE
from fastcxr.models.precision import is_bf16_native
from fastcxr.progress.base import Progress
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.training.trainer import STRATEGIES

pytestmark = pytest.mark.gpu

MODEL_TOLERANCE = 1e-3  # of probabilities of one model on both devices
# of probabilities after a training on each device: optimizers of the Adam family divide by gradients near zero
TRAINING_TOLERANCE = 0.05
RESUME_TOLERANCE = 0.02
MAX_AUROC_DIFFERENCE = 0.005
# random numbers of a GPU differ from those of a CPU
NO_AUGMENTATION = Augmentation(do_flip=False, max_rotate=0, max_zoom=1, max_lighting=0, max_warp=0, p_affine=0,
                               p_lighting=0)  # fmt: skip
NAME = "mobilenetv2_035"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / f"{NAME}.safetensors"
    save_file(create_model(NAME).state_dict(), path)
    return str(path)


@pytest.fixture
def recipe(weights) -> Recipe:
    return Recipe(
        NAME, weights=weights, image_size=64, batch_size=8, epochs=2, learning_rate=1e-3, precision="fp32",
        augment=NO_AUGMENTATION,
    )  # fmt: skip


def train_on(device: str, manifest: pd.DataFrame, recipe: Recipe):
    recipe = recipe.replace(device=device)
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    train(learner, recipe, Progress())
    return learner


def compute_probability(model, table: pd.DataFrame) -> np.ndarray:
    return predict(model, table, splits=("test",), progress=Progress()).probability


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_and_prediction_agree_with_the_cpu(many_toys, recipe, tmp_path, strategy):
    recipe = recipe.replace(strategy=strategy)
    learner, expected = (train_on(device, many_toys, recipe) for device in ("cuda", "cpu"))
    assert next(learner.model.parameters()).is_cuda
    found = compute_probability(learner, many_toys)
    np.testing.assert_allclose(found, compute_probability(expected, many_toys), rtol=0, atol=TRAINING_TOLERANCE)
    save_model(tmp_path, learner, recipe, {"precision": "fp32"})
    for device in ("cuda", "cpu"):
        loaded = compute_probability(load_model(tmp_path, device=device), many_toys)
        np.testing.assert_allclose(loaded, found, rtol=0, atol=MODEL_TOLERANCE)


KILLED_TRAINING = """
import os, signal, sys
from fastai.callback.core import Callback
from fastcxr import Recipe, make_learner, make_loaders, read_manifest, split_by_patient, train
from fastcxr.training import resume
from fastcxr.training.checkpoints import Checkpoints

class Kill(Callback):
    order = 100
    def after_batch(self):
        if self.training and self.epoch == 1 and self.iter == 1:
            os.kill(os.getpid(), signal.SIGKILL)

resume.CHECKPOINT_INTERVAL_MINUTES = 0
data, recipe_file, checkpoints = sys.argv[1:]
recipe = Recipe.from_json(recipe_file)
learner = make_learner(make_loaders(split_by_patient(read_manifest(data), seed=0), recipe), recipe)
learner.add_cb(Kill())
train(learner, recipe, checkpoints=Checkpoints(checkpoints))
"""


def test_a_killed_training_resumes_with_the_result_of_an_uninterrupted_one(recipe, tmp_path):
    recipe = recipe.replace(strategy="full", epochs=3, device="cuda")
    data = write_toys(tmp_path / "toys", per_class=20)
    manifest = split_by_patient(read_manifest(data), seed=0)
    expected = compute_probability(train_on("cuda", manifest, recipe), manifest)
    (tmp_path / "recipe.json").write_text(recipe.to_json(), encoding="utf-8")
    command = [sys.executable, "-c", KILLED_TRAINING, data, tmp_path / "recipe.json", tmp_path / "state"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    learner, checkpoints = make_learner(make_loaders(manifest, recipe), recipe), Checkpoints(tmp_path / "state")
    assert (state := checkpoints.read()) and (state["epoch"], state["batch"]) == (1, 2)
    training = train(learner, recipe, Progress(), checkpoints=checkpoints)
    assert training.history["epoch"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(compute_probability(learner, manifest), expected, rtol=0, atol=RESUME_TOLERANCE)


@pytest.mark.parametrize("strategy", ["linear_probe", "full"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precisions_have_the_auroc_of_fp32(many_toys, recipe, precision, strategy):
    if precision == "bf16" and not is_bf16_native(torch.device("cuda")):
        pytest.skip("bfloat16 is not native on this GPU")
    # enough epochs to separate the classes: an AUROC near .5 would differ by chance
    recipe = recipe.replace(strategy=strategy, learning_rate=0.02, epochs=30)
    aurocs = []
    for name in ("fp32", precision):
        learner = train_on("cuda", many_toys, recipe.replace(precision=name))
        found = predict(learner, many_toys, splits=None, progress=Progress())
        truth = pd.Index(found.labels).get_indexer(found.table["label"])
        aurocs.append(compute_metrics(truth, found.probability, list(found.labels))["auroc"]["macro"])
    assert aurocs[0] > 0.9
    assert aurocs[1] == pytest.approx(aurocs[0], abs=MAX_AUROC_DIFFERENCE)


@contextmanager
def limit_gpu_memory(megabytes: int) -> Iterator[None]:
    """Leave this much memory of the GPU to the block, above what is allocated."""
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + megabytes * 2**20) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_advice_after_an_out_of_memory_error_fits(many_toys, recipe):
    recipe = recipe.replace(strategy="full", image_size=384, batch_size=32, epochs=1)
    sizes = []
    with limit_gpu_memory(500):
        while not sizes or sizes[-1] > 1:
            gc.collect()  # a Learner refers to itself and keeps its memory
            try:
                train_on("cuda", many_toys, recipe)
                break
            except TrainingError as error:
                sizes.append(int(re.search(r"batch_size=(\d+)", error.fix)[1]))
                recipe = recipe.replace(batch_size=sizes[-1])
    assert sizes and recipe.batch_size == sizes[-1] >= 2, "the first batch must not fit, and the advised one must"


def test_inference_continues_with_batches_that_fit(many_toys, recipe, caplog):
    recipe = recipe.replace(strategy="full", image_size=384)
    classifier: Classifier = extract_classifier(make_learner(make_loaders(many_toys, recipe), recipe))
    table = pd.concat([many_toys.drop(columns="split")] * 3, ignore_index=True)
    assert len(table) > GPU_BATCH_SIZE
    with limit_gpu_memory(400):
        found = predict(classifier, table, splits=None, progress=Progress())
    assert sum("out of memory" in message for message in caplog.messages) == 1
    on_cpu = replace(classifier, network=classifier.network.cpu())
    expected = predict(on_cpu, many_toys, splits=None, progress=Progress())
    np.testing.assert_allclose(found.probability[:120], expected.probability, rtol=0, atol=MODEL_TOLERANCE)


@pytest.mark.parametrize("sync_batch_norm", [False, True])
def test_one_process_of_torchrun_trains_as_a_plain_process(many_toys, recipe, sync_batch_norm):
    recipe = recipe.replace(strategy="full", epochs=2, deterministic=True, sync_batch_norm=sync_batch_norm)

    def train_once() -> torch.Tensor:
        learner = make_learner(make_loaders(many_toys, recipe), recipe)
        train(learner, recipe)
        return torch.cat([weight.flatten() for weight in learner.model.parameters()]).detach()

    plain = train_once()
    with one_connected_process():
        shared = train_once()
    assert torch.allclose(plain, shared, atol=1e-5)
