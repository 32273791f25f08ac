"""One heat map and what is said of it; many of them, as a table, or as a notebook shows them."""

import base64
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fastcxr.inference.overlay import pair_jpeg
from fastcxr.inference.randomisation import Check
from fastcxr.markup import escape

BORDER = 0.15  # of each side of the square; what is left of it is the central field
BRIGHTEST = 99.5  # percentile that is shown as full heat: a hot pixel at an edge would leave all others dark
SHOWN, SIZE = 12, 224  # in a notebook


@dataclass(frozen=True, kw_only=True, eq=False)
class Heat:
    """What speaks for one class (`label`) in one image.

    square: the image as the model saw it, gray bytes, shape (size, size). heat: what each place adds to the class's
    logit, nowhere less than zero, the same shape. withheld: why the map is not to be shown; error: why the image could
    not be read. All but the names are empty where there is an error.
    """

    source: str
    path: str
    predicted: str = ""
    label: str = ""
    probability: float = float("nan")
    square: np.ndarray | None = None
    heat: np.ndarray | None = None
    withheld: str = ""
    error: str = ""

    @property
    def shown(self) -> np.ndarray | None:
        """The map from 0 to 1; None where it is withheld or says nothing."""
        if self.heat is None or self.withheld or not self.heat.any():
            return None
        top = np.percentile(self.heat, BRIGHTEST) or self.heat.max()
        return np.clip(self.heat / top, 0, 1)

    @property
    def outside(self) -> float:
        """The share of the heat in the outer border of the square, padding included; nan without a map to show."""
        return float("nan") if self.shown is None else share_outside(self.heat)

    @property
    def note(self) -> str:
        """Why there is no map; empty where there is one."""
        nothing = "" if self.heat is None or self.heat.any() else "nothing in the image speaks for this class"
        return self.error or self.withheld or nothing

    def row(self) -> dict[str, str | float]:
        """One row of explain.csv."""
        return {
            "source": self.source, "path": self.path, "predicted": self.predicted, "class": self.label,
            "probability": self.probability, "outside": self.outside, "note": self.note, "error": self.error,
        }  # fmt: skip


def share_outside(heat: np.ndarray) -> float:
    """The share of a map, shape (size, size), that lies in the outer 15 % on each side; .51 for an even one."""
    edge = round(BORDER * heat.shape[0])
    return float(1 - heat[edge:-edge, edge:-edge].sum(dtype=float) / heat.sum(dtype=float))


@dataclass(frozen=True, eq=False)
class Explanations:
    """Heat maps in the order of the images, and the check that they went through."""

    heats: tuple[Heat, ...]
    check: Check | None

    @property
    def table(self) -> pd.DataFrame:
        """A row a map: source, path, predicted, class, probability, outside, note, error."""
        return pd.DataFrame([heat.row() for heat in self.heats])

    def _repr_html_(self) -> str:
        cards = "".join(map(_draw_card, self.heats[:SHOWN]))
        rest = f"<p>{len(self.heats) - SHOWN:,} more in .heats</p>" if len(self.heats) > SHOWN else ""
        words = escape(self.check.words) if self.check else ""
        return f'<div style="display:flex;flex-wrap:wrap;gap:14px">{cards}</div>{rest}<p>{words}</p>'


def _draw_card(heat: Heat) -> str:
    words = f"{heat.path}: {heat.label} {heat.probability:.3f}" if heat.label else heat.path
    picture = ""
    if heat.shown is not None:
        data = base64.b64encode(pair_jpeg(heat.square, heat.shown, SIZE)).decode()
        picture = f'<img src="data:image/jpeg;base64,{data}" width="{2 * SIZE}" alt="">'
    note = f"<br><b>{escape(heat.note)}</b>" if heat.note else ""
    return f'<figure style="margin:0">{picture}<figcaption>{escape(words)}{note}</figcaption></figure>'
