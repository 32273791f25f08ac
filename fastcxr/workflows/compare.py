"""Finished runs become a leaderboard with paired tests: compare.json, and one page with the curves over each other."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fastcxr.errors import InputMissingError
from fastcxr.io.files import write_whole
from fastcxr.io.formatting import listed
from fastcxr.metrics.comparison import Comparison, compare_models
from fastcxr.metrics.predictions import Predictions, read_predictions
from fastcxr.report import figures
from fastcxr.report.html import render, write_page
from fastcxr.report.style import Plate, make_plate
from fastcxr.report.tables import rows_in_words
from fastcxr.workflows.run_dir import claim


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
