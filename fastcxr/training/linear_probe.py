"""Heads are fitted on a bank of features in seconds: every row at once, no epochs."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from fastai.learner import Learner
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.errors import TrainingError
from fastcxr.models.heads import DepthHead, head_of
from fastcxr.progress.base import Progress
from fastcxr.training.feature_bank import Bank, hash_body, make_bank

log = logging.getLogger("fastcxr")
STRENGTHS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)  # of the ridge, strongest first: each fit starts from the one before
STEPS = 60  # of L-BFGS, at most
ROWS = 8192  # of features that enter one matrix product
MEMORY = 1 << 30  # bytes that a copy of a split's features may take; beyond it they are read from the bank in each step
SMALLEST_DEVIATION = 1e-4  # a feature that never moves says nothing


@dataclass(frozen=True)
class Part:
    """The rows of one split in a bank. `labels`: class numbers; `times`: how often an epoch shows each row."""

    features: np.ndarray
    rows: np.ndarray
    labels: torch.Tensor
    times: torch.Tensor

    def chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Yield features in single precision, labels and times, at most ROWS rows at once."""
        found = self.read() if self.copy is None else self.copy.read()
        for chunk, piece in zip(found, self.pieces * len(self.features), strict=True):
            yield chunk, self.labels[piece], self.times[piece]

    @property
    def pieces(self) -> list[slice]:
        """The rows of each chunk of a view."""
        return [slice(start, start + ROWS) for start in range(0, len(self.rows), ROWS)]

    @cached_property
    def copy(self) -> "Copy | None":
        """All features in memory, which every step of a fit needs; None if they exceed MEMORY in half precision too."""
        numbers = len(self.features) * len(self.rows) * self.features.shape[2]
        if 4 * numbers <= MEMORY:
            return Copy(list(self.read()))
        return make_half_copy(self.read()) if 2 * numbers <= MEMORY else None

    def read(self) -> Iterator[torch.Tensor]:
        """Yield the features of each chunk from the bank."""
        for view in range(len(self.features)):
            for piece in self.pieces:
                yield torch.from_numpy(np.ascontiguousarray(self.features[view, self.rows[piece]]))

    def join(self, other: "Part") -> "Part":
        """Both parts, in the views of this one."""
        rows = np.concatenate([self.rows, other.rows])
        return Part(self.features, rows, torch.cat([self.labels, other.labels]), torch.cat([self.times, other.times]))


@dataclass(frozen=True)
class Copy:
    """Chunks of features in memory; `centre` was subtracted from each row, None for chunks as they are in the bank."""

    parts: list[torch.Tensor]
    centre: torch.Tensor | None = None

    def read(self) -> Iterator[torch.Tensor]:
        """Yield the chunks in single precision."""
        for part in self.parts:
            yield part if self.centre is None else part.float().add_(self.centre)


def make_half_copy(chunks: Iterator[torch.Tensor]) -> Copy | None:
    """Copy chunks in half precision; None if a feature exceeds its range.

    Without their mean features are rounded to 1/2048 of their distance from it, not of their size.
    """
    parts, centre = [], None
    for chunk in chunks:
        centre = chunk.mean(dim=0) if centre is None else centre
        parts.append((chunk - centre).half())
        if not parts[-1].isfinite().all():
            return None
    return Copy(parts, centre)


def take_part(loader, bank: Bank) -> Part:
    """The rows of a loader in all views, drawn as often as the loader draws them."""
    rows = bank.rows(loader.items["file"])
    labels = torch.tensor([int(label) for label in loader.dataset.tls[1]])
    times = torch.ones(len(rows))
    if loader.weights is not None:
        times = torch.tensor(loader.weights) * len(rows) / sum(loader.weights)
    if loader.rows is not None:
        times = torch.bincount(torch.tensor(loader.rows), minlength=len(rows)).float()
    return Part(bank.features, rows, labels, times)


def fit_head(learner: Learner, recipe: Recipe, progress: Progress) -> dict[str, float]:
    """Fit the learner's head on a bank of features, in place; returns the figures of a row of history.

    The loss is the recipe's, with an L2 penalty on the weights of the standardised features (multinomial logistic
    regression, where the loss is cross-entropy). Of several strengths the one with the lowest loss on the validation
    patients is taken. Each view of an image teaches by itself; an answer is the mean over the views.
    """
    bank = make_bank(learner, recipe, progress)
    train, valid = take_part(learner.dls.train, bank), take_part(learner.dls.valid, bank)
    head, loss = head_of(learner.model), learner.loss_func.func
    fit = fit_parts(head, loss, train, valid, progress)
    set_weight(head, fit.weight)
    parts = replace(train), replace(valid)  # without their copies in memory
    learner.fitted = Fitted(bank, hash_body(learner.model), *parts, fit, last=fit.weight)
    log.info("the head is fitted on features of %s images (ridge %g)", f"{len(train.rows):,}", fit.strength)
    logits = answer_all(fit.weight, head, valid)
    figures = {metric.name: float(metric.func(logits, valid.labels)) for metric in learner.metrics}
    return {"train_loss": measure_loss(fit.weight, head, train, loss), "valid_loss": fit.missed, **figures}


def refit_head(learner: Learner) -> None:
    """Fit the head again at its strength, on training and validation images together: nothing else is to be chosen.

    Predictions of the validation images remain those of the head that had not seen them (see answer_from_bank).
    """
    fitted, head = learner.fitted, head_of(learner.model)
    both = fitted.train.join(fitted.valid)
    weight = minimise(fitted.fit.weight, head, both, learner.loss_func.func, fitted.fit.strength)
    set_weight(head, weight)
    learner.fitted = replace(fitted, last=weight)
    log.info("the head is fitted again on %s images, those of validation among them", f"{len(both.rows):,}")


