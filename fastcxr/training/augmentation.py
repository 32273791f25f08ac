"""Random augmentation of a batch of images on its device, in one interpolation.

Options, distribution and random numbers are those of fastai's aug_transforms. fastai's own transforms interpolate twice
with random crops. They make the host wait for a GPU several times per batch (tensors of lists, `.item()`, `.any()`,
torch.linalg.solve).
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import cast

import torch
from fastai.torch_core import TensorImage
from fasttransform import DisplayedTransform
from torch.nn.functional import grid_sample

from fastcxr.config.components import Augmentation

FLIP_PROBABILITY = 0.5
LOGIT_MARGIN = 1e-7  # smallest distance of a gray value from 0 and 1, where the logit is infinite
# the eight symmetries of a square in fastai's order; those with zeros on the diagonal exchange x and y
ORIENTATIONS = torch.tensor([
    [[1.0, 0], [0, 1]], [[-1, 0], [0, 1]], [[1, 0], [0, -1]], [[0, -1], [1, 0]],
    [[-1, 0], [0, -1]], [[0, 1], [-1, 0]], [[0, 1], [1, 0]], [[0, -1], [-1, 0]],
])  # fmt: skip


class RandomAugmentation(DisplayedTransform):
    """Flip, rotate, zoom, warp and crop square training images at random, and change their brightness and contrast."""

    order = 30  # as in fastai: after the conversion to floats
    split_idx = 0  # training images only
    drawn: tuple[int, slice] | None = None
    """Number of images of a batch that several processes share, and those of them in this process."""

    def __init__(self, options: Augmentation):
        self.options = options

    def encodes(self, images: TensorImage) -> TensorImage:
        """Augment a batch with gray values from 0 to 1, shape (n, channels, size, size)."""
        options, pixels = self.options, images.as_subclass(torch.Tensor)  # fastai's subclass slows each operation down
        numbers = RandomNumbers(len(pixels), pixels.device, options.batch, self.drawn or (len(pixels), slice(None)))
        matrix = draw_matrix(options, numbers, pixels.shape[-1])
        if matrix is not None:
            grid = make_grid(matrix, pixels.shape[-1], align_corners=options.align_corners)
            pixels = grid_sample(pixels, grid, options.mode, options.pad_mode, options.align_corners)
        if options.max_lighting * options.mult:
            pixels = change_lighting(pixels, *draw_lighting(options, numbers))
        return cast(TensorImage, pixels.as_subclass(type(images)))


@dataclass(frozen=True)
class RandomNumbers:
    """Random numbers for the images of a batch, shape (n_images,).

    Attributes:
        n_images: number of images.
        device: device of the numbers.
        is_shared: one number for all images.
        drawn: how many numbers are drawn, and which of them are returned: of several processes, each draws those of
            the whole batch, as one process does.
    """

    n_images: int
    device: torch.device
    is_shared: bool
    drawn: tuple[int, slice]

    def uniform(self, low: float, high: float, p: float = 1.0, neutral: float = 0.0) -> torch.Tensor:
        """Draw numbers between `low` and `high` with probability `p`, and `neutral` otherwise."""
        if self.is_shared:
            values = self.repeat(random.uniform(low, high))
        else:
            values = self.select(torch.empty(self.drawn[0], device=self.device).uniform_(low, high))
        return values if p == 1 else (values - neutral) * self.bernoulli(p) + neutral

    def bernoulli(self, p: float) -> torch.Tensor:
        """Draw 1 with probability `p`, and 0 otherwise."""
        if self.is_shared:
            return self.repeat(random.random() < p)
        return self.select(torch.empty(self.drawn[0], device=self.device).bernoulli_(p))

    def integers(self, n: int) -> torch.Tensor:
        """Draw integers from 0 to n - 1."""
        if self.is_shared:
            return self.repeat(random.randint(0, n - 1)).long()
        return self.select(torch.randint(0, n, (self.drawn[0],), device=self.device))

    def select(self, values: torch.Tensor) -> torch.Tensor:
        """Return the numbers of this process."""
        return values[self.drawn[1]][: self.n_images]

    def repeat(self, value: float) -> torch.Tensor:
        """Return the same number for all images."""
        return torch.full((self.n_images,), float(value), device=self.device)

    def make_matrices(self, rows: Sequence[Sequence[torch.Tensor | float]]) -> torch.Tensor:
        """Return matrices, shape (n_images, 3, 3), from nine numbers or tensors of shape (n_images,)."""
        entries = [one if isinstance(one, torch.Tensor) else self.repeat(one) for row in rows for one in row]
        return torch.stack(entries, dim=1).view(-1, 3, 3)


def draw_matrix(options: Augmentation, numbers: RandomNumbers, size: int) -> torch.Tensor | None:
    """Draw homographies from output to input coordinates (x and y from -1 to 1), shape (n, 3, 3).

    None if no option moves pixels. The order of the random numbers is fastai's.
    """
    matrices, p = [], options.p_affine
    max_rotate, max_warp = options.max_rotate * options.mult, options.max_warp * options.mult
    # fastai draws both flips together from the eight symmetries of a square, half of which exchange x and y
    has_quarter_turns = options.flip_vert and options.quarter_turns
    if options.do_flip:
        matrices.append(draw_orientation(numbers) if has_quarter_turns else draw_flip(numbers, "horizontal"))
    if max_rotate:
        matrices.append(make_rotation(numbers, numbers.uniform(-max_rotate, max_rotate, p)))
    if options.min_zoom < 1 or options.max_zoom > 1:
        scale = 1 / numbers.uniform(options.min_zoom, options.max_zoom, p, neutral=1.0)
        x, y = ((1 - scale) * numbers.uniform(-1, 1) for _ in "xy")
        matrices.append(numbers.make_matrices([[scale, 0, x], [0, scale, y], [0, 0, 1]]))
    if options.do_flip and options.flip_vert and not has_quarter_turns:
        matrices.append(draw_flip(numbers, "vertical"))
    if max_warp:
        matrices.insert(0, make_warp(numbers, *(numbers.uniform(-max_warp, max_warp, p) for _ in "xy")))
    if options.min_scale < 1:
        matrices.append(draw_crop(numbers, options, size))
    return reduce(multiply, matrices) if matrices else None


def draw_lighting(options: Augmentation, numbers: RandomNumbers) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw brightness (0.5: unchanged) and contrast (1: unchanged) of each image."""
    max_change, p = options.max_lighting * options.mult, options.p_lighting
    max_log_contrast = -math.log(1 - max_change)
    brightness = numbers.uniform(0.5 * (1 - max_change), 0.5 * (1 + max_change), p, neutral=0.5)
    return brightness, numbers.uniform(-max_log_contrast, max_log_contrast, p).exp()


