"""From random numbers and coordinates to soft shapes: the pens that the synthetic radiographs are drawn with.

Only uniform numbers are drawn: of all of numpy's random streams they are the least likely to change with a release.
"""

from dataclasses import dataclass

import numpy as np


class Rng:
    """Random numbers that depend on nothing but the whole numbers and words they were made from."""

    def __init__(self, *key: int | str):
        entropy = [int.from_bytes(part.encode(), "big") if isinstance(part, str) else part for part in key]
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(self._generator.random())

    def bernoulli(self, probability: float) -> bool:
        return float(self._generator.random()) < probability

    def integer(self, upper: int) -> int:
        return int(self._generator.random() * upper)

    def random_sign(self) -> float:
        return 1.0 if self.bernoulli(0.5) else -1.0

    def shuffled(self, items) -> list:
        items = list(items)
        order = np.argsort(self._generator.random(len(items)), kind="stable")
        return [items[i] for i in order]

    def uniform_grid(self, rows: int, columns: int) -> np.ndarray:
        """Numbers from -1 to 1, shape (rows, columns)."""
        return 2 * self._generator.random((rows, columns)) - 1


@dataclass(frozen=True)
class View:
    """How a body lies on the film: shape in pixels, zoom, shift and tilt. A body is about 2 units wide and 2 high."""

    height: int
    width: int
    zoom: float
    shift_right: float
    shift_down: float
    tilt: float  # radians

    @property
    def unit(self) -> float:
        """Pixels of one unit of the body."""
        return 0.5 * self.zoom * (self.height * self.width) ** 0.5

    def make_body_coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each pixel lies on the body: x to the right of the picture and y downwards, shape (height, width)."""
        row, column = np.mgrid[0 : self.height, 0 : self.width]
        x = (column + 0.5 - self.width / 2) / self.unit - self.shift_right
        y = (row + 0.5 - self.height / 2) / self.unit - self.shift_down
        cosine, sine = np.cos(self.tilt), np.sin(self.tilt)
        return cosine * x + sine * y, cosine * y - sine * x

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Points of the body, shape (n, 2) as x, y, to pixels as column, row."""
        cosine, sine = np.cos(self.tilt), np.sin(self.tilt)
        x = cosine * points[:, 0] - sine * points[:, 1] + self.shift_right
        y = sine * points[:, 0] + cosine * points[:, 1] + self.shift_down
        return np.stack([x, y], axis=1) * self.unit + [self.width / 2 - 0.5, self.height / 2 - 0.5]


def smoothstep(value: np.ndarray, width: float) -> np.ndarray:
    """A smooth step: 0 well below zero, 1 well above, `softness` wide."""
    t = value / width
    t += 0.5
    t = np.minimum(np.maximum(t, 0, out=t), 1, out=t)
    slope = t * -2
    slope += 3
    slope *= t
    return np.multiply(slope, t, out=slope)


def bump(value: np.ndarray, width: float) -> np.ndarray:
    """A smooth hill of height 1 at zero that has ended at `width` on either side."""
    result = value / width
    result *= result
    np.subtract(1, result, out=result)
    np.maximum(result, 0, out=result)
    return np.multiply(result, result, out=result)


def ellipse(coordinates: tuple, center: tuple, radii: tuple, tilt: float, edge_width: float) -> np.ndarray:
    """1 inside, 0 outside; `place` is the x and y of each pixel."""
    x, y = coordinates[0] - center[0], coordinates[1] - center[1]
    cosine, sine = np.cos(tilt), np.sin(tilt)
    across, along = (cosine * x + sine * y) / radii[0], (cosine * y - sine * x) / radii[1]
    return smoothstep(1 - np.sqrt(across * across + along * along), edge_width)


def stroke(canvas: np.ndarray, points: np.ndarray, widths: np.ndarray, strength: float = 1.0) -> None:
    """Draw a soft line through `points` (n, 2; pixels) onto the canvas; where lines cross the brighter one stays."""
    for (c0, r0), (c1, r1), width in zip(points[:-1], points[1:], widths, strict=False):
        margin = 2.6 * width + 1
        top, bottom = max(int(min(r0, r1) - margin), 0), int(max(r0, r1) + margin) + 2
        left, right = max(int(min(c0, c1) - margin), 0), int(max(c0, c1) + margin) + 2
        patch = canvas[top : max(bottom, 0), left : max(right, 0)]
        if not patch.size:
            continue
        row = np.arange(top, top + patch.shape[0])[:, None] - r0
        column = np.arange(left, left + patch.shape[1])[None, :] - c0
        dc, dr = c1 - c0, r1 - r0
        t = np.clip((column * dc + row * dr) / (dc * dc + dr * dr + 1e-9), 0, 1)
        distance = (column - t * dc) ** 2 + (row - t * dr) ** 2
        np.maximum(patch, strength * bump(distance**0.5, 2.2 * width), out=patch)


def value_noise(rng: Rng, shape: tuple[int, int], n_cells: float) -> np.ndarray:
    """Smooth random hills and valleys, `cells` along the picture's shorter side; mean near 0, deviation near 1."""
    step = min(shape) / n_cells
    rows, columns = (_make_spline_weights(length, step) for length in shape)
    field = rows @ rng.uniform_grid(rows.shape[1], columns.shape[1]) @ columns.T
    return field * 3.6  # a cubic spline of uniform numbers has about this much less spread than its knots ask for


def _make_spline_weights(length: int, step: float) -> np.ndarray:
    """Weights of a cubic B-spline with a knot every `step` pixels, shape (length, knots)."""
    knots = int(length / step) + 4
    distance = np.abs((np.arange(length)[:, None] + 0.5) / step - (np.arange(knots)[None, :] - 1))
    suggestion = 2 / 3 - distance**2 * (1 - distance / 2)
    return np.where(distance < 1, suggestion, np.clip(2 - distance, 0, None) ** 3 / 6)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, `sigma` in pixels; the border is the mean of what is inside."""
    rows, columns = (_make_gaussian_weights(length, sigma) for length in image.shape)
    return rows @ image @ columns.T


def _make_gaussian_weights(length: int, sigma: float) -> np.ndarray:
    positions = np.arange(length)
    weights = np.exp(-0.5 * ((positions[:, None] - positions[None, :]) / sigma) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)
