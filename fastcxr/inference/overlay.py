"""A heat map becomes a picture: warm colours over the radiograph as the model saw it."""

import io

import numpy as np
from PIL import Image

# from no heat to most: dark red, orange, yellow; the picture shines through where there is little
HEAT = (0.0, 0.35, 0.7, 1.0)
COLORS = np.array([(90, 0, 60), (200, 30, 30), (250, 140, 20), (255, 240, 120)], float)
OPACITY, GAP = 0.7, 4


def overlay(square: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """`square`: gray bytes, `heat`: 0 to 1, both of shape (size, size); colours, bytes of shape (size, size, 3)."""
    color = np.stack([np.interp(heat, HEAT, channel) for channel in COLORS.T], axis=2)
    share = OPACITY * heat[..., None]
    return (square[..., None] * (1 - share) + color * share).round().astype(np.uint8)


def pair_jpeg(square: np.ndarray, heat: np.ndarray, size: int) -> bytes:
    """The picture, and beside it the picture under its map, as a JPEG without metadata; each is `size` pixels wide."""
    pair = Image.new("RGB", (2 * size + GAP, size), "white")
    for left, picture in ((0, Image.fromarray(square)), (size + GAP, Image.fromarray(overlay(square, heat)))):
        pair.paste(picture.resize((size, size), Image.Resampling.BILINEAR), (left, 0))
    buffer = io.BytesIO()
    pair.save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()
