"""From a patient's numbers to what a chest absorbs: skin, lungs, heart, bones and vessels, one array each."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastcxr.data.synthetic.canvas import Dice, View, bump, ellipse, rise, stroke

Place = tuple[np.ndarray, np.ndarray]  # x and y of every pixel on the body


@dataclass(frozen=True)
class Body:
    """One patient's anatomy; lengths in units of half the film, heights with y downwards from the middle."""

    apex: float
    wall: float  # largest distance of the chest wall from the midline
    dome: float  # height of the right diaphragm
    roundness: float  # of the lungs' outer border
    mediastinum: float
    heart: float
    rib_spacing: float
    rib_slope: float
    bone: float  # how dense the bones are
    fat: float  # between ribs and skin
    shoulder: float
    breast: float
    bubble: float  # of air in the stomach
    arms: float  # how far up the gap between arm and trunk reaches
    markings: float  # how strong the vessels are
    hilum: float
    key: int  # of the vessels and everything else that has no single number


def draw_body(key: int) -> Body:
    dice = Dice(key, "body")
    woman = dice.chance(0.5)
    return Body(
        apex=dice.between(-0.70, -0.58),
        wall=dice.between(0.58, 0.76),
        dome=dice.between(0.30, 0.54),
        roundness=dice.between(2.1, 3.0),
        mediastinum=dice.between(0.09, 0.15),
        heart=dice.between(0.82, 1.25),
        rib_spacing=dice.between(0.130, 0.175),
        rib_slope=dice.between(0.35, 0.75),
        bone=dice.between(0.5, 1.2),
        fat=dice.between(0.10, 0.34),
        shoulder=dice.between(-0.82, -0.72),
        breast=dice.between(0.05, 0.20) if woman else 0.0,
        bubble=dice.between(0.05, 0.14) if dice.chance(0.55) else 0.0,
        arms=dice.between(-0.7, 0.3),
        markings=dice.between(0.7, 1.3),
        hilum=dice.between(0.6, 1.4),
        key=key,
    )


@dataclass(frozen=True)
class Lung:
    """One lung on the film, every array of the film's shape."""

    side: float  # -1 the patient's right lung, on the left of the picture; 1 the left lung
    outward: np.ndarray  # distance from the midline to this side
    down: np.ndarray
    depth: np.ndarray  # distance to the nearest border, negative outside
    rim: np.ndarray  # distance to the chest wall
    air: np.ndarray  # 0 outside to about 1


def lung_on(place: Place, body: Body, side: float) -> Lung:
    outward, down = side * place[0], place[1]
    bottom = body.dome + (0.22 if side < 0 else 0.25)
    t = np.clip((bottom - down) / (bottom - body.apex), 0, 1)
    peak = 0.30
    lateral = peak + (body.wall - peak) * (1 - t**body.roundness) ** (1 / body.roundness)
    medial = body.mediastinum * 0.8 + (peak - body.mediastinum * 0.8) * t**7
    run = np.clip((outward - 0.22) / (body.wall - 0.22), -1, 1)
    dome = body.dome + (0.0 if side < 0 else 0.05) + 0.21 * np.where(run > 0, run * run, 0.25 * run * run)
    rim = lateral - outward
    depth = np.minimum(np.minimum(rim, outward - medial), np.minimum(dome - down, down - body.apex))
    air = rise(depth - 0.012, 0.03) * (0.62 + 0.38 * rise(depth - 0.10, 0.24))
    return Lung(side, outward, down, depth, rim, air)


def inside_skin(place: Place, body: Body) -> np.ndarray:
    """How deep inside the skin each pixel lies, seen from the front; negative is air."""
    x, y = np.abs(place[0]), place[1]
    trunk = body.wall + body.fat + 0.06 * (y - 0.2)
    slope = np.clip((y - body.shoulder + 0.02) / 0.42, 0, 1)
    neck = 0.24 + 0.22 * np.clip((y - body.shoulder + 0.34) / 0.34, 0, 1) ** 2
    silhouette = neck + (trunk + 0.34 - neck) * (1 - (1 - slope) ** 2) ** 0.5
    gap = np.minimum(0.4 * (y + body.arms), 0.10)  # negative where arm and trunk are still one
    return np.maximum(np.minimum(silhouette, trunk) - x, np.minimum(silhouette - x, x - trunk - gap))


def soft_tissue(place: Place, body: Body, skin: np.ndarray) -> np.ndarray:
    y = place[1]
    flesh = rise(skin, 0.05) * (0.30 + 0.42 * (np.clip(skin, 0, 0.6) / 0.6) ** 0.7)
    belly = 0.22 * rise(y - body.dome - 0.12, 0.6) * rise(skin, 0.05)
    breast = sum(
        body.breast * ellipse(place, (side * 0.42 + 0.01, body.dome - 0.04), (0.34, 0.30), 0.15 * side, 0.5)
        for side in (-1, 1)
    )
    bubble = body.bubble * 2.2 * ellipse(place, (0.36, body.dome + 0.24), (0.20, 0.11), -0.2, 0.6)
    return flesh + belly + breast - bubble


