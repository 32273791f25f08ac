"""Confidence intervals of AUROCs by formula, clustered by patient, for test sets that are too large for a bootstrap."""

import math
from dataclasses import dataclass

import numpy as np

from fastcxr.metrics.analytic_intervals import Z_95, Interval, compute_placements, logit_interval, newcombe
from fastcxr.metrics.scored_images import ScoredImages


@dataclass(frozen=True)
class PatientComponents:
    """Sums of the structural components of each patient and finding, centred and divided by the number of images.

    of_positives, of_negatives: shape (patients, k). The AUROC of a finding has the variance of their sum over patients.
    positives: images with the finding, shape (patients, k). factors: corrections for few patients, shape (2, k).
    """

    aurocs: np.ndarray
    of_positives: np.ndarray
    of_negatives: np.ndarray
    positives: np.ndarray
    factors: np.ndarray

    @classmethod
    def of(cls, images: ScoredImages, patient_index: np.ndarray, findings: list[int]) -> "PatientComponents":
        """Compute the components of `findings`, each with both classes; `patient_index`: of each image, shape (n,)."""
        shape = patient_index.max() + 1, len(findings)
        parts = np.zeros((3, *shape))
        aurocs, factors = np.zeros(len(findings)), np.zeros((2, len(findings)))
        for number, k in enumerate(findings):
            rows = np.flatnonzero(images.known[:, k])
            positive = images.positive[rows, k]
            aurocs[number], *placements = compute_placements(positive, images.probability[rows, k])
            for part, (is_in_class, of_class) in enumerate(zip((positive, ~positive), placements, strict=True)):
                index = patient_index[rows[is_in_class]]
                deviations = (of_class - aurocs[number]) / len(of_class)
                parts[part, :, number] = np.bincount(index, deviations, minlength=shape[0])
                n_patients = len(np.unique(index))
                factors[part, number] = n_patients / (n_patients - 1) if n_patients > 1 else math.nan
                if part == 0:
                    parts[2, :, number] = np.bincount(index, minlength=shape[0])
        return cls(aurocs, parts[0], parts[1], parts[2], factors)

    def compute_covariance(self) -> np.ndarray:
        """Return the covariance of the AUROCs, shape (k, k); NaN for a finding with one patient in a class.

        Obuchowski 1997, doi:10.2307/2533958; between findings, the same components are multiplied.
        """
        of_positives, of_negatives = self.of_positives * np.sqrt(self.factors[0]), self.of_negatives
        of_negatives = of_negatives * np.sqrt(self.factors[1])
        n_patients = len(self.positives)
        cross = self.of_positives.T @ self.of_negatives * (n_patients / (n_patients - 1))
        return of_positives.T @ of_positives + of_negatives.T @ of_negatives + cross + cross.T

    def compute_weighted_error(self) -> tuple[float, float]:
        """Return the mean weighted by the number of positives and its standard error, by the delta method.

        The weights are random too: another patient changes them.
        """
        n_positives = self.positives.sum(axis=0)
        weights = n_positives / n_positives.sum()
        mean = float(weights @ self.aurocs)
        influence = (self.of_positives + self.of_negatives) @ weights
        influence += self.positives @ (self.aurocs - mean) / n_positives.sum()
        n_patients = len(influence)
        return mean, math.sqrt(n_patients / (n_patients - 1) * float(influence @ influence))


def compute_clustered_auroc_intervals(
    images: ScoredImages, patient_index: np.ndarray, five: list[int]
) -> dict[str, Interval]:
    """Return the 95 % interval of the AUROC of each finding with both classes and of their means, by dotted name.

    The intervals are symmetric on the logit scale; Newcombe's at 0 and 1 and where the variance is undefined.

    Args:
        images: images with labels of findings.
        patient_index: number of the patient of each image, shape (n,).
        five: positions of CheXpert's five findings, for `auroc.chexpert5`; empty without them.
    """
    is_defined = images.positive.any(axis=0) & images.negative.any(axis=0)
    findings = np.flatnonzero(is_defined).tolist()
    if not findings:
        return {}
    components = PatientComponents.of(images, patient_index, findings)
    covariance = components.compute_covariance()
    intervals = {}
    for number, k in enumerate(findings):
        auroc, variance = float(components.aurocs[number]), covariance[number, number]
        if 0 < auroc < 1 and variance > 0:
            interval = logit_interval(auroc, math.sqrt(variance))
        else:
            counts = (len(np.unique(patient_index[part[:, k]])) for part in (images.positive, images.negative))
            interval = newcombe(auroc, *counts)
            covariance[number, :] = covariance[:, number] = 0
            covariance[number, number] = ((interval[1] - interval[0]) / (2 * Z_95)) ** 2
        intervals[f"auroc.per_class.{images.labels[k]}"] = interval
    means = {"auroc.macro": findings} | ({"auroc.chexpert5": five} if five and set(five) <= set(findings) else {})
    for name, members in means.items():
        weights = np.isin(findings, members) / len(members)
        error = math.sqrt(max(float(weights @ covariance @ weights), 0.0))
        intervals |= _make_mean_interval(name, float(weights @ components.aurocs), error)
    return intervals | _make_mean_interval("auroc.weighted", *components.compute_weighted_error())


def _make_mean_interval(name: str, mean: float, error: float) -> dict[str, Interval]:
    return {name: logit_interval(mean, error)} if 0 < mean < 1 and error > 0 else {}
