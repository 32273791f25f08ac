"""Classification losses of softmax probabilities, with class weights."""

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.learner import AvgLoss, AvgSmoothLoss, Learner, Recorder
from fastai.losses import BaseLoss
from torch import nn

from fastcxr.config.recipe import Recipe


class WeightedLoss(nn.Module):
    """Base class: mean of a loss per image with class weights, divided by the sum of the weights as in torch.

    `weight`: one factor per class, shape (k,), or None for equal weights. `reduction`: "mean", "sum" or "none".
    """

    weight: torch.Tensor | None

    def __init__(self, weight: torch.Tensor | None = None, reduction: str = "mean"):
        super().__init__()
        self.register_buffer("weight", weight)
        self.reduction = reduction

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return a scalar, or shape (n,) for reduction "none"; `logits`: (n, k), `truth`: (n,) class numbers."""
        losses = self.compute_losses(logits.float(), truth)
        weights = torch.ones_like(losses) if self.weight is None else self.weight[truth]
        if self.reduction == "none":
            return losses * weights
        total = (losses * weights).sum()
        return total if self.reduction == "sum" else total / weights.sum()

    def compute_losses(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return the unweighted loss of each image, shape (n,)."""
        raise NotImplementedError

    def compute_total_weight(self, truth: torch.Tensor) -> torch.Tensor | int:
        """Return the divisor of the mean loss of a batch: the sum of the class weights of its images."""
        return len(truth) if self.weight is None else self.weight[truth].sum()


