"""Choose the number of epochs that fit into a time limit, from a few timed training steps."""

import math
import time
from dataclasses import dataclass, field

import torch
from fastai.learner import Learner

from fastcxr.models.devices import read_clock
from fastcxr.models.precision import autocast
from fastcxr.training.fit_ood import MAX_SPLIT_IMAGES

SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600}
N_TIMED_STEPS = 3  # the first is warm-up and not counted
FORWARD_STEP_SHARE = 1 / 3  # duration of a forward pass relative to a training step
REPORT_SECONDS = 10  # seconds reserved for the report


@dataclass(frozen=True)
class Deadline:
    """A time budget in seconds (inf: no limit); `seconds_before` were used by earlier sessions of the run."""

    seconds: float = math.inf
    seconds_before: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def parse(cls, text: str | None) -> "Deadline":
        """Parse "90s", "10m" or "1.5h"; None is no limit."""
        return cls(float(text[:-1]) * SECONDS_PER_UNIT[text[-1]] if text else math.inf)

    @property
    def seconds_spent(self) -> float:
        """Seconds used by this and earlier sessions."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def seconds_left(self) -> float:
        """Seconds left for training, without those for the report; negative after the deadline."""
        return self.seconds - self.seconds_spent - REPORT_SECONDS


def compute_epochs_in_time(
    learner: Learner, n_requested: int, seconds: float, n_steps_before: int = 0
) -> tuple[int, float]:
    """Return how many of the requested epochs fit into `seconds`, and the seconds per epoch (0 without a limit).

    `n_steps_before`: number of training steps before the first epoch (learning rate finder).
    """
    if seconds == math.inf:
        return n_requested, 0.0
    step_seconds, loaders = measure_step_seconds(learner), learner.dls
    forward_seconds = step_seconds * FORWARD_STEP_SHARE
    validation_seconds = forward_seconds * len(loaders.valid)
    epoch_seconds = step_seconds * len(loaders.train) + validation_seconds
    # after training: prediction of the held-out images, and the OOD detector on a subsample of each split
    ood_seconds = forward_seconds * sum(min(len(loader), MAX_SPLIT_IMAGES // loader.bs) for loader in loaders)
    n_affordable = int((seconds - n_steps_before * step_seconds - 2 * validation_seconds - ood_seconds) / epoch_seconds)
    return max(0, min(n_requested, n_affordable)), epoch_seconds


def measure_step_seconds(learner: Learner) -> float:
    """Return the seconds of a training step with the unfrozen layer groups; the network is not changed."""
    was_training = learner.model.training
    learner.model.eval().to(memory_format=torch.channels_last)  # eval: keeps the batch-norm statistics
    step_seconds = []
    for _ in range(N_TIMED_STEPS):
        started = read_clock(learner.dls.device)
        compute_gradients(learner)
        learner.model.zero_grad(set_to_none=True)
        step_seconds.append(read_clock(learner.dls.device) - started)
    learner.model.train(was_training)
    return min(step_seconds[1:])


def compute_gradients(learner: Learner) -> None:
    """Compute the gradients of one training batch, in the precision of the learner and channels-last memory format."""
    # plain tensors, as in a fit: fastai's tensor subclasses slow the step down
    images, labels = (tensor.as_subclass(torch.Tensor) for tensor in learner.dls.train.one_batch())
    with autocast(learner.fastcxr.precision, learner.dls.device):
        logits = learner.model(images.contiguous(memory_format=torch.channels_last))
    learner.loss_func(logits.float(), labels).backward()
