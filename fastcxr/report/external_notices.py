"""From what a model loses elsewhere to plain sentences, above the figures where it is grave."""

from collections.abc import Mapping
from typing import Any

from fastcxr.io.formatting import count, listed, score, share
from fastcxr.metrics.external import RANK, WORRYING
from fastcxr.metrics.predictions import OUT_OF_FOLD
from fastcxr.report.data_notices import Notice
from fastcxr.report.run_reader import RunRecord


def drop_notices(record: RunRecord, metrics: Mapping[str, Any]) -> list[Notice]:
    """What every reader of figures of elsewhere must know, one notice for each place that was held out."""
    drops, split = metrics.get("drops", {}), record.predictions.headline_split
    part = metrics.get(split, {})
    if split == OUT_OF_FOLD:  # which class is taken for which is told of all of them together
        part = {}
    return [_tell(name, drop, part) for name, drop in drops.items()]


def _tell(place: str, drop: Mapping[str, Any], part: Mapping[str, Any]) -> Notice:
    label, missing = _lowest(drop), _missing(drop["only"])
    if RANK in drop["figures"]:
        row, name, words, taken = drop["figures"][RANK], "Macro AUROC", score, ""
    elif label:
        row, name, words = drop["figures"][f"per_class.{label}.sensitivity"], f"Sensitivity for {label}", share
        taken = _taken(part, label)
    else:
        text = f"{missing} No class has images on both sides: nothing can be compared."
        return Notice("warning", f"Tested on {place}: no figure to compare", text)
    sentence = (
        f"{name} is {_reaching(row['external'], words)} on {place}, and {_reaching(row['internal'], words)} on "
        f"test images of where it was trained: {_verdict(row['drop'], words)}."
    )
    title, level = _grade(row["drop"], place)
    return Notice(level, title, " ".join(filter(None, [sentence, taken, missing])))


def _grade(drop: list[float | None], place: str) -> tuple[str, str]:
    value, low, _ = drop
    is_sure = low is not None and low > 0
    if value > WORRYING:
        return f"The figures {'do' if is_sure else 'may'} not carry over to {place}", "warning"
    return ("It does worse elsewhere", "warning") if is_sure else ("Tested elsewhere", "note")


def _verdict(drop: list[float | None], words) -> str:
    """`lower by 0.242 (95 % interval 0.180 to 0.310)`, or what cannot be said."""
    value, low, high = drop
    unit = " points" if words is share else ""
    if low is None:
        return f"{'lower' if value > 0 else 'higher'} by {_decide(abs(value), words)}{unit}, without an interval"
    if low <= 0 <= high:
        most = _decide(high, words)
        return f"the two cannot be told apart, and a fall of up to {most}{unit} is not ruled out (95 % interval)"
    near, far = sorted((abs(low), abs(high)))
    size = f"{_decide(abs(value), words)}{unit} (95 % interval {_decide(near, words)} to {_decide(far, words)})"
    return f"{'lower' if low > 0 else 'higher'} by {size}"


def _decide(value: float, words) -> str:
    return f"{100 * value:.1f}" if words is share else f"{value:.3f}"


def _reaching(figure: list[float | None], words) -> str:
    if figure[1] is None:
        return words(figure[0])
    return f"{words(figure[0])} ({words(figure[1])} to {words(figure[2])})"


def _lowest(drop: Mapping[str, Any]) -> str | None:
    """The class of both sides whose sensitivity falls most."""
    falls = {
        label: row["drop"][0]
        for label in drop["classes"]
        if (row := drop["figures"].get(f"per_class.{label}.sensitivity"))
    }
    return max(falls, key=falls.get, default=None)


def _taken(part: Mapping[str, Any], label: str) -> str:
    """What the images of a class were mostly taken for, where it is another class."""
    row = part.get("confusion_matrix", [[]])[part["labels"].index(label)] if part else []
    others = [(n, guess) for n, guess in zip(row, part.get("labels", []), strict=False) if guess != label]
    n, guess = max(others, default=(0, ""))
    return f"{n:,} of {count(sum(row), 'image')} of {label} were called {guess}." if n else ""


def _missing(only: Mapping[str, list[str]]) -> str:
    here, home = only.get("external", []), only.get("internal", [])
    told = [
        f"There is no image of {listed(home, 'or')} here." if home else "",
        f"There was none of {listed(here, 'or')} at home." if here else "",
    ]
    if not any(told):
        return ""
    return (
        " ".join(filter(None, told))
        + " So AUROC, accuracy and specificity mean something else here, and are not compared."
    )
