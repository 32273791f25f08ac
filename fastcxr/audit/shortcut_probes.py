"""What tells the classes apart without looking at the lungs: small models on files, edges and gray values alone."""

import numpy as np
import pandas as pd

from fastcxr.audit.findings import Finding
from fastcxr.audit.image_features import THUMBNAIL_PIXELS, ImageFeatures
from fastcxr.audit.metadata import MIN_CLASS_IMAGES, check_metadata
from fastcxr.audit.probe_models import N_FOLDS, SEED, assign_folds, score_pixels
from fastcxr.progress.base import Progress

EDGE_FRACTION, CORNER_FRACTION, CENTRE_FRACTION = (
    0.05,
    0.12,
    0.75,
)  # widths of edge and corners, side of the blacked-out centre, as shares
MIN_SOURCE_IMAGES = 20  # images of a source in a class, below which it is not compared
SOURCE_WARN_AUROC = 0.9


def check_shortcuts(manifest: pd.DataFrame, image_features: ImageFeatures, progress: Progress) -> list[Finding]:
    """Facts, edge, corners, blacked-out centre and gray values beside the whole picture; sources; shuffled labels."""
    labels = manifest["label"].to_numpy()
    class_counts = manifest["label"].value_counts()
    if class_counts.min() < MIN_CLASS_IMAGES or manifest["patient"].nunique() < 2 * N_FOLDS or len(class_counts) < 2:
        message = f"A class has fewer than {MIN_CLASS_IMAGES} images: nothing can be probed."
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
        findings.append(_make_probe_finding("edge", "The edge of the image", probe(extract_edge(images)), full_auroc))
        findings.append(_make_probe_finding("corners", "The four corners", probe(extract_corners(images)), full_auroc))
        findings.append(_make_masked_centre_finding(probe(mask_centre(images)), full_auroc))
        findings.append(
            _make_probe_finding("gray", "How bright the image is", probe(image_features.histogram), full_auroc)
        )
    shuffled_auroc = score_pixels(images, np.random.default_rng(SEED).permutation(labels), folds)
    return [*findings, *check_source_leak(manifest, images), _check_negative_control(shuffled_auroc)]


def extract_edge(images: np.ndarray) -> np.ndarray:
    """The edge alone, (n, values)."""
    width = round(EDGE_FRACTION * THUMBNAIL_PIXELS)
    is_interior = np.zeros((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), bool)
    is_interior[width:-width, width:-width] = True
    return images[:, ~is_interior]


def extract_corners(images: np.ndarray) -> np.ndarray:
    """The four corners alone, (n, values)."""
    width = round(CORNER_FRACTION * THUMBNAIL_PIXELS)
    border = np.r_[:width, THUMBNAIL_PIXELS - width : THUMBNAIL_PIXELS]
    return images[:, border][:, :, border].reshape(len(images), -1)


def mask_centre(images: np.ndarray) -> np.ndarray:
    """Everything but the centre, where lungs and heart are (Maguolo and Nanni 2021), (n, values)."""
    edge = round((1 - CENTRE_FRACTION) / 2 * THUMBNAIL_PIXELS)
    masked = images.copy()
    masked[:, edge:-edge, edge:-edge] = 0
    return masked


def _make_probe_finding(check: str, title: str, auroc: float, full_auroc: float) -> Finding:
    verdict = "FAIL" if auroc >= 0.85 else "WARN" if auroc >= 0.70 else "PASS"
    message = f"Alone it tells the classes with an AUROC of {auroc:.3f}, the whole picture with {full_auroc:.3f}."
    fix = "Crop to the lungs, or bring all classes into one form; then audit again." if verdict != "PASS" else ""
    return Finding(check=check, title=title, verdict=verdict, message=message, fix=fix, value=auroc, chance_level=0.5)


def _make_masked_centre_finding(auroc: float, full_auroc: float) -> Finding:
    retained = (auroc - 0.5) / (full_auroc - 0.5) if full_auroc > 0.6 else 0.0
    verdict = "FAIL" if retained > 0.5 and auroc >= 0.85 else "WARN" if retained > 0.5 and auroc >= 0.70 else "PASS"
    message = (
        f"With its centre black the picture tells the classes with an AUROC of {auroc:.3f} ({full_auroc:.3f} whole)."
    )
    fix = "" if verdict == "PASS" else "Look at explanations before believing figures: it is not the lungs."
    title = "The centre blacked out"
    return Finding(
        check="centre", title=title, verdict=verdict, message=message, fix=fix, value=auroc, chance_level=0.5
    )


def _check_negative_control(auroc: float) -> Finding:
    is_near_chance = 0.4 <= auroc <= 0.6
    message = f"On shuffled labels the probe reaches {auroc:.3f}" + (
        ", as it should." if is_near_chance else ": too few images, and the probes above say little."
    )
    verdict = "PASS" if is_near_chance else "WARN"
    return Finding(
        check="shuffled", title="The audit itself", verdict=verdict, message=message, value=auroc, chance_level=0.5
    )


def check_source_leak(manifest: pd.DataFrame, images: np.ndarray) -> list[Finding]:
    """Can a model see where an image of one class was taken? None where no class has two sources of enough images.

    No failure by itself: it becomes one where classes come from sources of their own. `images`: (n, height, width).
    """
    aurocs = {label: figure for label in sorted(manifest["label"].unique())
               if (figure := score_source_leak(manifest, images, label)) is not None}  # fmt: skip
    if not aurocs:
        return []
    worst_label = max(aurocs, key=aurocs.get)
    figure = aurocs[worst_label]
    message = f"Among the images of {worst_label} alone the picture tells its source with an AUROC of {figure:.3f}."
    common = {"check": "origins", "title": "The source, seen in the picture", "value": figure, "chance_level": 0.5}
    if figure < SOURCE_WARN_AUROC:
        return [Finding(**common, verdict="PASS", message=message)]
    fix = "Keep the share of each class alike in all sources, or test with --leave-one-source-out."
    return [Finding(**common, verdict="WARN", message=message, fix=fix)]


def score_source_leak(manifest: pd.DataFrame, images: np.ndarray, label: str) -> float | None:
    """Macro AUROC of the source from pixels, within one class; None for fewer than two sources of enough images."""
    rows = manifest.reset_index(drop=True)
    rows = rows[rows["label"] == label]
    counts = rows["source"].value_counts()
    rows = rows[rows["source"].isin(counts.index[counts >= MIN_SOURCE_IMAGES])]
    if rows["source"].nunique() < 2 or rows.groupby("source")["patient"].nunique().min() < N_FOLDS:
        return None
    sources = rows["source"].to_numpy()
    return score_pixels(images[rows.index.to_numpy()], sources, assign_folds(sources, rows["patient"].to_numpy()))
