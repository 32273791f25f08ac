"""Tests for shortcuts: class information in file properties, image borders or gray values instead of the lungs."""

from functools import partial

import numpy as np
import pandas as pd

from fastcxr.audit.findings import Finding, Verdict
from fastcxr.audit.image_features import THUMBNAIL_PIXELS, ImageFeatures
from fastcxr.audit.metadata import MIN_CLASS_IMAGES, check_metadata
from fastcxr.audit.probe_models import N_FOLDS, SEED, assign_folds, score_pixels
from fastcxr.data.findings import explode_labels, is_multi_label, list_shown_labels
from fastcxr.progress.base import Progress

EDGE_FRACTION, CORNER_FRACTION, CENTRE_FRACTION = 0.05, 0.12, 0.75  # of the image side
MIN_SOURCE_IMAGES = 20  # images of a class from a source, below which the source is not compared
SOURCE_WARN_AUROC = 0.9
MAX_LEAK_LABELS = 3  # with several labels per image: labels within which the source is predicted
EDGE_FIX = "Crop to the lungs, or process all classes in the same way; then repeat the audit."
CENTRE_FIX = "Check saliency maps before you report metrics: class information is outside the lungs."


def check_shortcuts(manifest: pd.DataFrame, image_features: ImageFeatures, progress: Progress) -> list[Finding]:
    """Test metadata, edge, corners, masked centre and gray values for class information, with a negative control."""
    labels = manifest["label"].to_numpy()
    class_counts = manifest["label"].value_counts()
    if class_counts.min() < MIN_CLASS_IMAGES or manifest["patient"].nunique() < 2 * N_FOLDS or len(class_counts) < 2:
        message = (
            f"Too few images to test for shortcuts: expected at least 2 classes, {MIN_CLASS_IMAGES} images per class "
            f"and {2 * N_FOLDS} patients."
        )
        return [Finding(check="probes", title="Shortcuts", verdict="WARN", message=message)]
    folds = assign_folds(labels, manifest["patient"].to_numpy())
    images = image_features.thumbnails.astype(np.float32) / 255
    with progress.bar(6, "probing for shortcuts") as bar:

        def probe(features: np.ndarray) -> float:
            bar.advance()
            return score_pixels(features, labels, folds)

        full_auroc = probe(images)
        findings = check_metadata(manifest, image_features.metadata, folds)
        bar.advance()
        findings += [
            _make_probe_finding("edge", "Image edge", probe(extract_edge(images)), full_auroc),
            _make_probe_finding("corners", "Image corners", probe(extract_corners(images)), full_auroc),
            _make_masked_centre_finding(probe(mask_centre(images)), full_auroc),
            _make_probe_finding("gray", "Gray-value histogram", probe(image_features.histogram), full_auroc),
        ]
    shuffled_auroc = score_pixels(images, np.random.default_rng(SEED).permutation(labels), folds)
    return [*findings, *check_source_leak(manifest, images), check_negative_control(shuffled_auroc)]


def extract_edge(images: np.ndarray) -> np.ndarray:
    """Return the pixels along the image edge, shape (n, pixels)."""
    width = round(EDGE_FRACTION * THUMBNAIL_PIXELS)
    is_interior = np.zeros((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), bool)
    is_interior[width:-width, width:-width] = True
    return images[:, ~is_interior]


def extract_corners(images: np.ndarray) -> np.ndarray:
    """Return the pixels of the four corners, shape (n, pixels)."""
    width = round(CORNER_FRACTION * THUMBNAIL_PIXELS)
    border = np.r_[:width, THUMBNAIL_PIXELS - width : THUMBNAIL_PIXELS]
    return images[:, border][:, :, border].reshape(len(images), -1)


def mask_centre(images: np.ndarray) -> np.ndarray:
    """Return the images with a black centre, where lungs and heart are (Maguolo and Nanni 2021)."""
    edge = round((1 - CENTRE_FRACTION) / 2 * THUMBNAIL_PIXELS)
    masked = images.copy()
    masked[:, edge:-edge, edge:-edge] = 0
    return masked


