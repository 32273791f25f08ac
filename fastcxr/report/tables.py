"""Rows of the tables and cards of a run report: numbers formatted as text."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.data.findings import split_labels
from fastcxr.io.formatting import format_interval, format_number, format_percent, format_score, join_names, pluralize
from fastcxr.metrics.external import MACRO_AUROC
from fastcxr.metrics.predictions import IN_DISTRIBUTION_COLUMN, PROBABILITY_PREFIX, select_most_wrong
from fastcxr.metrics.subgroups import MIN_GROUP_PATIENTS
from fastcxr.report.run_reader import RunRecord, SaliencyMaps, map_uris

Cell = tuple[str, str]  # a metric, and its interval or another second line
Formatter = Callable[[float | None], str]
METRIC_FORMATTERS: dict[str, Formatter] = {  # of the leaderboard
    "auroc": format_score,
    "accuracy": format_percent,
    "average_precision": format_score,
}
UNIFORM_BORDER_SHARE = 1 - 0.7**2  # area outside the central field, the border share of a uniform map
MAX_BORDER_SHARE = 0.5  # a higher median border share of a class is a warning
CLASS_METRICS = ("sensitivity", "specificity", "precision", "f1")
MAX_CLASS_COLUMNS = 5  # with more classes, subgroup tables have no sensitivity per class


def format_leaderboard(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each model its metrics, the differences from the best model, and p values."""
    return [
        {
            "name": row["name"],
            "images": f"{row['images']:,}",
            "metrics": [_format_leaderboard_cell(row, key) for key in METRIC_FORMATTERS if key in row],
            "label_policy": row.get("label_policy", ""),
        }
        for row in rows
    ]


