"""From numbers to the words that people read, the same in the terminal and in the report."""

from typing import Any

from fastcxr.io.formatting import NOTHING, reach, score, share
from fastcxr.metrics.predictions import INTERNAL, OUT_OF_FOLD

DOTTED = {"auroc": "auroc.macro", "average_precision": "average_precision.macro"}  # where their interval is found


def explain_intervals(part: dict[str, Any] | None) -> str:
    """What a reader must know of the intervals: how sure, of what, and from what."""
    intervals = (part or {}).get("intervals") or {}
    if not intervals.get("of"):
        return ""
    if intervals["unit"] == "patient":
        return "Intervals: 95 %; the unit is the patient, all images of one drawn together."
    return "Intervals: 95 %; each patient has one image here."


def headline_rows(main: dict[str, Any] | None, beside: dict[str, Any] | None) -> list[tuple[str, str, str, str]]:
    """The headline of one split and another beside it, as rows of (name, figure, interval, figure beside), in words."""
    rows = [("Accuracy", share, "accuracy"), ("Balanced accuracy", share, "balanced_accuracy")]
    rows += [("AUROC, macro", score, "auroc")]
    # two classes: the second guess is always right
    if any(part and len(part["labels"]) > 2 for part in (main, beside)):
        rows += [("Top-2 accuracy", share, "top2_accuracy")]
    return [
        (name, _figure(main, key, words), reach(main, DOTTED.get(key, key), words), _figure(beside, key, words))
        for name, words, key in rows
    ]


def headline_table(metrics: dict[str, dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """The headline as rows of (name, test, its interval, internal or else valid), in words, for the terminal.

    `metrics`: what measure_predictions returns. A split that is not there is a column of dashes.
    """
    test, valid = metrics.get("test"), metrics.get(beside(metrics))
    counts = (("Images", "n_images"), ("Patients", "n_patients"))
    sizes = [(name, _figure(test, key, "{:,}".format), "", _figure(valid, key, "{:,}".format)) for name, key in counts]
    return headline_rows(test, valid) + sizes


def terminal_table(metrics: dict[str, dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, str, str, str]]]:
    """Headings and rows of the headline: test beside valid, or pooled folds beside their mean and deviation."""
    if "folds" not in metrics:
        return ("", "test", "95 % interval", beside(metrics)), headline_table(metrics)
    pooled, folds = metrics[OUT_OF_FOLD], metrics["folds"]
    keys = {"Accuracy": "accuracy", "Balanced accuracy": "balanced_accuracy", "AUROC, macro": "auroc"}
    keys |= {"Top-2 accuracy": "top2_accuracy"}
    rows = [(name, *figures, spread(folds.get(keys[name]))) for name, *figures, _ in headline_rows(pooled, None)]
    counts = [(name, f"{pooled[key]:,}", "", "") for name, key in (("Images", "n_images"), ("Patients", "n_patients"))]
    return ("", "out of fold", "95 % interval", f"mean ± SD of {folds['count']} folds"), rows + counts


def beside(metrics: dict[str, Any]) -> str:
    """The split that stands beside the test split: that of home if its figures mean the same, else valid."""
    other = any(drop["only"] for drop in metrics.get("drops", {}).values())
    return INTERNAL if INTERNAL in metrics and not other else "valid"


def spread(figure: dict[str, Any] | None) -> str:
    """Mean and standard deviation of a figure over folds: 0.954 ± 0.012."""
    if figure is None:
        return NOTHING
    return f"{figure['mean']:.3f}" + ("" if figure["sd"] is None else f" ± {figure['sd']:.3f}")


def _figure(part: dict[str, Any] | None, key: str, words) -> str:
    value = (part or {}).get(key)
    value = value.get("macro") if isinstance(value, dict) else value
    return NOTHING if value is None else words(value)