def answer_from_bank(learner: Learner, files: Sequence[str], held_out: Sequence[bool]) -> np.ndarray | None:
    """Logits, shape (n, k), as the network would give them; None for files, or a body, that the bank is not of.

    `held_out`: the validation images, which are answered by the head that was fitted without them.
    """
    fitted, head = learner.fitted, head_of(learner.model)
    last = torch.cat([head.linear.weight, head.linear.bias[:, None]], dim=1).detach().cpu()
    is_as_fitted = last.equal(fitted.last) and hash_body(learner.model) == fitted.body
    if not is_as_fitted or not all(file in fitted.bank.row_of for file in files):
        return None
    nothing = torch.zeros(len(files), dtype=torch.long)
    part = Part(fitted.bank.features, fitted.bank.rows(files), nothing, nothing)
    with torch.no_grad():
        own, before = (answer_all(weight, head, part) for weight in (last, fitted.fit.weight))
    return torch.where(torch.tensor(list(held_out))[:, None], before, own).double().numpy()


def set_weight(head: DepthHead, weight: torch.Tensor) -> None:
    """Give the head fitted weights; the bias is their last column."""
    with torch.no_grad():
        head.linear.weight.copy_(weight[:, :-1])
        head.linear.bias.copy_(weight[:, -1])


@dataclass(frozen=True)
class Fit:
    """A fitted head: weights with the bias as their last column, the ridge's strength, and the loss on validation."""

    weight: torch.Tensor
    strength: float
    missed: float


@dataclass(frozen=True)
class Fitted:
    """What a fit came from. `body`, a checksum, and `last`, the head's weights, tell if the network has changed."""

    bank: Bank
    body: bytes
    train: Part
    valid: Part
    fit: Fit
    last: torch.Tensor


def fit_parts(head: DepthHead, loss: nn.Module, train: Part, valid: Part, progress: Progress) -> Fit:
    """The best of all strengths by the loss on `valid`; the head's standardisation is set from `train`.

    Raises TrainingError where a loss is no number.
    """
    standardise(head, train)
    weight, fits = torch.zeros(head.linear.out_features, head.linear.in_features + 1), []
    with progress.bar(len(STRENGTHS), "fitting the head") as bar:
        for strength in STRENGTHS:
            weight = minimise(weight, head, train, loss, strength)
            fits.append(Fit(weight, strength, measure_loss(weight, head, valid, loss)))
            bar.advance()
    if not all(math.isfinite(fit.missed) for fit in fits):
        raise TrainingError(
            "the fitted head gives a validation loss that is no number",
            "Give --precision fp32; if that does not help, look for images without contrast",
        )
    return min(fits, key=lambda fit: fit.missed)


def answer_all(weight: torch.Tensor, head: DepthHead, part: Part) -> torch.Tensor:
    """Logits of all rows of a part, the mean over its views; shape (n, k)."""
    each = torch.cat([answer(weight, head, chunk) for chunk, _, _ in part.chunks()])
    return each.view(len(part.features), len(part.rows), -1).mean(dim=0)


def standardise(head: DepthHead, part: Part) -> None:
    """Let the head take each feature less its mean, over its deviation, in these rows."""
    count = len(part.features) * len(part.rows)
    mean = sum(chunk.double().sum(dim=0) for chunk, _, _ in part.chunks()) / count
    variance = sum((chunk.double() - mean).square().sum(dim=0) for chunk, _, _ in part.chunks()) / count
    head.mean.copy_(mean)
    head.deviation.copy_(variance.sqrt().clamp_min(SMALLEST_DEVIATION))


def answer(weight: torch.Tensor, head: DepthHead, chunk: torch.Tensor) -> torch.Tensor:
    """Logits of rows of features; `weight`, for standardised ones, holds the bias as its last column."""
    scaled = weight[:, :-1] / head.deviation.cpu()
    return chunk @ scaled.T + (weight[:, -1] - scaled @ head.mean.cpu())


def minimise(start: torch.Tensor, head: DepthHead, part: Part, loss: nn.Module, strength: float) -> torch.Tensor:
    """The weights of least loss and penalty, from `start` on, by L-BFGS over all rows at once."""
    weight = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight], max_iter=STEPS, line_search_fn="strong_wolfe", tolerance_change=1e-7)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        penalty = strength / 2 * weight[:, :-1].square().sum()
        penalty.backward()
        return penalty.detach() + sum(_share(weight, head, part, loss))

    optimizer.step(step)
    return weight.detach()


def measure_loss(weight: torch.Tensor, head: DepthHead, part: Part, loss: nn.Module) -> float:
    """Mean loss of the answers to all rows, without the penalty."""
    weights = _weigh(loss, part.labels, part.times)
    losses = loss.each(answer_all(weight, head, part), part.labels)
    return float((losses * weights).sum() / weights.sum())


def _share(weight: torch.Tensor, head: DepthHead, part: Part, loss: nn.Module) -> Iterator[torch.Tensor]:
    """What each chunk adds to the mean loss over rows and views; its gradient is added to that of the weights."""
    total = len(part.features) * _weigh(loss, part.labels, part.times).sum()
    for chunk, labels, times in part.chunks():
        logits = answer(weight, head, chunk)
        share = (loss.each(logits, labels) * _weigh(loss, labels, times)).sum() / total
        share.backward()
        yield share.detach()


def _weigh(loss: nn.Module, labels: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    return times if loss.weight is None else loss.weight.cpu()[labels] * times
