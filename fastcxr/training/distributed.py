"""One training on several processes: each computes a part of every batch, and all have the same weights.

The batches are those of one process. Every process draws the same order of the epoch and takes every n-th image of a
batch. The logits and targets of the batch are then gathered in row order, and each process computes the loss of the
whole batch, and the gradient of its part. No weighting of parts is needed: class weights, unknown labels and
batches that cannot be divided evenly are in that loss. Validation gathers logits in the same way, and is exact.

fastai.distributed is not used. It gives each process a section of the epoch, filled up with duplicates, so that the
batches differ from those of one process and averaged metrics count the duplicates. Its DistributedDL copies row numbers
to a GPU, its DistributedTrainer replaces the model and needs `cpu=True` and `sync_bn=False` on a CPU, and accelerate
gives every part the same weight. Its other calls for several processes, in Learner.save and Learner.load, are switched
off by join_processes. torch's DistributedDataParallel adds the gradients up.
"""

import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from fastai.learner import Learner
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError
from fastcxr.models.heads import find_head
from fastcxr.progress.base import Progress
from fastcxr.training.feature_cache import compute_for_main, find_frozen_network
from fastcxr.training.linear_probe import fit_head
from fastcxr.training.loaders import ImageLoader
from fastcxr.training.processes import Processes, average_statistics, decide, find_processes, is_main_process
from fastcxr.training.resume import get_random_state, get_shuffle_state, set_random_state, set_shuffle_state


@contextmanager
def share_batches(learner: Learner, recipe: Recipe) -> Iterator[None]:
    """Divide each batch of training and validation among the processes, if there are several, in this block.

    Raises RecipeError for loaders that make_loaders did not make.
    """
    processes = find_processes()
    if processes is None:
        yield
        return
    loaders = [learner.dls.train, learner.dls.valid]
    if not all(isinstance(loader, ImageLoader) for loader in loaders):
        problem = "several processes cannot share the batches of these loaders"
        raise RecipeError(problem, "Make the loaders with make_loaders(manifest, recipe)", code="E602")
    with ExitStack() as stack:
        for loader in loaders:
            loader.part = slice(processes.rank, None, processes.size)
            stack.callback(setattr, loader, "part", None)
        if recipe.sync_batch_norm:
            stack.enter_context(synchronize_batch_norm(cast(nn.Module, learner.model)))
        callback = ShareBatches(processes, recipe.seed)
        stack.enter_context(learner.added_cbs(callback))
        stack.callback(callback.restore)  # after an error in a forward pass
        yield


def fit_head_once(learner: Learner, recipe: Recipe, progress: Progress) -> dict[str, float]:
    """Fit the head on cached features (see fit_head): all processes compute features, and the main one fits.

    The other processes receive the head and the history row, but no FittedProbe.
    """
    network, losses = cast(nn.Module, learner.model), {}
    if is_main_process():
        losses = fit_head(learner, recipe, progress)
    else:
        compute_for_main(find_frozen_network(learner))
    if find_processes() is not None:
        head = find_head(network)
        # from the CPU: each process would receive them on the GPU of the main process
        losses, weights = decide((losses, {name: tensor.cpu() for name, tensor in head.state_dict().items()}))
        head.load_state_dict(weights)
    return losses


