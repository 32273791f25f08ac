# pyright: reportPrivateImportUsage=false
"""fastai's SGD, Adam and RAdam, with one call of torch for each list of parameters instead of ten for each parameter.

The arithmetic is that of fastai/optimizer.py. torch's optimizers differ: torch.optim.RAdam adds epsilon before the bias
correction, and an OptimWrapper decays biases and batch norm.

A mask on the GPU can skip a step without synchronization. The numbers of the step are then tensors too, the number of
earlier steps included, and have no effect where the step is skipped: factors of 1, a learning rate of 0.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, NamedTuple

import torch
from fastai.optimizer import Optimizer
from torch import Tensor

# number of weights in one block on a CPU, whose averages then stay in its cache
CPU_BLOCK_SIZE = 2**16
INTEGER_TYPES = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of one element

Number = float | Tensor  # a tensor of shape () in a step with a mask


@dataclass
class Block:
    """Parameters with gradients that are updated together, their states, and the hyperparameters of their group."""

    hypers: dict[str, float]
    parameters: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)

    def list_averages(self, name: str) -> list[Tensor]:
        """Return the moving averages with this name; they are zero before the first step."""
        for parameter, state in zip(self.parameters, self.states, strict=True):
            if name not in state:
                state[name] = torch.zeros_like(parameter)
        return [state[name] for state in self.states]


class ForeachOptimizer(Optimizer):
    """fastai's Optimizer with updates of whole lists of parameters.

    Layer groups, hyperparameters, freezing and the layout of the state are those of fastai. A step does not synchronize
    with a GPU, except the first one without a mask after steps with one, which reads their number.
    """

    shared_hypers: tuple[str, ...]  # arguments of compute_coefficients, which most blocks have in common

    def __init__(self, params: Iterable, decouple_wd: bool, **hypers: Any):
        super().__init__(params, [], **hypers)
        self.decouple_wd = decouple_wd

    def zero_grad(self) -> None:
        """Remove the gradients, which spares the next backward pass an addition."""
        for parameters in self.param_lists:
            for parameter in parameters:
                parameter.grad = None

    def step(self, closure: None = None, skip: Tensor | None = None) -> None:
        """Update the parameters that have gradients.

        Args:
            closure: not supported, as in fastai.
            skip: bool tensor of shape () on the device of the parameters. If it is true, parameters, averages and
                numbers of steps do not change, whatever the gradients are. A GPU evaluates it without the host.

        Raises:
            NotImplementedError: there is a closure.
        """
        if closure is not None:
            raise NotImplementedError("fastai's optimizers do not support closures")
        if skip is None or skip.device.type != "cpu":
            self.update(skip)
        elif not skip:  # the host reads a tensor on the CPU without synchronization
            self.update(None)

    @torch.no_grad()
    def update(self, skip: Tensor | None) -> None:
        """Update the parameters that have gradients; `skip` as in `step`, on a CPU too without reading it."""
        for (n_steps, *hypers), blocks in self._make_blocks().items():
            coefficients = self.compute_coefficients(n_steps, *hypers, skip=skip)
            for block in blocks:
                self._decay_weights(block, skip)
                if skip is not None:
                    clear_gradients(block.gradients, skip)
                self.update_block(block, coefficients, skip)

    def compute_coefficients(self, n_steps: int | Tensor, *hypers: float, skip: Tensor | None) -> Any:
        """Return the numbers of a step that depend on the `shared_hypers` and on the number of earlier steps."""
        raise NotImplementedError

    def update_block(self, block: Block, coefficients: Any, skip: Tensor | None) -> None:
        """Update averages and parameters of a block with finite gradients."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return state and hyperparameters as fastai does; reads the numbers of steps from the GPU."""
        for state in self.state.values():
            if "step" in state:
                state["step"] = int(state["step"])
        return super().state_dict()

    def _make_blocks(self) -> dict[tuple, list[Block]]:
        """Return the blocks by the number of steps and the shared hyperparameters of their parameters."""
        blocks: dict[tuple, dict[tuple, Block]] = {}
        n_cpu_weights = 0
        for number, (parameters, hypers) in enumerate(zip(self.param_lists, self.hypers, strict=True)):
            shared_hypers = [hypers[name] for name in self.shared_hypers]
            for parameter in parameters:
                if parameter.grad is None:
                    continue
                n_cpu_weights += parameter.numel() if parameter.device.type == "cpu" else 0
                state = self.state[parameter]
                same_coefficients = blocks.setdefault((state.get("step", 0), *shared_hypers), {})
                key = number, parameter.device, parameter.dtype, n_cpu_weights // CPU_BLOCK_SIZE
                block = same_coefficients.setdefault(key, Block(hypers))
                block.parameters.append(parameter)
                block.gradients.append(parameter.grad)
                block.states.append(state)
        return {key: list(same_coefficients.values()) for key, same_coefficients in blocks.items()}

    def _decay_weights(self, block: Block, skip: Tensor | None) -> None:
        """Decay the weights, or add the decay to the gradients (L2); the Learner exempts biases and batch norm."""
        lr, wd = block.hypers["lr"], block.hypers["wd"]
        is_decayed = [wd != 0 and state.get("do_wd", True) for state in block.states]
        parameters = list(compress(block.parameters, is_decayed))
        if parameters and self.decouple_wd:
            torch._foreach_mul_(parameters, mask(1 - lr * wd, 1.0, skip))
        elif parameters:
            torch._foreach_add_(list(compress(block.gradients, is_decayed)), parameters, alpha=wd)


