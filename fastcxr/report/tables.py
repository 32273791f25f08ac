"""From a run's record and its numbers to the rows that the page lays out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.io.formatting import count, listed, loss, reach, score, share
from fastcxr.metrics.comparison import TESTED
from fastcxr.metrics.external import RANK
from fastcxr.metrics.predictions import PREFIX, most_wrong
from fastcxr.metrics.subgroups import LEAST
from fastcxr.report.run_reader import Maps, RunRecord

WORDS = {"auroc": score, "accuracy": share}
EVEN = 1 - 0.7**2  # the area outside the central field: heat that says nothing of any place
OUTSIDE = 0.5  # median share of the heat in the border from which on a class is warned of
FIGURES = ("sensitivity", "specificity", "precision", "f1")
Cell = tuple[str, str]  # a figure, and its interval or what else stands below it
SHOWN = 5  # classes whose sensitivity has a column of its own


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


def attention_rows(maps: Maps) -> list[dict[str, Any]]:
    """For each predicted class the median share of heat in the border, of how many images, and if it is too much."""
    return [
        {
            "label": label,
            "share": share(found["median"]),
            "images": count(found["images"], "image"),
            "is_far": found["median"] > OUTSIDE,
        }
        for label, found in (maps.facts.get("outside") or {}).items()
    ]


def check_words(maps: Maps) -> str:
    """What the check found, in a sentence or two; empty where none was made."""
    check = maps.facts.get("check")
    if not check:
        return ""
    steps = listed([f"{value:.2f}" for value in check["correlation"]])
    return (
        f"The weights were drawn anew from the head down, one layer group more at each step, and the maps of "
        f"{count(check['images'], 'image')} drawn again: their rank correlation with the original maps was {steps}."
    )


def map_cards(maps: Maps, role: str = "") -> list[dict[str, Any]]:
    """The maps of one role, each with its picture or the reason why there is none."""
    rows = maps.table[maps.table["role"] == role]
    probability, outside = pd.to_numeric(rows["probability"]), pd.to_numeric(rows["outside"])
    return [
        row | {"probability": given, "outside": share(far)}
        for row, given, far in zip(rows.to_dict("records"), probability, outside, strict=True)
    ]


def class_rows(part: dict[str, Any]) -> list[dict[str, Any]]:
    """The classification report: a row a class, then their mean and their mean weighted by support."""
    rows = []
    for k, label in enumerate(part["labels"]):
        ranks = {"auroc": part["auroc"]["per_class"][label], "ap": part["average_precision"]["per_class"][label]}
        rows.append({"name": label, "number": k, "reach": _reaches(part, label)} | part["per_class"][label] | ranks)
    support = sum(row["support"] for row in rows)
    names = (*FIGURES, "auroc", "ap")
    mean = {name: _weighted(rows, name, lambda row: 1) for name in names}
    weighted = {name: _weighted(rows, name, lambda row: row["support"]) for name in names}
    means = {"sensitivity": "balanced_accuracy", "auroc": "auroc.macro", "ap": "average_precision.macro"}
    reaches = {name: reach(part, dotted, score) for name, dotted in means.items()}
    return [
        *rows,
        {"name": "Mean of the classes", "number": None, "support": support, "reach": reaches} | mean,
        {"name": "Mean weighted by images", "number": None, "support": support, "reach": {}} | weighted,
    ]


def _reaches(part: dict[str, Any], label: str) -> dict[str, str]:
    """The interval of each figure of a class, in words."""
    names = {name: f"per_class.{label}.{name}" for name in FIGURES}
    names |= {"auroc": f"auroc.per_class.{label}", "ap": f"average_precision.per_class.{label}"}
    return {name: reach(part, dotted, score) for name, dotted in names.items()}


def calibration_rows(part: dict[str, Any]) -> list[dict[str, str]]:
    """Name, figure, what to compare it with, and the figure before the temperature, in words; no row for nothing."""
    found, before = part["calibration"], part.get("uncalibrated")
    names = {"log_loss": "Log-loss", "brier": "Brier score (0 to 2)", "ece": "Calibration error (ECE)"}
    beside = {name: reach(part, f"calibration.{name}", loss) for name in ("log_loss", "brier")}
    beside["ece"] = f"up to {loss(found['ece_chance'])} by chance alone" if found["ece_chance"] is not None else ""
    return [
        {"name": name, "figure": loss(found[key]), "beside": beside[key], "before": loss(before[key]) if before else ""}
        for key, name in names.items()
        if found[key] is not None
    ]


def line_rows(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Slope and intercept of each class, [value, low, high] each, in words."""
    return [
        {"name": label, "number": k}
        | {name: [loss(value) for value in line[name]] if line else None for name in ("slope", "intercept")}
        for k, label in enumerate(part["labels"])
        if (line := part["calibration"]["per_class"].get(label)) or part["n_images"]
    ]


