"""The optimizers update as fastai's do, and a masked step changes nothing."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from fastai import optimizer as fastai_optimizers
from fastai.callback.schedule import combined_cos
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.learner import Learner
from fastai.losses import MSELossFlat
from fastai.test_utils import RegModel, synth_dbunch
from fastai.torch_core import norm_bias_params, set_seed
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastcxr.training.checkpoints import Checkpoints
from fastcxr.training.optimizers import FASTAI_OPTIMIZERS, find_optimizer

ORIGINALS = {
    "radam": partial(fastai_optimizers.RAdam, decouple_wd=True),
    "adam": partial(fastai_optimizers.Adam, decouple_wd=False, sqr_mom=0.999, eps=1e-8),
    "adamw": partial(fastai_optimizers.Adam, decouple_wd=True),
    "sgd": partial(fastai_optimizers.SGD, decouple_wd=False, mom=0.9),
}
N_STEPS = 50
GO, SKIP = torch.tensor(False), torch.tensor(True)


class Training:
    """Steps on a small network in two layer groups, with weight decay and the rates and momenta of one cycle."""

    def __init__(self, make_optimizer: Callable, dtype: torch.dtype = torch.float32):
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2, dtype=dtype),
        ).to(memory_format=torch.channels_last)  # fmt: skip
        self.dtype, self.inputs, self.truth = dtype, torch.randn(16, 3, 8, 8), torch.randn(16, 2)
        self.optimizer = make_optimizer(
            [list(self.network[:5].parameters()), list(self.network[5:].parameters())], lr=0.1
        )
        for parameter in norm_bias_params(self.network, with_bias=True):
            self.optimizer.state[parameter]["do_wd"] = False
        for parameter in self.network[1].parameters():
            self.optimizer.state[parameter]["force_train"] = True  # fastai trains the batch norm of frozen groups
        self.optimizer.set_hypers(wd=0.1)

    def step(self, number: int, **options) -> None:
        """Run step `number` of 50: `options` are those of the update."""
        fraction = number / N_STEPS
        rate = combined_cos(0.25, 0.001, 0.01, 1e-5)(fraction)
        self.optimizer.set_hypers(lr=slice(rate / 10, rate), mom=combined_cos(0.25, 0.95, 0.85, 0.95)(fraction))
        hidden = self.network[:-1](self.inputs).to(self.dtype)
        nn.functional.mse_loss(self.network[-1](hidden), self.truth.to(self.dtype)).backward()
        (self.optimizer.update if "skip" in options else self.optimizer.step)(**options)
        self.optimizer.zero_grad()

    def freeze_to(self, group: int) -> None:
        """Freeze the groups before `group`, and remove the gradients, which fastai sets to zero and keeps."""
        self.optimizer.freeze_to(group)
        self.network.zero_grad()

    def run(self, first: int = 0, last: int = N_STEPS, **options) -> "Training":
        """Run these steps, the 20th to the 34th with a frozen group."""
        for number in range(first, last):
            if number in (20, 35):
                self.freeze_to(1 if number == 20 else 0)
            self.step(number, **options)
        return self

    def state(self) -> list[dict]:
        """Return weight, averages and number of steps of each parameter."""
        states = self.optimizer.state_dict()["state"]
        return [{"weight": p.detach()} | state for p, state in zip(self.network.parameters(), states, strict=True)]


def assert_equal(states: list[dict], expected: list[dict], tolerance: float) -> None:
    torch.testing.assert_close(states, expected, atol=tolerance, rtol=0)


@pytest.fixture(params=ORIGINALS)
def name(request) -> str:
    return request.param


@pytest.mark.parametrize("options", [{}, {"skip": GO}], ids=["plain", "masked"])
def test_fifty_steps_equal_those_of_fastai(name, options):
    expected = Training(ORIGINALS[name]).run().state()
    assert_equal(Training(FASTAI_OPTIMIZERS[name]).run(**options).state(), expected, 1e-6)
    assert {state.get("step") for state in expected} == ({None} if name == "sgd" else {35, 50})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_parameters_of_a_group_may_have_several_dtypes(name, dtype):
    expected = Training(ORIGINALS[name], dtype).run().state()
    found = Training(FASTAI_OPTIMIZERS[name], dtype).run().state()
    if dtype == torch.float64:
        assert_equal(found, expected, 1e-6)
    else:  # on a CPU, torch._foreach_mul_ rounds a momentum of 0.95 to 0.949: an average over 20 steps is 2 % smaller
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0.04)


def test_parameters_without_a_gradient_are_skipped(name):
    trainings = [Training(optimizers[name]) for optimizers in (ORIGINALS, FASTAI_OPTIMIZERS)]
    for training in trainings:
        training.network[5].requires_grad_(False)  # part of a group
        training.run(last=10)
        training.network[5].requires_grad_(True)
        training.run(first=10, last=20)
    assert_equal(trainings[1].state(), trainings[0].state(), 1e-6)


def test_a_frozen_group_does_not_move(name):
    training = Training(FASTAI_OPTIMIZERS[name]).run(last=5)
    before = training.network[0].weight.detach().clone()
    training.optimizer.freeze_to(1)
    training.step(5)
    assert torch.equal(training.network[0].weight, before)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
def test_masked_steps_change_nothing_whatever_the_gradients_are(name, value):
    masked, expected = Training(FASTAI_OPTIMIZERS[name]), Training(FASTAI_OPTIMIZERS[name])
    for number in range(12):
        if number in (0, 4, 5, 9):
            for parameter in masked.network.parameters():
                parameter.grad = torch.full_like(parameter, value)
            masked.optimizer.update(skip=SKIP)
            masked.optimizer.zero_grad()
        masked.step(number, skip=GO)
        expected.step(number, skip=GO)
    assert_equal(masked.state(), expected.state(), 0)


def test_a_plain_step_may_follow_masked_ones(name):
    training = Training(FASTAI_OPTIMIZERS[name]).run(last=20, skip=GO).run(first=20)
    assert_equal(training.state(), Training(ORIGINALS[name]).run().state(), 1e-6)


@pytest.mark.parametrize("optimizer", [*ORIGINALS, "timm:adamw"])
def test_step_skips_the_update_if_its_flag_is_true(optimizer):
    weights = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    optimizers = [find_optimizer(optimizer)([weight], lr=0.1) for weight in weights]
    for weight in weights:
        weight.grad = torch.tensor([1.0, math.nan])
    for each, options in zip(optimizers, ({"skip": SKIP}, {"skip": GO}, {}), strict=True):
        each.step(**options)
    assert torch.equal(weights[0], torch.ones(2))
    assert weights[1][0] < 1
    assert torch.equal(weights[1][0], weights[2][0])


class ForbidReading(TorchDispatchMode):
    """Raise when the host reads the value of a tensor, which makes it wait for a GPU."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("skip", [GO, SKIP])
