"""Finished runs become a leaderboard with paired tests: compare.json, and one page with the curves over each other."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastcxr.errors import InputMissingError
from fastcxr.evaluation import figures
from fastcxr.evaluation.comparison import TESTED, Comparison, compare_models
from fastcxr.evaluation.drawing import Plate, make_plate
from fastcxr.evaluation.page import render, write_page
from fastcxr.evaluation.predictions import Predictions, read_predictions
from fastcxr.evaluation.words import listed, loss, reach, score, share
from fastcxr.folder import claim
from fastcxr.storage import write_whole

WORDS = {"auroc": score, "accuracy": share}


def compare(runs: Sequence[str | Path], folder: str | Path) -> Path:
    """Compare finished runs, their pooled folds where they have some, into a new `folder`; returns its page.

    Raises InputMissingError for fewer than two runs, DataError for runs that cannot be compared.
    """
    places = [Path(run) for run in runs]
    if len(places) < 2:
        raise InputMissingError(f"{len(places)} run to compare", "Name at least two run folders")
    if len({place.resolve() for place in places}) < len(places):
        raise InputMissingError("the same run twice", "Name each run folder once")
    named = dict(zip(_names(places), places, strict=True))
    found = compare_models({name: read_predictions(place / "predictions.csv") for name, place in named.items()})
    folder = Path(folder)
    claim(folder)
    facts = {"rows": found.rows, "shared": found.shared, "patients": found.patients}
    write_whole(folder / "compare.json", json.dumps(facts, indent=2) + "\n")
    plates = _curves(found) if found.shared else {}
    context = facts | {"models": rows_in_words(found.rows), "curves": list(plates), "stamps": [], "notices": []}
    return write_page(folder / "compare.html", render("compare.html.jinja", context, plates), plates)


def _names(places: Sequence[Path]) -> list[str]:
    """As much of each path as tells the runs apart."""
    for depth in range(1, max(len(place.resolve().parts) for place in places) + 1):
        names = ["/".join(place.resolve().parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            break
    return names


def rows_in_words(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The leaderboard as it is read: for each model its figures, how far it is behind, and p."""
    return [
        {"name": row["name"], "images": f"{row['images']:,}", "figures": [_in_words(row, key) for key in TESTED]}
        for row in rows
    ]


def _in_words(row: dict[str, Any], key: str) -> dict[str, Any]:
    words, figure, behind, p = WORDS[key], row[key], row.get(f"{key}_behind"), row.get(f"{key}_p")
    edges = {"intervals": {"of": {"it": figure[1:]}}} if figure and figure[1] is not None else None
    steps = [f"{100 * step:.1f}" if words is share else loss(step) for step in behind or ()]
    return {
        "value": words(figure[0]) if figure else words(None),
        "reach": reach(edges, "it", words),
        "behind": steps[0] + (" points" if words is share else "") if steps else "",
        "behind_reach": " to ".join(steps[1:]),
        "p": "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
        "tie": row.get(f"{key}_tie", False),
    }


def _curves(found: Comparison) -> dict[str, Plate]:
    parts = {row["name"]: found.parts[row["name"]] for row in found.rows}
    plates = {}
    for number, label in enumerate(sorted(next(iter(parts.values())).labels), 1):
        lines = {name: _one_against_rest(part, label) for name, part in parts.items()}
        truth = next(iter(lines.values()))[0]
        if truth.any() and not truth.all():
            name, description = f"roc_{number}", f"ROC curves of {listed(list(lines))} for {label}."
            plates[name] = make_plate(partial(figures.roc_of_models, lines, label), name, description)
    return plates


def _one_against_rest(part: Predictions, label: str) -> tuple[np.ndarray, np.ndarray]:
    k = part.labels.index(label)
    return part.truth == k, part.probability[:, k]
