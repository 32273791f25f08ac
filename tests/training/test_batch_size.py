"""The option batch_size="auto": size, learning rate, memory, and a state that the search does not change."""

import math

import pytest
import torch
from fastai.callback.core import Callback
from tiny_network import NAME
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError, TrainingError
from fastcxr.training import batch_size as module
from fastcxr.training.batch_size import (
    choose_batch_size,
    compute_rate_factor,
    count_fitting_images,
    fits_gpu,
    floor_to_power_of_two,
    halve_until,
    is_too_large,
)
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.trainer import train

RECIPE = Recipe(NAME, weights="none", image_size=64, batch_size="auto", epochs=1, strategy="full")


CPU_RECIPE = RECIPE.replace(device="cpu")  # on a GPU a step is tried, and no estimate of the memory is used


@pytest.fixture
def learner(toy_manifest):
    return make_learner(make_loaders(toy_manifest, CPU_RECIPE), CPU_RECIPE)


@pytest.fixture
def free_memory(monkeypatch):
    """Set the available memory in bytes."""
    return lambda n_bytes: monkeypatch.setattr(module, "read_available_memory", lambda: n_bytes)


def with_images(learner, n_images: int):
    """Return the learner after setting the number of training images per epoch."""
    learner.dls.train.n = n_images
    learner.dls.train.rows = [row % 18 for row in range(n_images)]
    return learner


@pytest.mark.parametrize(
    ("n_images", "size"), [(5, 4), (8, 8), (18, 8), (319, 8), (320, 16), (1124, 32), (1280, 64), (100_000, 4096)]
)
def test_the_size_leaves_20_steps_per_epoch_but_is_at_least_8(learner, free_memory, n_images, size):
    free_memory(2**50)
    assert choose_batch_size(with_images(learner, n_images)) == size
    assert learner.dls.train.bs == learner.dls.valid.bs == size
    assert len(learner.dls.train) >= 20 or n_images < 160


def test_the_size_fits_into_half_of_the_available_memory(learner, free_memory):
    with_images(learner, 100_000)
    n_bytes = 2**30
    n_fitting = count_fitting_images(learner, n_bytes)
    free_memory(n_bytes)
    assert choose_batch_size(learner) == floor_to_power_of_two(n_fitting) < 4096
    free_memory(0)
    assert choose_batch_size(learner) == 1


def test_without_a_known_memory_the_default_is_not_exceeded(learner, free_memory):
    free_memory(None)
    assert choose_batch_size(with_images(learner, 100_000)) == 32


def test_the_estimate_counts_activations_per_image_and_parameters_once():
    class Loader:
        bs = 0

        def one_batch(self):
            return torch.ones(self.bs, 1, 8, 8), torch.ones(self.bs, 1)

    class Loaders:
        train = valid = Loader()
        device = torch.device("cpu")

    class Learner:
        dls, loss_func = Loaders, staticmethod(lambda logits, labels: (logits * labels).sum())
        fastcxr = type("State", (), {"precision": "fp32"})
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 100), nn.Sigmoid(), nn.Linear(100, 1))

    # the backward pass needs the images, the output of Sigmoid and the labels
    n_image_bytes = module.ACTIVATION_FACTOR * 4 * (64 + 100 + 1)
    n_parameter_bytes = module.PARAMETER_FACTOR * 4 * (64 * 100 + 100 + 100 + 1)
    n_available = (n_parameter_bytes + 7 * n_image_bytes + 9) / module.MAX_CPU_SHARE
    assert count_fitting_images(Learner, int(n_available)) == 7


def test_the_search_changes_neither_weights_nor_random_numbers(toy_manifest, free_memory):
    free_memory(2**50)
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)  # on a GPU if there is one
    weights = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    numbers, order = torch.get_rng_state(), learner.dls.train.rng.getstate()
    choose_batch_size(learner)
    assert all(torch.equal(weights[name], tensor) for name, tensor in learner.model.state_dict().items())
    assert torch.equal(numbers, torch.get_rng_state())
    assert order == learner.dls.train.rng.getstate()
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    assert learner.model.training


