"""A training step on a GPU does not wait for the GPU, except in float16."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from fastai.callback.core import Callback
from fastai.optimizer import Optimizer, average_grad, momentum_step
from tiny_network import NAME
from torch.utils._python_dispatch import TorchDispatchMode

from fastcxr.config.recipe import Recipe
from fastcxr.training import non_finite_loss
from fastcxr.training.finding_losses import make_finding_loss
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.losses import WeightedAvgLoss
from fastcxr.training.trainer import train

RECIPE = Recipe(
    NAME, weights="none", image_size=64, batch_size=6, epochs=2, strategy="full", learning_rate=1e-3, precision="fp32",
    class_weights="balanced",
)  # fmt: skip


class EveryStep(Callback):
    """Run each training step, from the batch on the device to the end of its callbacks, inside a context."""

    def __init__(self, make_context):
        self.make_context, self.n_steps = make_context, 0

    def before_batch(self):
        if self.training:
            self.context = self.make_context()
            self.context.__enter__()

    def leave(self):
        if self.training:
            self.context.__exit__(None, None, None)
            self.n_steps += 1


def run_training(manifest, recipe, make_context, opt_func=None):
    """Train; return the number of training steps."""
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    learner.opt_func = opt_func or learner.opt_func
    first = EveryStep(make_context)
    first.order = -1000
    last = Callback(after_batch=lambda callback: first.leave())
    last.order = 1000
    train(learner.add_cbs([first, last]), recipe)
    return first.n_steps


class MaskingOptimizer(Optimizer):
    """SGD with momentum that skips a step without reading the flag."""

    def __init__(self, params, lr):
        super().__init__(params, [average_grad, momentum_step], lr=lr, mom=0.9)

    def step(self, closure=None, skip=None):
        assert skip is not None
        before = [parameter.detach().clone() for parameter, *_ in self.all_params()]
        super().step()
        for (parameter, *_), old in zip(self.all_params(), before, strict=True):
            parameter.data.copy_(torch.where(skip, old, parameter.data))


class RecordReads(TorchDispatchMode):
    """Record the operations that copy a value to the host."""

    def __init__(self, reads):
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal):
            self.reads.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_reads_a_value(toy_manifest, monkeypatch, precision):
    monkeypatch.setattr(non_finite_loss, "find_read_interval", lambda learner: 50)
    # fastai's one-cycle schedule computes with tensors of the host
    recipe, reads = RECIPE.replace(precision=precision, schedule="constant", device="cpu"), []
    assert run_training(toy_manifest, recipe, lambda: RecordReads(reads), MaskingOptimizer) == 6
    assert reads == []


@pytest.mark.parametrize("name", ["binary_cross_entropy", "focal", "asymmetric"])
def test_no_loss_of_findings_reads_a_value(name):
    truth = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    loss = make_finding_loss(Recipe(loss=name, class_weights="balanced", label_smoothing=0.1), truth.numpy())
    logits, reads, metric = torch.zeros(2, 2, requires_grad=True), [], WeightedAvgLoss()
    metric.reset()
    with RecordReads(reads):
        value = loss(logits, truth)
        value.backward()
        metric.accumulate(SimpleNamespace(loss=value, loss_func=loss, yb=(truth,)))
    assert reads == []
    assert logits.grad.count_nonzero() == 3


@contextmanager
def forbid_synchronization():
    """Raise an error if torch waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["radam", "adamw", "adam", "sgd"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_step_waits_for_the_gpu(toy_manifest, precision, optimizer):
    recipe = RECIPE.replace(precision=precision, optimizer=optimizer, device="cuda")
    assert run_training(toy_manifest, recipe, forbid_synchronization) == 6
