"""Tests for shortcuts in a dataset with several labels per image: each property and input against each label.

A label is a radiological finding, present or absent; unknown and uncertain labels are left out. Each check returns one
result, for the label with the highest AUROC, and names the other labels above the limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from scipy.stats import norm

from fastcxr.audit.findings import Finding, Verdict
from fastcxr.audit.image_features import ImageFeatures
from fastcxr.audit.metadata import (
    FILE_ATTRIBUTES,
    FIXES,
    MIN_CLASS_IMAGES,
    PATIENT_ATTRIBUTES,
    describe_typical_values,
    make_indicators,
    make_metadata_table,
)
from fastcxr.audit.probe_models import (
    N_FOLDS,
    SEED,
    score_indicators_of_labels,
    score_pixels_of_labels,
    standard_error_of_chance,
)
from fastcxr.audit.shortcut_probes import (
    CENTRE_FIX,
    EDGE_FIX,
    check_negative_control,
    check_source_leak,
    extract_corners,
    extract_edge,
    grade_pixels,
    is_retained,
    mask_centre,
)
from fastcxr.data.findings import list_findings
from fastcxr.data.label_policy import compute_truth
from fastcxr.data.splits import labels_per_group
from fastcxr.data.stratify import assign_stratified
from fastcxr.io.formatting import format_percent
from fastcxr.io.tables import format_names
from fastcxr.progress.base import Progress

N_LABEL_PERMUTATIONS = 100
FAIL_AUROC, WARN_AUROC = 0.9, 0.65  # of a property
MIN_FAIL_IMAGES = 20  # with and without a finding, below which a check does not fail
N_PIXEL_PROBES = 4  # edge, corners, masked centre, gray values
N_CONTROLS = 3  # permutations of the labels for the negative control
SIGNIFICANCE = 0.05  # for all comparisons together
MAX_NAMED = 6  # further labels in a message
SEVERITY = {"PASS": 0, "WARN": 1, "FAIL": 2}
PLURAL = ("files", "size")  # properties whose title is a plural
SOURCE_FIX = "Add images with and without the finding from each source, or test with --leave-one-source-out."
PERSON_FIX = (
    "Report the metrics of each group apart, or select images with the same distribution with and without the finding."
)
ATTRIBUTES = (
    {"files": ("File properties", [column for _, columns in FILE_ATTRIBUTES.values() for column in columns])}
    | FILE_ATTRIBUTES
    | PATIENT_ATTRIBUTES
    | {"source": ("Source", ["source"])}
)


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Labels of n images.

    Attributes:
        names: Labels with enough positive and negative images, k.
        truth: 1 present, 0 absent, NaN unknown, shape (n, k).
        folds: Fold of each image, grouped by patient.
        patients: Patient of each image.
    """

    names: tuple[str, ...]
    truth: np.ndarray
    folds: np.ndarray
    patients: np.ndarray

    def count_patients(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the effective number of patients with and without each label, both of shape (k,).

        A patient with many images counts less than as many patients: (sum of images)^2 / sum of images^2 (Kish 1965).
        """
        counts = [pd.DataFrame(self.truth == value).groupby(self.patients).sum().to_numpy(float) for value in (1, 0)]
        present, absent = (images.sum(axis=0) ** 2 / (images**2).sum(axis=0) for images in counts)
        return present, absent


@dataclass(frozen=True, eq=False)
class AttributeScores:
    """AUROC of one property for each label, with the labels in their order and permuted.

    Attributes:
        aurocs: AUROC, NaN for a label with too few images, shape (permutations + 1, k); the first row is unpermuted.
        errors: Standard error of the AUROC of a random score, of the same shape.
        table: Values of the images that have the property.
        rows: Numbers of these images.
    """

    aurocs: np.ndarray
    errors: np.ndarray
    table: pd.DataFrame
    rows: np.ndarray

    @property
    def standardized(self) -> np.ndarray:
        """Distance of each AUROC from 0.5 in standard errors, which makes rare and frequent labels comparable."""
        return (self.aurocs - 0.5) / self.errors


def check_label_shortcuts(manifest: pd.DataFrame, image_features: ImageFeatures, progress: Progress) -> list[Finding]:
    """Test properties, edge, corners, masked centre and gray values for information on each label.

    Args:
        manifest: One row per image, with a column per finding.
        image_features: Features of the same images.
        progress: Display of the progress.
    """
    images = select_labels(manifest)
    if not images.names or manifest["patient"].nunique() < 2 * N_FOLDS:
        message = (
            f"Too few images to test for shortcuts: expected {MIN_CLASS_IMAGES} images with and without a finding, and "
            f"{2 * N_FOLDS} patients."
        )
        return [Finding(check="probes", title="Shortcuts", verdict="WARN", message=message)]
    orders = draw_orders(images.patients, N_LABEL_PERMUTATIONS)
    with progress.bar(7, "probing for shortcuts") as bar:
        findings = check_label_metadata(manifest, image_features.metadata, images, orders)
        bar.advance()
        thumbnails = image_features.thumbnails.astype(np.float32) / 255

        def probe(features: np.ndarray, truth: np.ndarray = images.truth) -> np.ndarray:
            bar.advance()
            return score_pixels_of_labels(features, truth, images.folds)

        full = probe(thumbnails)
        permuted = probe(
            thumbnails, np.concatenate([images.truth[order] for order in orders[1 : N_CONTROLS + 1]], axis=1)
        )
        make_finding = partial(_make_pixel_finding, images, full, _compute_chance_levels(images, permuted))
        findings += [
            make_finding("edge", "Image edge", probe(extract_edge(thumbnails)), EDGE_FIX),
            make_finding("corners", "Image corners", probe(extract_corners(thumbnails)), EDGE_FIX),
            make_finding("centre", "Masked centre", probe(mask_centre(thumbnails)), CENTRE_FIX),
            make_finding("gray", "Gray-value histogram", probe(image_features.histogram), EDGE_FIX),
        ]
    return [*findings, *check_source_leak(manifest, thumbnails), check_negative_control(float(np.nanmean(permuted)))]


def select_labels(manifest: pd.DataFrame) -> LabelledImages:
    """Return the labels with at least MIN_CLASS_IMAGES positive and negative images, and folds for the models."""
    names, truth = list_findings(manifest), compute_truth(manifest)
    is_large = ((truth == 1).sum(axis=0) >= MIN_CLASS_IMAGES) & ((truth == 0).sum(axis=0) >= MIN_CLASS_IMAGES)
    fold_percent = {str(fold): 1 for fold in range(N_FOLDS)}
    by_patient = labels_per_group(manifest, manifest["patient"])
    folds = manifest["patient"].map(assign_stratified(by_patient, {}, seed=SEED, split_percent=fold_percent))
    kept = tuple(name for name, is_kept in zip(names, is_large, strict=True) if is_kept)
    return LabelledImages(kept, truth[:, is_large], folds.astype(int).to_numpy(), manifest["patient"].to_numpy())


def draw_orders(patients: np.ndarray, n: int) -> np.ndarray:
    """Return the order of the images and n random ones, shape (n + 1, images).

    Patients are permuted: the labels of a patient stay together, so that their similarity is part of the chance level.
    """
    codes, rng = pd.factorize(patients)[0], np.random.default_rng(SEED)
    n_patients, by_patient = codes.max() + 1, np.argsort(codes, kind="stable")
    orders = np.tile(np.arange(len(codes)), (n + 1, 1))
    for order in orders[1:]:
        order[by_patient] = np.argsort(rng.permutation(n_patients)[codes], kind="stable")
    return orders


def check_label_metadata(
    manifest: pd.DataFrame, metadata: pd.DataFrame, images: LabelledImages, orders: np.ndarray
) -> list[Finding]:
    """Check all file properties together, then each property that varies, against each label.

    The chance level of a label is the 95th percentile, over permutations of the patients, of the highest standardized
    AUROC of all properties and labels (Westfall and Young 1993).

    Args:
        manifest: One row per image.
        metadata: One row per image, see ImageFeatures.
        images: Labels of the images.
        orders: Permutations of the images, see draw_orders.
    """
    table = make_metadata_table(manifest, metadata).assign(source=manifest["source"].to_numpy())
    scores = {name: _score_attribute(table[columns], images, orders) for name, (_, columns) in ATTRIBUTES.items()}
    found = {name: score for name, score in scores.items() if score}
    if not found:
        return []
    standardized = np.concatenate([score.standardized for score in found.values()], axis=1)
    highest = np.nanmax(np.where(np.isnan(standardized), -np.inf, standardized), axis=1)
    limit, n_tests = float(np.quantile(highest[1:], 1 - SIGNIFICANCE)), int((~np.isnan(standardized[0])).sum())
    return [_make_attribute_finding(name, score, images, limit, n_tests) for name, score in found.items()]


def _score_attribute(table: pd.DataFrame, images: LabelledImages, orders: np.ndarray) -> AttributeScores | None:
    """Return the scores of one property, or None if too few images have it or all have the same value.

    Several properties together are scored on all images, and a missing value is a value.
    """
    is_known = table.notna().all(axis=1).to_numpy() if len(table.columns) <= 2 else np.ones(len(table), bool)
    rows = np.flatnonzero(is_known)
    if len(rows) == 0 or table.iloc[rows].nunique().max() < 2 or len(np.unique(images.folds[rows])) < 2:
        return None
    orders = orders[:, rows]
    n_present, n_absent = (np.stack([(images.truth == v)[order].sum(axis=0) for order in orders]) for v in (1, 0))
    is_large = (n_present[0] >= MIN_CLASS_IMAGES) & (n_absent[0] >= MIN_CLASS_IMAGES)
    if not is_large.any():
        return None
    indicators = make_indicators(table.iloc[rows])
    aurocs = score_indicators_of_labels(indicators, images.truth, images.folds[rows], orders)
    aurocs = np.where(is_large, aurocs, np.nan)
    return AttributeScores(aurocs, standard_error_of_chance(n_present, n_absent), table.iloc[rows], rows)


def _make_attribute_finding(
    name: str, scores: AttributeScores, images: LabelledImages, limit: float, n_tests: int
) -> Finding:
    title, _ = ATTRIBUTES[name]
    auroc, chance_level = scores.aurocs[0], 0.5 + limit * scores.errors[0]
    verdicts = _limit_verdicts(
        [_grade_attribute(*pair) for pair in zip(auroc, chance_level, strict=True)], images.truth[scores.rows]
    )
    worst = _find_worst(verdicts, auroc, scores.standardized[0])
    label, short_title = images.names[worst], title.partition(" (")[0]
    message = (
        f"{short_title} {'predict' if name in PLURAL else 'predicts'} {label} with an AUROC of {auroc[worst]:.3f}. "
        if verdicts[worst] != "PASS"
        else f"No finding is predicted above the limit. Most distinct from chance: {label} {auroc[worst]:.3f}. "
    )
    message += f"Chance level: {chance_level[worst]:.3f}, for the highest of {n_tests:,} comparisons. "
    if name != "files":
        message += _describe_values(short_title, scores.table.iloc[:, 0], images.truth[scores.rows, worst], label)
    fix = {"source": SOURCE_FIX}.get(name, PERSON_FIX if name in PATIENT_ATTRIBUTES else FIXES["file"])
    return Finding(
        check=name, title=f"{title} and findings", verdict=verdicts[worst],
        message=f"{message.rstrip()}{_list_others(verdicts, auroc, images.names, worst)}",
        fix="" if verdicts[worst] == "PASS" else fix, value=float(auroc[worst]),
        chance_level=float(chance_level[worst]),
    )  # fmt: skip


def _describe_values(title: str, column: pd.Series, truth: np.ndarray, name: str) -> str:
    """Return a sentence with the median of a number, or the share of the value that differs most."""
    if pd.api.types.is_numeric_dtype(column):
        texts, is_known = np.where(truth == 1, name, f"no {name}"), ~np.isnan(truth)
        return describe_typical_values(column[is_known], texts[is_known])
    present, absent = (column[truth == value].value_counts(normalize=True) for value in (1, 0))
    value = present.sub(absent, fill_value=0).sort_index().idxmax()
    return (
        f"{title} {value}: {format_percent(present[value])} of the images with {name}, "
        f"{format_percent(absent.get(value, 0.0))} of those without."
    )


def _grade_attribute(auroc: float, chance_level: float) -> Verdict:
    if not auroc > chance_level:
        return "PASS"
    return "FAIL" if auroc >= FAIL_AUROC else "WARN" if auroc >= WARN_AUROC else "PASS"


def _limit_verdicts(verdicts: Sequence[Verdict], truth: np.ndarray) -> list[Verdict]:
    """Return the verdicts, at most WARN for labels with few positive or negative images."""
    n_fewest = np.minimum((truth == 1).sum(axis=0), (truth == 0).sum(axis=0))
    return [
        "WARN" if verdict == "FAIL" and n < MIN_FAIL_IMAGES else verdict
        for verdict, n in zip(verdicts, n_fewest, strict=True)
    ]


def _find_worst(verdicts: Sequence[Verdict], auroc: np.ndarray, standardized: np.ndarray) -> int:
    """Return the number of the label with the highest AUROC of those with the worst verdict.

    If all pass, this is the label with the largest distance from chance.
    """
    severity = np.array([SEVERITY[verdict] for verdict in verdicts])
    ranked = auroc if severity.any() else standardized
    return int(np.nanargmax(np.where(severity == severity.max(), ranked, np.nan)))


def _list_others(verdicts: Sequence[Verdict], auroc: np.ndarray, names: Sequence[str], worst: int) -> str:
    """Return a sentence on the other labels above the limit, or an empty text."""
    others = [number for number in np.argsort(-auroc) if verdicts[number] != "PASS" and number != worst]
    if not others:
        return ""
    return f" Also above the limit: {format_names((f'{names[n]} {auroc[n]:.3f}' for n in others), MAX_NAMED)}."


def _compute_chance_levels(images: LabelledImages, permuted: np.ndarray) -> np.ndarray:
    """Return the chance level of each label for the pixel probes, shape (k,), corrected by Bonferroni.

    The standard error is that of the effective number of patients, widened if permuted labels vary more.

    Args:
        images: Labels of the images.
        permuted: AUROC of each label from the whole image with permuted labels, shape (permutations * k,).
    """
    errors = standard_error_of_chance(*images.count_patients())
    standardized = (permuted.reshape(-1, len(errors)) - 0.5) / errors
    widening = max(float(np.sqrt(np.nanmean(standardized**2))), 1.0)
    return 0.5 + norm.isf(SIGNIFICANCE / (N_PIXEL_PROBES * len(errors))) * widening * errors


def _make_pixel_finding(
    images: LabelledImages,
    full: np.ndarray,
    chance_level: np.ndarray,
    check: str,
    title: str,
    auroc: np.ndarray,
    fix: str,
) -> Finding:
    n_tests = N_PIXEL_PROBES * len(images.names)
    verdicts: list[Verdict] = [
        grade_pixels(one) if one > chance and (check != "centre" or is_retained(one, whole)) else "PASS"
        for one, chance, whole in zip(auroc, chance_level, full, strict=True)
    ]
    verdicts = _limit_verdicts(verdicts, images.truth)
    worst = _find_worst(verdicts, auroc, auroc - chance_level)
    source = "with the centre masked" if check == "centre" else "from this input alone"
    message = (
        f"AUROC of {images.names[worst]} {source}: {auroc[worst]:.3f}; from the whole image: {full[worst]:.3f}. "
        f"Chance level: {chance_level[worst]:.3f}, for the highest of {n_tests:,} comparisons."
    )
    return Finding(
        check=check, title=title, verdict=verdicts[worst],
        message=message + _list_others(verdicts, auroc, images.names, worst),
        fix="" if verdicts[worst] == "PASS" else fix, value=float(auroc[worst]),
        chance_level=float(chance_level[worst]),
    )  # fmt: skip