class LabelSmoothingCrossEntropy(WeightedLoss):
    """Cross-entropy with targets (1 - epsilon) * one-hot + epsilon / k (Szegedy 2016).

    epsilon 0 is cross-entropy. fastai's loss of this name weights only one of its two terms; this one weights both.
    """

    def __init__(self, epsilon: float, weight: torch.Tensor | None = None, reduction: str = "mean"):
        super().__init__(weight, reduction)
        self.epsilon = epsilon

    def compute_losses(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return the loss of each image, shape (n,)."""
        return F.cross_entropy(logits, truth, label_smoothing=self.epsilon, reduction="none")


class FocalLoss(WeightedLoss):
    """Cross-entropy times (1 - p)^gamma, p being the probability of the true class (Lin 2017).

    fastai's loss of this name computes p from the weighted cross-entropy; here class weights do not change p.
    """

    def __init__(self, gamma: float, weight: torch.Tensor | None = None, reduction: str = "mean"):
        super().__init__(weight, reduction)
        self.gamma = gamma

    def compute_losses(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return the loss of each image, shape (n,)."""
        cross_entropy = F.cross_entropy(logits, truth, reduction="none")
        return (1 - torch.exp(-cross_entropy)) ** self.gamma * cross_entropy


class MeanSquaredError(WeightedLoss):
    """Mean over the classes of (p - y)^2, p being the softmax probabilities and y the one-hot target.

    For two classes this is the squared error of a single sigmoid output.
    """

    def compute_losses(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return the loss of each image, shape (n,)."""
        return (F.softmax(logits, dim=1) - F.one_hot(truth, logits.shape[1])).square().mean(dim=1)


class BinaryCrossEntropy(WeightedLoss):
    """Mean over the classes of -y log p - (1 - y) log(1 - p), p being softmax probabilities (one-vs-rest).

    The softmax probability of class c is sigmoid(z_c - log of the sum of exp(z) over the other classes). For two
    classes the loss is therefore that of a single sigmoid output.
    """

    def compute_losses(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return the loss of each image, shape (n,)."""
        k = logits.shape[1]
        is_own_class = torch.eye(k, dtype=torch.bool, device=logits.device)
        other_logits = logits[:, None, :].expand(-1, k, -1).masked_fill(is_own_class, -torch.inf).logsumexp(dim=2)
        target = F.one_hot(truth, k).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits - other_logits, target, reduction="none").mean(dim=1)


class SoftmaxLoss(BaseLoss):
    """A WeightedLoss for fastai's Learner, with softmax as activation and argmax as decision."""

    axis: int  # set by fastai's store_attr
    y_int = True  # MixUp and CutMix mix the losses of both class numbers, not the class numbers themselves

    def activation(self, logits: torch.Tensor) -> torch.Tensor:
        """Return softmax probabilities."""
        return F.softmax(logits, dim=self.axis)

    def decodes(self, logits: torch.Tensor) -> torch.Tensor:
        """Return predicted class numbers."""
        return logits.argmax(dim=self.axis)


class WeightedAvgLoss(AvgLoss):
    """The weighted mean loss over all images of an epoch, as if they were one batch; summed on the device.

    fastai averages batch losses by batch size. In a batch of one class the class weights would then cancel, and batches
    with few known labels of findings would count as much as others.
    """

    def reset(self) -> None:
        """Start an epoch."""
        self.total, self.batch_weights = 0.0, []

    def accumulate(self, learn: Learner) -> None:
        """Add a batch, weighted by the divisor of its mean loss: a sum of class weights, or a number of labels."""
        # len: a loss of the user, or that of MixUp or CutMix, which is a mean over the images
        compute_total_weight = getattr(getattr(learn.loss_func, "func", None), "compute_total_weight", len)
        truth, loss = cast(tuple, learn.yb)[0], cast(torch.Tensor, learn.loss)
        batch_weight = compute_total_weight(truth)
        self.total += loss.detach().mean() * batch_weight
        self.batch_weights.append(batch_weight)

    @property
    def value(self) -> torch.Tensor | float | None:
        """The mean so far; None before the first batch, 0 if no label is known."""
        return self.total / (sum(map(float, self.batch_weights)) or 1.0) if self.batch_weights else None


class SmoothLoss(AvgSmoothLoss):
    """fastai's exponentially weighted training loss, kept on the device: fastai copies each loss to the CPU."""

    def accumulate(self, learn: Learner) -> None:
        """Add a batch."""
        loss = cast(torch.Tensor, learn.loss).detach().mean()
        previous = self.val if self.count else torch.zeros_like(loss)
        self.count += 1
        self.val = torch.lerp(loss, previous, self.beta)


class MoveLossesToCpu(Callback):
    """Move the losses that fastai's Recorder has on a GPU to the CPU, after each epoch and after the fit, for plots."""

    order = Recorder.order + 1

    def move(self) -> None:
        """Move the losses since the last call at once."""
        losses = [loss for loss in self.recorder.losses if not loss.is_cpu]
        if losses:
            self.recorder.losses[-len(losses) :] = torch.stack(losses).cpu().unbind()

    after_train = after_fit = move


LOSSES_WITHOUT_PARAMETERS = {"mse": MeanSquaredError, "binary_cross_entropy": BinaryCrossEntropy}


def make_loss(recipe: Recipe, class_counts: np.ndarray | None = None) -> SoftmaxLoss:
    """Return the recipe's loss.

    `class_counts`: training images of each class, in the order of the labels; only balanced class weights need it.
    """
    weight = None
    if recipe.class_weights == "balanced" and class_counts is not None:
        weight = compute_class_weights(class_counts)
    if recipe.loss == "focal":
        return SoftmaxLoss(FocalLoss, gamma=recipe.focal_gamma, weight=weight)
    if recipe.loss in LOSSES_WITHOUT_PARAMETERS:
        return SoftmaxLoss(LOSSES_WITHOUT_PARAMETERS[recipe.loss], weight=weight)
    epsilon = recipe.label_smoothing if recipe.loss == "label_smoothing" else 0.0
    return SoftmaxLoss(LabelSmoothingCrossEntropy, epsilon=epsilon, weight=weight)


def compute_class_weights(class_counts: np.ndarray) -> torch.Tensor:
    """Return balanced class weights n / (k * count), as scikit-learn's "balanced"; shape (k,)."""
    return torch.tensor(class_counts.sum() / (len(class_counts) * np.maximum(class_counts, 1)), dtype=torch.float32)
