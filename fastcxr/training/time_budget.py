"""A wish such as "10m" becomes the number of epochs that fits: measured by a few steps, before a schedule is made."""

import math
import time
from dataclasses import dataclass, field

import torch
from fastai.learner import Learner

from fastcxr.models.devices import read_clock
from fastcxr.models.precision import autocast
from fastcxr.training.fit_ood import MAX_SPLIT_IMAGES

SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600}
N_TIMED_STEPS = 3  # the first warms up, and is not counted
FORWARD_STEP_SHARE = 1 / 3  # of a step: a look without learning
REPORT_SECONDS = 10  # seconds that a report may take


@dataclass(frozen=True)
class Deadline:
    """Seconds that may pass, `before` of them before its making; infinitely many where nobody waits."""

    seconds: float = math.inf
    seconds_before: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def parse(cls, text: str | None) -> "Deadline":
        """From "90s", "10m" or "1.5h", or no limit at all."""
        return cls(float(text[:-1]) * SECONDS_PER_UNIT[text[-1]] if text else math.inf)

    @property
    def seconds_spent(self) -> float:
        """Seconds since its making, and those before."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def seconds_left(self) -> float:
        """Seconds until then, less those that a report takes; below zero when they are over."""
        return self.seconds - self.seconds_spent - REPORT_SECONDS


def compute_epochs_in_time(
    learner: Learner, n_requested: int, seconds: float, n_steps_before: int = 0
) -> tuple[int, float]:
    """How many of the wanted epochs fit into `seconds`, and what one takes (0 where there is no limit).

    `n_steps_before`: training steps that come first, those of lr_find.
    """
    if seconds == math.inf:
        return n_requested, 0.0
    step_seconds, loaders = measure_step_seconds(learner), learner.dls
    validation_seconds = step_seconds * FORWARD_STEP_SHARE * len(loaders.valid)
    epoch_seconds = step_seconds * len(loaders.train) + validation_seconds
    # afterwards: prediction of the held-out images, and the OOD detector on some of all
    ood_seconds = (
        step_seconds * FORWARD_STEP_SHARE * sum(min(len(loader), MAX_SPLIT_IMAGES // loader.bs) for loader in loaders)
    )
    n_affordable = int((seconds - n_steps_before * step_seconds - 2 * validation_seconds - ood_seconds) / epoch_seconds)
    return max(0, min(n_requested, n_affordable)), epoch_seconds


def measure_step_seconds(learner: Learner) -> float:
    """Seconds of a training step with the groups that now learn; the network stays as it is."""
    was_training = learner.model.training
    learner.model.eval().to(memory_format=torch.channels_last)  # batch norm keeps its statistics
    seconds = min([_time_step(learner) for _ in range(N_TIMED_STEPS)][1:])
    learner.model.train(was_training)
    return seconds


def _time_step(learner: Learner) -> float:
    started = read_clock(learner.dls.device)
    # fastai's own tensors would slow the step down; in a fit it takes them off too
    images, labels = (tensor.as_subclass(torch.Tensor) for tensor in learner.dls.train.one_batch())
    images = images.contiguous(memory_format=torch.channels_last)
    with autocast(learner.fastcxr.precision, learner.dls.device):
        logits = learner.model(images)
    learner.loss_func(logits.float(), labels).backward()
    learner.model.zero_grad(set_to_none=True)
    return read_clock(learner.dls.device) - started