def grade_pixels(auroc: float) -> Verdict:
    """Return the verdict on the AUROC of a class from a part of the image."""
    return "FAIL" if auroc >= 0.85 else "WARN" if auroc >= 0.70 else "PASS"


def _make_probe_finding(check: str, title: str, auroc: float, full_auroc: float) -> Finding:
    verdict = grade_pixels(auroc)
    message = f"AUROC of the class from this input alone: {auroc:.3f}; from the whole image: {full_auroc:.3f}."
    fix = "" if verdict == "PASS" else EDGE_FIX
    return Finding(check=check, title=title, verdict=verdict, message=message, fix=fix, value=auroc, chance_level=0.5)


def _make_masked_centre_finding(auroc: float, full_auroc: float) -> Finding:
    verdict = grade_pixels(auroc) if is_retained(auroc, full_auroc) else "PASS"
    message = f"AUROC of the class with the centre masked: {auroc:.3f}; from the whole image: {full_auroc:.3f}."
    fix = "" if verdict == "PASS" else CENTRE_FIX
    return Finding(
        check="centre", title="Masked centre", verdict=verdict, message=message, fix=fix, value=auroc, chance_level=0.5
    )


def is_retained(auroc: float, full_auroc: float) -> bool:
    """Return whether more than half of the information of the whole image remains with the masked centre."""
    return full_auroc > 0.6 and (auroc - 0.5) / (full_auroc - 0.5) > 0.5


def check_negative_control(auroc: float) -> Finding:
    """Check that shuffled labels cannot be predicted, which needs enough images."""
    make_finding = partial(
        Finding, check="shuffled", title="Negative control (shuffled labels)", value=auroc, chance_level=0.5
    )
    message = f"AUROC with shuffled labels: {auroc:.3f}"
    if 0.4 <= auroc <= 0.6:
        return make_finding(verdict="PASS", message=f"{message}, near chance as expected.")
    return make_finding(verdict="WARN", message=f"{message}. There are too few images for reliable shortcut tests.")


def check_source_leak(manifest: pd.DataFrame, images: np.ndarray) -> list[Finding]:
    """Check whether the source can be predicted from pixels within one class; [] if no class has two large sources.

    The verdict is at most WARN: the source is a shortcut only if it is associated with the class.

    Args:
        manifest: One row per image.
        images: Gray values from 0 to 1, shape (n, height, width).
    """
    labels = list_shown_labels(manifest)
    labels = labels[:MAX_LEAK_LABELS] if is_multi_label(manifest) else labels
    scores = [(score_source_leak(manifest, images, label), label) for label in labels]
    scores = [(auroc, label) for auroc, label in scores if auroc is not None]
    if not scores:
        return []
    auroc, label = max(scores, key=lambda score: score[0])
    message = f"Within {label}, the source can be predicted from the pixels with an AUROC of {auroc:.3f}."
    make_finding = partial(
        Finding, check="origins", title="Source predicted from pixels", message=message, value=auroc, chance_level=0.5
    )
    if auroc < SOURCE_WARN_AUROC:
        return [make_finding(verdict="PASS")]
    fix = "Use the same class proportions in all sources, or test with --leave-one-source-out."
    return [make_finding(verdict="WARN", fix=fix)]


def score_source_leak(manifest: pd.DataFrame, images: np.ndarray, label: str) -> float | None:
    """Return the macro AUROC of the source from pixels within one class, or None with fewer than two large sources."""
    rows = explode_labels(manifest.reset_index(drop=True), [label])
    rows = rows[rows["label"] == label]
    counts = rows["source"].value_counts()
    rows = rows[rows["source"].isin(counts.index[counts >= MIN_SOURCE_IMAGES])]
    if rows["source"].nunique() < 2 or rows.groupby("source")["patient"].nunique().min() < N_FOLDS:
        return None
    sources = rows["source"].to_numpy()
    return score_pixels(images[rows.index.to_numpy()], sources, assign_folds(sources, rows["patient"].to_numpy()))
