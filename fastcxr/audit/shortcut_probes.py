"""What tells the classes apart without looking at the lungs: small models on files, edges and gray values alone."""

import numpy as np
import pandas as pd

from fastcxr.audit.findings import Finding
from fastcxr.audit.image_features import SIDE, Looks
from fastcxr.audit.metadata import FEWEST, check_facts
from fastcxr.audit.probe_models import FOLDS, SEED, deal_folds, score_pixels
from fastcxr.progress.base import Progress

RING, CORNER, CENTRE = 0.05, 0.12, 0.75  # widths of edge and corners, side of the blacked-out centre, as shares
MIN_IMAGES_PER_SOURCE = 20  # images of a source in a class, below which it is not compared
SEEN = 0.9


def check_probes(manifest: pd.DataFrame, looks: Looks, progress: Progress) -> list[Finding]:
    """Facts, edge, corners, blacked-out centre and gray values beside the whole picture; sources; shuffled labels."""
    labels = manifest["label"].to_numpy()
    few = manifest["label"].value_counts()
    if few.min() < FEWEST or manifest["patient"].nunique() < 2 * FOLDS or len(few) < 2:
        words = f"A class has fewer than {FEWEST} images: nothing can be probed."
        return [Finding(check="probes", title="Shortcuts", verdict="WARN", words=words)]
    folds = deal_folds(labels, manifest["patient"].to_numpy())
    pictures = looks.small.astype(np.float32) / 255
    with progress.bar(6, "probing for shortcuts") as bar:

        def probe(features: np.ndarray) -> float:
            bar.advance()
            return score_pixels(features, labels, folds)

        whole = probe(pictures)
        found = check_facts(manifest, looks.facts, folds)
        bar.advance()
        found.append(_judge("edge", "The edge of the image", probe(take_ring(pictures)), whole))
        found.append(_judge("corners", "The four corners", probe(take_corners(pictures)), whole))
        found.append(_judge_blackened(probe(black_centre(pictures)), whole))
        found.append(_judge("gray", "How bright the image is", probe(looks.histogram), whole))
    shuffled = score_pixels(pictures, np.random.default_rng(SEED).permutation(labels), folds)
    return [*found, *check_origins(manifest, pictures), _check_itself(shuffled)]


def take_ring(pictures: np.ndarray) -> np.ndarray:
    """The edge alone, (n, values)."""
    width = round(RING * SIDE)
    inside = np.zeros((SIDE, SIDE), bool)
    inside[width:-width, width:-width] = True
    return pictures[:, ~inside]


def take_corners(pictures: np.ndarray) -> np.ndarray:
    """The four corners alone, (n, values)."""
    width = round(CORNER * SIDE)
    near = np.r_[:width, SIDE - width : SIDE]
    return pictures[:, near][:, :, near].reshape(len(pictures), -1)


def black_centre(pictures: np.ndarray) -> np.ndarray:
    """Everything but the centre, where lungs and heart are (Maguolo and Nanni 2021), (n, values)."""
    edge = round((1 - CENTRE) / 2 * SIDE)
    dark = pictures.copy()
    dark[:, edge:-edge, edge:-edge] = 0
    return dark


def _judge(check: str, title: str, figure: float, whole: float) -> Finding:
    verdict = "FAIL" if figure >= 0.85 else "WARN" if figure >= 0.70 else "PASS"
    words = f"Alone it tells the classes with an AUROC of {figure:.3f}, the whole picture with {whole:.3f}."
    remedy = "Crop to the lungs, or bring all classes into one form; then audit again." if verdict != "PASS" else ""
    return Finding(check=check, title=title, verdict=verdict, words=words, remedy=remedy, figure=figure, null=0.5)


def _judge_blackened(figure: float, whole: float) -> Finding:
    left = (figure - 0.5) / (whole - 0.5) if whole > 0.6 else 0.0
    verdict = "FAIL" if left > 0.5 and figure >= 0.85 else "WARN" if left > 0.5 and figure >= 0.70 else "PASS"
    words = f"With its centre black the picture tells the classes with an AUROC of {figure:.3f} ({whole:.3f} whole)."
    remedy = "" if verdict == "PASS" else "Look at explanations before believing figures: it is not the lungs."
    title = "The centre blacked out"
    return Finding(check="centre", title=title, verdict=verdict, words=words, remedy=remedy, figure=figure, null=0.5)


def _check_itself(figure: float) -> Finding:
    is_well = 0.4 <= figure <= 0.6
    words = f"On shuffled labels the probe reaches {figure:.3f}" + (
        ", as it should." if is_well else ": too few images, and the probes above say little."
    )
    verdict = "PASS" if is_well else "WARN"
    return Finding(check="shuffled", title="The audit itself", verdict=verdict, words=words, figure=figure, null=0.5)


def check_origins(manifest: pd.DataFrame, pictures: np.ndarray) -> list[Finding]:
    """Can a model see where an image of one class was taken? None where no class has two sources of enough images.

    No failure by itself: it becomes one where classes come from sources of their own. `pictures`: (n, height, width).
    """
    figures = {label: figure for label in sorted(manifest["label"].unique())
               if (figure := score_origin(manifest, pictures, label)) is not None}  # fmt: skip
    if not figures:
        return []
    told = max(figures, key=figures.get)
    figure = figures[told]
    words = f"Among the images of {told} alone the picture tells its source with an AUROC of {figure:.3f}."
    about = {"check": "origins", "title": "The source, seen in the picture", "figure": figure, "null": 0.5}
    if figure < SEEN:
        return [Finding(**about, verdict="PASS", words=words)]
    remedy = "Keep the share of each class alike in all sources, or test with --leave-one-source-out."
    return [Finding(**about, verdict="WARN", words=words, remedy=remedy)]


def score_origin(manifest: pd.DataFrame, pictures: np.ndarray, label: str) -> float | None:
    """Macro AUROC of the source from pixels, within one class; None for fewer than two sources of enough images."""
    rows = manifest.reset_index(drop=True)
    rows = rows[rows["label"] == label]
    counts = rows["source"].value_counts()
    rows = rows[rows["source"].isin(counts.index[counts >= MIN_IMAGES_PER_SOURCE])]
    if rows["source"].nunique() < 2 or rows.groupby("source")["patient"].nunique().min() < FOLDS:
        return None
    sources = rows["source"].to_numpy()
    return score_pixels(pictures[rows.index.to_numpy()], sources, deal_folds(sources, rows["patient"].to_numpy()))
