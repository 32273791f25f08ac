"""From what a model loses elsewhere to plain sentences, above the figures where it is grave."""

from collections.abc import Mapping
from typing import Any

from fastcxr.io.formatting import format_percent, format_score, join_names, pluralize
from fastcxr.metrics.external import LARGE_DROP, MACRO_AUROC
from fastcxr.metrics.predictions import OUT_OF_FOLD
from fastcxr.report.data_notices import Notice
from fastcxr.report.run_reader import RunRecord


def make_drop_notices(record: RunRecord, metrics: Mapping[str, Any]) -> list[Notice]:
    """What every reader of figures of elsewhere must know, one notice for each place that was held out."""
    drops, split = metrics.get("external_drop", {}), record.predictions.primary_split
    split_metrics = metrics.get(split, {})
    if split == OUT_OF_FOLD:  # which class is taken for which is told of all of them together
        split_metrics = {}
    return [_make_drop_notice(name, drop, split_metrics) for name, drop in drops.items()]


def _make_drop_notice(external_name: str, drop: Mapping[str, Any], split_metrics: Mapping[str, Any]) -> Notice:
    label, unshared_text = _find_largest_drop(drop), _describe_unshared_classes(drop["only"])
    if MACRO_AUROC in drop["figures"]:
        row, name, formatter, confusion_text = drop["figures"][MACRO_AUROC], "Macro AUROC", format_score, ""
    elif label:
        row, name, formatter = (
            drop["figures"][f"per_class.{label}.sensitivity"],
            f"Sensitivity for {label}",
            format_percent,
        )
        confusion_text = _describe_confusion(split_metrics, label)
    else:
        text = f"{unshared_text} No class has images on both sides: nothing can be compared."
        return Notice("warning", f"Tested on {external_name}: no figure to compare", text)
    sentence = (
        f"{name} is {_format_estimate(row['external'], formatter)} on {external_name}, and "
        f"{_format_estimate(row['internal'], formatter)} on "
        f"test images of where it was trained: {_describe_drop(row['drop'], formatter)}."
    )
    title, level = _grade_drop(row["drop"], external_name)
    return Notice(level, title, " ".join(filter(None, [sentence, confusion_text, unshared_text])))


def _grade_drop(drop: list[float | None], external_name: str) -> tuple[str, str]:
    value, low, _ = drop
    is_significant = low is not None and low > 0
    if value > LARGE_DROP:
        return f"The figures {'do' if is_significant else 'may'} not carry over to {external_name}", "warning"
    return ("It does worse elsewhere", "warning") if is_significant else ("Tested elsewhere", "note")


def _describe_drop(drop: list[float | None], formatter) -> str:
    """`lower by 0.242 (95 % interval 0.180 to 0.310)`, or what cannot be said."""
    value, low, high = drop
    unit = " points" if formatter is format_percent else ""
    if low is None:
        return (
            f"{'lower' if value > 0 else 'higher'} by {_format_drop(abs(value), formatter)}{unit}, without an interval"
        )
    if low <= 0 <= high:
        max_drop = _format_drop(high, formatter)
        return f"the two cannot be told apart, and a fall of up to {max_drop}{unit} is not ruled out (95 % interval)"
    near, far = sorted((abs(low), abs(high)))
    size = (
        f"{_format_drop(abs(value), formatter)}{unit} (95 % interval {_format_drop(near, formatter)} to "
        f"{_format_drop(far, formatter)})"
    )
    return f"{'lower' if low > 0 else 'higher'} by {size}"


def _format_drop(value: float, formatter) -> str:
    return f"{100 * value:.1f}" if formatter is format_percent else f"{value:.3f}"


def _format_estimate(estimate: list[float | None], formatter) -> str:
    if estimate[1] is None:
        return formatter(estimate[0])
    return f"{formatter(estimate[0])} ({formatter(estimate[1])} to {formatter(estimate[2])})"


def _find_largest_drop(drop: Mapping[str, Any]) -> str | None:
    """The class of both sides whose sensitivity falls most."""
    falls = {
        label: row["drop"][0]
        for label in drop["classes"]
        if (row := drop["figures"].get(f"per_class.{label}.sensitivity"))
    }
    return max(falls, key=falls.get, default=None)


def _describe_confusion(split_metrics: Mapping[str, Any], label: str) -> str:
    """What the images of a class were mostly taken for, where it is another class."""
    row = split_metrics.get("confusion_matrix", [[]])[split_metrics["labels"].index(label)] if split_metrics else []
    wrong_guesses = [
        (n, guess) for n, guess in zip(row, split_metrics.get("labels", []), strict=False) if guess != label
    ]
    n, guess = max(wrong_guesses, default=(0, ""))
    return f"{n:,} of {pluralize(sum(row), 'image')} of {label} were called {guess}." if n else ""


def _describe_unshared_classes(unshared_classes: Mapping[str, list[str]]) -> str:
    external_only, internal_only = unshared_classes.get("external", []), unshared_classes.get("internal", [])
    sentences = [
        f"There is no image of {join_names(internal_only, 'or')} here." if internal_only else "",
        f"There was none of {join_names(external_only, 'or')} at home." if external_only else "",
    ]
    if not any(sentences):
        return ""
    return (
        " ".join(filter(None, sentences))
        + " So AUROC, accuracy and specificity mean something else here, and are not compared."
    )
