"""Toy radiographs with given splits and some wrong labels, so that trials have different metrics."""

from pathlib import Path

import pandas as pd
from tiny_network import NAME
from toy_images import LABELS, write_toys

from fastcxr.config.recipe import Recipe

N_PATIENTS = 15  # of each class, with two images
SEARCH = ("loss", "label_smoothing", "focal_gamma", "class_weights", "hflip_tta")


def write_tuning_toys(folder: Path) -> Path:
    """Write images and labels.csv with path, label, patient and split; return its path."""
    write_toys(folder, per_class=2 * N_PATIENTS)
    rows = []
    for k, label in enumerate(LABELS):
        for number in range(2 * N_PATIENTS):
            patient = number // 2
            name = f"{label}/{k * 1000 + patient:08d}_{number % 2:03d}.png"
            split = ("train", "train", "valid", "valid", "test")[patient % 5]
            is_wrong = (patient * 7 + k) % 3 == 0
            shown = LABELS[(k + 1) % len(LABELS)] if is_wrong else label
            rows.append({"path": name, "label": shown, "patient": f"{label}-{patient}", "split": split})
    pd.DataFrame(rows).to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


def make_tuning_recipe(data: Path, **changes) -> Recipe:
    """Return the recipe of a linear probe of the tiny network on these images."""
    options = {"weights": "none", "strategy": "linear_probe", "image_size": 64, "device": "cpu", "figures": "none"}
    return Recipe(NAME, data=str(data), **(options | changes))
