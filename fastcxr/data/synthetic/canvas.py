"""Random numbers, film geometry and soft shapes for the synthetic radiographs.

Only uniform random numbers are used: their stream is the least likely to change between numpy releases.
"""

from dataclasses import dataclass

import numpy as np


class Rng:
    """Random numbers that depend only on the integers and texts of the key."""

    def __init__(self, *key: int | str):
        entropy = [int.from_bytes(part.encode(), "big") if isinstance(part, str) else part for part in key]
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))

    def uniform(self, low: float, high: float) -> float:
        """Return a number from low to high."""
        return low + (high - low) * float(self._generator.random())

    def bernoulli(self, probability: float) -> bool:
        """Return True with the given probability."""
        return float(self._generator.random()) < probability

    def integer(self, upper: int) -> int:
        """Return an integer from 0 to upper - 1."""
        return int(self._generator.random() * upper)

    def random_sign(self) -> float:
        """Return 1 or -1."""
        return 1.0 if self.bernoulli(0.5) else -1.0

    def shuffled(self, items: list) -> list:
        """Return the items in random order."""
        order = np.argsort(self._generator.random(len(items)), kind="stable")
        return [items[i] for i in order]

    def uniform_grid(self, rows: int, columns: int) -> np.ndarray:
        """Return numbers from -1 to 1, shape (rows, columns)."""
        return 2 * self._generator.random((rows, columns)) - 1


@dataclass(frozen=True)
class View:
    """Position of the body on the film. The body is about 2 units wide and 2 units high."""

    height: int
    width: int
    zoom: float
    shift_right: float
    shift_down: float
    tilt: float  # radians

    @property
    def unit(self) -> float:
        """Pixels per body unit."""
        return 0.5 * self.zoom * (self.height * self.width) ** 0.5

    def make_body_coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """Return x (to the right) and y (downwards) of each pixel in body units, shape (height, width)."""
        row, column = np.mgrid[0 : self.height, 0 : self.width]
        x = (column + 0.5 - self.width / 2) / self.unit - self.shift_right
        y = (row + 0.5 - self.height / 2) / self.unit - self.shift_down
        cosine, sine = np.cos(self.tilt), np.sin(self.tilt)
        return cosine * x + sine * y, cosine * y - sine * x

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Convert points (x, y) in body units to pixels (column, row), shape (n, 2)."""
        cosine, sine = np.cos(self.tilt), np.sin(self.tilt)
        x = cosine * points[:, 0] - sine * points[:, 1] + self.shift_right
        y = sine * points[:, 0] + cosine * points[:, 1] + self.shift_down
        return np.stack([x, y], axis=1) * self.unit + [self.width / 2 - 0.5, self.height / 2 - 0.5]


def smoothstep(value: np.ndarray, width: float) -> np.ndarray:
    """Return a smooth step from 0 to 1, centred at zero, `width` wide."""
    t = value / width
    t += 0.5
    t = np.minimum(np.maximum(t, 0, out=t), 1, out=t)
    slope = t * -2
    slope += 3
    slope *= t
    return np.multiply(slope, t, out=slope)


def bump(value: np.ndarray, width: float) -> np.ndarray:
    """Return a smooth peak of height 1 at zero that falls to 0 at distance `width`."""
    result = value / width
    result *= result
    np.subtract(1, result, out=result)
    np.maximum(result, 0, out=result)
    return np.multiply(result, result, out=result)


def ellipse(coordinates: tuple, center: tuple, radii: tuple, tilt: float, edge_width: float) -> np.ndarray:
    """Return 1 inside an ellipse and 0 outside; `coordinates` are x and y of each pixel."""
    x, y = coordinates[0] - center[0], coordinates[1] - center[1]
    cosine, sine = np.cos(tilt), np.sin(tilt)
    across, along = (cosine * x + sine * y) / radii[0], (cosine * y - sine * x) / radii[1]
    return smoothstep(1 - np.sqrt(across * across + along * along), edge_width)


def stroke(canvas: np.ndarray, points: np.ndarray, widths: np.ndarray, strength: float = 1.0) -> None:
    """Draw a soft line through `points` (n, 2; pixels) onto the canvas; crossing lines keep the maximum."""
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
    """Return smooth noise with `n_cells` along the shorter side, mean near 0, standard deviation near 1."""
    step = min(shape) / n_cells
    rows, columns = (_make_spline_weights(length, step) for length in shape)
    field = rows @ rng.uniform_grid(rows.shape[1], columns.shape[1]) @ columns.T
    return field * 3.6  # corrects the lower variance of a cubic spline of uniform numbers


def _make_spline_weights(length: int, step: float) -> np.ndarray:
    """Return the weights of a cubic B-spline with a knot every `step` pixels, shape (length, knots)."""
    knots = int(length / step) + 4
    distance = np.abs((np.arange(length)[:, None] + 0.5) / step - (np.arange(knots)[None, :] - 1))
    inner = 2 / 3 - distance**2 * (1 - distance / 2)
    return np.where(distance < 1, inner, np.clip(2 - distance, 0, None) ** 3 / 6)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Return the image after a Gaussian blur with `sigma` pixels; weights outside the image are dropped."""
    rows, columns = (_make_gaussian_weights(length, sigma) for length in image.shape)
    return rows @ image @ columns.T


def _make_gaussian_weights(length: int, sigma: float) -> np.ndarray:
    positions = np.arange(length)
    weights = np.exp(-0.5 * ((positions[:, None] - positions[None, :]) / sigma) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)