def test_masked_steps_read_no_tensor_on_the_host(name, skip):
    training = Training(FASTAI_OPTIMIZERS[name])
    for _ in range(3):
        for parameter in training.network.parameters():
            parameter.grad = torch.ones_like(parameter)
        with ForbidReading():
            training.optimizer.update(skip)


@pytest.mark.gpu
def test_masked_steps_on_a_gpu_equal_those_on_a_cpu_without_synchronization(name):
    torch.manual_seed(0)
    weights, gradients = [], torch.randn(20, 300)
    for device in ("cpu", "cuda"):
        weight = nn.Parameter(torch.ones(300, device=device))
        optimizer = FASTAI_OPTIMIZERS[name]([weight], lr=0.01, wd=0.1)
        flags, on_device = torch.arange(20, device=device) % 3 == 1, gradients.to(device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for gradient, skip in zip(on_device, flags, strict=True):
                weight.grad = gradient.clone()
                optimizer.step(skip=skip)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        weights.append(weight.detach().cpu())
    torch.testing.assert_close(weights[1], weights[0], atol=1e-6, rtol=0)


def test_a_state_of_fastai_can_be_loaded(name, tmp_path):
    original, training = Training(ORIGINALS[name]).run(last=25), Training(FASTAI_OPTIMIZERS[name])
    Checkpoints(tmp_path).write({"optimizer": original.optimizer.state_dict()})
    training.network.load_state_dict(original.network.state_dict())
    training.optimizer.load_state_dict(Checkpoints(tmp_path).read()["optimizer"])
    training.freeze_to(1)
    assert_equal(training.run(first=25).state(), original.run(first=25).state(), 1e-6)


@pytest.mark.parametrize("options", [{}, {"skip": GO}], ids=["plain", "masked"])
def test_the_state_survives_a_checkpoint(name, options, tmp_path):
    uninterrupted, resumed = Training(FASTAI_OPTIMIZERS[name]), Training(FASTAI_OPTIMIZERS[name])
    uninterrupted.run(last=25, **options)
    state = {"network": uninterrupted.network.state_dict(), "optimizer": uninterrupted.optimizer.state_dict()}
    Checkpoints(tmp_path).write(state)
    state = Checkpoints(tmp_path).read()
    resumed.network.load_state_dict(state["network"])
    resumed.optimizer.load_state_dict(state["optimizer"])
    resumed.freeze_to(1)
    assert all(isinstance(s.get("step", 0), int) for s in state["optimizer"]["state"])
    assert_equal(resumed.run(first=25, **options).state(), uninterrupted.run(first=25, **options).state(), 0)


def test_clear_state_keeps_the_marks_of_the_learner(name):
    optimizer = Training(FASTAI_OPTIMIZERS[name]).run(last=3).optimizer
    optimizer.clear_state()
    assert {key for state in optimizer.state.values() for key in state} == {"do_wd", "force_train"}


@pytest.mark.parametrize("callback", [None, GradientClip, partial(GradientAccumulation, 32)])
def test_fits_of_a_learner_equal_those_with_the_optimizer_of_fastai(name, callback, tmp_path):
    models = []
    for optimizers in (ORIGINALS, FASTAI_OPTIMIZERS):
        set_seed(0)
        loaders, callbacks = synth_dbunch(n_train=4), callback and callback()
        learner = Learner(loaders, RegModel(), MSELossFlat(), optimizers[name], path=tmp_path, wd=0.1, cbs=callbacks)
        with learner.no_bar(), learner.no_logging():
            learner.fit_one_cycle(2, 0.01)
            path = learner.save("first")
            learner.lr_find(num_it=5, show_plot=False)  # loads the state that it saved before
            learner.load(path.stem)
            learner.fit_one_cycle(2, 0.01)
        models.append(learner.model)
    assert_equal(models[1].state_dict(), models[0].state_dict(), 1e-6)


def test_gradients_can_be_scaled(name):
    weights = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizers = [FASTAI_OPTIMIZERS[name]([weight], lr=0.1) for weight in weights]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, math.inf, 2.0):
        scaler.scale((weights[0] ** 2 * factor).sum()).backward()
        scaler.step(optimizers[0])
        scaler.update()
        if math.isfinite(factor):
            (weights[1] ** 2 * factor).sum().backward()
            optimizers[1].step()
        for optimizer in optimizers:
            optimizer.zero_grad()
    torch.testing.assert_close(*weights, atol=1e-6, rtol=0)


def test_zero_grad_removes_the_gradients_and_closures_are_rejected(name):
    training = Training(FASTAI_OPTIMIZERS[name]).run(last=1)
    assert all(parameter.grad is None for parameter in training.network.parameters())
    with pytest.raises(NotImplementedError, match="closures"):
        training.optimizer.step(lambda: 0.0)
