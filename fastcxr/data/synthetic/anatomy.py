"""Synthetic chest anatomy: random body parameters, and absorption maps of tissue, lungs, heart, bones and vessels."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastcxr.data.synthetic.canvas import Rng, View, bump, ellipse, smoothstep, stroke

Coordinates = tuple[np.ndarray, np.ndarray]  # x and y of each pixel in body units


@dataclass(frozen=True)
class Body:
    """Anatomy of one patient. Lengths in half film sizes; heights are y values, downwards from the film centre."""

    apex: float
    wall: float  # maximum distance of the chest wall from the midline
    dome: float  # height of the right diaphragm
    roundness: float  # of the outer lung border
    mediastinum: float
    heart: float
    rib_spacing: float
    rib_slope: float
    bone: float  # density
    fat: float  # thickness between ribs and skin
    shoulder: float
    breast: float
    gastric_bubble: float  # density of the air in the stomach, 0 for none
    arm_gap: float  # height of the gap between upper limb and trunk
    markings: float  # contrast of the vessels
    hilum: float
    key: int  # random key of the vessels and of findings


def make_body(key: int) -> Body:
    """Draw the anatomy of a patient from a random key."""
    rng = Rng(key, "body")
    is_female = rng.bernoulli(0.5)
    return Body(
        apex=rng.uniform(-0.70, -0.58),
        wall=rng.uniform(0.58, 0.76),
        dome=rng.uniform(0.30, 0.54),
        roundness=rng.uniform(2.1, 3.0),
        mediastinum=rng.uniform(0.09, 0.15),
        heart=rng.uniform(0.82, 1.25),
        rib_spacing=rng.uniform(0.130, 0.175),
        rib_slope=rng.uniform(0.35, 0.75),
        bone=rng.uniform(0.5, 1.2),
        fat=rng.uniform(0.10, 0.34),
        shoulder=rng.uniform(-0.82, -0.72),
        breast=rng.uniform(0.05, 0.20) if is_female else 0.0,
        gastric_bubble=rng.uniform(0.05, 0.14) if rng.bernoulli(0.55) else 0.0,
        arm_gap=rng.uniform(-0.7, 0.3),
        markings=rng.uniform(0.7, 1.3),
        hilum=rng.uniform(0.6, 1.4),
        key=key,
    )


@dataclass(frozen=True)
class Lung:
    """One lung on the film; all arrays have the shape of the film."""

    side: float  # -1: right lung (left side of the image), 1: left lung
    outward: np.ndarray  # distance from the midline towards this side
    down: np.ndarray
    depth: np.ndarray  # distance to the nearest lung border, negative outside
    rim: np.ndarray  # distance to the chest wall
    air: np.ndarray  # amount of air, 0 (outside) to about 1


def make_lung(coordinates: Coordinates, body: Body, side: float) -> Lung:
    """Compute the shape and air of the lung on one side."""
    outward, down = side * coordinates[0], coordinates[1]
    bottom = body.dome + (0.22 if side < 0 else 0.25)
    t = np.clip((bottom - down) / (bottom - body.apex), 0, 1)
    peak = 0.30
    lateral = peak + (body.wall - peak) * (1 - t**body.roundness) ** (1 / body.roundness)
    medial = body.mediastinum * 0.8 + (peak - body.mediastinum * 0.8) * t**7
    run = np.clip((outward - 0.22) / (body.wall - 0.22), -1, 1)
    dome = body.dome + (0.0 if side < 0 else 0.05) + 0.21 * np.where(run > 0, run * run, 0.25 * run * run)
    rim = lateral - outward
    depth = np.minimum(np.minimum(rim, outward - medial), np.minimum(dome - down, down - body.apex))
    air = smoothstep(depth - 0.012, 0.03) * (0.62 + 0.38 * smoothstep(depth - 0.10, 0.24))
    return Lung(side, outward, down, depth, rim, air)


def compute_skin_depth(coordinates: Coordinates, body: Body) -> np.ndarray:
    """Return the distance of each pixel from the skin in the frontal view, negative outside the body."""
    x, y = np.abs(coordinates[0]), coordinates[1]
    trunk = body.wall + body.fat + 0.06 * (y - 0.2)
    slope = np.clip((y - body.shoulder + 0.02) / 0.42, 0, 1)
    neck = 0.24 + 0.22 * np.clip((y - body.shoulder + 0.34) / 0.34, 0, 1) ** 2
    silhouette = neck + (trunk + 0.34 - neck) * (1 - (1 - slope) ** 2) ** 0.5
    gap = np.minimum(0.4 * (y + body.arm_gap), 0.10)  # negative where upper limb and trunk are not separate
    return np.maximum(np.minimum(silhouette, trunk) - x, np.minimum(silhouette - x, x - trunk - gap))


def draw_soft_tissue(coordinates: Coordinates, body: Body, skin: np.ndarray) -> np.ndarray:
    """Return the absorption of muscle, abdomen and breasts, less the gastric bubble."""
    y = coordinates[1]
    muscle = smoothstep(skin, 0.05) * (0.30 + 0.42 * (np.clip(skin, 0, 0.6) / 0.6) ** 0.7)
    abdomen = 0.22 * smoothstep(y - body.dome - 0.12, 0.6) * smoothstep(skin, 0.05)
    breast = sum(
        body.breast * ellipse(coordinates, (side * 0.42 + 0.01, body.dome - 0.04), (0.34, 0.30), 0.15 * side, 0.5)
        for side in (-1, 1)
    )
    bubble = body.gastric_bubble * 2.2 * ellipse(coordinates, (0.36, body.dome + 0.24), (0.20, 0.11), -0.2, 0.6)
    return muscle + abdomen + breast - bubble


def draw_mediastinum(coordinates: Coordinates, body: Body) -> tuple[np.ndarray, np.ndarray]:
    """Return the absorption of heart and great vessels, and the fraction of solid tissue (0 to 1)."""
    x, y = coordinates
    size, base = body.heart, body.dome
    heart = ellipse(coordinates, (0.13 * size, base - 0.12), (0.39 * size, 0.27 * size), 0.50, 0.10)
    atrium = ellipse(coordinates, (-0.08, base - 0.18), (0.16 * size, 0.26), 0.0, 0.16)
    width = body.mediastinum * (1 + 0.35 * smoothstep(-0.45 - y, 0.4) + 0.5 * smoothstep(y + 0.15, 0.5))
    vessels = smoothstep(width - np.abs(x - 0.012), 0.10) * smoothstep(y + 0.80, 0.5)
    aortic_knob = ellipse(coordinates, (0.10, -0.27), (0.11 * size, 0.12), 0.0, 0.3)
    trachea = bump(x + 0.015, 0.08) * smoothstep(-0.18 - y, 0.08)
    bronchi = sum(
        bump(y + 0.16 - 0.7 * np.abs(x), 0.05) * smoothstep(0.22 - side * x, 0.05) * (side * x > 0) for side in (-1, 1)
    )
    hilum = sum(
        ellipse(coordinates, (side * 0.18, -0.02 - 0.04 * side), (0.10, 0.17), -0.3 * side, 1.0) for side in (-1, 1)
    )
    solid = np.maximum(np.maximum(heart, atrium), np.maximum(vessels, aortic_knob))
    above_diaphragm = 1 - smoothstep(y - base - 0.02, 0.3)  # all tissue below the diaphragm is solid
    tissue = above_diaphragm * (0.15 * solid + 0.10 * vessels)
    return tissue - 0.15 * trachea - 0.06 * bronchi + 0.10 * body.hilum * hilum, solid


def draw_bones(coordinates: Coordinates, body: Body, lungs: list[Lung]) -> np.ndarray:
    """Return the absorption of ribs, spine and shoulders."""
    x, y = coordinates
    ribs = sum(_draw_ribs(lung, body) for lung in lungs)
    phase = y / (body.rib_spacing * 0.95)
    disc = np.abs(phase - np.round(phase))
    spine = smoothstep(0.08 - np.abs(x), 0.05) * (0.5 + 0.5 * smoothstep(disc - 0.12, 0.1))
    spine = spine + 0.25 * bump(np.abs(x) - 0.07, 0.04)
    shoulders = np.zeros_like(x)  # clavicles, scapulae and humeral heads
    for side in (-1, 1):
        u = side * x
        bar = np.abs(y - (body.shoulder + 0.24 - 0.22 * (u - 0.08) + 0.05 * np.sin(5.5 * (u - 0.1))))
        extent = smoothstep(u - 0.08, 0.05) * smoothstep(0.88 - u, 0.1)
        shoulders = shoulders + extent * (0.5 * smoothstep(0.036 - bar, 0.02) + 0.5 * bump(bar - 0.03, 0.018))
        scapula = 0.1 - np.abs(u - (body.wall + 0.02 + 0.22 * (-0.05 - y)))
        height = smoothstep(y + 0.6, 0.1), smoothstep(0.05 - y, 0.2)
        shoulders = shoulders + 0.35 * smoothstep(scapula, 0.05) * height[0] * height[1]
        shoulders = shoulders + 0.6 * ellipse((u, y), (body.wall + 0.34, body.shoulder + 0.16), (0.13, 0.14), 0.0, 0.1)
    return body.bone * (0.12 * ribs + 0.05 * spine + 0.14 * shoulders)


def _draw_ribs(lung: Lung, body: Body) -> np.ndarray:
    u, y, spacing = lung.outward, lung.down, body.rib_spacing
    cage = smoothstep(lung.rim + 0.05, 0.03) * smoothstep(u - 0.05, 0.05) * smoothstep(y - body.apex + 0.02, 0.1)
    back = _draw_stripes((y - body.rib_slope * 0.9 * (u - 0.28) ** 2 + 0.05 * u) / spacing, 0.21)
    front = _draw_stripes((y - body.rib_slope * 0.9 * u + 0.4) / (spacing * 1.2), 0.23)
    front = front * smoothstep(u - 0.38, 0.25) * smoothstep(y + 0.45, 0.1) * smoothstep(body.dome + 0.1 - y, 0.1)
    edge = bump(lung.rim + 0.015, 0.03)
    return cage * (back * (0.2 + 0.8 * smoothstep(body.dome + 0.15 - y, 0.4)) + 0.55 * front) + 0.5 * edge * cage


def _draw_stripes(phase: np.ndarray, half: float) -> np.ndarray:
    distance = np.abs(phase - np.round(phase))
    return 0.55 * smoothstep(half - distance, 0.08) + 0.55 * bump(distance - half + 0.03, 0.06)


def draw_vessels(body: Body, view: View) -> np.ndarray:
    """Return the vessels of both lungs (0 to 1), which branch from the hilum; they may extend outside the lungs."""
    canvas = np.zeros((view.height, view.width))
    for side in (-1.0, 1.0):
        rng = Rng(body.key, "vessels", int(side > 0))
        for root in range(6):
            segment = VesselSegment(0.15, -0.03 + 0.03 * root, -1.25 + 0.5 * root, rng.uniform(0.17, 0.27), 0.016, 3)
            draw_branches(canvas, view, rng, segment, side)
    return canvas


class VesselSegment(NamedTuple):
    """Start, direction and size of one branch of a vessel or bronchus, and its number of further forks."""

    outward: float
    down: float
    angle: float
    length: float
    width: float
    forks: int


def draw_branches(canvas: np.ndarray, view: View, rng: Rng, segment: VesselSegment, side: float) -> None:
    """Draw a segment and, recursively, its forks onto the canvas."""
    angle, bend = segment.angle + rng.uniform(-0.2, 0.2), rng.uniform(-0.45, 0.45)
    steps = np.array([0.0, 0.5, 1.0]) if segment.forks else np.array([0.0, 1.0])
    outward = segment.outward + segment.length * steps * np.cos(angle + bend * steps)
    down = segment.down + segment.length * steps * np.sin(angle + bend * steps)
    widths = np.maximum(segment.width * view.unit * (1 - 0.3 * steps), 0.42)
    stroke(canvas, view.to_pixels(np.stack([side * outward, down], axis=1)), widths, 0.30 + 0.2 * segment.forks)
    for fork in (-1, 1) if segment.forks else ():
        turn = angle + bend + fork * rng.uniform(0.12, 0.55)
        length = segment.length * rng.uniform(0.55, 0.85)
        child = VesselSegment(outward[-1], down[-1], turn, length, segment.width * 0.62, segment.forks - 1)
        draw_branches(canvas, view, rng, child, side)
