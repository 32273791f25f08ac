"""Fit an independent logistic head per finding on cached features, all findings and L2 penalties at once.

The objective of a finding is the mean loss of its known labels plus the penalty. One pass over the features serves all
findings and penalties, each of which is a function with its own steps (see lbfgs).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastcxr.models.heads import MultiScaleHead
from fastcxr.progress.base import Bar
from fastcxr.training.feature_split import (
    FeatureSplit,
    ProbeFit,
    compute_view_mean,
    find_principal_axes,
    reject_non_finite_losses,
    scale_along_axes,
)
from fastcxr.training.finding_losses import FindingLoss
from fastcxr.training.lbfgs import MAX_EVALUATIONS, MAX_GRADIENT, minimize

SELECTION_GRADIENT = 1e-3  # largest gradient of the fits that only select a penalty; the loss changes by less than .001
MIN_VALID_POSITIVES = 30  # known validation images with a finding whose penalty is selected for it alone


@dataclass(frozen=True)
class FindingObjective:
    """The objectives of all findings on one split.

    Attributes:
        head: its `mean` and `std` standardize the features.
        feature_split: features and labels, shape (n, k), NaN for unknown ones.
        loss: loss of a label.
        variances: largest variances of the standardized features, shape (m,).
        axes: axes of these variances, shape (d, m).
    """

    head: MultiScaleHead
    feature_split: FeatureSplit
    loss: FindingLoss
    variances: torch.Tensor
    axes: torch.Tensor

    def count_labels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the known negatives and positives of each finding in sample weights, each of shape (k,)."""
        truth, weights = self.feature_split.labels, self.feature_split.sample_weights
        return weights @ (truth == 0).to(weights), weights @ (truth == 1).to(weights)

    def find_fitted(self) -> torch.Tensor:
        """Return the numbers of the findings with known positives and negatives; waits for the device."""
        negatives, positives = self.count_labels()
        return ((negatives > 0) & (positives > 0)).nonzero()[:, 0]

    def make_start(self) -> torch.Tensor:
        """Return zero weights with the log odds of each finding as bias, shape (k, d + 1).

        Half an image is added to both counts: the odds of a finding without positives or negatives are finite.
        """
        negatives, positives = self.count_labels()
        weights = torch.zeros(len(negatives), len(self.head.mean) + 1, device=negatives.device)
        weights[:, -1] = ((positives + 0.5) / (negatives + 0.5)).log()
        return weights

    def minimize(
        self, start: torch.Tensor, penalties: torch.Tensor, findings: torch.Tensor, max_gradient: float, bar: Bar
    ) -> torch.Tensor:
        """Return the weights with the lowest objective for each pair of penalty and finding, shape (s, d + 1).

        Args:
            start: first weights, shape (s, d + 1).
            penalties: L2 penalty of each function, shape (s,).
            findings: number of the finding of each function, shape (s,).
            max_gradient: largest gradient at a minimum.
            bar: advances by one step for each pass over the features.
        """
        negatives, positives = self.count_labels()
        # curvature of cross-entropy at the prevalence
        variance = (positives * negatives / (positives + negatives).square())[findings, None] * self.variances
        curvature = variance + penalties[:, None]
        lowest = curvature.amin(dim=1)
        factors = (lowest[:, None] / curvature).sqrt()
        known = len(self.feature_split.features) * (positives + negatives)

        def evaluate(points: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            weights = self.scale(points, factors[rows])
            values, gradients = self.compute_losses(weights, findings[rows], known)
            values += penalties[rows] / 2 * weights[:, :-1].square().sum(dim=1)
            gradients[:, :-1] += penalties[rows, None] * weights[:, :-1]
            bar.advance()
            return values, self.scale(gradients, factors[rows])  # the scaling is symmetric

        minima = minimize(evaluate, self.scale(start, 1 / factors), MAX_EVALUATIONS, max_gradient, 1 / lowest)
        return self.scale(minima, factors)

    def scale(self, weights: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Return weights, shape (s, d + 1), scaled along the axes by the factors of each function, shape (s, m)."""
        return scale_along_axes(weights[:, None], self.axes, factors)[:, 0]

    def compute_losses(
        self, weights: torch.Tensor, findings: torch.Tensor, known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean losses of functions, shape (s,), and their gradients, shape (s, d + 1).

        `known`: known labels of each finding in all views, in sample weights, shape (k,).
        """
        mean, std = self.head.mean.to(weights.device), self.head.std.to(weights.device)
        scaled = weights[:, :-1] / std
        bias = weights[:, -1] - scaled @ mean
        values, bias_gradient, gradient = torch.zeros_like(bias), torch.zeros_like(bias), torch.zeros_like(scaled)
        for chunk, truth, sample_weights in self.feature_split.chunks():
            label_weights = sample_weights[:, None] / known[findings]
            logits = torch.addmm(bias, chunk, scaled.T)
            losses, residuals = self.loss.compute_gradients(logits, truth[:, findings], findings)
            residuals *= label_weights
            values += (losses * label_weights).sum(dim=0)
            bias_gradient += residuals.sum(dim=0)
            gradient.addmm_(residuals.T, chunk)
        gradient = (gradient - bias_gradient[:, None] * mean) / std
        return values, torch.cat([gradient, bias_gradient[:, None]], dim=1)


def make_objective(head: MultiScaleHead, loss: FindingLoss, feature_split: FeatureSplit) -> FindingObjective:
    """Return the objectives of all findings on these rows."""
    return FindingObjective(head, feature_split, loss, *find_principal_axes(head, feature_split))


def fit_findings(
    head: MultiScaleHead,
    loss: FindingLoss,
    train: FeatureSplit,
    valid: FeatureSplit,
    strengths: Sequence[float],
    bar: Bar,
) -> ProbeFit:
    """Return the heads of all findings with the penalties of the lowest validation loss.

    One penalty serves all findings; a finding with MIN_VALID_POSITIVES has the penalty that is best for it alone. The
    fits of all penalties end early, and only those with the selected penalties are continued. A finding without known
    positives or negatives has zero weights and its log odds as bias.

    Raises TrainingError for a NaN or infinite loss.
    """
    objective, l2 = make_objective(head, loss, train), torch.tensor(strengths, device=train.device)
    start, fitted = objective.make_start(), objective.find_fitted()
    weights = start.repeat(len(l2), 1, 1)
    penalties, findings = l2.repeat_interleave(len(fitted)), fitted.repeat(len(l2))
    minima = objective.minimize(start[findings], penalties, findings, SELECTION_GRADIENT, bar)
    weights[:, fitted] = minima.unflatten(0, (len(l2), len(fitted)))
    common, best = select_penalties(compute_loss_sums(weights, head, valid, loss), valid.labels)
    weight = weights[best, torch.arange(len(best))]
    weight[fitted] = objective.minimize(weight[fitted], l2[best[fitted]], fitted, MAX_GRADIENT, bar)
    valid_loss = compute_mean_finding_losses(weight[None], head, valid, loss).tolist()
    reject_non_finite_losses(valid_loss)
    return ProbeFit(weight, strengths[common], valid_loss[0], tuple(strengths[number] for number in best.tolist()))


def select_penalties(loss_sums: torch.Tensor, truth: torch.Tensor) -> tuple[int, torch.Tensor]:
    """Return the number of the common penalty, and that of the penalty of each finding, shape (k,).

    `loss_sums`: summed validation loss of each penalty and finding, shape (s, k). `truth`: shape (n, k).
    Raises TrainingError for a NaN or infinite loss.
    """
    totals = loss_sums.sum(dim=1)
    reject_non_finite_losses(totals.tolist())
    common = totals.argmin()
    has_own = (truth == 1).sum(dim=0) >= MIN_VALID_POSITIVES
    return int(common), torch.where(has_own, loss_sums.argmin(dim=0), common)


def refit_findings(
    head: MultiScaleHead, loss: FindingLoss, feature_split: FeatureSplit, fit: ProbeFit, bar: Bar
) -> torch.Tensor:
    """Return the heads of an earlier fit after further steps on these rows, with its penalties; shape (k, d + 1)."""
    objective = make_objective(head, loss, feature_split)
    weight, fitted = objective.make_start(), objective.find_fitted()
    penalties = torch.tensor(fit.finding_l2, device=weight.device)
    weight[fitted] = objective.minimize(fit.weight[fitted], penalties[fitted], fitted, MAX_GRADIENT, bar)
    return weight


def compute_loss_sums(
    weights: torch.Tensor, head: MultiScaleHead, feature_split: FeatureSplit, loss: FindingLoss
) -> torch.Tensor:
    """Return the summed loss of the known labels of each finding, shape (s, k), for heads of shape (s, k, d + 1)."""
    sums = weights.new_zeros(weights.shape[:2])
    for views, rows in feature_split.row_chunks():
        logits = compute_view_mean(weights, head, views)
        losses = loss.compute_losses(logits, feature_split.labels[rows, None].expand_as(logits))
        sums += torch.einsum("n,nsk->sk", feature_split.sample_weights[rows], losses)
    return sums


def compute_mean_finding_losses(
    weights: torch.Tensor, head: MultiScaleHead, feature_split: FeatureSplit, loss: FindingLoss
) -> torch.Tensor:
    """Return the mean loss of all known labels for each set of heads, shape (s,); 0 without a known label."""
    known = feature_split.sample_weights @ (~feature_split.labels.isnan()).float()
    return compute_loss_sums(weights, head, feature_split, loss).sum(dim=1) / known.sum().clamp(min=1e-12)
