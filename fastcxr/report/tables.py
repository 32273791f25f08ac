"""From a run's record and its numbers to the rows that the page lays out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.io.formatting import format_interval, format_number, format_percent, format_score, join_names, pluralize
from fastcxr.metrics.comparison import TESTED_METRICS
from fastcxr.metrics.external import MACRO_AUROC
from fastcxr.metrics.predictions import PROBABILITY_PREFIX, select_most_wrong
from fastcxr.metrics.subgroups import MIN_GROUP_PATIENTS
from fastcxr.report.run_reader import RunRecord, SaliencyMaps

METRIC_FORMATTERS = {"auroc": format_score, "accuracy": format_percent}
UNIFORM_BORDER_SHARE = 1 - 0.7**2  # the area outside the central field: heat that says nothing of any place
MAX_BORDER_SHARE = 0.5  # median share of the heat in the border from which on a class is warned of
CLASS_METRICS = ("sensitivity", "specificity", "precision", "f1")
Cell = tuple[str, str]  # a figure, and its interval or what else stands below it
MAX_CLASS_COLUMNS = 5  # classes whose sensitivity has a column of its own


def format_leaderboard(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The leaderboard as it is read: for each model its figures, how far it is behind, and p."""
    return [
        {
            "name": row["name"],
            "images": f"{row['images']:,}",
            "metrics": [_format_leaderboard_cell(row, key) for key in TESTED_METRICS],
        }
        for row in rows
    ]


def _format_leaderboard_cell(row: dict[str, Any], key: str) -> dict[str, Any]:
    formatter, estimate, difference, p = (
        METRIC_FORMATTERS[key],
        row[key],
        row.get(f"{key}_difference"),
        row.get(f"{key}_p"),
    )
    interval_metrics = {"intervals": {"of": {"it": estimate[1:]}}} if estimate and estimate[1] is not None else None
    difference_texts = [
        f"{100 * step:.1f}" if formatter is format_percent else format_number(step) for step in difference or ()
    ]
    return {
        "value": formatter(estimate[0]) if estimate else formatter(None),
        "interval": format_interval(interval_metrics, "it", formatter),
        "behind": difference_texts[0] + (" points" if formatter is format_percent else "") if difference_texts else "",
        "behind_interval": " to ".join(difference_texts[1:]),
        "p": "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
        "tie": row.get(f"{key}_tie", False),
    }


def make_border_share_rows(maps: SaliencyMaps) -> list[dict[str, Any]]:
    """For each predicted class the median share of heat in the border, of how many images, and if it is too much."""
    return [
        {
            "label": label,
            "share": format_percent(found["median"]),
            "images": pluralize(found["images"], "image"),
            "is_far": found["median"] > MAX_BORDER_SHARE,
        }
        for label, found in (maps.metadata.get("border_share") or {}).items()
    ]


def describe_sanity_check(maps: SaliencyMaps) -> str:
    """What the check found, in a sentence or two; empty where none was made."""
    check = maps.metadata.get("check")
    if not check:
        return ""
    correlations = join_names([f"{value:.2f}" for value in check["correlation"]])
    return (
        f"The weights were drawn anew from the head down, one layer group more at each step, and the maps of "
        f"{pluralize(check['images'], 'image')} drawn again: their rank correlation with the original maps was "
        f"{correlations}."
    )


def make_saliency_cards(maps: SaliencyMaps, role: str = "") -> list[dict[str, Any]]:
    """The maps of one role, each with its picture or the reason why there is none."""
    rows = maps.table[maps.table["role"] == role]
    probability, border_share = pd.to_numeric(rows["probability"]), pd.to_numeric(rows["border_share"])
    return [
        row | {"probability": given, "border_share": format_percent(far)}
        for row, given, far in zip(rows.to_dict("records"), probability, border_share, strict=True)
    ]