class SGD(ForeachOptimizer):
    """Stochastic gradient descent with momentum."""

    shared_hypers = ("mom",)

    def __init__(self, params: Iterable, lr: float, mom: float = 0.9, wd: float = 0.0, decouple_wd: bool = True):
        super().__init__(params, decouple_wd, lr=lr, mom=mom, wd=wd)

    def compute_coefficients(self, n_steps: int | Tensor, mom: float, *, skip: Tensor | None) -> Number:
        """Return the factor of the averages."""
        return mask(mom, 1.0, skip)

    def update_block(self, block: Block, coefficients: Number, skip: Tensor | None) -> None:
        """Add the gradients to the averages, and these to the parameters."""
        averages = block.list_averages("grad_avg")
        torch._foreach_mul_(averages, coefficients)
        torch._foreach_add_(averages, block.gradients)
        updates, rate = separate_rate(averages, mask(-block.hypers["lr"], 0.0, skip))
        torch._foreach_add_(block.parameters, updates, alpha=rate)


class AdamCoefficients(NamedTuple):
    """Numbers of a step of Adam.

    The update is lr * factor * average / (sqrt(average of squares / divisor) + eps).
    """

    n_steps: int | Tensor  # after this step
    mom: Number
    sqr_mom: Number
    divisor: Number
    factor: Number


class Adam(ForeachOptimizer):
    """Adam (Kingma and Ba 2015) with L2 regularization, or AdamW (Loshchilov and Hutter 2019) with `decouple_wd`."""

    shared_hypers = ("mom", "sqr_mom", "eps")

    def __init__(
        self, params: Iterable, lr: float, mom: float = 0.9, sqr_mom: float = 0.99, eps: float = 1e-5,
        wd: float = 0.0, decouple_wd: bool = True,
    ):  # fmt: skip
        super().__init__(params, decouple_wd, lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd)

    def compute_coefficients(
        self, n_steps: int | Tensor, mom: float, sqr_mom: float, eps: float, *, skip: Tensor | None
    ) -> AdamCoefficients:
        """Return the numbers that parameters with the same number of steps have in common."""
        n_steps = int(n_steps) if skip is None else n_steps  # reads a tensor once, after steps with a mask
        device = torch.device("cpu") if skip is None else skip.device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple GPUs have no float64
        step = torch.ones((), dtype=dtype, device=device) + n_steps
        divisor, factor = self.correct_bias(step, mom, sqr_mom, eps)
        return AdamCoefficients(
            n_steps=n_steps + (1 if skip is None else skip.logical_not()),
            mom=mask(mom, 1.0, skip),
            sqr_mom=mask(sqr_mom, 1.0, skip),
            divisor=mask(divisor, 1.0, skip),
            factor=mask(factor, 0.0, skip),
        )

    def correct_bias(self, step: Tensor, mom: float, sqr_mom: float, eps: float) -> tuple[Tensor, Tensor]:
        """Return divisor and factor of the update; `step` counts from 1."""
        return 1 - sqr_mom**step, 1 / (1 - mom**step)

    def update_block(self, block: Block, coefficients: AdamCoefficients, skip: Tensor | None) -> None:
        """Update the averages of gradients and their squares, the parameters, and the numbers of steps."""
        averages, squares = block.list_averages("grad_avg"), block.list_averages("sqr_avg")
        gradients, mom, sqr_mom = block.gradients, block.hypers["mom"], block.hypers["sqr_mom"]
        torch._foreach_mul_(averages, coefficients.mom)
        torch._foreach_add_(averages, gradients, alpha=1 - mom)
        torch._foreach_mul_(squares, coefficients.sqr_mom)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - sqr_mom)
        denominators = torch._foreach_div(squares, coefficients.divisor)
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, block.hypers["eps"])
        updates, rate = separate_rate(averages, coefficients.factor * -block.hypers["lr"])
        torch._foreach_addcdiv_(block.parameters, updates, denominators, value=rate)
        for state in block.states:
            state["step"] = coefficients.n_steps


class RAdam(Adam):
    """RAdam (Liu et al. 2020) in fastai's form: epsilon after the bias correction, and rectification above 5."""

    def correct_bias(self, step: Tensor, mom: float, sqr_mom: float, eps: float) -> tuple[Tensor, Tensor]:
        """Return divisor and factor of the update; without rectification it is lr * corrected average."""
        divisor, factor = super().correct_bias(step, mom, sqr_mom, eps)
        r_inf = 2 / (1 - sqr_mom) - 1  # rho of the paper: the length of the average of squares after infinite steps
        r = r_inf - 2 * step * sqr_mom**step / divisor
        rectification = (((r - 4) * (r - 2) * r_inf) / ((r_inf - 4) * (r_inf - 2) * r)).sqrt()
        is_rectified = r > 5
        # otherwise the denominator is eps, and the factor cancels it
        return torch.where(is_rectified, divisor, math.inf), factor * torch.where(is_rectified, rectification, eps)


def mask(value: Number, neutral: float, skip: Tensor | None) -> Number:
    """Return `value`, or, as a tensor, `neutral` where the step is skipped."""
    return float(value) if skip is None else torch.where(skip, neutral, value).float()


def separate_rate(averages: list[Tensor], rate: Number) -> tuple[list[Tensor] | tuple[Tensor, ...], float]:
    """Return tensors and a number with the product averages * rate: torch reads a factor of an addition on the host."""
    return (torch._foreach_mul(averages, rate), 1.0) if isinstance(rate, Tensor) else (averages, rate)


def clear_gradients(gradients: list[Tensor], skip: Tensor) -> None:
    """Set the gradients of a skipped step to zero. Their bits are multiplied, because 0 * NaN is NaN."""
    bits = [gradient.view(INTEGER_TYPES[gradient.element_size()]) for gradient in gradients]
    torch._foreach_mul_(bits, skip.logical_not().to(bits[0].dtype))
