"""Mixed precision: a forward pass in bfloat16 or float16 with float32 weights, and gradient scaling in float16."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from fastai.callback.core import Callback, CancelStepException  # pyright: ignore[reportAttributeAccessIssue]
from fastai.callback.fp16 import MixedPrecision as FastaiMixedPrecision
from fastai.learner import Learner

from fastcxr.errors import TrainingError
from fastcxr.io.formatting import pluralize
from fastcxr.models.precision import autocast, forbid_tf32

log = logging.getLogger("fastcxr")
# as in fairseq: gradients that overflow even with a much smaller factor belong to a diverging training
MIN_LOSS_SCALE = 1e-4


class MixedPrecision(Callback):
    """Run the forward pass in `learner.fastcxr.precision`; weights, loss and optimizer stay in float32.

    In float16 the loss is multiplied by a factor, so that small gradients do not become zero. A step whose gradients
    overflow is skipped, and the factor is halved (torch.amp.GradScaler). fastai's callback of this name supports only
    CUDA and starts with a new factor in every call of fit; this one keeps it across stages, and `state_dict` has it.

    Attributes:
        scaler: torch's GradScaler; None before the first step in float16.
        n_skipped_steps: number of steps skipped because of overflow, those of the learning rate finder not included.
        scaler_options: arguments of GradScaler.
    """

    order = FastaiMixedPrecision.order  # before its GradientClip, after its GradientAccumulation
    autocast_context = None

    def __init__(self):
        self.scaler: torch.amp.GradScaler | None = None
        self.n_skipped_steps, self.scaler_options = 0, {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume."""
        return {"scaler": self.scaler and self.scaler.state_dict(), "n_skipped_steps": self.n_skipped_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.scaler, self.n_skipped_steps = None, state["n_skipped_steps"]
        if state["scaler"]:
            self._make_scaler().load_state_dict(state["scaler"])

    def before_fit(self) -> None:
        """Reject a second mixed precision callback; leave the autocast of a fit that ended in the middle of a batch."""
        if any(isinstance(callback, FastaiMixedPrecision) for callback in self.cbs):
            raise TrainingError(
                "fastai's MixedPrecision is among the callbacks, but this learner has its own",
                "Remove it, and call `learner.to_fp16()` or `learner.to_bf16()`",
            )
        self.exit_autocast()
        self.state_before_fit = self.state_dict()

    def before_batch(self) -> None:
        """Enter autocast."""
        self.autocast_context = autocast(self.fastcxr.precision, self.dls.device)
        self.autocast_context.__enter__()

    def after_pred(self) -> None:
        """Convert the logits to float32 for the loss."""
        cast(Learner, self.learn).pred = self.pred.float()

    def exit_autocast(self) -> None:
        """Return to full precision; without effect outside autocast."""
        if self.autocast_context is not None:
            self.autocast_context.__exit__(None, None, None)
        self.autocast_context = None

    after_loss = after_cancel_batch = exit_autocast

    def before_backward(self) -> None:
        """Scale the loss in float16."""
        if self.fastcxr.precision == "fp16":
            scaler = self.scaler or self._make_scaler()
            cast(Learner, self.learn).loss_grad = scaler.scale(self.loss_grad)

    def before_step(self) -> None:
        """Unscale the gradients in float16, and skip the step if one of them is infinite or NaN."""
        if self.fastcxr.precision != "fp16":
            return
        scaler, self.has_overflow = cast(torch.amp.GradScaler, self.scaler), True
        scaler.step(cast(torch.optim.Optimizer, self))
        scaler.update()
        if self.has_overflow:
            self.n_skipped_steps += 1
            self._reject_vanished_scale(scaler.get_scale())
            raise CancelStepException

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer, for GradScaler, which sees this callback as the optimizer."""
        return self.opt.param_groups

    def step(self) -> None:
        """Record that all gradients are finite: GradScaler calls this only then."""
        self.has_overflow = False

    def after_fit(self) -> None:
        """Log the number of skipped steps; after the learning rate finder, restore the state before it."""
        if hasattr(self.learn, "lr_finder"):
            self.load_state_dict(self.state_before_fit)
        elif self.n_skipped_steps > self.state_before_fit["n_skipped_steps"]:
            scale, n_skipped = cast(torch.amp.GradScaler, self.scaler).get_scale(), self.n_skipped_steps
            text = f"{pluralize(n_skipped, 'step')} skipped so far because float16 gradients overflowed"
            log.info("%s, which is normal if it is rare; the loss scale is now %g", text, scale)

    def _make_scaler(self) -> torch.amp.GradScaler:
        self.scaler = torch.amp.GradScaler(self.dls.device.type, **self.scaler_options)
        return self.scaler

    def _reject_vanished_scale(self, scale: float) -> None:
        # the highest rates of the learning rate finder make every network diverge
        if scale < MIN_LOSS_SCALE and not hasattr(self.learn, "lr_finder"):
            raise TrainingError(
                f"the gradients overflow in float16 in epoch {self.epoch + 1}: after "
                f"{pluralize(self.n_skipped_steps, 'skipped step')} the loss scale is {scale:.1e}, expected at least "
                f"{MIN_LOSS_SCALE:g}",
                "Lower `learning_rate`, or pass `precision='fp32'`",
            )


@contextmanager
def precision_scope(learner: Learner) -> Iterator[None]:
    """Compute without TF32 in this block if the precision is fp32, and leave autocast even if it ends mid-batch."""
    try:
        with forbid_tf32(learner.fastcxr.precision, learner.dls.device):
            yield
    finally:
        for callback in learner.cbs:
            if isinstance(callback, MixedPrecision):
                callback.exit_autocast()