def draw_flip(numbers: RandomNumbers, direction: str) -> torch.Tensor:
    """Draw flips in one direction with probability FLIP_PROBABILITY."""
    sign = 1 - 2 * numbers.bernoulli(FLIP_PROBABILITY)
    x, y = (sign, 1) if direction == "horizontal" else (1, sign)
    return numbers.make_matrices([[x, 0, 0], [0, y, 0], [0, 0, 1]])


def draw_orientation(numbers: RandomNumbers) -> torch.Tensor:
    """Draw one of the eight symmetries of a square with probability FLIP_PROBABILITY."""
    drawn = numbers.integers(len(ORIENTATIONS)) * numbers.bernoulli(FLIP_PROBABILITY).long()
    a, b, c, d = ORIENTATIONS.to(numbers.device, non_blocking=True)[drawn].flatten(1).unbind(dim=1)
    return numbers.make_matrices([[a, b, 0], [c, d, 0], [0, 0, 1]])


def draw_crop(numbers: RandomNumbers, options: Augmentation, size: int) -> torch.Tensor:
    """Draw a square crop, the same for all images: at least `options.min_scale` of the area, enlarged to `size`."""
    area = random.uniform(options.min_scale, 1) * size**2
    random.random()  # fastai draws the aspect ratio here, which is 1
    length = round(math.sqrt(area))
    top, left = (random.randint(0, size - length) for _ in "yx")
    # align_corners: -1 and 1 are the centers of the first and last pixel, otherwise their outer edges
    unit, n = (size - 1, length - 1) if options.align_corners else (size, length)
    x, y = ((2 * start + n) / unit - 1 for start in (left, top))
    return numbers.make_matrices([[n / unit, 0, x], [0, n / unit, y], [0, 0, 1]])


def make_rotation(numbers: RandomNumbers, degrees: torch.Tensor) -> torch.Tensor:
    """Return the matrices of rotations around the center."""
    angle = degrees * math.pi / 180
    cos, sin = angle.cos(), angle.sin()
    return numbers.make_matrices([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])


def make_warp(numbers: RandomNumbers, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return fastai's perspective warp, up to a factor.

    It maps the corners (-1 - y, -1 - x), (-1 + y, 1 + x), (1 + y, -1 + x) and (1 - y, 1 - x) to those of the square.
    The map of the square to these corners is [[1 - y^2, -xy, x], [-xy, 1 - x^2, y], [x, y, 1]]; this is its adjugate.
    """
    determinant, xy = 1 - x * x - y * y, 2 * x * y
    right, bottom = x * (x * x - y * y - 1), y * (y * y - x * x - 1)
    return numbers.make_matrices([[determinant, xy, right], [xy, determinant, bottom], [right, bottom, determinant]])


def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the matrix products, shape (n, 3, 3), in float32; `@` may round to TF32, which shifts pixels."""
    return (a[:, :, :, None] * b[:, None, :, :]).sum(dim=2)


def make_grid(matrix: torch.Tensor, size: int, *, align_corners: bool) -> torch.Tensor:
    """Return the input coordinates (x, y) of each output pixel for grid_sample, shape (n, size, size, 2)."""
    margin = 0 if align_corners else 1 / size  # of the first pixel center from -1
    steps = torch.linspace(margin - 1, 1 - margin, size, device=matrix.device)
    columns = matrix[:, :, :, None, None].unbind(dim=2)
    homogeneous = torch.addcmul(columns[1] * steps[:, None] + columns[2], columns[0], steps)
    return (homogeneous[:, :2] / homogeneous[:, 2:]).permute(0, 2, 3, 1)


def change_lighting(pixels: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor) -> torch.Tensor:
    """Add the logit of `brightness` to the logits of the gray values, and multiply by `contrast`."""
    logits = compute_logit(pixels).add_(compute_logit(brightness)[:, None, None, None])
    return logits.mul_(contrast[:, None, None, None]).sigmoid_()


def compute_logit(values: torch.Tensor) -> torch.Tensor:
    """Return the logit of values from 0 to 1, which are clamped to a finite result."""
    return values.clamp(LOGIT_MARGIN, 1 - LOGIT_MARGIN).reciprocal_().sub_(1).log_().neg_()
