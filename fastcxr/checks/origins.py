"""Pictures of one class from several sources come in; whether their pixels tell the source goes out."""

import numpy as np
import pandas as pd

from fastcxr.checks.findings import Finding
from fastcxr.checks.scoring import FOLDS, deal_folds, score_pixels

FEWEST = 20  # images of a source in a class, below which it is not compared
SEEN = 0.9


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
    rows = rows[rows["source"].isin(counts.index[counts >= FEWEST])]
    if rows["source"].nunique() < 2 or rows.groupby("source")["patient"].nunique().min() < FOLDS:
        return None
    sources = rows["source"].to_numpy()
    return score_pixels(pictures[rows.index.to_numpy()], sources, deal_folds(sources, rows["patient"].to_numpy()))