def make_class_rows(split_metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The classification report: a row a class, then their mean and their mean weighted by support."""
    rows = []
    for k, label in enumerate(split_metrics["labels"]):
        ranking_metrics = {
            "auroc": split_metrics["auroc"]["per_class"][label],
            "ap": split_metrics["average_precision"]["per_class"][label],
        }
        rows.append(
            {"name": label, "number": k, "interval": _format_class_intervals(split_metrics, label)}
            | split_metrics["per_class"][label]
            | ranking_metrics
        )
    support = sum(row["support"] for row in rows)
    names = (*CLASS_METRICS, "auroc", "ap")
    mean = {name: _compute_weighted_mean(rows, name, lambda row: 1) for name in names}
    weighted = {name: _compute_weighted_mean(rows, name, lambda row: row["support"]) for name in names}
    mean_keys = {"sensitivity": "balanced_accuracy", "auroc": "auroc.macro", "ap": "average_precision.macro"}
    intervals = {name: format_interval(split_metrics, dotted, format_score) for name, dotted in mean_keys.items()}
    return [
        *rows,
        {"name": "Mean of the classes", "number": None, "support": support, "interval": intervals} | mean,
        {"name": "Mean weighted by images", "number": None, "support": support, "interval": {}} | weighted,
    ]


def _format_class_intervals(split_metrics: dict[str, Any], label: str) -> dict[str, str]:
    """The interval of each figure of a class, in words."""
    names = {name: f"per_class.{label}.{name}" for name in CLASS_METRICS}
    names |= {"auroc": f"auroc.per_class.{label}", "ap": f"average_precision.per_class.{label}"}
    return {name: format_interval(split_metrics, dotted, format_score) for name, dotted in names.items()}


def make_calibration_rows(split_metrics: dict[str, Any]) -> list[dict[str, str]]:
    """Name, figure, what to compare it with, and the figure before the temperature, in words; no row for nothing."""
    calibration, uncalibrated = split_metrics["calibration"], split_metrics.get("uncalibrated")
    names = {"log_loss": "Log-loss", "brier": "Brier score (0 to 2)", "ece": "Calibration error (ECE)"}
    references = {
        name: format_interval(split_metrics, f"calibration.{name}", format_number) for name in ("log_loss", "brier")
    }
    references["ece"] = (
        f"up to {format_number(calibration['ece_chance'])} by chance alone"
        if calibration["ece_chance"] is not None
        else ""
    )
    return [
        {
            "name": name,
            "figure": format_number(calibration[key]),
            "reference": references[key],
            "before": format_number(uncalibrated[key]) if uncalibrated else "",
        }
        for key, name in names.items()
        if calibration[key] is not None
    ]


def make_calibration_line_rows(split_metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Slope and intercept of each class, [value, low, high] each, in words."""
    return [
        {"name": label, "number": k}
        | {name: [format_number(value) for value in line[name]] if line else None for name in ("slope", "intercept")}
        for k, label in enumerate(split_metrics["labels"])
        if (line := split_metrics["calibration"]["per_class"].get(label)) or split_metrics["n_images"]
    ]


def make_threshold_rows(split_metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Each class's threshold, what it was chosen for, and what it does on this split, in words."""
    rows = (split_metrics.get("thresholds") or {}).get("per_class", {})
    return [
        {
            "name": label,
            "number": split_metrics["labels"].index(label),
            "threshold": format_score(row["threshold"]),
            "wanted": join_names([f"{name} {format_percent(value)}" for name, value in row["wanted"].items()]),
            "positives": row["positives"],
            "unstable": row["unstable"],
            "prevalence": format_percent(row["prevalence"]) if "prevalence" in row else "",
        }
        | {name: _format_proportion(row.get(name)) for name in ("sensitivity", "specificity", "ppv", "npv")}
        for label, row in rows.items()
    ]


def _format_proportion(estimate: list[float] | None) -> tuple[str, str]:
    """A share and its interval, in words."""
    if estimate is None or None in estimate:
        return format_percent(estimate and estimate[0]), ""
    split_metrics = {"intervals": {"of": {"it": estimate[1:]}}}
    return format_percent(estimate[0]), format_interval(split_metrics, "it", format_percent)


def make_confusion_rows(split_metrics: dict[str, Any], max_rows: int = 5) -> list[dict[str, Any]]:
    """The cells of the confusion matrix beside its diagonal, the largest share of their row first."""
    labels, matrix = split_metrics["labels"], split_metrics["confusion_matrix"]
    cells = [(i, k, n, sum(row)) for i, row in enumerate(matrix) for k, n in enumerate(row) if n and i != k]
    cells.sort(key=lambda cell: (-cell[2] / cell[3], -cell[2]))
    return [
        {"truth": labels[i], "guess": labels[k], "n": n, "of": of, "share": n / of} for i, k, n, of in cells[:max_rows]
    ]


def _compute_weighted_mean(rows: list[dict[str, Any]], name: str, find_weight) -> float | None:
    known_pairs = [(row[name], find_weight(row)) for row in rows if row[name] is not None and find_weight(row)]
    values, weights = zip(*known_pairs, strict=True) if known_pairs else ((), ())
    return float(np.average(values, weights=weights)) if known_pairs else None


def make_reason_rows(split_metrics: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Each reason once, with the figures that it explains; two classes need no excuse for top-2."""
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in split_metrics["reasons"].items():
        if name != "top2_accuracy" or len(split_metrics["labels"]) > 2:
            names_by_reason.setdefault(reason, []).append(name)
    return list(names_by_reason.items())


def make_misclassified_cards(record: RunRecord, n_without_thumbnails: int = 8) -> list[dict[str, Any]]:
    """The most wrong images, each with its thumbnail (or none) and what the model gave to truth and guess."""
    images = record.thumbnails[record.thumbnails["role"] == "wrong"]
    map_table = record.saliency_maps.table[record.saliency_maps.table["role"] == "wrong"]
    thumbnail_uris, map_uris = (
        {(row.source, row.path): row.uri for row in table.itertuples()} for table in (images, map_table)
    )
    rows = select_most_wrong(record.predictions, len(images) or n_without_thumbnails)
    return [
        _make_card(row, record.predictions.labels, thumbnail_uris)
        | {"map": map_uris.get((row["source"], row["path"]), "")}
        for row in rows.to_dict("records")
    ]


def _make_card(
    row: dict[str, Any], labels: tuple[str, ...], thumbnail_uris: dict[tuple[str, str], str]
) -> dict[str, Any]:
    ranked_probabilities = sorted(
        ((row[PROBABILITY_PREFIX + label], k) for k, label in enumerate(labels)), key=lambda item: (-item[0], item[1])
    )
    guess = labels[ranked_probabilities[0][1]]
    # a long list of classes is cut to the four that matter, the truth always among them
    shown_probabilities = (
        [item for i, item in enumerate(ranked_probabilities) if i < 3 or labels[item[1]] == row["label"]][:4]
        if len(ranked_probabilities) > 4
        else ranked_probabilities
    )
    bars = [
        {"label": labels[k], "number": k, "probability": p, "truth": labels[k] == row["label"]}
        for p, k in shown_probabilities
    ]
    uri = thumbnail_uris.get((row["source"], row["path"]), "")
    return {
        "path": row["path"],
        "patient": row["patient"],
        "truth": row["label"],
        "guess": guess,
        "bars": bars,
        "uri": uri,
    }


def make_drop_rows(drops: dict[str, dict[str, Any]], labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """For each that was held out: its name, and a row a figure with what it is inside, outside, and less outside."""
    return [{"name": name, "rows": _make_drop_metric_rows(drop["figures"], labels)} for name, drop in drops.items()]


def _make_drop_metric_rows(estimates: dict[str, dict[str, Any]], labels: tuple[str, ...]) -> list[dict[str, Any]]:
    metric_names = {MACRO_AUROC: "AUROC, macro", "balanced_accuracy": "Balanced accuracy", "accuracy": "Accuracy"}
    for label in labels:
        metric_names |= {f"per_class.{label}.{part}": f"{label}: {part}" for part in ("sensitivity", "specificity")}
        metric_names[f"auroc.per_class.{label}"] = f"{label}: AUROC"
    return [
        {
            "name": name,
            "internal": format_estimate(estimates[key]["internal"]),
            "external": format_estimate(estimates[key]["external"]),
            "drop": format_difference(estimates[key]["drop"]),
        }
        for key, name in metric_names.items()
        if key in estimates
    ]


def make_subgroup_rows(subgroups: dict[str, dict[str, Any]], labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """For each trait: its name, the headings of its figures, and a row a group."""
    classes = labels if len(labels) <= MAX_CLASS_COLUMNS else ()
    headings = [("AUROC,", "macro"), ("Sensitivity,", "mean"), *(("Sensitivity,", label) for label in classes)]
    return [
        {
            "name": trait,
            "heads": headings,
            "rows": [_make_group_row(name, row, classes) for name, row in groups.items()],
        }
        for trait, groups in subgroups.items()
    ]


def _make_group_row(name: str, row: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    counts = {"name": name, "images": row["n_images"], "patients": row["n_patients"]}
    if "support" not in row:
        return counts | {"cells": [], "why": f"fewer than {MIN_GROUP_PATIENTS} patients: not measured"}
    n_present_classes = sum(n > 0 for n in row["support"].values())
    cells = [format_estimate(row["auroc"], format_score), format_estimate(row["balanced_accuracy"], format_score)]
    if n_present_classes < len(row["support"]):  # a mean of fewer classes is another figure
        cells = [(*cell, f"{n_present_classes} of {len(row['support'])} classes") for cell in cells]
    return counts | {
        "cells": [*cells, *(format_estimate(row["sensitivity"][label], format_score) for label in classes)],
        "why": "",
    }


def format_estimate(estimate: list[float | None] | None, formatter=format_score) -> Cell:
    """A figure, and its interval or nothing."""
    if estimate is None:
        return formatter(None), ""
    if estimate[1] is None:
        return formatter(estimate[0]), ""
    return formatter(estimate[0]), format_interval({"intervals": {"of": {"it": estimate[1:]}}}, "it", formatter)


def format_difference(estimate: list[float | None]) -> Cell:
    """A difference with its sign, and its interval."""
    value, low, high = estimate
    return f"{value:+.3f}", "" if low is None else f"{low:+.3f} to {high:+.3f}"
