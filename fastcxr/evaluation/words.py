"""From numbers to the words that people read, the same in the terminal and in the report."""

import math
from collections.abc import Callable
from typing import Any

from fastcxr.evaluation.predictions import INTERNAL, OUT_OF_FOLD

NOTHING = "–"
DOTTED = {"auroc": "auroc.macro", "average_precision": "average_precision.macro"}  # where their interval is found


def share(value: float | None) -> str:
    """0.8934 as "89.3 %"; what is not perfect never reads as perfect."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if 0.9995 <= value < 1:
        return "> 99.9 %"
    return f"{100 * value:.1f} %"


def score(value: float | None) -> str:
    """0.95431 as "0.954"; what is not perfect never reads as perfect."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if 0.9995 <= value < 1:
        return "> 0.999"
    return f"{value:.3f}"


def loss(value: float | None) -> str:
    """A figure that has no upper end, such as a loss or a slope: 0.4321 as "0.432"."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:.3f}"


def count(n: int, one: str, several: str | None = None) -> str:
    """1234 images, 1 image, 0 images."""
    return f"{n:,} {one if n == 1 else several or one + 's'}"


def rate(value: float) -> str:
    """A learning rate: 0.0021 as "0.0021", 0.0000031 as "3.1e-06"."""
    return f"{value:.2g}"


def duration(seconds: float) -> str:
    """3725 as "1 h 2 min", 95 as "1 min 35 s", 4.2 as "4.2 s"."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def listed(names: list[str], word: str = "and") -> str:
    """a, b and c."""
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def reach(part: dict[str, Any] | None, name: str, words: Callable) -> str:
    """The interval of a figure by its dotted name: 79.1–88.6 %, or 0.931–0.969; nothing where there is none."""
    edges = ((part or {}).get("intervals") or {}).get("of", {}).get(name)
    if edges is None:
        return ""
    low, high = (loss(edge) if words is loss else _edge(edge, words is share) for edge in edges)
    return f"{low}–{high}" + (" %" if words is share else "")


def _edge(value: float, percent: bool) -> str:
    """One end of an interval; what is not perfect never reads as perfect."""
    value = min(value, 0.999) if value < 1 else value
    return f"{100 * value:.1f}" if percent else f"{value:.3f}"


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
