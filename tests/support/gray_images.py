"""Images whose mean gray level differs, for the scorer of served_models; the last ones are out-of-distribution."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_gray_images(folder: Path, n_images: int, broken: int = 20) -> None:
    """Write images from dark to bright into a folder; the one with the number `broken` is no image."""
    for number in range(n_images):
        level = number * 255 // (n_images - 1)
        pixels = np.full((64, 64), level, np.uint8)
        pixels[:, :8] = (level + 128) % 256  # an image of one gray level is rejected
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    (folder / f"{broken:02d}.png").write_bytes(b"no image")
