"""Stop the training at a NaN or infinite loss, before that step changes the network."""

import logging
import math
from itertools import groupby

import torch
from fastai.callback.core import Callback
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fastcxr.errors import TrainingError
from fastcxr.training.learner import CxrLearner
from fastcxr.training.loaders import ImageLoader

log = logging.getLogger("fastcxr")
READ_INTERVAL_STEPS = 50
BATCH_WARNING = "images of the batch with a NaN or infinite loss: %s"


class StopOnNonFiniteLoss(Callback):
    """Stop at the first NaN or infinite loss; its step changes no weight, optimizer state or batch-norm statistic.

    To read a loss of a GPU, the host has to wait for it. The losses are therefore read every READ_INTERVAL_STEPS steps
    and at the end of an epoch, and the GPU itself skips steps with a NaN or infinite loss (see find_read_interval).
    """

    order = 62  # after FreezeBatchNormStats, which decides which statistics a batch changes
    learn: CxrLearner

    def __init__(self):
        self.losses: list[torch.Tensor] = []  # not yet read

    def before_train(self) -> None:
        """Start an epoch."""
        self.losses, self.n_read_losses = [], 0
        self.interval = find_read_interval(self.learn)
        self.statistics = NormStatistics(self.model)
        self.learn.skip_step = None

    def after_loss(self) -> None:
        """Restore the statistics and skip the step of a batch whose loss is not finite, and read the losses if due."""
        if not self.training:
            return
        self.losses.append(self.loss.detach())
        is_invalid = ~torch.isfinite(self.losses[-1])
        self.statistics.update(is_invalid)
        if self.interval > 1:
            previous = self.learn.skip_step  # of earlier batches whose gradients are in the same step
            self.learn.skip_step = is_invalid if previous is None else previous | is_invalid
        if len(self.losses) >= self.interval:
            self.read_losses()

    def after_train(self) -> None:
        """Read the last losses of the epoch."""
        self.read_losses()

    def read_losses(self) -> None:
        """Raise TrainingError if a loss since the last call is NaN or infinite, and log the images of its batch."""
        if not self.losses:
            return
        losses, self.losses = torch.stack(self.losses).tolist(), []
        for batch_number, loss in enumerate(losses, start=self.n_read_losses):
            if not math.isfinite(loss):
                paths = ", ".join(self.list_batch_paths(batch_number))
                log.warning(BATCH_WARNING, paths)
                raise TrainingError(
                    f"the training loss is {loss} in epoch {self.epoch + 1}, before the weight update",
                    "Lower `learning_rate`, or check the images of that batch (listed in run.json)",
                )
        self.n_read_losses += len(losses)

    def list_batch_paths(self, batch_number: int) -> list[str]:
        """Return the paths of a batch of the epoch as in the manifest; empty unless the loader is an ImageLoader."""
        indices = self.dl.batch_indices(batch_number) if isinstance(self.dl, ImageLoader) else []
        return self.dl.items["path"].iloc[indices].tolist() if indices else []


def find_read_interval(learner: CxrLearner) -> int:
    """Return after how many steps the losses are read: 1 where waiting is free, or the device cannot skip a step.

    On a CPU the loss is known at once, and in float16 the gradient scaler waits in every step.
    """
    is_free = learner.dls.device.type == "cpu" or learner.fastcxr.precision == "fp16"
    return READ_INTERVAL_STEPS if learner.can_skip_steps and not is_free else 1


class NormStatistics:
    """Running statistics of the batch-norm layers that are in training mode, and those before the current batch."""

    def __init__(self, network: nn.Module):
        layers = [module for module in network.modules() if isinstance(module, _NormBase) and module.training]
        # data: backward must not see that statistics were written after the forward pass; it does not use them
        buffers = [buffer.data.view(-1) for layer in layers for buffer in layer.buffers(recurse=False)]
        by_type = groupby(sorted(buffers, key=lambda buffer: str(buffer.dtype)), lambda buffer: buffer.dtype)
        self.buffers = [list(group) for _, group in by_type]
        self.kept = [torch.cat(group) for group in self.buffers]  # one operation on all is faster than one for each

    def update(self, is_invalid: torch.Tensor) -> None:
        """Keep the statistics after this batch, or return to those before it; `is_invalid`: 0-dim, on the device."""
        for group, kept in zip(self.buffers, self.kept, strict=True):
            torch.where(is_invalid, kept, torch.cat(group), out=kept)
            parts = list(kept.split([len(buffer) for buffer in group]))
            torch._foreach_copy_(group, parts)  # pyright: ignore[reportPrivateImportUsage]
