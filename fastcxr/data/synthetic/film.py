"""From a patient and a class to one synthetic frontal chest radiograph, an 8-bit gray array.

Everything is drawn from formulas: what absorbs X-rays adds up, the air in the lungs takes away, an opacity gives back.
Exposure, position, build and foreign objects never depend on the class, and each picture is developed to gray
values that were drawn without knowing it, so that only what is seen in the lungs tells the classes apart.
"""

import numpy as np

from fastcxr.data.synthetic.anatomy import (
    Body,
    Lung,
    Twig,
    bones,
    draw_branches,
    draw_vessels,
    inside_skin,
    lung_on,
    middle_of_chest,
    soft_tissue,
)
from fastcxr.data.synthetic.canvas import Dice, View, blur, cloud, rise, stroke

# the letters of the side markers, as a pen would write them without lifting
LEFT = ((0, -1), (0, 0), (0.7, 0))
RIGHT = ((0, 0), (0, -1), (0.6, -1), (0.6, -0.5), (0, -0.5), (0.7, 0))


def draw_view(key: int) -> View:
    dice = Dice(key, "view")
    height, width = 176 + dice.below(33), 176 + dice.below(33)
    zoom = dice.between(0.86, 1.2)
    tilt = dice.between(-0.12, 0.12)
    return View(height, width, zoom, dice.between(-0.13, 0.13), dice.between(-0.10, 0.16), tilt)


def draw_film(body: Body, finding: str, view: View, key: int) -> np.ndarray:
    """One exposure: uint8, shape (view.height, view.width); `key` is the exposure's own number."""
    dice, place = Dice(key, "film"), view.body_coordinates()
    lungs = [lung_on(place, body, side) for side in (-1.0, 1.0)]
    skin, air = inside_skin(place, body), lungs[0].air + lungs[1].air
    shade = FINDINGS[finding](body, lungs, view, key)
    middle, solid = middle_of_chest(place, body)
    vessels = draw_vessels(body, view) * np.minimum(1, 1.5 * air) * (1 - 0.8 * shade) * (1 - 0.75 * solid)
    film = soft_tissue(place, body, skin) + rise(skin, 0.05) * (middle + bones(place, body, lungs))
    film = (
        film
        - 0.56 * air * (1 - 0.4 * solid) * (1 - shade)
        + 0.17 * body.markings * vessels
        + foreign_objects(view, dice)
    )
    film = film + dice.between(-0.16, 0.16) * place[0] + dice.between(-0.12, 0.12) * place[1]
    film = film + 0.03 * cloud(dice, film.shape, 4) + 0.012 * cloud(dice, film.shape, 14)
    return develop(film, skin > -0.01, dice)


def clear_lungs(body: Body, lungs: list[Lung], view: View, key: int) -> np.ndarray:
    return np.zeros((view.height, view.width))


def lobar_opacity(body: Body, lungs: list[Lung], view: View, key: int) -> np.ndarray:
    """One lobe or a part of it without air: dense, soft towards the hilum, sharp where a fissure ends it."""
    patient, dice = Dice(body.key, "lobe"), Dice(key, "lobe today")
    lung, zone = lungs[patient.below(2)], patient.below(3)
    heights = (body.apex + 0.28, -0.04, body.dome - 0.22)
    center = (patient.between(0.32, 0.50) + dice.between(-0.03, 0.03), heights[zone] + patient.between(-0.07, 0.07))
    size = patient.between(0.25, 0.36) * dice.between(0.88, 1.15)
    wobble = 0.24 * cloud(dice, lung.depth.shape, 6)
    u, y = (lung.outward - center[0]) / size, (lung.down - center[1]) / (size * patient.between(0.7, 1.1))
    mass = rise(1 - np.sqrt(u * u + y * y) + wobble, patient.between(0.35, 0.75))
    fissure = center[1] + (0.5 if zone == 0 else -0.5) * size + 0.12 * (lung.outward - 0.3)
    if patient.chance(0.6):
        mass = mass * (rise(fissure - lung.down, 0.04) if zone == 0 else rise(lung.down - fissure, 0.04))
    bronchi = _air_bronchogram(lung, center, view, patient)
    dense = patient.between(0.78, 1.0) * dice.between(0.85, 1.05)
    return np.clip(mass * (dense + 0.09 * cloud(dice, mass.shape, 22)) * (1 - 0.45 * bronchi), 0, 1)


