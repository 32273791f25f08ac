"""Synthetic frontal chest radiographs of a patient and class, as 8-bit gray arrays.

All images are computed from formulas: tissue adds absorption, the air in the lungs removes it, an opacity adds it back.
Exposure, position, anatomy and foreign objects do not depend on the class. The gray-value histogram is drawn at random,
independent of the class. Only the lungs contain class information.
"""

import numpy as np

from fastcxr.data.synthetic.anatomy import (
    Body,
    Lung,
    VesselSegment,
    compute_skin_depth,
    draw_bones,
    draw_branches,
    draw_mediastinum,
    draw_soft_tissue,
    draw_vessels,
    make_lung,
)
from fastcxr.data.synthetic.canvas import Rng, View, blur, smoothstep, stroke, value_noise

# the letters L and R of the side markers, each as one line
LEFT_MARKER = ((0, -1), (0, 0), (0.7, 0))
RIGHT_MARKER = ((0, 0), (0, -1), (0.6, -1), (0.6, -0.5), (0, -0.5), (0.7, 0))


def make_view(key: int) -> View:
    """Draw film size and patient position from a random key."""
    rng = Rng(key, "view")
    height, width = 176 + rng.integer(33), 176 + rng.integer(33)
    zoom = rng.uniform(0.86, 1.2)
    tilt = rng.uniform(-0.12, 0.12)
    return View(height, width, zoom, rng.uniform(-0.13, 0.13), rng.uniform(-0.10, 0.16), tilt)


def draw_radiograph(body: Body, finding: str, view: View, key: int) -> np.ndarray:
    """Return one exposure: uint8, shape (view.height, view.width); `key` is the random key of the exposure."""
    rng, coordinates = Rng(key, "film"), view.make_body_coordinates()
    lungs = [make_lung(coordinates, body, side) for side in (-1.0, 1.0)]
    skin, air = compute_skin_depth(coordinates, body), lungs[0].air + lungs[1].air
    opacity = FINDINGS[finding](body, lungs, view, key)
    mediastinum, solid = draw_mediastinum(coordinates, body)
    vessels = draw_vessels(body, view) * np.minimum(1, 1.5 * air) * (1 - 0.8 * opacity) * (1 - 0.75 * solid)
    shape = (view.height, view.width)
    dense = mediastinum + draw_bones(coordinates, body, lungs)
    absorption = draw_soft_tissue(coordinates, body, skin) + smoothstep(skin, 0.05) * dense
    absorption = absorption - 0.56 * air * (1 - 0.4 * solid) * (1 - opacity)
    absorption = absorption + 0.17 * body.markings * vessels + draw_foreign_objects(view, rng)
    absorption = absorption + rng.uniform(-0.16, 0.16) * coordinates[0] + rng.uniform(-0.12, 0.12) * coordinates[1]
    absorption = absorption + 0.03 * value_noise(rng, shape, 4) + 0.012 * value_noise(rng, shape, 14)
    return render_gray_levels(absorption, skin > -0.01, rng)


def clear_lungs(body: Body, lungs: list[Lung], view: View, key: int) -> np.ndarray:
    """Return zero opacity."""
    return np.zeros((view.height, view.width))


def lobar_opacity(body: Body, lungs: list[Lung], view: View, key: int) -> np.ndarray:
    """Return the dense opacity of one lobe or a part of it, with a sharp border at the fissure in some patients."""
    patient_rng, rng = Rng(body.key, "lobe"), Rng(key, "lobe today")
    lung, zone = lungs[patient_rng.integer(2)], patient_rng.integer(3)
    heights = (body.apex + 0.28, -0.04, body.dome - 0.22)
    outward = patient_rng.uniform(0.32, 0.50) + rng.uniform(-0.03, 0.03)
    center = (outward, heights[zone] + patient_rng.uniform(-0.07, 0.07))
    size = patient_rng.uniform(0.25, 0.36) * rng.uniform(0.88, 1.15)
    noise = 0.24 * value_noise(rng, lung.depth.shape, 6)
    u, y = (lung.outward - center[0]) / size, (lung.down - center[1]) / (size * patient_rng.uniform(0.7, 1.1))
    opacity = smoothstep(1 - np.sqrt(u * u + y * y) + noise, patient_rng.uniform(0.35, 0.75))
    fissure = center[1] + (0.5 if zone == 0 else -0.5) * size + 0.12 * (lung.outward - 0.3)
    if patient_rng.bernoulli(0.6):
        distance = fissure - lung.down if zone == 0 else lung.down - fissure
        opacity = opacity * smoothstep(distance, 0.04)
    bronchi = _air_bronchogram(lung, center, view, patient_rng)
    density = patient_rng.uniform(0.78, 1.0) * rng.uniform(0.85, 1.05)
    return np.clip(opacity * (density + 0.09 * value_noise(rng, opacity.shape, 22)) * (1 - 0.45 * bronchi), 0, 1)


