"""From drops and subgroups in numbers to the rows that the page lays out, in words."""

from typing import Any

from fastcxr.evaluation.drops import RANK
from fastcxr.evaluation.subgroups import LEAST
from fastcxr.evaluation.words import reach, score

Cell = tuple[str, str]  # a figure, and its interval or what else stands below it
SHOWN = 5  # classes whose sensitivity has a column of its own


def drop_rows(drops: dict[str, dict[str, Any]], labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """For each that was held out: its name, and a row a figure with what it is inside, outside, and less outside."""
    return [{"name": name, "rows": _figures(drop["figures"], labels)} for name, drop in drops.items()]


def _figures(figures: dict[str, dict[str, Any]], labels: tuple[str, ...]) -> list[dict[str, Any]]:
    named = {RANK: "AUROC, macro", "balanced_accuracy": "Balanced accuracy", "accuracy": "Accuracy"}
    for label in labels:
        named |= {f"per_class.{label}.{part}": f"{label}: {part}" for part in ("sensitivity", "specificity")}
        named[f"auroc.per_class.{label}"] = f"{label}: AUROC"
    return [
        {
            "name": name,
            "internal": in_words(figures[key]["internal"]),
            "external": in_words(figures[key]["external"]),
            "drop": signed(figures[key]["drop"]),
        }
        for key, name in named.items()
        if key in figures
    ]


def subgroup_rows(subgroups: dict[str, dict[str, Any]], labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """For each trait: its name, the headings of its figures, and a row a group."""
    classes = labels if len(labels) <= SHOWN else ()
    heads = [("AUROC,", "macro"), ("Sensitivity,", "mean"), *(("Sensitivity,", label) for label in classes)]
    return [
        {"name": trait, "heads": heads, "rows": [_group(name, row, classes) for name, row in groups.items()]}
        for trait, groups in subgroups.items()
    ]


def _group(name: str, row: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    base = {"name": name, "images": row["n_images"], "patients": row["n_patients"]}
    if "support" not in row:
        return base | {"cells": [], "why": f"fewer than {LEAST} patients: not measured"}
    present = sum(n > 0 for n in row["support"].values())
    cells = [in_words(row["auroc"], score), in_words(row["balanced_accuracy"], score)]
    if present < len(row["support"]):  # a mean of fewer classes is another figure
        cells = [(*cell, f"{present} of {len(row['support'])} classes") for cell in cells]
    return base | {"cells": [*cells, *(in_words(row["sensitivity"][label], score) for label in classes)], "why": ""}


def in_words(figure: list[float | None] | None, words=score) -> Cell:
    """A figure, and its interval or nothing."""
    if figure is None:
        return words(None), ""
    if figure[1] is None:
        return words(figure[0]), ""
    return words(figure[0]), reach({"intervals": {"of": {"it": figure[1:]}}}, "it", words)


def signed(figure: list[float | None]) -> Cell:
    """A difference with its sign, and its interval."""
    value, low, high = figure
    return f"{value:+.3f}", "" if low is None else f"{low:+.3f} to {high:+.3f}"
