"""Toy radiographs that a network can tell apart after a step or two."""

from pathlib import Path

import numpy as np
from PIL import Image

LABELS = ("clear", "haze", "opacity")


def draw_toy(label: str, number: int, size: int = 72) -> np.ndarray:
    """A gray picture that a network can tell from those of other labels after a step or two."""
    noise = np.random.default_rng([LABELS.index(label), number])
    picture = noise.normal(110, 20, (size, size + number % 3 * 4))
    if label == "haze":
        picture[:, ::4] += 60
    if label == "opacity":
        picture[size // 4 : size // 2, size // 4 : size // 2] += 90
    return picture.clip(0, 255).astype(np.uint8)


def write_toys(folder: Path, per_class: int = 10, labels: tuple[str, ...] = LABELS, first: int = 0) -> Path:
    """Class folders of toy radiographs, two images a patient, named as NIH names them; `first` gives other pictures."""
    for k, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for number in range(first, first + per_class):
            name = f"{k * 1000 + number // 2:08d}_{number % 2:03d}.png"
            Image.fromarray(draw_toy(label, number)).save(folder / label / name)
    return folder
