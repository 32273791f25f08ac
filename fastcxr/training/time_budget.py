"""A wish such as "10m" becomes the number of epochs that fits: measured by a few steps, before a schedule is made."""

import math
import time
from dataclasses import dataclass, field

import torch
from fastai.learner import Learner

from fastcxr.models.devices import read_clock
from fastcxr.models.precision import computing
from fastcxr.training.fit_ood import MOST

UNITS = {"s": 1, "m": 60, "h": 3600}
STEPS = 3  # the first warms up, and is not counted
FORWARD = 1 / 3  # of a step: a look without learning
DRAWING = 10  # seconds that a report may take


@dataclass(frozen=True)
class Deadline:
    """Seconds that may pass, `before` of them before its making; infinitely many where nobody waits."""

    seconds: float = math.inf
    before: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def read(cls, text: str | None) -> "Deadline":
        """From "90s", "10m" or "1.5h", or no limit at all."""
        return cls(float(text[:-1]) * UNITS[text[-1]] if text else math.inf)

    @property
    def spent(self) -> float:
        """Seconds since its making, and those before."""
        return self.before + time.perf_counter() - self.started

    @property
    def left(self) -> float:
        """Seconds until then, less those that a report takes; below zero when they are over."""
        return self.seconds - self.spent - DRAWING


def find_epochs(learner: Learner, wanted: int, seconds: float, steps_before: int = 0) -> tuple[int, float]:
    """How many of the wanted epochs fit into `seconds`, and what one takes (0 where there is no limit).

    `steps_before`: training steps that come first, those of lr_find.
    """
    if seconds == math.inf:
        return wanted, 0.0
    step, loaders = measure_step(learner), learner.dls
    look = step * FORWARD * len(loaders.valid)
    epoch = step * len(loaders.train) + look
    # the held-out images are looked at afterwards, and by the gate some of all
    gate = step * FORWARD * sum(min(len(loader), MOST // loader.bs) for loader in loaders)
    fitting = int((seconds - steps_before * step - 2 * look - gate) / epoch)
    return max(0, min(wanted, fitting)), epoch


def measure_step(learner: Learner) -> float:
    """Seconds of a training step with the groups that now learn; the network stays as it is."""
    was_training = learner.model.training
    learner.model.eval().to(memory_format=torch.channels_last)  # batch norm keeps its statistics
    seconds = min([_step(learner) for _ in range(STEPS)][1:])
    learner.model.train(was_training)
    return seconds


def _step(learner: Learner) -> float:
    started = read_clock(learner.dls.device)
    # fastai's own tensors would slow the step down; in a fit it takes them off too
    images, labels = (part.as_subclass(torch.Tensor) for part in learner.dls.train.one_batch())
    images = images.contiguous(memory_format=torch.channels_last)
    with computing(learner.precision, learner.dls.device):
        logits = learner.model(images)
    learner.loss_func(logits.float(), labels).backward()
    learner.model.zero_grad(set_to_none=True)
    return read_clock(learner.dls.device) - started