def threshold_rows(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Each class's threshold, what it was chosen for, and what it does on this split, in words."""
    rows = (part.get("decisions") or {}).get("per_class", {})
    return [
        {
            "name": label,
            "number": part["labels"].index(label),
            "threshold": score(row["threshold"]),
            "wanted": listed([f"{name} {share(value)}" for name, value in row["wanted"].items()]),
            "positives": row["positives"],
            "unstable": row["unstable"],
            "prevalence": share(row["prevalence"]) if "prevalence" in row else "",
        }
        | {name: _with_reach(row.get(name)) for name in ("sensitivity", "specificity", "ppv", "npv")}
        for label, row in rows.items()
    ]


def _with_reach(figure: list[float] | None) -> tuple[str, str]:
    """A share and its interval, in words."""
    if figure is None or None in figure:
        return share(figure and figure[0]), ""
    part = {"intervals": {"of": {"it": figure[1:]}}}
    return share(figure[0]), reach(part, "it", share)


def mixup_rows(part: dict[str, Any], most: int = 5) -> list[dict[str, Any]]:
    """The cells of the confusion matrix beside its diagonal, the largest share of their row first."""
    labels, matrix = part["labels"], part["confusion_matrix"]
    cells = [(i, k, n, sum(row)) for i, row in enumerate(matrix) for k, n in enumerate(row) if n and i != k]
    cells.sort(key=lambda cell: (-cell[2] / cell[3], -cell[2]))
    return [{"truth": labels[i], "guess": labels[k], "n": n, "of": of, "share": n / of} for i, k, n, of in cells[:most]]


def _weighted(rows: list[dict[str, Any]], name: str, weight) -> float | None:
    known = [(row[name], weight(row)) for row in rows if row[name] is not None and weight(row)]
    values, weights = zip(*known, strict=True) if known else ((), ())
    return float(np.average(values, weights=weights)) if known else None


def reason_rows(part: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Each reason once, with the figures that it explains; two classes need no excuse for top-2."""
    grouped: dict[str, list[str]] = {}
    for name, why in part["reasons"].items():
        if name != "top2_accuracy" or len(part["labels"]) > 2:
            grouped.setdefault(why, []).append(name)
    return list(grouped.items())


def wrong_cards(record: RunRecord, without_thumbnails: int = 8) -> list[dict[str, Any]]:
    """The most wrong images, each with its thumbnail (or none) and what the model gave to truth and guess."""
    images = record.images[record.images["role"] == "wrong"]
    drawn = record.maps.table[record.maps.table["role"] == "wrong"]
    uris, maps = ({(row.source, row.path): row.uri for row in table.itertuples()} for table in (images, drawn))
    rows = most_wrong(record.predictions, len(images) or without_thumbnails)
    return [
        _card(row, record.predictions.labels, uris) | {"map": maps.get((row["source"], row["path"]), "")}
        for row in rows.to_dict("records")
    ]


def _card(row: dict[str, Any], labels: tuple[str, ...], uris: dict[tuple[str, str], str]) -> dict[str, Any]:
    given = sorted(((row[PREFIX + label], k) for k, label in enumerate(labels)), key=lambda item: (-item[0], item[1]))
    guess = labels[given[0][1]]
    # a long list of classes is cut to the four that matter, the truth always among them
    shown = (
        [item for i, item in enumerate(given) if i < 3 or labels[item[1]] == row["label"]][:4]
        if len(given) > 4
        else given
    )
    bars = [{"label": labels[k], "number": k, "probability": p, "truth": labels[k] == row["label"]} for p, k in shown]
    uri = uris.get((row["source"], row["path"]), "")
    return {
        "path": row["path"],
        "patient": row["patient"],
        "truth": row["label"],
        "guess": guess,
        "bars": bars,
        "uri": uri,
    }


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
