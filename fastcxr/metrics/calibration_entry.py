"""Validation of the calibration in model.json and export.json, which can come from an untrusted source.

This module does not import scipy: an exported model runs without it.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastcxr.errors import ModelError


def validate_calibration(calibration: Any, path: Path) -> dict[str, Any]:
    """Return the calibration of a model.json, empty for files of earlier versions.

    Raises:
        ModelError: a temperature or slope is not a positive number, a threshold not from 0 to 1, or an intercept not
            finite.
    """
    if calibration is None:
        return {}
    if is_valid_calibration(calibration):
        return dict(calibration)
    raise ModelError("the calibration is invalid", "Copy the run folder again", path=path, code="E301")


def is_valid_calibration(calibration: Any) -> bool:
    """Return whether temperature and slopes are positive, thresholds from 0 to 1, and intercepts finite numbers."""
    return find_invalid_value(calibration) is None


def find_invalid_value(calibration: Any) -> tuple[str, Any] | None:
    """Return place (such as `.thresholds.Edema`) and value of the first invalid value of a calibration, or None."""
    return next(_list_invalid_values(calibration), None)


def _list_invalid_values(calibration: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(calibration, Mapping):
        yield "", calibration
        return
    for name, is_valid in (("thresholds", _is_threshold_row), ("findings", is_valid_finding_row)):
        rows = calibration.get(name, {})
        if isinstance(rows, Mapping):
            yield from ((f".{name}.{label}", row) for label, row in rows.items() if not is_valid(row))
        else:
            yield f".{name}", rows
    temperature, limit = calibration.get("temperature", 1.0), calibration.get("uncertain_below")
    if not (is_finite_number(temperature) and temperature > 0):
        yield ".temperature", temperature
    if not (limit is None or is_threshold(limit)):
        yield ".uncertain_below", limit


def _is_threshold_row(row: Any) -> bool:
    return isinstance(row, Mapping) and is_threshold(row.get("threshold"))


def is_threshold(value: Any) -> bool:
    """Return whether a value of a file is a number from 0 to 1, or the next number above the probability 1."""
    return is_finite_number(value) and 0 <= value <= math.nextafter(1.0, 2.0)


def is_valid_finding_row(row: Any) -> bool:
    """Return whether the calibration of a finding has a positive slope and a finite intercept."""
    is_complete = isinstance(row, Mapping) and all(is_finite_number(row.get(name)) for name in ("slope", "intercept"))
    return is_complete and row["slope"] > 0


def is_finite_number(value: Any) -> bool:
    """Return whether a value of a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
