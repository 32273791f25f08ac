"""Headline metrics as text for the terminal, the report and the model card."""

from collections.abc import Callable, Mapping
from typing import Any

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.io.formatting import MISSING, format_interval, format_percent, format_score, pluralize
from fastcxr.io.tables import format_names
from fastcxr.metrics.predictions import OUT_OF_FOLD
from fastcxr.report.run_reader import RunRecord

Metric = tuple[str, str, Callable[[float | None], str]]  # name, dotted name in metrics.json, format
METRICS: tuple[Metric, ...] = (
    ("Accuracy", "accuracy", format_percent),
    ("Balanced accuracy", "balanced_accuracy", format_percent),
    ("AUROC, macro", "auroc.macro", format_score),
    ("Top-2 accuracy", "top2_accuracy", format_percent),
)
FINDING_METRICS: tuple[Metric, ...] = (
    ("AUROC, macro", "auroc.macro", format_score),
    ("AUROC, weighted", "auroc.weighted", format_score),
    ("AUROC, CheXpert five", "auroc.chexpert5", format_score),
    ("Average precision, macro", "average_precision.macro", format_score),
)
FOLD_NAMES = {"auroc.macro": "auroc", "average_precision.macro": "average_precision"}  # names of columns in folds.csv
MAX_AVERAGED = 5  # findings that the terminal names
COUNTS = (("Images", "n_images"), ("Patients", "n_patients"))


def get_primary_metrics(record: RunRecord, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the metrics of the primary split; nothing if no image was scored."""
    return metrics.get(record.predictions.primary_split or "", {})


def describe_intervals(split_metrics: Mapping[str, Any] | None) -> str:
    """Return confidence level, sampling unit and, if it is stated, method of the intervals; "" without intervals."""
    intervals = (split_metrics or {}).get("intervals") or {}
    if not intervals.get("of"):
        return ""
    unit_text = ", clustered by patient" if intervals["unit"] == "patient" else "; each patient has one image"
    method = f" ({intervals['method']})" if "method" in intervals else ""
    return f"95 % confidence intervals{unit_text}{method}."


def make_headline_rows(
    primary: Mapping[str, Any] | None, secondary: Mapping[str, Any] | None
) -> list[tuple[str, str, str, str]]:
    """Return rows of (metric, primary value, its interval, secondary value) as text."""
    return [
        (
            name,
            formatter(_get_value(primary, key)),
            format_interval(dict(primary or {}), key, formatter),
            formatter(_get_value(secondary, key)),
        )
        for name, key, formatter in _list_metrics([part for part in (primary, secondary) if part])
    ]


def _list_metrics(parts: list[Mapping[str, Any]]) -> list[Metric]:
    """Return the metrics of the task of these splits, without those that are trivial or not computed."""
    if any(part.get("task") == MULTI_LABEL for part in parts):
        has_five = parts[0]["auroc"].get("chexpert5") is not None
        is_shown = {"auroc.chexpert5": has_five, "auroc.weighted": any(len(part["labels"]) > 1 for part in parts)}
        return [metric for metric in FINDING_METRICS if is_shown.get(metric[1], True)]
    # with two classes top-2 accuracy is always 1
    has_top2 = any(len(part["labels"]) > 2 for part in parts)
    return [metric for metric in METRICS if metric[1] != "top2_accuracy" or has_top2]


def make_headline_table(metrics: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return rows of (metric, test, its interval, secondary split) and the counts; a missing split is MISSING.

    `metrics` is the result of evaluate_predictions.
    """
    test, secondary = metrics.get("test"), metrics.get(find_secondary_split(metrics))
    counts = [(name, *(f"{part[key]:,}" if part else MISSING for part in (test, secondary))) for name, key in COUNTS]
    return make_headline_rows(test, secondary) + [(name, first, "", second) for name, first, second in counts]


def make_terminal_table(metrics: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, str, str, str]]]:
    """Return headings and rows: test and secondary split, or pooled folds and their mean ± SD."""
    if "folds" not in metrics:
        secondary = find_secondary_split(metrics).replace("_", " ")
        return ("", "test", "95 % CI", secondary), make_headline_table(metrics)
    pooled, folds = metrics[OUT_OF_FOLD], metrics["folds"]
    keys = {name: FOLD_NAMES.get(key, key) for name, key, _ in _list_metrics([pooled])}
    rows = [
        (name, value, interval, format_mean_sd(folds.get(keys[name])))
        for name, value, interval, _ in make_headline_rows(pooled, None)
    ]
    rows += [(name, f"{pooled[key]:,}", "", "") for name, key in COUNTS]
    return ("", "out of fold", "95 % CI", f"mean ± SD of {folds['count']} folds"), rows


def describe_averaged_findings(metrics: Mapping[str, Any]) -> str:
    """Return which findings the macro means of the test split or the pooled folds cover; "" if all, or for classes."""
    part = metrics.get("test") or metrics.get(OUT_OF_FOLD) or metrics.get("valid") or {}
    if part.get("task") != MULTI_LABEL:
        return ""
    labels, averaged = part["labels"], [name for name, auroc in part["auroc"]["per_class"].items() if auroc is not None]
    if not averaged or len(averaged) == len(labels):
        return ""
    names = format_names(averaged, MAX_AVERAGED)
    return f"AUROC, macro: mean over {len(averaged)} of {pluralize(len(labels), 'finding')}: {names}"


def find_secondary_split(metrics: Mapping[str, Any]) -> str:
    """Return the split shown next to the test split: the internal test set if it has the same classes, else valid."""
    has_unshared_classes = any(drop["only"] for drop in metrics.get("external_drop", {}).values())
    return INTERNAL_TEST if INTERNAL_TEST in metrics and not has_unshared_classes else "valid"


def format_mean_sd(fold_statistics: Mapping[str, Any] | None) -> str:
    """Return mean and standard deviation of a metric over folds, as `0.954 ± 0.012`."""
    if fold_statistics is None:
        return MISSING
    mean, sd = fold_statistics["mean"], fold_statistics["sd"]
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}"


def _get_value(split_metrics: Mapping[str, Any] | None, dotted_name: str) -> float | None:
    value: Any = split_metrics or {}
    for name in dotted_name.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
