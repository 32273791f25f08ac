"""Rows of the tables of findings in a run report: numbers formatted as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastcxr.io.formatting import (
    MISSING,
    format_interval,
    format_number,
    format_percent,
    format_score,
    join_names,
    pluralize,
)
from fastcxr.metrics.subgroups import MIN_GROUP_PATIENTS
from fastcxr.report.tables import Cell, format_estimate

MEANS = {"macro": "Macro average", "weighted": "Weighted average", "chexpert5": "CheXpert five"}
CLASS_METRICS = ("sensitivity", "specificity", "ppv", "npv", "f1")
MIN_GROUP_POSITIVES = 10  # of a finding in a subgroup; with fewer the interval of AUROC is about 0.3 wide
N_WRONG_PER_FINDING = 2  # images shown: the most wrong one with the finding and the one without it
MAX_NAMED = 16  # findings in one sentence
COUNTS = ("positives", "negatives", "unknown")


def rank_findings(split_metrics: Mapping[str, Any]) -> list[str]:
    """Return the findings with the highest AUROC first, those without AUROC last."""
    values = split_metrics["auroc"]["per_class"]
    return sorted(split_metrics["labels"], key=lambda label: (values[label] is None, -(values[label] or 0)))


def make_finding_rows(split_metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row per finding in the order of rank_findings: counts, and each metric as (value, interval)."""
    return [_make_finding_row(split_metrics, label) for label in rank_findings(split_metrics)]


def _make_finding_row(split_metrics: Mapping[str, Any], label: str) -> dict[str, Any]:
    row, prefix = split_metrics["per_class"][label], f"per_class.{label}"
    n_known = row["positives"] + row["negatives"]
    cells = {name: (row[name], f"{prefix}.{name}") for name in CLASS_METRICS}
    cells |= {name: (split_metrics[name]["per_class"][label], f"{name}.{prefix}") for name in RANKING_METRICS}
    return {
        "name": label,
        "prevalence": format_percent(row["positives"] / n_known if n_known else None),
        "brier": format_number(row["brier"]),
        **{name: row[name] for name in COUNTS},
        **{
            name: (format_score(value), format_interval(dict(split_metrics), dotted, format_score))
            for name, (value, dotted) in cells.items()
        },
    }


RANKING_METRICS = ("auroc", "average_precision")


