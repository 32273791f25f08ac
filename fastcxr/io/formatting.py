"""Format numbers for the terminal and the report; a value below 1 is never rounded to 1."""

import math
from collections.abc import Callable
from typing import Any

MISSING = "–"


def format_percent(value: float | None) -> str:
    """Return 0.8934 as "89.3 %"; a value below 1 is never shown as 100 %."""
    if value is None or not math.isfinite(value):
        return MISSING
    return ">99.9 %" if 0.9995 <= value < 1 else f"{100 * value:.1f} %"


def format_score(value: float | None) -> str:
    """Return 0.95431 as "0.954", without spaces, where a line can break; a value below 1 is never shown as 1."""
    if value is None or not math.isfinite(value):
        return MISSING
    return ">0.999" if 0.9995 <= value < 1 else f"{value:.3f}"


def format_number(value: float | None) -> str:
    """Return an unbounded value, such as a loss or a slope: 0.4321 as "0.432"."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.3f}"


def pluralize(n: int, singular: str, plural: str | None = None) -> str:
    """Return a count with its unit: 1,234 images, 1 image, 0 images."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def format_learning_rate(value: float) -> str:
    """Return 0.0021 as "0.0021", 0.0000031 as "3.1e-06"."""
    return f"{value:.2g}"


def format_duration(seconds: float) -> str:
    """Return 3725 as "1 h 2 min", 95 as "1 min 35 s", 40 as "40 s", 4.2 as "4.2 s", 0.123 as "0.12 s"."""
    if seconds < 59.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s" if seconds >= 0.95 else f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def join_names(names: list[str], conjunction: str = "and") -> str:
    """Return the names as "a, b and c"."""
    return f" {conjunction} ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def format_interval(split_metrics: dict[str, Any] | None, name: str, formatter: Callable) -> str:
    """Return the interval of a metric by its dotted name, as 79.1–88.6 % or 0.931–0.969; empty if there is none."""
    bounds = ((split_metrics or {}).get("intervals") or {}).get("of", {}).get(name)
    if bounds is None:
        return ""
    low, high = (
        format_number(edge) if formatter is format_number else _format_bound(edge, formatter is format_percent)
        for edge in bounds
    )
    return f"{low}–{high}" + (" %" if formatter is format_percent else "")


def _format_bound(value: float, is_percent: bool) -> str:
    value = min(value, 0.999) if value < 1 else value
    return f"{100 * value:.1f}" if is_percent else f"{value:.3f}"
