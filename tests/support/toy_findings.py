"""Toy radiographs with several findings, a table of their labels, and a run that was trained on them."""

from pathlib import Path

import numpy as np
import pandas as pd
from cli_calls import BACKBONE
from PIL import Image

from fastcxr.config.recipe import Recipe
from fastcxr.workflows.train import run

FINDINGS = ("haze", "nodule", "opacity")
OPTIONS = {"weights": "none", "image_size": 64, "epochs": 1, "batch_size": 8, "precision": "fp32", "figures": "none"}


def draw_findings(present: tuple[str, ...], number: int, size: int = 72) -> np.ndarray:
    """Return a gray image with these findings, different for each number."""
    image = np.random.default_rng(number).normal(110, 20, (size, size))
    if "haze" in present:
        image[:, ::4] += 60
    if "opacity" in present:
        image[size // 4 : size // 2, size // 4 : size // 2] += 90
    if "nodule" in present:
        image[-12:-4, -12:-4] -= 90
    return image.clip(0, 255).astype(np.uint8)


def write_finding_toys(
    folder: Path, n_images: int = 80, findings: tuple[str, ...] = FINDINGS, *, first: int = 0
) -> Path:
    """Write images, two a patient, and labels.csv with 1, 0, -1 (uncertain) and blank (unknown); return its path.

    `first`: number of the first image; other numbers are other images and patients.
    """
    (folder / "images").mkdir(parents=True)
    draw, rows = np.random.default_rng(7), []
    for number in range(first, first + n_images):
        labels = {name: int(draw.random() < 0.4) for name in findings}
        present = tuple(name for name, value in labels.items() if value)
        file = f"images/{number // 2:08d}_{number % 2:03d}.png"
        Image.fromarray(draw_findings(present, number)).save(folder / file)
        hidden = {findings[number % len(findings)]: (-1, "")[number % 2]} if number % 5 == 0 else {}
        rows.append({"path": file, "patient": f"{number // 2:08d}"} | labels | hidden)
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


def train_findings(folder: Path, data: Path, **options) -> Path:
    """Train the tiny network for one epoch; return the run folder."""
    run(Recipe(BACKBONE, data=str(data), **(OPTIONS | {"strategy": "full"} | options)), folder)
    return folder
