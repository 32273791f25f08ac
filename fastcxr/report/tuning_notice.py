"""How trials selected the options of a run: the notice of the report and the sentences of the checklist."""

from collections.abc import Mapping
from typing import Any

from fastcxr.io.formatting import join_names, pluralize
from fastcxr.report.data_notices import Found, Metrics
from fastcxr.report.run_reader import RunRecord

TUNING_KEY = "tuning"  # of run.json
STATES = ("complete", "pruned", "failed")
OPTIMISM = "The validation metrics are optimistic, because they selected the options."


def find_tuned_selection(record: RunRecord, metrics: Metrics) -> Found:
    """Yield how many trials were run, what they changed and what selected the winner, and the number of trials."""
    tuning = read_selection(record)
    if tuning:
        yield " ".join(describe_selection(tuning)), pluralize(tuning["trials"], "trial")


def read_selection(record: RunRecord) -> dict[str, Any]:
    """Return the entry of run.json, empty for a run without trials."""
    tuning = record.run.get(TUNING_KEY)
    return tuning if isinstance(tuning, dict) and isinstance(tuning.get("trials"), int) else {}


def describe_selection(tuning: dict[str, Any]) -> list[str]:
    """Return the sentences of the report about the trials."""
    counts = ", ".join(f"{tuning.get(state, 0)} {state}" for state in STATES)
    n_repeated, outside = tuning.get("repeated"), tuning.get("outside")
    repeated = f"; of these, {n_repeated} repeated the options of an earlier trial" if n_repeated else ""
    searched = join_names([f"{name} ({values})" for name, values in _get_search(tuning).items()])
    value = tuning.get("value")
    result = f"{tuning.get('metric')} of the validation images" + (f", {value:.4g}" if isinstance(value, float) else "")
    return [
        f"Trials: {counts}{repeated}.",
        *([f"{describe_outside(outside)}."] if isinstance(outside, dict) and outside else []),
        f"Options searched: {searched}.",
        f"Trial {tuning.get('trial')} has the best {result}.",
        OPTIMISM,
        "No trial used the test images: only this run is tested on them.",
    ]


def describe_outside(options: Mapping[str, Any]) -> str:
    """Return that no trial is the recipe itself. `options`: its values that were not searched, one or more."""
    values = join_names([f"{name} {value}" for name, value in options.items()])
    return f"The recipe has {values}, outside of the searched values: no trial is the recipe itself"


def describe_other_settings(record: RunRecord) -> str:
    """Return sentences on the settings that were tried before this run, each with a space; empty without trials."""
    tuning = read_selection(record)
    if not tuning:
        return ""
    settings, names = pluralize(tuning["trials"], "setting"), join_names(list(_get_search(tuning)))
    return f"{settings} of {names} were tried on the validation images. {OPTIMISM} "


def _get_search(tuning: dict[str, Any]) -> dict[str, Any]:
    search = tuning.get("search")
    return search if isinstance(search, dict) else {}