def middle_of_chest(place: Place, body: Body) -> tuple[np.ndarray, np.ndarray]:
    """What the heart and the great vessels absorb, and how solid they are (0 to 1)."""
    x, y = place
    size, base = body.heart, body.dome
    heart = ellipse(place, (0.13 * size, base - 0.12), (0.39 * size, 0.27 * size), 0.50, 0.10)
    atrium = ellipse(place, (-0.08, base - 0.18), (0.16 * size, 0.26), 0.0, 0.16)
    width = body.mediastinum * (1 + 0.35 * rise(-0.45 - y, 0.4) + 0.5 * rise(y + 0.15, 0.5))
    middle = rise(width - np.abs(x - 0.012), 0.10) * rise(y + 0.80, 0.5)
    knob = ellipse(place, (0.10, -0.27), (0.11 * size, 0.12), 0.0, 0.3)
    windpipe = bump(x + 0.015, 0.08) * rise(-0.18 - y, 0.08)
    bronchi = sum(
        bump(y + 0.16 - 0.7 * np.abs(x), 0.05) * rise(0.22 - side * x, 0.05) * (side * x > 0) for side in (-1, 1)
    )
    hilum = sum(ellipse(place, (side * 0.18, -0.02 - 0.04 * side), (0.10, 0.17), -0.3 * side, 1.0) for side in (-1, 1))
    solid = np.maximum(np.maximum(heart, atrium), np.maximum(middle, knob))
    spared = 1 - rise(y - base - 0.02, 0.3)  # below the diaphragm all is solid
    return spared * (0.15 * solid + 0.10 * middle) - 0.15 * windpipe - 0.06 * bronchi + 0.10 * body.hilum * hilum, solid


def bones(place: Place, body: Body, lungs: list[Lung]) -> np.ndarray:
    x, y = place
    ribs = sum(_ribs(lung, body) for lung in lungs)
    phase = y / (body.rib_spacing * 0.95)
    disc = np.abs(phase - np.round(phase))
    spine = rise(0.08 - np.abs(x), 0.05) * (0.5 + 0.5 * rise(disc - 0.12, 0.1)) + 0.25 * bump(np.abs(x) - 0.07, 0.04)
    collar = 0.0
    for side in (-1, 1):
        u = side * x
        bar = y - (body.shoulder + 0.24 - 0.22 * (u - 0.08) + 0.05 * np.sin(5.5 * (u - 0.1)))
        here = rise(u - 0.08, 0.05) * rise(0.88 - u, 0.1)
        collar = collar + here * (0.5 * rise(0.036 - np.abs(bar), 0.02) + 0.5 * bump(np.abs(bar) - 0.03, 0.018))
        blade = np.abs(u - (body.wall + 0.02 + 0.22 * (-0.05 - y)))
        collar = collar + 0.35 * rise(0.1 - blade, 0.05) * rise(y + 0.6, 0.1) * rise(0.05 - y, 0.2)
        collar = collar + 0.6 * ellipse((u, y), (body.wall + 0.34, body.shoulder + 0.16), (0.13, 0.14), 0.0, 0.1)
    return body.bone * (0.12 * ribs + 0.05 * spine + 0.14 * collar)


def _ribs(lung: Lung, body: Body) -> np.ndarray:
    u, y, spacing = lung.outward, lung.down, body.rib_spacing
    cage = rise(lung.rim + 0.05, 0.03) * rise(u - 0.05, 0.05) * rise(y - body.apex + 0.02, 0.1)
    back = _stripes((y - body.rib_slope * 0.9 * (u - 0.28) ** 2 + 0.05 * u) / spacing, 0.21)
    front = _stripes((y - body.rib_slope * 0.9 * u + 0.4) / (spacing * 1.2), 0.23)
    front = front * rise(u - 0.38, 0.25) * rise(y + 0.45, 0.1) * rise(body.dome + 0.1 - y, 0.1)
    edge = bump(lung.rim + 0.015, 0.03)
    return cage * (back * (0.2 + 0.8 * rise(body.dome + 0.15 - y, 0.4)) + 0.55 * front) + 0.5 * edge * cage


def _stripes(phase: np.ndarray, half: float) -> np.ndarray:
    distance = np.abs(phase - np.round(phase))
    return 0.55 * rise(half - distance, 0.08) + 0.55 * bump(distance - half + 0.03, 0.06)


def draw_vessels(body: Body, view: View) -> np.ndarray:
    """The vessels of both lungs, 0 to 1, fanning out from the hilum; the air cuts off what runs beyond."""
    canvas = np.zeros((view.height, view.width))
    for side in (-1.0, 1.0):
        dice = Dice(body.key, "vessels", int(side > 0))
        for root in range(6):
            twig = Twig(0.15, -0.03 + 0.03 * root, -1.25 + 0.5 * root, dice.between(0.17, 0.27), 0.016, 3)
            draw_branches(canvas, view, dice, twig, side)
    return canvas


class Twig(NamedTuple):
    """Where a branch of a vessel or bronchus begins, how it goes on, and how often it still forks."""

    outward: float
    down: float
    angle: float
    length: float
    width: float
    forks: int


def draw_branches(canvas: np.ndarray, view: View, dice: Dice, twig: Twig, side: float) -> None:
    angle, bend = twig.angle + dice.between(-0.2, 0.2), dice.between(-0.45, 0.45)
    steps = np.array([0.0, 0.5, 1.0]) if twig.forks else np.array([0.0, 1.0])
    outward = twig.outward + twig.length * steps * np.cos(angle + bend * steps)
    down = twig.down + twig.length * steps * np.sin(angle + bend * steps)
    widths = np.maximum(twig.width * view.unit * (1 - 0.3 * steps), 0.42)
    stroke(canvas, view.pixels(np.stack([side * outward, down], axis=1)), widths, 0.30 + 0.2 * twig.forks)
    for fork in (-1, 1) if twig.forks else ():
        turn = angle + bend + fork * dice.between(0.12, 0.55)
        length = twig.length * dice.between(0.55, 0.85)
        child = Twig(outward[-1], down[-1], turn, length, twig.width * 0.62, twig.forks - 1)
        draw_branches(canvas, view, dice, child, side)