class ShareBatches(Callback):
    """Gather the logits of each batch, and add up the gradients of all processes.

    Batch norm normalizes with the statistics of each part. The running statistics are averaged over the processes
    before they are used or saved; as they are linear in those of the batches, it does not matter how often.
    """

    order = 15  # after MixedPrecision converts the logits to float32, before the Recorder reads them

    def __init__(self, processes: Processes, seed: int):
        self.processes, self.seed = processes, seed
        self.parallel_model: DistributedDataParallel | None = None
        self.random_states: list[torch.Tensor] = []

    def before_train(self) -> None:
        """Take the random numbers of the main process; they determine the batches and their augmentation."""
        state = decide((get_random_state(), get_shuffle_state(self.dls)))
        if not self.processes.is_main:
            set_random_state(state[0])
            set_shuffle_state(self.dls, state[1])

    def before_batch(self) -> None:
        """Let the forward pass of training call the model through DistributedDataParallel."""
        if not self.training:
            return
        if self.parallel_model is None:  # here, because it registers the parameters that the stage trains
            self.parallel_model = wrap_model(self.model)
        cast(Learner, self.learn).model = self.parallel_model
        # dropout differs between the processes; the common random numbers are restored after it
        numbers = random.Random(f"{self.seed} {self.epoch} {self.train_iter} {self.processes.rank}")  # noqa: S311
        self.random_states = get_torch_state(self.dls.device)
        torch.manual_seed(numbers.getrandbits(63))

    def after_pred(self) -> None:
        """Replace logits and targets by those of the whole batch."""
        learner = cast(Learner, self.learn)
        self.restore()
        n_images = len(cast(ImageLoader, self.dl).batch_indices(self.iter))
        learner.pred = gather_rows(self.pred, n_images, self.processes)
        learner.yb = tuple(gather_rows(targets, n_images, self.processes) for targets in self.yb)

    def before_backward(self) -> None:
        """Multiply the loss by the number of processes: DistributedDataParallel divides the sum of gradients by it."""
        cast(Learner, self.learn).loss_grad = self.loss_grad * self.processes.size

    def after_train(self) -> None:
        """Average the running statistics for the validation."""
        average_statistics(self.model)

    def restore(self) -> None:
        """Make the plain model the model of the learner again."""
        learner = cast(Learner, self.learn)
        if self.parallel_model is not None and learner.model is self.parallel_model:
            learner.model = self.parallel_model.module
            set_torch_state(self.random_states, self.dls.device)

    def after_fit(self) -> None:
        """Release the gradients' buffers: the next stage trains other parameters."""
        self.restore()
        self.parallel_model = None


def wrap_model(model: nn.Module) -> DistributedDataParallel:
    """Return a module that adds up the gradients of the trained parameters; they start with those of the main process.

    static_graph: some networks have parameters that no image reaches, such as the mask token of DINO.
    """
    device = next(model.parameters()).device
    device_ids = None if device.type == "cpu" else [device]
    with warnings.catch_warnings():
        # torch 2.14 has another name for broadcast_buffers, which earlier versions lack
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(model, device_ids, broadcast_buffers=False, static_graph=True)


def gather_rows(own: torch.Tensor, n_rows: int, processes: Processes) -> torch.Tensor:
    """Return the rows of all processes in the order of the batch, shape (n_rows, ...).

    `own`: rows rank, rank + size, ... of the batch; only these have a gradient.
    """
    n_own = len(range(processes.rank, n_rows, processes.size))
    n_most = -(-n_rows // processes.size)
    padding = [0, 0] * (own.ndim - 1) + [0, n_most - n_own]
    padded = pad(own[:n_own].as_subclass(torch.Tensor), padding)
    parts = [torch.empty_like(padded) for _ in range(processes.size)]
    dist.all_gather(parts, padded.detach().contiguous())
    if own.requires_grad:
        # 0: the graph of a process without an image of the batch, whose gradients DistributedDataParallel waits for
        parts[processes.rank] = padded if n_own else padded + 0 * own.sum()
    return torch.stack(parts, dim=1).flatten(0, 1)[:n_rows].as_subclass(type(own))


@contextmanager
def synchronize_batch_norm(model: nn.Module) -> Iterator[None]:
    """Compute the batch-norm statistics of the whole batch in this block, on GPUs; weights and buffers are shared."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    convert_sync_batchnorm(model)
    try:
        yield
    finally:
        for name, layer in layers.items():
            parent, _, child = name.rpartition(".")
            layer.train(model.get_submodule(name).training)
            setattr(model.get_submodule(parent), child, layer)


def get_torch_state(device: torch.device) -> list[torch.Tensor]:
    """Return the states of torch's generators on the CPU and on the device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_torch_state(states: list[torch.Tensor], device: torch.device) -> None:
    """Restore the states that get_torch_state returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
