"""Choose the batch size and the factor on the learning rate for `batch_size="auto"`.

The size is the largest power of two that fits into memory and leaves MIN_STEPS_PER_EPOCH steps per epoch. On a GPU a
training step is tried. On a CPU the memory is estimated, because a process without memory is killed.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from fastai.learner import Learner
from fastai.optimizer import Optimizer
from torch import nn

from fastcxr.config.recipe import DEFAULT_BATCH_SIZE, Recipe
from fastcxr.errors import TrainingError
from fastcxr.io.memory import read_available_memory
from fastcxr.models.device_errors import is_memory_error
from fastcxr.models.devices import read_free_memory
from fastcxr.training.resume import get_random_state, get_shuffle_state, set_random_state, set_shuffle_state
from fastcxr.training.time_budget import compute_gradients

MIN_STEPS_PER_EPOCH = 20
MIN_SIZE = 8  # a smaller dataset has fewer steps: batch norm estimates its statistics badly from fewer images
MAX_GPU_SHARE = 0.9  # of the free GPU memory, for a training step; the rest is for fragmentation
MAX_CPU_SHARE = 0.5  # of the available memory, for the estimate of a training step
N_MEASURED_IMAGES = 2
ACTIVATION_FACTOR = 2  # the memory of all activations, relative to those that the backward pass needs
PARAMETER_FACTOR = 3  # gradients and optimizer state, relative to the parameters
# cuDNN finds no algorithm if the memory for all of them is too small
CUDNN_ERROR_TEXTS = ("unable to find an engine", "Unable to find a valid cuDNN algorithm")


def compute_rate_factor(recipe: Recipe, batch_size: int) -> float:
    """Return the factor on the recipe's learning rate: the square root of the ratio to the default size, or 1."""
    return math.sqrt(batch_size / DEFAULT_BATCH_SIZE) if recipe.batch_size == "auto" else 1.0


def set_batch_size(learner: Learner, size: int) -> None:
    """Set the batch size of the training and validation loaders."""
    for loader in (learner.dls.train, learner.dls.valid):
        loader.bs = size


def choose_batch_size(learner: Learner) -> int:
    """Set and return the largest power of two that fits into memory and leaves MIN_STEPS_PER_EPOCH steps per epoch.

    The unfrozen layer groups are trained. Weights and random numbers are restored, and a new optimizer is created.
    Raises TrainingError if a batch of one image does not fit into the memory of the GPU.
    """
    n_images, n_available = learner.dls.train.n, read_available_memory()
    size = floor_to_power_of_two(min(n_images, max(MIN_SIZE, n_images // MIN_STEPS_PER_EPOCH)))
    with restore_state(learner):
        if learner.dls.device.type == "cuda":
            learner.dls.train.one_batch()  # copies the images of the dataset to the GPU, which the steps then leave out
            size = halve_until(partial(fits_gpu, learner), size)
        elif n_available is not None:
            size = min(size, floor_to_power_of_two(count_fitting_images(learner, n_available)))
        else:
            size = min(size, DEFAULT_BATCH_SIZE)
    set_batch_size(learner, size)
    return size


def floor_to_power_of_two(number: int) -> int:
    """Return the largest power of two that is at most `number`, or 1."""
    return 1 << max(number, 1).bit_length() - 1


def halve_until(fits: Callable[[int], bool], size: int) -> int:
    """Return the first of `size`, `size` / 2, ... 1 that fits. Raise TrainingError if none does."""
    while not fits(size):
        if size == 1:
            problem = "a training step with one image does not fit into the GPU memory"
            raise TrainingError(problem, "Pass a smaller `image_size`, or another backbone")
        size //= 2
    return size


def fits_gpu(learner: Learner, size: int) -> bool:
    """Return whether forward pass, backward pass and weight update fit into MAX_GPU_SHARE of the free GPU memory."""
    set_batch_size(learner, size)
    device = learner.dls.device
    n_used, n_free = torch.cuda.memory_allocated(device), read_free_memory(device)
    torch.cuda.reset_peak_memory_stats(device)
    if learner.opt is None:  # it is None before the first training, and after each one
        learner.create_opt()
    try:
        compute_gradients(learner)
        cast(Optimizer, learner.opt).step()
    except RuntimeError as error:
        if not is_too_large(error):
            raise
        return False
    finally:
        cast(nn.Module, learner.model).zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return torch.cuda.max_memory_allocated(device) - n_used <= MAX_GPU_SHARE * n_free


def is_too_large(error: RuntimeError) -> bool:
    """Return whether the memory was too small for torch, cuBLAS or an algorithm of cuDNN."""
    return is_memory_error(error) or any(text in str(error) for text in CUDNN_ERROR_TEXTS)


def count_fitting_images(learner: Learner, n_available_bytes: int) -> int:
    """Return how many images per step fit into MAX_CPU_SHARE of the available memory, by an estimate.

    The estimate is a multiple of the tensors that torch keeps for the backward pass of a few images.
    """
    n_image_bytes, n_fixed_bytes = _estimate_memory(learner)
    return int((MAX_CPU_SHARE * n_available_bytes - n_fixed_bytes) / n_image_bytes)


def estimate_step_bytes(learner: Learner, size: int) -> int:
    """Return the estimated bytes of a training step of `size` images; see count_fitting_images."""
    with restore_state(learner):
        n_image_bytes, n_fixed_bytes = _estimate_memory(learner)
    return int(size * n_image_bytes + n_fixed_bytes)


def _estimate_memory(learner: Learner) -> tuple[float, float]:
    """Return the bytes of a training step for each image, and those that do not depend on the number of images."""
    set_batch_size(learner, N_MEASURED_IMAGES)
    network = cast(nn.Module, learner.model)
    parameters = {one.untyped_storage().data_ptr(): one.nbytes for one in network.parameters()}
    kept: dict[int, int] = {}

    def measure(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(measure, lambda tensor: tensor):
        compute_gradients(learner)
    n_activation_bytes = sum(n_bytes for pointer, n_bytes in kept.items() if pointer not in parameters)
    n_image_bytes = ACTIVATION_FACTOR * n_activation_bytes / N_MEASURED_IMAGES
    return n_image_bytes, PARAMETER_FACTOR * sum(parameters.values())


@contextmanager
def restore_state(learner: Learner) -> Iterator[None]:
    """Restore weights, random numbers and the order of the images after this block, and create a new optimizer.

    In the block, the network is in evaluation mode, because batch norm cannot train with one image.
    """
    network, was_training = cast(nn.Module, learner.model), learner.model.training
    weights = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    random_state, shuffle_state = get_random_state(), get_shuffle_state(learner.dls)
    network.eval().to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        network.zero_grad(set_to_none=True)
        network.load_state_dict(weights)
        network.train(was_training)
        learner.create_opt()
        set_random_state(random_state)
        set_shuffle_state(learner.dls, shuffle_state)
