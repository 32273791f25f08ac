"""Several models on the same images: who is better, by how much, and whether that is more than luck."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from fastcxr.errors import DataError
from fastcxr.metrics.bootstrap import redraw
from fastcxr.metrics.classification import measure
from fastcxr.metrics.intervals import SEED, find_intervals
from fastcxr.metrics.predictions import Predictions

TESTED = {"auroc": "auroc.macro", "accuracy": "accuracy"}  # a leaderboard's figures, the first of which ranks
LUCK = 0.05
KEY = ["source", "path"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`rows`: one a model, the best first. `shared`: images that all were scored on, 0 where there are none.

    A row has name, images, patients, and for each figure of TESTED [value, low, high]; on shared images also how far
    it is behind the best, as `auroc_behind` [difference, low, high], `auroc_p` (Holm) and `auroc_tie`.
    """

    rows: list[dict[str, Any]]
    shared: int
    patients: int
    parts: dict[str, Predictions]  # what was compared, by name


def compare_models(models: Mapping[str, Predictions]) -> Comparison:
    """Compare models by what each said about the images of its headline split.

    Images are known by source and path. On those that all models scored differences are tested, patients drawn with
    replacement; where no image is shared there is nothing to test. Raises DataError for models of different classes,
    or an image with two labels.
    """
    parts = {name: model.part(model.headline_split).scored() for name, model in models.items()}
    _check_classes(parts)
    common = _find_common(parts)
    if len(common):
        parts = {name: _take(part, common) for name, part in parts.items()}
        _check_labels(parts)
    whose = {name: part.table["patient"].to_numpy() for name, part in parts.items()}
    first = next(iter(whose.values()))  # on shared images one word on who is who, for all
    rows = [_row(name, part, first if len(common) else whose[name]) for name, part in parts.items()]
    rows.sort(key=lambda row: -(row["auroc"][0] if row["auroc"] else -1))
    if len(common):
        _test(rows, parts, first)
    return Comparison(rows=rows, shared=len(common), patients=len(set(first)) if len(common) else 0, parts=parts)


def _check_classes(parts: Mapping[str, Predictions]) -> None:
    (first, known), *others = [(name, set(part.labels)) for name, part in parts.items()]
    for name, labels in others:
        if labels != known:
            what = f"{first} has the classes {', '.join(sorted(known))}, {name} {', '.join(sorted(labels))}"
            raise DataError(what, "Compare models of the same classes", code="E302")


def _find_common(parts: Mapping[str, Predictions]) -> pd.MultiIndex:
    keys = [pd.MultiIndex.from_frame(part.table[KEY]) for part in parts.values()]
    common = keys[0]
    for key in keys[1:]:
        common = common.intersection(key)
    return common.sort_values()


def _take(part: Predictions, common: pd.MultiIndex) -> Predictions:
    table = part.table.set_index(KEY, drop=False).loc[common].reset_index(drop=True)
    return Predictions(table, part.labels)


def _check_labels(parts: Mapping[str, Predictions]) -> None:
    (first, known), *others = [(name, part.table) for name, part in parts.items()]
    for name, table in others:
        differing = known["label"] != table["label"]
        if differing.any():
            path = known.loc[differing, "path"].iloc[0]
            what = f"{first} and {name} give {int(differing.sum()):,} images different labels, as {path}"
            raise DataError(what, "Train and test both on the same labels", code="E302")


def _aligned(part: Predictions, labels: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Truth and probabilities in one order of the classes."""
    ordered = Predictions(part.table, labels)
    return ordered.truth, ordered.probability


def _row(name: str, part: Predictions, patients: np.ndarray) -> dict[str, Any]:
    labels = tuple(sorted(part.labels))
    truth, probability = _aligned(part, labels)
    figures = measure(truth, probability, labels)
    intervals = find_intervals(truth, probability, labels, patients, figures)["of"]
    values = {"auroc": figures["auroc"]["macro"], "accuracy": figures["accuracy"]}
    shown = {
        key: None if value is None else [value, *intervals.get(TESTED[key], (None, None))]
        for key, value in values.items()
    }
    return {"name": name, "images": len(truth), "patients": len(set(patients)), **shown}


def _test(rows: list[dict[str, Any]], parts: Mapping[str, Predictions], patients: np.ndarray) -> None:
    """Every model against the best one, in the same draws of patients; Holm's p is that of all pairs of models."""
    draws = {}
    for row in rows:
        labels = tuple(sorted(parts[row["name"]].labels))
        draws[row["name"]] = redraw(*_aligned(parts[row["name"]], labels), labels, patients, SEED)
    pairs = list(combinations(rows, 2))  # first those of the best one
    for key, name in TESTED.items():
        found = [_differ(one, other, key, draws, name) for one, other in pairs]
        # which one is the best was looked up before it was compared: every pair counts as tried
        raised = holm([p for _, p in found])
        for row, (behind, _), p in zip(rows[1:], found, raised, strict=False):
            row |= {f"{key}_behind": behind, f"{key}_p": p, f"{key}_tie": bool(p >= LUCK)}


def _differ(best: dict[str, Any], row: dict[str, Any], key: str, draws: dict, name: str) -> tuple[list[float], float]:
    """How far a figure is behind, with its 95 % interval, and how likely so large a difference is by luck.

    Draws of n patients spread a little less than patients do, and how much they spread is itself an estimate: hence
    n / (n - 1) and Student's distribution (Cameron and Miller 2015, for clusters). Without them equal models of few
    patients are told apart too often.
    """
    difference = best[key][0] - row[key][0] if best[key] and row[key] else 0.0
    spread = draws[best["name"]][name] - draws[row["name"]][name]
    spread = spread[np.isfinite(spread)]
    error = float(spread.std(ddof=1)) if len(spread) > 1 else 0.0
    if not error:  # as of one patient alone
        return [difference, difference, difference], float(difference == 0)
    n = row["patients"]
    error *= (n / (n - 1)) ** 0.5
    reach = float(student.ppf(0.975, n - 1)) * error
    return [difference, difference - reach, difference + reach], float(2 * student.sf(abs(difference) / error, n - 1))


def holm(values: list[float]) -> list[float]:
    """Values of p for several questions at once (Holm 1979)."""
    order = np.argsort(values)
    raised = np.array(values)[order] * np.arange(len(values), 0, -1)
    held = np.minimum(np.maximum.accumulate(raised), 1.0)
    return held[np.argsort(order)].tolist()
