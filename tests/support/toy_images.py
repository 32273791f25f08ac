"""Toy radiographs, whose classes a network separates after one or two steps."""

from pathlib import Path

import numpy as np
from PIL import Image

LABELS = ("clear", "haze", "opacity")


def draw_toy(label: str, number: int, size: int = 72) -> np.ndarray:
    """Return a gray image of a class, different for each number."""
    noise = np.random.default_rng([LABELS.index(label), number])
    image = noise.normal(110, 20, (size, size + number % 3 * 4))
    if label == "haze":
        image[:, ::4] += 60
    if label == "opacity":
        image[size // 4 : size // 2, size // 4 : size // 2] += 90
    return image.clip(0, 255).astype(np.uint8)


def draw_chest(rng, size=256):
    """Return a random smooth image with the spatial frequencies of a radiograph."""
    waves = np.fft.rfft2(rng.normal(size=(size, size)))
    distance = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) + 1 / size
    image = np.fft.irfft2(waves / distance**1.6, s=(size, size))
    image = (image - image.min()) / np.ptp(image)
    return (30 + 200 * image).astype(np.uint8)


def write_toys(folder: Path, per_class: int = 10, labels: tuple[str, ...] = LABELS, first: int = 0) -> Path:
    """Write class folders of toy radiographs, two images a patient, with NIH file names; `first` changes the images."""
    for k, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for number in range(first, first + per_class):
            name = f"{k * 1000 + number // 2:08d}_{number % 2:03d}.png"
            Image.fromarray(draw_toy(label, number)).save(folder / label / name)
    return folder
