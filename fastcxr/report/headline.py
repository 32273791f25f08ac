"""From numbers to the words that people read, the same in the terminal and in the report."""

from typing import Any

from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.io.formatting import MISSING, format_interval, format_percent, format_score
from fastcxr.metrics.predictions import OUT_OF_FOLD

INTERVAL_KEYS = {
    "auroc": "auroc.macro",
    "average_precision": "average_precision.macro",
}  # where their interval is found


def describe_intervals(split_metrics: dict[str, Any] | None) -> str:
    """What a reader must know of the intervals: how sure, of what, and from what."""
    intervals = (split_metrics or {}).get("intervals") or {}
    if not intervals.get("of"):
        return ""
    if intervals["unit"] == "patient":
        return "Intervals: 95 %; the unit is the patient, all images of one drawn together."
    return "Intervals: 95 %; each patient has one image here."


def make_headline_rows(
    primary: dict[str, Any] | None, secondary: dict[str, Any] | None
) -> list[tuple[str, str, str, str]]:
    """The headline of one split and another beside it, as rows of (name, figure, interval, figure beside), in words."""
    rows = [("Accuracy", format_percent, "accuracy"), ("Balanced accuracy", format_percent, "balanced_accuracy")]
    rows += [("AUROC, macro", format_score, "auroc")]
    # two classes: the second guess is always right
    if any(part and len(part["labels"]) > 2 for part in (primary, secondary)):
        rows += [("Top-2 accuracy", format_percent, "top2_accuracy")]
    return [
        (
            name,
            _format_metric(primary, key, words),
            format_interval(primary, INTERVAL_KEYS.get(key, key), words),
            _format_metric(secondary, key, words),
        )
        for name, words, key in rows
    ]


def make_headline_table(metrics: dict[str, dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """The headline as rows of (name, test, its interval, internal or else valid), in words, for the terminal.

    `metrics`: what evaluate_predictions returns. A split that is not there is a column of dashes.
    """
    test, secondary = metrics.get("test"), metrics.get(find_secondary_split(metrics))
    counts = (("Images", "n_images"), ("Patients", "n_patients"))
    sizes = [
        (name, _format_metric(test, key, "{:,}".format), "", _format_metric(secondary, key, "{:,}".format))
        for name, key in counts
    ]
    return make_headline_rows(test, secondary) + sizes


def make_terminal_table(metrics: dict[str, dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, str, str, str]]]:
    """Headings and rows of the headline: test beside valid, or pooled folds beside their mean and deviation."""
    if "folds" not in metrics:
        beside = find_secondary_split(metrics).replace("_", " ")
        return ("", "test", "95 % interval", beside), make_headline_table(metrics)
    pooled_metrics, folds = metrics[OUT_OF_FOLD], metrics["folds"]
    metric_keys = {"Accuracy": "accuracy", "Balanced accuracy": "balanced_accuracy", "AUROC, macro": "auroc"}
    metric_keys |= {"Top-2 accuracy": "top2_accuracy"}
    rows = [
        (name, *figures, format_mean_sd(folds.get(metric_keys[name])))
        for name, *figures, _ in make_headline_rows(pooled_metrics, None)
    ]
    count_rows = [
        (name, f"{pooled_metrics[key]:,}", "", "") for name, key in (("Images", "n_images"), ("Patients", "n_patients"))
    ]
    return ("", "out of fold", "95 % interval", f"mean ± SD of {folds['count']} folds"), rows + count_rows


def find_secondary_split(metrics: dict[str, Any]) -> str:
    """The split that stands beside the test split: that of home if its figures mean the same, else valid."""
    has_unshared_classes = any(drop["only"] for drop in metrics.get("external_drop", {}).values())
    return INTERNAL_TEST if INTERNAL_TEST in metrics and not has_unshared_classes else "valid"


def format_mean_sd(fold_statistics: dict[str, Any] | None) -> str:
    """Mean and standard deviation of a figure over folds: 0.954 ± 0.012."""
    if fold_statistics is None:
        return MISSING
    return f"{fold_statistics['mean']:.3f}" + (
        "" if fold_statistics["sd"] is None else f" ± {fold_statistics['sd']:.3f}"
    )


def _format_metric(split_metrics: dict[str, Any] | None, key: str, formatter) -> str:
    value = (split_metrics or {}).get(key)
    value = value.get("macro") if isinstance(value, dict) else value
    return MISSING if value is None else formatter(value)
