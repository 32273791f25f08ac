"""Validation of the calibration in model.json and export.json, which can come from an untrusted source.

This module does not import scipy: an exported model runs without it.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastcxr.errors import ModelError


def validate_calibration(calibration: Any, path: Path) -> dict[str, Any]:
    """Return the calibration of a model.json, empty for files of earlier versions.

    Raises:
        ModelError: a temperature or slope is not a positive number, or a threshold or intercept is not a finite number.
    """
    if calibration is None:
        return {}
    if is_valid_calibration(calibration):
        return dict(calibration)
    raise ModelError("the calibration is invalid", "Copy the run folder again", path=path, code="E301")


def is_valid_calibration(calibration: Any) -> bool:
    """Return whether temperature and slopes are positive numbers, and thresholds and intercepts finite numbers."""
    if not isinstance(calibration, Mapping):
        return False
    thresholds, findings = calibration.get("thresholds", {}), calibration.get("findings", {})
    if not isinstance(thresholds, Mapping) or not isinstance(findings, Mapping):
        return False
    return (
        all(isinstance(row, Mapping) and is_finite_number(row.get("threshold")) for row in thresholds.values())
        and all(map(is_valid_finding_row, findings.values()))
        and is_finite_number(calibration.get("temperature", 1.0))
        and calibration.get("temperature", 1.0) > 0
        and (calibration.get("uncertain_below") is None or is_finite_number(calibration["uncertain_below"]))
    )


def is_valid_finding_row(row: Any) -> bool:
    """Return whether the calibration of a finding has a positive slope and a finite intercept."""
    is_complete = isinstance(row, Mapping) and all(is_finite_number(row.get(name)) for name in ("slope", "intercept"))
    return is_complete and row["slope"] > 0


def is_finite_number(value: Any) -> bool:
    """Return whether a value of a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