def test_a_chosen_size_trains_like_a_given_one_with_the_scaled_rate(toy_manifest):
    given = RECIPE.replace(batch_size=8, learning_rate=RECIPE.learning_rate * math.sqrt(8 / 32))
    chosen, expected = (train(make_learner(make_loaders(toy_manifest, one), one), one) for one in (RECIPE, given))
    assert chosen.history["valid_loss"].tolist() == expected.history["valid_loss"].tolist()
    assert chosen.rates[0]["rate"] == expected.rates[0]["rate"]
    assert chosen.rates[0]["reason"] == "given by the recipe, times 0.5 for batches of 8"


def test_a_resumed_training_uses_the_size_of_its_checkpoint(toy_manifest, tmp_path, free_memory, monkeypatch):
    class CrashError(Exception):
        pass

    def crash(callback):
        raise CrashError("power failure")

    free_memory(2**50)
    first, second = (make_learner(make_loaders(toy_manifest, RECIPE), RECIPE) for _ in range(2))
    first.add_cb(Callback(after_batch=crash))
    with pytest.raises(CrashError):
        train(first, RECIPE, checkpoints=Checkpoints(tmp_path))
    assert second.dls.train.bs != 8
    monkeypatch.setattr("fastcxr.training.trainer.choose_batch_size", None)
    train(second, RECIPE, checkpoints=Checkpoints(tmp_path))
    assert second.dls.train.bs == 8


def test_a_size_that_an_earlier_fold_chose_is_used(learner, monkeypatch):
    monkeypatch.setattr("fastcxr.training.trainer.choose_batch_size", None)
    learner.dls.fastcxr.batch_size = 6
    assert train(learner, RECIPE).rates[0]["rate"] == pytest.approx(RECIPE.learning_rate * math.sqrt(6 / 32))
    assert learner.dls.train.bs == 6


def test_a_size_is_halved_until_it_fits():
    tried = []
    assert halve_until(lambda size: tried.append(size) or size <= 16, 128) == 16
    assert tried == [128, 64, 32, 16]


@pytest.mark.parametrize(("n_free", "expected"), [(112, True), (110, False)])
def test_a_step_is_tried_with_a_new_optimizer_and_fits_into_a_share_of_the_free_memory(
    learner, monkeypatch, n_free, expected
):
    numbers = {"memory_allocated": 0, "max_memory_allocated": 100, "reset_peak_memory_stats": None, "empty_cache": None}
    for name, number in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *device, number=number: number)
    monkeypatch.setattr(module, "read_free_memory", lambda device: n_free)
    assert learner.opt is None, "train creates one only when it unfreezes layers"
    assert fits_gpu(learner, 4) == expected
    assert learner.opt.state_dict()["state"]


def test_an_image_that_does_not_fit_raises_with_a_fix():
    with pytest.raises(TrainingError, match="smaller `image_size`"):
        halve_until(lambda size: False, 4)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_errors_of_a_full_gpu_are_recognized(error, expected):
    assert is_too_large(error) == expected


def test_the_learning_rate_is_scaled_only_for_a_chosen_size():
    assert compute_rate_factor(RECIPE, 128) == 2
    assert compute_rate_factor(RECIPE.replace(batch_size=128), 128) == 1


def test_another_word_than_auto_is_rejected():
    with pytest.raises(RecipeError, match="auto"):
        Recipe(batch_size="automatic")


@pytest.mark.gpu
def test_a_size_that_exceeds_the_gpu_memory_is_halved(toy_manifest, monkeypatch):
    recipe = RECIPE.replace(device="cuda")
    learner = with_images(make_learner(make_loaders(toy_manifest, recipe), recipe), 100_000)
    monkeypatch.setattr(module, "read_free_memory", lambda device: 2**28)  # 256 MB
    size = choose_batch_size(learner)
    assert 1 <= size < 4096
    assert learner.dls.train.bs == size
