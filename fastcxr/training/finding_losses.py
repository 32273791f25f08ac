"""Losses and macro AUROC of findings with unknown labels, and the weights of rare findings.

Truth has shape (n, k): 1 present, 0 absent, NaN unknown; MixUp mixes it. The loss of an unknown label and its gradient
are exactly zero. No loss waits for the GPU.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from fastai.losses import BaseLoss
from sklearn.metrics import roc_auc_score
from torch import nn

from fastcxr.config.recipe import Recipe

ALL = slice(None)
POSITIVE_WEIGHT_RANGE = (0.1, 10.0)
# values of Ridnik 2021
GAMMA_POSITIVE, GAMMA_NEGATIVE = 1, 4
PROBABILITY_MARGIN = 0.05  # negatives below this probability have no loss


class FindingLoss(nn.Module):
    """Base class: summed loss of the known labels of findings, divided by their number.

    Attributes:
        positive_weight: factor on the loss of a present finding, shape (k,), or None. It does not change the divisor,
            as in torch's BCEWithLogitsLoss.
        smoothing: epsilon of the targets y (1 - epsilon) + epsilon / 2.
        reduction: "mean", "sum", or "none" for the mean of each image.
    """

    positive_weight: torch.Tensor | None

    def __init__(self, positive_weight: torch.Tensor | None = None, smoothing: float = 0.0, reduction: str = "mean"):
        super().__init__()
        self.register_buffer("positive_weight", positive_weight)
        self.smoothing, self.reduction = smoothing, reduction

    def forward(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return a scalar, or shape (n,) for reduction "none"; 0 without a known label. Both arguments: (n, k)."""
        losses, n_known = self.compute_losses(logits.float(), truth), (~truth.isnan()).sum(dim=1)
        if self.reduction == "none":
            return losses.sum(dim=1) / n_known.clamp(min=1)
        return losses.sum() if self.reduction == "sum" else losses.sum() / n_known.sum().clamp(min=1)

    def compute_losses(
        self, logits: torch.Tensor, truth: torch.Tensor, findings: torch.Tensor | slice = ALL
    ) -> torch.Tensor:
        """Return the loss of each label, 0 for unknown ones; same shape as logits and truth, (..., k).

        `findings`: numbers of the findings in the last dimension, if these are not all.
        """
        is_known = ~truth.isnan()
        # masked before the loss too: the gradient of an unknown label is 0 even where its logit is NaN
        present, absent = self.compute_both_losses(torch.where(is_known, logits, 0.0))
        present_weight, absent_weight = self.compute_label_weights(truth, findings)
        return torch.where(is_known, present_weight * present + absent_weight * absent, 0.0)

    def compute_label_weights(
        self, truth: torch.Tensor, findings: torch.Tensor | slice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights of the losses of a present and of an absent finding; 0 for the loss of the other value."""
        target = truth.float().nan_to_num(0.0)
        if self.smoothing:
            target = target * (1 - self.smoothing) + self.smoothing / 2
        if self.positive_weight is None:
            return target, 1 - target
        return target * self.positive_weight.to(truth.device)[findings], 1 - target

    def compute_both_losses(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses if the finding is present and if it is absent, each of the shape of the logits."""
        raise NotImplementedError

    def compute_gradients(
        self, logits: torch.Tensor, truth: torch.Tensor, findings: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of each label and its derivative by the logit; see compute_losses."""
        logits = logits.detach().requires_grad_()
        losses = self.compute_losses(logits, truth, findings)
        return losses.detach(), torch.autograd.grad(losses.sum(), logits)[0]

    def compute_total_weight(self, truth: torch.Tensor) -> torch.Tensor:
        """Return the divisor of the mean loss of a batch: the number of known labels."""
        return (~truth.isnan()).sum()


class FindingCrossEntropy(FindingLoss):
    """Binary cross-entropy."""

    def compute_both_losses(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses if the finding is present and if it is absent."""
        return -F.logsigmoid(logits), -F.logsigmoid(-logits)

    def compute_gradients(
        self, logits: torch.Tensor, truth: torch.Tensor, findings: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of each label and its derivative by the logit, without a backward pass."""
        present_weight, absent_weight = self.compute_label_weights(truth, findings)
        log_present, is_known = F.logsigmoid(logits), ~truth.isnan()
        total_weight = present_weight + absent_weight
        losses = absent_weight * logits - total_weight * log_present
        gradients = total_weight * logits.sigmoid() - present_weight
        return losses * is_known, gradients * is_known


class FocalFindingLoss(FindingLoss):
    """Binary cross-entropy times (1 - p)^gamma, p being the probability of the true value (Lin 2017)."""

    def __init__(self, gamma: float, **options: Any):
        super().__init__(**options)
        self.gamma = gamma

    def compute_both_losses(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses if the finding is present and if it is absent."""
        log_present, log_absent = F.logsigmoid(logits), F.logsigmoid(-logits)
        return -torch.exp(self.gamma * log_absent) * log_present, -torch.exp(self.gamma * log_present) * log_absent


class AsymmetricFindingLoss(FindingLoss):
    """-(1 - p)^gamma+ log p and -q^gamma- log(1 - q) with q = max(p - margin, 0) (Ridnik 2021, arXiv:2009.14119).

    Easy negatives, whose number is large for rare findings, have little or no loss.
    """

    def compute_both_losses(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses if the finding is present and if it is absent."""
        shifted = (logits.sigmoid() - PROBABILITY_MARGIN).clamp(min=0)
        present = -torch.exp(GAMMA_POSITIVE * F.logsigmoid(-logits)) * F.logsigmoid(logits)
        return present, -(shifted**GAMMA_NEGATIVE) * torch.log1p(-shifted)


class SigmoidLoss(BaseLoss):
    """A FindingLoss for fastai's Learner, with sigmoid as activation and a decision per finding."""

    y_int = False  # MixUp and CutMix mix the labels; an unknown label mixed with any other is unknown

    def __init__(self, loss: type[FindingLoss], **options: Any):
        super().__init__(loss, flatten=False, **options)

    def activation(self, logits: torch.Tensor) -> torch.Tensor:
        """Return probabilities, independent for each finding."""
        return logits.sigmoid()

    def decodes(self, probability: torch.Tensor) -> torch.Tensor:
        """Return whether each finding has a probability above 0.5."""
        return probability > 0.5


def make_finding_loss(recipe: Recipe, truth: np.ndarray | None = None) -> SigmoidLoss:
    """Return the recipe's loss for findings.

    Args:
        recipe: the experiment, with the defaults of its task (see resolve_task).
        truth: labels of the training images, shape (n, k); only balanced class weights need it.
    """
    options: dict[str, Any] = {"smoothing": recipe.label_smoothing or 0.0}
    if recipe.class_weights == "balanced" and truth is not None:
        options["positive_weight"] = compute_positive_weights(truth)
    if recipe.loss == "focal":
        return SigmoidLoss(FocalFindingLoss, gamma=recipe.focal_gamma, **options)
    return SigmoidLoss(AsymmetricFindingLoss if recipe.loss == "asymmetric" else FindingCrossEntropy, **options)


def compute_positive_weights(truth: np.ndarray) -> torch.Tensor:
    """Return known negatives / known positives of each finding, limited to POSITIVE_WEIGHT_RANGE; shape (k,).

    A finding without positives has the upper limit. `truth`: shape (n, k).
    """
    positives, negatives = (truth == 1).sum(axis=0), (truth == 0).sum(axis=0)
    weights = np.clip(negatives / np.maximum(positives, 1), *POSITIVE_WEIGHT_RANGE)
    return torch.tensor(np.where(positives, weights, POSITIVE_WEIGHT_RANGE[1]), dtype=torch.float32)


def weigh_rows(truth: np.ndarray) -> list[float]:
    """Return the sampling weight of each image: 1 / number of images of its rarest present finding.

    An image with several findings has the largest of their weights. Images without a present finding share the weight
    1 / number of such images: together they are sampled about as often as the images of one finding. `truth`: (n, k).
    """
    is_present = np.column_stack([truth == 1, ~(truth == 1).any(axis=1)])
    return np.where(is_present, 1 / np.maximum(is_present.sum(axis=0), 1), 0.0).max(axis=1).tolist()


def compute_finding_auroc_from_logits(logits: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the mean AUROC over the findings with known positives and negatives, both of shape (n, k).

    NaN if there is no such finding or a logit is not finite. Unknown labels are left out.
    """
    scores, labels = logits.detach().float().cpu().numpy(), truth.detach().cpu().numpy()
    if not np.isfinite(scores).all():
        return float("nan")
    aurocs = []
    for finding_scores, finding_labels in zip(scores.T, labels.T, strict=True):
        is_known = ~np.isnan(finding_labels)
        if len(set(finding_labels[is_known])) == 2:
            aurocs.append(roc_auc_score(finding_labels[is_known], finding_scores[is_known]))
    return float(np.mean(aurocs)) if aurocs else float("nan")