def format_finding_comparison(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each finding that was compared its AUROC in each model; empty for models of one class per image."""
    return [
        {"finding": finding, "models": [_format_leaderboard_cell(row["findings"][finding], "auroc") for row in rows]}
        for finding, cell in rows[0].get("findings", {}).items()
        if cell["auroc"]
    ]


def _format_leaderboard_cell(row: dict[str, Any], key: str) -> dict[str, Any]:
    formatter, p = METRIC_FORMATTERS[key], row.get(f"{key}_p")
    is_percent = formatter is format_percent
    value, interval = format_estimate(row[key], formatter)
    differences = [f"{100 * x:.1f}" if is_percent else format_number(x) for x in row.get(f"{key}_difference") or ()]
    return {
        "value": value,
        "interval": interval,
        "behind": differences[0] + " points" * is_percent if differences else "",
        "behind_interval": " to ".join(differences[1:]),
        "p": "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}",
        "tie": row.get(f"{key}_tie", False),
    }


def make_border_share_rows(maps: SaliencyMaps) -> list[dict[str, Any]]:
    """Return the median border share of each predicted class or finding, its images, and whether it is too high."""
    return [
        {
            "label": label,
            "share": format_percent(found["median"]),
            "images": pluralize(found["images"], "image"),
            "is_far": found["median"] > MAX_BORDER_SHARE,
            "is_finding": maps.is_multi_label,
        }
        for label, found in (maps.metadata.get("border_share") or {}).items()
    ]


def describe_sanity_check(maps: SaliencyMaps) -> str:
    """Return the result of the sanity check in two sentences, or an empty string if there was none."""
    check = maps.metadata.get("check")
    if not check:
        return ""
    correlations = join_names([f"{value:.2f}" for value in check["correlation"]])
    return (
        f"Sanity check on {pluralize(check['images'], 'image')}: the weights were randomized from the head down, one "
        "layer group at a time, and the maps recomputed. "
        f"Their rank correlation with the original maps was {correlations}."
    )


def make_saliency_cards(maps: SaliencyMaps, role: str = "") -> list[dict[Hashable, Any]]:
    """Return the rows of saliency.csv with this role, with probability as a number and border share as text.

    other: the prediction, if it is not (or, of findings, does not include) the explained class; else empty.
    """
    rows = maps.table[maps.table["role"] == role]
    border_shares = [format_percent(share) for share in pd.to_numeric(rows["border_share"])]
    others = [_describe_other_prediction(row) for row in rows.to_dict("records")]
    numbers = pd.to_numeric(rows["probability"])
    return rows.assign(probability=numbers, border_share=border_shares, other=others).to_dict("records")


def _describe_other_prediction(row: dict[Hashable, Any]) -> str:
    labels = split_labels(row["predicted"])
    if row[IN_DISTRIBUTION_COLUMN] == "no" or row["class"] in (row["predicted"], *labels):
        return ""
    return f"predicted {', '.join(labels) or 'none'}"


def make_class_rows(split_metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the classification report: one row per class, macro average, average weighted by support."""
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
    support = [row["support"] for row in rows]
    names = (*CLASS_METRICS, "auroc", "ap")
    mean = {name: _compute_weighted_mean(rows, name, [1] * len(rows)) for name in names}
    weighted = {name: _compute_weighted_mean(rows, name, support) for name in names}
    mean_keys = {"sensitivity": "balanced_accuracy", "auroc": "auroc.macro", "ap": "average_precision.macro"}
    intervals = {name: format_interval(split_metrics, dotted, format_score) for name, dotted in mean_keys.items()}
    totals = {"number": None, "support": sum(support)}
    return [
        *rows,
        {"name": "Macro average", "interval": intervals} | totals | mean,
        {"name": "Weighted average", "interval": {}} | totals | weighted,
    ]


def _format_class_intervals(split_metrics: dict[str, Any], label: str) -> dict[str, str]:
    names = {name: f"per_class.{label}.{name}" for name in CLASS_METRICS}
    names |= {"auroc": f"auroc.per_class.{label}", "ap": f"average_precision.per_class.{label}"}
    return {name: format_interval(split_metrics, dotted, format_score) for name, dotted in names.items()}


def _compute_weighted_mean(rows: list[dict[str, Any]], name: str, weights: list[int]) -> float | None:
    """Return the mean over the rows that have the metric and a weight, or None without such a row."""
    pairs = [(row[name], n) for row, n in zip(rows, weights, strict=True) if row[name] is not None and n]
    return float(np.average([value for value, _ in pairs], weights=[n for _, n in pairs])) if pairs else None


def make_calibration_rows(split_metrics: dict[str, Any]) -> list[dict[str, str]]:
    """Return the known calibration metrics with interval or chance level, and their value before scaling."""
    calibration, uncalibrated = split_metrics["calibration"], split_metrics.get("uncalibrated")
    names = {"log_loss": "Log-loss", "brier": "Brier score (0 to 2)", "ece": "Calibration error (ECE)"}
    references = {key: format_interval(split_metrics, f"calibration.{key}", format_number) for key in names}
    if calibration["ece_chance"] is not None:
        references["ece"] = f"up to {format_number(calibration['ece_chance'])} by chance"
    return [
        {
            "name": name,
            "value": format_number(calibration[key]),
            "reference": references[key],
            "before": format_number(uncalibrated[key]) if uncalibrated else "",
        }
        for key, name in names.items()
        if calibration[key] is not None
    ]


def make_calibration_line_rows(split_metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return calibration slope and intercept of each class as [value, low, high], or None if not estimated."""
    return [
        {"name": label, "number": k}
        | {name: [format_number(value) for value in line[name]] if line else None for name in ("slope", "intercept")}
        for k, label in enumerate(split_metrics["labels"])
        if (line := split_metrics["calibration"]["per_class"].get(label)) or split_metrics["n_images"]
    ]


def make_threshold_rows(split_metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the threshold of each class, its target, and its metrics on this split.

    The mean threshold of several folds has no target and no number of images.
    """
    rows = (split_metrics.get("thresholds") or {}).get("per_class", {})
    return [
        {
            "name": label,
            "number": split_metrics["labels"].index(label),
            "threshold": format_score(row["threshold"]),
            "wanted": join_names([f"{name} {format_percent(value)}" for name, value in row.get("wanted", {}).items()]),
            "positives": row.get("positives", 0),
            "unstable": row.get("unstable", False),
            "prevalence": format_percent(row["prevalence"]) if "prevalence" in row else "",
        }
        | {key: format_estimate(row.get(key), format_percent) for key in ("sensitivity", "specificity", "ppv", "npv")}
        for label, row in rows.items()
    ]


def make_confusion_rows(split_metrics: dict[str, Any], max_rows: int = 5) -> list[dict[str, Any]]:
    """Return the most frequent confusions, sorted by their share of the true class."""
    labels, matrix = split_metrics["labels"], split_metrics["confusion_matrix"]
    cells = [(i, k, n, sum(row)) for i, row in enumerate(matrix) for k, n in enumerate(row) if n and i != k]
    cells.sort(key=lambda cell: (-cell[2] / cell[3], -cell[2]))
    return [
        {"truth": labels[i], "guess": labels[k], "n": n, "of": of, "share": n / of} for i, k, n, of in cells[:max_rows]
    ]


def make_reason_rows(split_metrics: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Return each reason for missing metrics with their names; top-2 accuracy is not expected for two classes."""
    names_by_reason: dict[str, dict[str, None]] = {}
    for name, reason in split_metrics["reasons"].items():
        if name != "top2_accuracy" or len(split_metrics["labels"]) > 2:
            # the reason names the class
            metric = name.rpartition(".")[2] if name.startswith("per_class.") else name.partition(".per_class.")[0]
            metric = metric.replace("auroc", "AUROC").replace("f1", "F1").replace("_", " ").replace(".", " ")
            names_by_reason.setdefault(reason, {})[metric] = None
    return [(reason, list(names)) for reason, names in names_by_reason.items()]


def make_misclassified_cards(record: RunRecord, n_without_thumbnails: int = 8) -> list[dict[str, Any]]:
    """Return the misclassified images with the lowest probability of the true class, with thumbnail and map."""
    images, maps = (table[table["role"] == "wrong"] for table in (record.thumbnails, record.saliency_maps.table))
    thumbnail_uris, saliency_uris = map_uris(images), map_uris(maps)
    rows = select_most_wrong(record.predictions, len(images) or n_without_thumbnails)
    return [
        {
            "path": row["path"],
            "patient": row["patient"],
            "truth": row["label"],
            "is_ood": row.get(IN_DISTRIBUTION_COLUMN) == "no",
            "uri": thumbnail_uris.get((row["source"], row["path"]), ""),
            "map": saliency_uris.get((row["source"], row["path"]), ""),
        }
        | _make_probability_bars(row, record.predictions.labels)
        for row in rows.to_dict("records")
    ]


def _make_probability_bars(row: dict[Hashable, Any], labels: tuple[str, ...]) -> dict[str, Any]:
    """Return the most probable class and one bar per class, highest probability first."""
    ranked = sorted(
        ((row[PROBABILITY_PREFIX + label], k) for k, label in enumerate(labels)), key=lambda x: (-x[0], x[1])
    )
    bars = [{"label": labels[k], "number": k, "probability": p, "truth": labels[k] == row["label"]} for p, k in ranked]
    if len(bars) > 4:  # the three highest and the true class, four bars at most
        bars = [bar for i, bar in enumerate(bars) if i < 3 or bar["truth"]][:4]
    return {"guess": labels[ranked[0][1]], "bars": bars}


def make_drop_rows(drops: dict[str, dict[str, Any]], metric_names: dict[str, str]) -> list[dict[str, Any]]:
    """Return for each external test set the internal and external value of each metric, and the difference.

    `metric_names`: text by dotted name, in the order of the rows.
    """
    return [
        {"name": name, "rows": _make_drop_metric_rows(drop["figures"], metric_names)} for name, drop in drops.items()
    ]


def name_drop_metrics(labels: tuple[str, ...]) -> dict[str, str]:
    """Return the text of each metric of classes that is compared with an external test set, by its dotted name."""
    metric_names = {MACRO_AUROC: "AUROC, macro", "balanced_accuracy": "Balanced accuracy", "accuracy": "Accuracy"}
    for label in labels:
        metric_names |= {f"per_class.{label}.{part}": f"{label}: {part}" for part in ("sensitivity", "specificity")}
        metric_names[f"auroc.per_class.{label}"] = f"{label}: AUROC"
    return metric_names


def _make_drop_metric_rows(estimates: dict[str, dict[str, Any]], metric_names: dict[str, str]) -> list[dict[str, Any]]:
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
    """Return for each attribute, such as sex, the column headings and one row per subgroup."""
    classes = labels if len(labels) <= MAX_CLASS_COLUMNS else ()
    headings = [("AUROC,", "macro"), ("Balanced", "accuracy"), *(("Sensitivity,", label) for label in classes)]
    return [
        {
            "name": attribute,
            "heads": headings,
            "rows": [_make_group_row(name, row, classes) for name, row in groups.items()],
        }
        for attribute, groups in subgroups.items()
    ]


def _make_group_row(name: str, row: dict[str, Any], classes: tuple[str, ...]) -> dict[str, Any]:
    counts = {"name": name, "images": row["n_images"], "patients": row["n_patients"]}
    if "support" not in row:
        return counts | {"cells": [], "why": f"fewer than {MIN_GROUP_PATIENTS} patients: not measured"}
    n_present_classes = sum(n > 0 for n in row["support"].values())
    cells: list[tuple[str, ...]] = [format_estimate(row[key]) for key in ("auroc", "balanced_accuracy")]
    if n_present_classes < len(row["support"]):  # a mean over fewer classes is not comparable
        cells = [(*cell, f"{n_present_classes} of {len(row['support'])} classes") for cell in cells]
    return counts | {"cells": cells + [format_estimate(row["sensitivity"][label]) for label in classes], "why": ""}


def format_estimate(estimate: Sequence[float | None] | None, formatter: Formatter = format_score) -> Cell:
    """Return the value and the interval of [value, low, high]; the interval is empty if it is unknown."""
    if not estimate:
        return formatter(None), ""
    value, *bounds = estimate
    split_metrics = None if None in bounds else {"intervals": {"of": {"it": bounds}}}
    return formatter(value), format_interval(split_metrics, "it", formatter)


def format_difference(estimate: Sequence[float | None]) -> Cell:
    """Return a difference with its sign, and its interval."""
    value, low, high = estimate
    return f"{value:+.3f}", "" if low is None else f"{low:+.3f} to {high:+.3f}"
