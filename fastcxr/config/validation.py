"""Conversion of option values: paths, and texts with several parts, such as LABEL=0.05."""

import re
from pathlib import Path
from typing import Any

from fastcxr.errors import RecipeError

OPTIMIZERS = ("radam", "adam", "adamw", "sgd")  # in addition to timm:NAME


def paths_to_text(paths: Any) -> Any:
    """Convert paths to text, and a sequence of one path to that path; an empty sequence becomes None."""
    if isinstance(paths, list | tuple):
        paths = tuple(map(paths_to_text, paths))
        return paths[0] if len(paths) == 1 else paths or None
    return str(paths) if isinstance(paths, Path) else paths


def parse_prevalence(entry: str) -> tuple[str, float]:
    """Return label and prevalence of LABEL=0.05."""
    label, _, prevalence = entry.rpartition("=")
    if not label or not re.fullmatch(r"0?\.[0-9]+", prevalence) or not 0 < float(prevalence) < 1:
        raise RecipeError(f"prevalence is {entry!r}", "Write LABEL=FRACTION, between 0 and 1, as COVID-19=0.05")
    return label, float(prevalence)


def parse_oversample(entry: str) -> tuple[str, int]:
    """Return label and factor of LABEL=5."""
    label, _, factor = entry.rpartition("=")
    if not label or not re.fullmatch(r"[1-9][0-9]{0,5}", factor):
        raise RecipeError(f"oversample is {entry!r}", "Write LABEL=N with a whole number, as COVID-19=5")
    return label, int(factor)


def parse_rate_slice(rates: slice) -> tuple[float, float]:
    """Return the head rate, and its ratio to the first-group rate, of fastai's slice(first-group rate, head rate)."""
    low, high = rates.start, rates.stop
    if rates.step is not None or not (_is_positive_number(low) and _is_positive_number(high)) or low > high:
        problem = f"learning_rate is slice({low}, {high})"
        raise RecipeError(problem, "Pass the first group's rate and then the head's, as slice(1e-5, 1e-3)")
    return float(high), high / low


def _is_positive_number(value: object) -> bool:
    return isinstance(value, int | float) and value > 0