def _air_bronchogram(lung: Lung, center: tuple, view: View, dice: Dice) -> np.ndarray:
    canvas = np.zeros((view.height, view.width))
    across, along = center[0] - 0.15, center[1] + 0.02
    twig = Twig(0.15, -0.02, np.arctan2(along, across), 0.9 * np.hypot(along, across), 0.012, 3)
    draw_branches(canvas, view, dice, twig, lung.side)
    return canvas


def bilateral_haze(body: Body, lungs: list[Lung], view: View, key: int) -> np.ndarray:
    """Patches of ground glass along both chest walls, fine-grained, with air left in them."""
    dice = Dice(key, "haze today")
    total = np.zeros((view.height, view.width))
    for lung in lungs:
        patient = Dice(body.key, "haze", int(lung.side > 0))
        low = patient.between(-0.3, 0.5)  # where on the wall most of it lies
        dense = patient.between(0.38, 0.60) * dice.between(0.85, 1.15)
        rim = rise(patient.between(0.16, 0.30) - lung.rim + 0.05 * cloud(dice, total.shape, 7), 0.16)
        patches = rise(cloud(patient, total.shape, 7) + 0.75 - 0.6 * np.abs(lung.down - low), 1.4)
        grain = 0.8 + 0.35 * cloud(dice, total.shape, 34) + 0.15 * cloud(dice, total.shape, 60)
        total = total + (lung.depth > -0.05) * rim * patches * dense * grain
    return np.clip(total, 0, 0.9)


# a finding says how much of the air each pixel of the lungs has lost, 0 to 1
FINDINGS = {"clear_lungs": clear_lungs, "lobar_opacity": lobar_opacity, "bilateral_haze": bilateral_haze}


def foreign_objects(view: View, dice: Dice) -> np.ndarray:
    """Leads, a tube and a side marker, whatever the finding."""
    canvas = np.zeros((view.height, view.width))
    for _ in range(dice.below(4) if dice.chance(0.5) else 0):
        _lead(canvas, view, dice)
    if dice.chance(0.3):
        t = np.linspace(0, 1, 14)
        lean, depth = dice.between(-0.12, 0.12), dice.between(-0.2, 0.7)
        points = view.pixels(np.stack([0.02 + lean * t * t, -1.0 + (depth + 1.0) * t], axis=1))
        stroke(canvas, points, np.full(14, dice.between(0.55, 1.1)), 0.22)
    if dice.chance(0.6):
        side = dice.sign()
        letter = np.array(LEFT if side > 0 else RIGHT) * 0.08
        corner = (side * dice.between(0.75, 0.9), dice.between(-0.9, -0.7))
        stroke(canvas, view.pixels(letter + corner), np.full(len(letter), 0.9), 0.9)
    return canvas


def _lead(canvas: np.ndarray, view: View, dice: Dice) -> None:
    t = np.linspace(0, 1, 14)
    start = (dice.between(-0.6, 0.6), dice.between(-0.5, 0.5))
    end, bow = (dice.sign() * 1.5, dice.between(-0.3, 0.9)), dice.between(-0.4, 0.4)
    x, y = start[0] + (end[0] - start[0]) * t, start[1] + (end[1] - start[1]) * t + bow * t * (1 - t) * 2
    points = view.pixels(np.stack([x, y], axis=1))
    stroke(canvas, points, np.full(14, 0.55), 0.30)
    stroke(canvas, points[[0, 0]], np.array([2.2, 2.2]), 0.40)


def develop(film: np.ndarray, inside: np.ndarray, dice: Dice) -> np.ndarray:
    """Blur, grain and gray values: ranks decide, so that the histogram is the one that was drawn, not the finding's."""
    film = blur(film, dice.between(0.45, 0.85)) + 0.10 * inside
    film = film + dice.between(0.007, 0.018) * sum(dice.grid(*film.shape) for _ in range(3))
    seen = inside | (film > 0.2)  # beside the body only leads and markers are
    rank = np.zeros(film.shape)
    rank[seen] = (np.argsort(np.argsort(film[seen], kind="stable"), kind="stable") + 0.5) / seen.sum()
    contrast, gamma = dice.between(-0.2, 0.7), 2 ** dice.between(-0.75, 0.45)
    curve = np.clip((1 - contrast) * rank + contrast * rank * rank * (3 - 2 * rank), 0, 1) ** gamma
    low, high, black = dice.between(10, 45), dice.between(195, 250), dice.between(0, 14)
    gray = np.where(seen, low + (high - low) * curve, black + 150 * np.clip(film, -0.05, 0.2))
    return np.round(np.clip(gray, 0, 255)).astype(np.uint8)
