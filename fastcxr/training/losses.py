"""A name and a table of class counts become a loss whose predictions are probabilities that sum to one.

Every loss here is one of the softmax probabilities, so that the predictions of all models are made alike.
"""

import numpy as np
import torch
import torch.nn.functional as F
from fastai.learner import AvgLoss, Learner
from fastai.losses import BaseLoss
from torch import nn

from fastcxr.config.recipe import Recipe


class WeightedLoss(nn.Module):
    """Mean over a batch of a loss for each image, the classes weighed; sums to the weights, as torch's own does.

    `weight`: one factor a class, shape (k,), or None for equal ones.
    """

    y_int = True  # fastai's mixing callbacks ask

    def __init__(self, weight: torch.Tensor | None = None, reduction: str = "mean"):
        super().__init__()
        self.register_buffer("weight", weight)
        self.reduction = reduction

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """`logits`: (n, k); `truth`: (n,) class numbers. One number, or (n,) for reduction "none"."""
        losses = self.compute_losses(logits.float(), truth)
        weights = torch.ones_like(losses) if self.weight is None else self.weight[truth]
        if self.reduction == "none":
            return losses * weights
        total = (losses * weights).sum()
        return total if self.reduction == "sum" else total / weights.sum()

    def compute_losses(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """The loss of each image, before the classes are weighed; shape (n,)."""
        raise NotImplementedError


class LabelSmoothingCrossEntropy(WeightedLoss):
    """Cross-entropy against a target that keeps 1 - epsilon and spreads epsilon over all classes (Szegedy 2016).

    epsilon 0 is plain cross-entropy. fastai's loss of this name weighs one of its two terms only; this one weighs both.
    """

    def __init__(self, epsilon: float, weight: torch.Tensor | None = None, reduction: str = "mean"):
        super().__init__(weight, reduction)
        self.epsilon = epsilon

    def compute_losses(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, truth, label_smoothing=self.epsilon, reduction="none")


class FocalLoss(WeightedLoss):
    """Cross-entropy times (1 - p)^gamma, p being the probability given to the truth (Lin 2017).

    fastai's loss of this name takes p from the weighted cross-entropy, so class weights bend the focus; not here.
    """

    def __init__(self, gamma: float, weight: torch.Tensor | None = None, reduction: str = "mean"):
        super().__init__(weight, reduction)
        self.gamma = gamma

    def compute_losses(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        cross_entropy = F.cross_entropy(logits, truth, reduction="none")
        return (1 - torch.exp(-cross_entropy)) ** self.gamma * cross_entropy


class MeanSquaredError(WeightedLoss):
    """Mean over the classes of (p - y)^2, p being the softmax probabilities and y the one-hot truth.

    For two classes this is the squared error of one sigmoid: both classes miss by the same amount.
    """

    def compute_losses(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return (F.softmax(logits, dim=1) - F.one_hot(truth, logits.shape[1])).square().mean(dim=1)


class BinaryCrossEntropy(WeightedLoss):
    """Mean over the classes of -y log p - (1 - y) log(1 - p), each class against the rest; p are softmax probabilities.

    Softmax gives class c the probability sigmoid(z_c - log of the sum of exp z over the other classes). So each class
    is a sigmoid against the rest, and for two classes the loss is that of a network which ends in a single sigmoid.
    """

    def compute_losses(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        k = logits.shape[1]
        is_own_class = torch.eye(k, dtype=torch.bool, device=logits.device)
        other_logits = logits[:, None, :].expand(-1, k, -1).masked_fill(is_own_class, -torch.inf).logsumexp(dim=2)
        target = F.one_hot(truth, k).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits - other_logits, target, reduction="none").mean(dim=1)


class SoftmaxLoss(BaseLoss):
    """One of the losses above in the form that fastai's Learner asks: with its activation and its decision."""

    def activation(self, logits: torch.Tensor) -> torch.Tensor:
        return F.softmax(logits, dim=self.axis)

    def decodes(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(dim=self.axis)


class WeightedAvgLoss(AvgLoss):
    """The mean loss of all images of an epoch as if they were one batch, the classes weighed; fastai's column "loss".

    fastai averages the batches by their sizes. Each batch is divided by its own weights already, and images stand in
    the order of their classes: in batches of one class the weights would cancel.
    """

    def accumulate(self, learn: Learner) -> None:
        """Take a batch in, as heavy as the weights of its images."""
        weight, truth = learn.loss_func.func.weight, learn.yb[0]
        batch_weight = len(truth) if weight is None else weight[truth].sum().item()
        self.total += learn.to_detach(learn.loss.mean()) * batch_weight
        self.count += batch_weight


LOSSES_WITHOUT_PARAMETERS = {
    "mse": MeanSquaredError,
    "binary_cross_entropy": BinaryCrossEntropy,
}  # without a number of their own


def make_loss(recipe: Recipe, class_counts: np.ndarray) -> SoftmaxLoss:
    """The loss that the recipe names. `class_counts`: training images of each class, in the order of the labels."""
    weight = compute_class_weights(class_counts) if recipe.class_weights == "balanced" else None
    if recipe.loss == "focal":
        return SoftmaxLoss(FocalLoss, gamma=recipe.focal_gamma, weight=weight)
    if recipe.loss in LOSSES_WITHOUT_PARAMETERS:
        return SoftmaxLoss(LOSSES_WITHOUT_PARAMETERS[recipe.loss], weight=weight)
    epsilon = recipe.label_smoothing if recipe.loss == "label_smoothing" else 0.0
    return SoftmaxLoss(LabelSmoothingCrossEntropy, epsilon=epsilon, weight=weight)


def compute_class_weights(class_counts: np.ndarray) -> torch.Tensor:
    """Factors that let every class weigh the same: n / (k * count), as in scikit-learn's "balanced"; shape (k,)."""
    return torch.tensor(class_counts.sum() / (len(class_counts) * np.maximum(class_counts, 1)), dtype=torch.float32)