def make_mean_rows(split_metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the means over the findings: name, AUROC and average precision, each as (value, interval).

    Empty for one finding.
    """
    if len(split_metrics["labels"]) < 2:
        return []
    return [
        {"name": text}
        | {
            name: (
                format_score(split_metrics[name].get(key)),
                format_interval(dict(split_metrics), f"{name}.{key}", format_score),
            )
            for name in RANKING_METRICS
        }
        for key, text in MEANS.items()
        if split_metrics["auroc"].get(key) is not None
    ]


def describe_averaged(split_metrics: Mapping[str, Any]) -> list[str]:
    """Return sentences on the findings in the means, and on those that are not, with the reason."""
    labels, averaged = split_metrics["labels"], split_metrics["auroc"]["averaged"]
    left_out = [label for label in labels if label not in averaged]
    if not left_out:
        return [f"Macro averages are means over all {len(labels)} findings."] if len(labels) > 1 else []
    text = f"Macro averages are means over {len(averaged)} of {len(labels)} findings"
    names = f": {join_names(averaged)}" if len(averaged) <= MAX_NAMED else ""  # else those left out are named only
    sentences = [f"{text}{names}." if averaged else "No finding can be averaged."]
    names_by_reason: dict[str, list[str]] = {}
    for label in left_out:
        row = split_metrics["per_class"][label]
        if not row["positives"] and not row["negatives"]:
            reason = "no image has a known label"
        else:
            reason = "every image has the finding" if row["positives"] else "no image has the finding"
        names_by_reason.setdefault(reason, []).append(label)
    parts = [f"{join_names(names)} ({reason})" for reason, names in names_by_reason.items()]
    return [*sentences, f"Not averaged: {'; '.join(parts)}."]


def make_decision_rows(split_metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of make_finding_rows with the threshold of each finding, its target and given prevalence.

    A finding without a fitted threshold has the threshold 0.5.
    """
    fitted = (split_metrics.get("thresholds") or {}).get("per_class", {})
    return [row | _describe_threshold(fitted.get(row["name"])) for row in make_finding_rows(split_metrics)]


def _describe_threshold(threshold: Mapping[str, Any] | None) -> dict[str, Any]:
    if threshold is None:
        return {"threshold": "0.500", "wanted": "", "unstable": False, "given_prevalence": ""}
    return {
        "threshold": format_score(threshold["threshold"]),
        "wanted": join_names(
            [f"{name} {format_percent(value)}" for name, value in threshold.get("wanted", {}).items()]
        ),
        "unstable": threshold.get("unstable", False),
        "fitted_positives": threshold.get("positives", 0),
        "given_prevalence": format_percent(threshold["prevalence"]) if "prevalence" in threshold else "",
        "given_ppv": format_estimate(threshold.get("ppv"), format_percent),
        "given_npv": format_estimate(threshold.get("npv"), format_percent),
    }


def find_common_target(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the target of all fitted thresholds in rows of make_decision_rows; empty if there are several or none."""
    targets = {row["wanted"] for row in rows} - {""}
    return targets.pop() if len(targets) == 1 else ""


def make_finding_calibration_rows(
    split_metrics: Mapping[str, Any], fitted: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return for each finding the slope and intercept on this split, its Brier score and how it was calibrated.

    `fitted`: the entry `findings` of the calibration in model.json.
    """
    lines, rows = split_metrics["calibration"]["per_class"], split_metrics["per_class"]
    return [
        {
            "name": label,
            "brier": format_number(rows[label]["brier"]),
            "method": _describe_fit(fitted.get(label)),
        }
        | {
            name: format_estimate(line[name] if (line := lines.get(label)) else None, format_number)
            for name in ("slope", "intercept")
        }
        for label in rank_findings(split_metrics)
    ]


def _describe_fit(fit: Mapping[str, Any] | None) -> str:
    """Return how the probabilities of a finding were calibrated: `Platt: 0.92 × logit − 0.11`."""
    if not fit or fit.get("method") == "none":
        return "none"
    slope, intercept = fit["slope"], fit["intercept"]
    if fit["method"] == "temperature":
        return f"temperature {1 / slope:.3g}" if slope else "temperature"
    return f"Platt: {slope:.3g} × logit {'−' if intercept < 0 else '+'} {abs(intercept):.3g}"


def make_overall_rows(split_metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return exact match and Hamming loss as (name, value with interval)."""
    names = {"exact_match": "Exact match of all known labels", "hamming_loss": "Hamming loss (wrong labels)"}
    rows = []
    for key, name in names.items():
        if split_metrics.get(key) is not None:
            interval = format_interval(dict(split_metrics), key, format_percent)
            rows.append((name, format_percent(split_metrics[key]) + (f" ({interval})" if interval else "")))
    return rows


def make_calibration_means(split_metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return Brier score and log-loss over the findings, with interval and the value before scaling."""
    calibration, before = split_metrics["calibration"], split_metrics.get("uncalibrated")
    return [
        {
            "name": name,
            "value": format_number(calibration[key]),
            "interval": format_interval(dict(split_metrics), f"calibration.{key}", format_number),
            "before": format_number(before[key]) if before else "",
        }
        for key, name in {"brier": "Brier score (0 to 1)", "log_loss": "Log-loss"}.items()
        if calibration.get(key) is not None
    ]


def describe_calibration_fit(calibration: Mapping[str, Any]) -> list[str]:
    """Return how the probabilities were calibrated, by the calibration of model.json; empty if it is unknown."""
    fitted = calibration.get("findings") or {}
    if not fitted:
        return []
    labels_by_method: dict[str, list[str]] = {}
    for label, fit in fitted.items():
        labels_by_method.setdefault(fit["method"], []).append(label)
    if set(labels_by_method) == {"none"}:
        return ["The probabilities are not scaled: too few validation images."]
    parts = [
        f"{METHOD_TEXTS[method]} for {join_names(labels) if len(labels) <= 5 else pluralize(len(labels), 'finding')}"
        for method, labels in labels_by_method.items()
    ]
    images = pluralize(calibration["images"], "validation image") if calibration.get("images") else "validation images"
    return [f"Fitted on {images}: {join_names(parts)}."]


METHOD_TEXTS = {
    "platt": "Platt scaling",
    "temperature": "one shared temperature (few positive or few negative images)",
    "none": "no scaling",
}


def make_finding_subgroup_rows(subgroups: Mapping[str, Any], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return for each attribute, such as sex, a row per subgroup with macro AUROC, and AUROC of each finding.

    groups: the measured subgroups. unmeasured: a sentence with the sizes of the subgroups if none is measured, else
    empty. findings: rows with a name and a cell per subgroup, of the findings that have MIN_GROUP_POSITIVES in some
    subgroup; (value, interval), or (MISSING, number of positive images).
    """
    tables = []
    for attribute, groups in subgroups.items():
        measured = {name: row for name, row in groups.items() if "support" in row}
        findings = [
            {"name": label, "cells": [_make_group_cell(row, label) for row in measured.values()]}
            for label in labels
            if any(row["support"][label] >= MIN_GROUP_POSITIVES for row in measured.values())
        ]
        rows = [_make_group_row(name, row, labels) for name, row in groups.items()]
        head = {"name": attribute, "heads": [("AUROC,", "macro")], "groups": list(measured)}
        head["unmeasured"] = "" if measured else _describe_small_groups(attribute, groups)
        tables.append(head | {"rows": rows, "findings": findings if len(measured) > 1 else []})
    return tables


def _describe_small_groups(attribute: str, groups: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{name}: {row['n_patients']:,}" for name, row in groups.items())
    return f"{attribute.capitalize()}: not measured, fewer than {MIN_GROUP_PATIENTS} patients in each group ({sizes})."


def _make_group_row(name: str, row: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    counts = {"name": name, "images": row["n_images"], "patients": row["n_patients"]}
    if "support" not in row:
        return counts | {"cells": [], "why": f"fewer than {MIN_GROUP_PATIENTS} patients: not measured"}
    n_averaged = len(row["averaged"])
    note = (f"{n_averaged} of {len(labels)} findings",) if n_averaged < len(labels) else ()
    return counts | {"cells": [(*format_estimate(row["auroc"]), *note)], "why": ""}


def _make_group_cell(row: Mapping[str, Any], label: str) -> Cell:
    n_positives = row["support"][label]
    if n_positives < MIN_GROUP_POSITIVES:
        return MISSING, f"{n_positives} positive"
    return format_estimate(row["auroc_per_class"][label])