def _air_bronchogram(lung: Lung, center: tuple, view: View, rng: Rng) -> np.ndarray:
    canvas = np.zeros((view.height, view.width))
    across, along = center[0] - 0.15, center[1] + 0.02
    segment = VesselSegment(0.15, -0.02, np.arctan2(along, across), 0.9 * np.hypot(along, across), 0.012, 3)
    draw_branches(canvas, view, rng, segment, lung.side)
    return canvas


def bilateral_haze(body: Body, lungs: list[Lung], view: View, key: int) -> np.ndarray:
    """Return patchy ground-glass opacities with fine texture along both chest walls."""
    rng = Rng(key, "haze today")
    shape = (view.height, view.width)
    total = np.zeros(shape)
    for lung in lungs:
        patient_rng = Rng(body.key, "haze", int(lung.side > 0))
        low = patient_rng.uniform(-0.3, 0.5)  # height of the maximum along the chest wall
        density = patient_rng.uniform(0.38, 0.60) * rng.uniform(0.85, 1.15)
        rim = smoothstep(patient_rng.uniform(0.16, 0.30) - lung.rim + 0.05 * value_noise(rng, shape, 7), 0.16)
        patches = smoothstep(value_noise(patient_rng, shape, 7) + 0.75 - 0.6 * np.abs(lung.down - low), 1.4)
        grain = 0.8 + 0.35 * value_noise(rng, shape, 34) + 0.15 * value_noise(rng, shape, 60)
        total = total + (lung.depth > -0.05) * rim * patches * density * grain
    return np.clip(total, 0, 0.9)


# each function returns the fraction of air lost in each pixel, 0 to 1
FINDINGS = {"clear_lungs": clear_lungs, "lobar_opacity": lobar_opacity, "bilateral_haze": bilateral_haze}


def draw_foreign_objects(view: View, rng: Rng) -> np.ndarray:
    """Return the absorption of leads, a tube and a side marker, independent of the finding."""
    canvas = np.zeros((view.height, view.width))
    for _ in range(rng.integer(4) if rng.bernoulli(0.5) else 0):
        _draw_lead(canvas, view, rng)
    if rng.bernoulli(0.3):
        t = np.linspace(0, 1, 14)
        lean, depth = rng.uniform(-0.12, 0.12), rng.uniform(-0.2, 0.7)
        points = view.to_pixels(np.stack([0.02 + lean * t * t, -1.0 + (depth + 1.0) * t], axis=1))
        stroke(canvas, points, np.full(14, rng.uniform(0.55, 1.1)), 0.22)
    if rng.bernoulli(0.6):
        side = rng.random_sign()
        letter = np.array(LEFT_MARKER if side > 0 else RIGHT_MARKER) * 0.08
        corner = (side * rng.uniform(0.75, 0.9), rng.uniform(-0.9, -0.7))
        stroke(canvas, view.to_pixels(letter + corner), np.full(len(letter), 0.9), 0.9)
    return canvas


def _draw_lead(canvas: np.ndarray, view: View, rng: Rng) -> None:
    t = np.linspace(0, 1, 14)
    start = (rng.uniform(-0.6, 0.6), rng.uniform(-0.5, 0.5))
    end, bow = (rng.random_sign() * 1.5, rng.uniform(-0.3, 0.9)), rng.uniform(-0.4, 0.4)
    x, y = start[0] + (end[0] - start[0]) * t, start[1] + (end[1] - start[1]) * t + bow * t * (1 - t) * 2
    points = view.to_pixels(np.stack([x, y], axis=1))
    stroke(canvas, points, np.full(14, 0.55), 0.30)
    stroke(canvas, points[[0, 0]], np.array([2.2, 2.2]), 0.40)


def render_gray_levels(absorption: np.ndarray, inside: np.ndarray, rng: Rng) -> np.ndarray:
    """Apply blur, noise and a random tone curve to the ranks, which makes the histogram independent of the class."""
    absorption = blur(absorption, rng.uniform(0.45, 0.85)) + 0.10 * inside
    absorption = absorption + rng.uniform(0.007, 0.018) * sum(rng.uniform_grid(*absorption.shape) for _ in range(3))
    is_drawn = inside | (absorption > 0.2)  # outside the body: leads and markers
    rank = np.zeros(absorption.shape)
    rank[is_drawn] = (np.argsort(np.argsort(absorption[is_drawn], kind="stable"), kind="stable") + 0.5) / is_drawn.sum()
    contrast, gamma = rng.uniform(-0.2, 0.7), 2 ** rng.uniform(-0.75, 0.45)
    curve = np.clip((1 - contrast) * rank + contrast * rank * rank * (3 - 2 * rank), 0, 1) ** gamma
    low, high, black = rng.uniform(10, 45), rng.uniform(195, 250), rng.uniform(0, 14)
    gray = np.where(is_drawn, low + (high - low) * curve, black + 150 * np.clip(absorption, -0.05, 0.2))
    return np.round(np.clip(gray, 0, 255)).astype(np.uint8)
