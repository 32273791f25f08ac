"""Reduce a run to what may be shared: no image, file name, folder, patient identifier, command or free text.

This is the only place that decides what the report without images and the published files contain. What is not listed
here as shared is left out, so that a new column or entry is not published by mistake.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import pandas as pd

from fastcxr.config.recipe import Recipe
from fastcxr.data.demographics import DEMOGRAPHIC_COLUMNS, find_demographic_column
from fastcxr.data.findings import FINDING_PREFIX
from fastcxr.metrics.predictions import (
    DECISION_PREFIX,
    IN_DISTRIBUTION_COLUMN,
    OOD_SCORE_COLUMN,
    PROBABILITY_PREFIX,
    TRUTH_PREFIX,
    Predictions,
)
from fastcxr.report.label_counts import BLANK_MESSAGE
from fastcxr.report.run_reader import RunRecord, SaliencyMaps
from fastcxr.report.tuning_notice import STATES, TUNING_KEY
from fastcxr.report.weights_notices import INITIAL_MODEL_KEY

NOT_SHARED = "not shared"
# options that may hold a path, the name of a file or patient, or free text of the user
PRIVATE_OPTIONS = ("patient_table", "patient_regex", "split_file", "reuse_split", "waive_audit")
PUBLIC_FILTERS = ("label", "split", *DEMOGRAPHIC_COLUMNS)  # columns whose values may be shared
RUN_ENTRIES = (
    "started", "seconds", "versions", "machine", "seed", "first_weights", "refitted_heads", "public_datasets",
    INITIAL_MODEL_KEY,
)  # fmt: skip
TUNING_ENTRIES = ("trials", *STATES, "trial", "value", "metric", "search")
TESTED_ENTRIES = ("failed", "notices", "overlap", "files")
MODEL_ENTRIES = (
    "format", "kind", "labels", "backbone", "head", "input_spec", "fitted_on", "choices", "calibration", "hflip_tta",
    "files",
)  # fmt: skip
MAP_ENTRIES = ("method", "task", "failure_reason", "check", "border_share")
FINDING_ENTRIES = ("check", "title", "verdict", "message", "fix", "value", "chance_level")
TABLE_COLUMNS = (
    "source", "path", "patient", "label", "split", "fold", "predicted", "error", "patient_origin", "split_origin",
    OOD_SCORE_COLUMN, IN_DISTRIBUTION_COLUMN,
)  # fmt: skip
LABEL_PREFIXES = (PROBABILITY_PREFIX, TRUTH_PREFIX, DECISION_PREFIX, FINDING_PREFIX)
UNREADABLE = "unreadable"  # instead of the reason, which may name a file


def make_shared_record(record: RunRecord) -> RunRecord:
    """Return the record for a report without images: counts and metrics are those of the whole record.

    Images and patients have numbers instead of names, in the same order.
    """
    tables = (record.manifest, record.predictions.table, record.feature_map)
    paths = number_names("image", *(table[name] for table in tables for name in _list_path_columns(table)))
    patients = number_names("patient", *(table["patient"] for table in tables))

    def reduce_table(table: pd.DataFrame) -> pd.DataFrame:
        return _replace_names(table[_list_shared_columns(table)], paths, patients)

    return replace(
        record,
        is_shared=True,
        recipe=make_shared_options(record.recipe),
        run=_reduce_run(record.run),
        manifest=reduce_table(record.manifest),
        predictions=Predictions(reduce_table(record.predictions.table), record.predictions.labels),
        skipped=record.skipped[["code"]].assign(path="", reason=""),
        thumbnails=record.thumbnails.iloc[:0],
        model=_reduce_model(record.model),
        findings=[{name: row[name] for name in FINDING_ENTRIES} | {"groups": []} for row in record.findings],
        reused_audit={name: value for name, value in record.reused_audit.items() if name == "date"},
        saliency_maps=_reduce_maps(record.saliency_maps),
        feature_map=_replace_names(record.feature_map, paths, patients),
    )


def make_shared_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a recipe without paths, patients and free text; such values become NOT_SHARED.

    A dataset and a weights file have their name without folders. Names that are no options of a recipe are left out.
    """
    shared = {item.name: options[item.name] for item in fields(Recipe) if item.name in options}
    shared |= {name: NOT_SHARED for name in PRIVATE_OPTIONS if shared.get(name)}
    if shared.get("data"):
        data = shared["data"]
        shared["data"] = [name_dataset(path) for path in data] if isinstance(data, list | tuple) else name_dataset(data)
    if shared.get("weights"):
        shared["weights"] = _drop_folders(shared["weights"])
    if shared.get("filter"):
        shared["filter"] = [_reduce_filter(str(entry)) for entry in shared["filter"]]
    return shared


def name_dataset(path: Any) -> str:
    """Return the name of a dataset: the last part of its path, without .csv or .h5."""
    name = _drop_folders(path)
    return "data" if name in ("", ".", "..") else name.removesuffix(".csv").removesuffix(".h5")


def number_names(prefix: str, *columns: pd.Series) -> dict[str, str]:
    """Return a number for each name in these columns, which sort like the names; an empty cell stays empty."""
    names = sorted({str(name) for column in columns for name in column} - {""})
    return {"": ""} | {name: f"{prefix} {number:07d}" for number, name in enumerate(names, 1)}


def _drop_folders(path: Any) -> str:
    return str(path).replace("\\", "/").rstrip("/").rpartition("/")[2]


def _reduce_filter(entry: str) -> str:
    """Return COLUMN=VALUES with the values of a public column only."""
    column = entry.partition("=")[0].strip()
    is_public = column in ("label", "split") or any(
        find_demographic_column([column], name) for name in DEMOGRAPHIC_COLUMNS
    )
    return entry if is_public else f"{column}={NOT_SHARED}"


def _list_path_columns(table: pd.DataFrame) -> list[str]:
    return [name for name in ("path", "nearest_path") if name in table]


def _list_shared_columns(table: pd.DataFrame) -> list[str]:
    demographics = {find_demographic_column(table.columns, name) for name in DEMOGRAPHIC_COLUMNS}
    return [
        name
        for name in table.columns
        if name in TABLE_COLUMNS or name in demographics or name.startswith(LABEL_PREFIXES)
    ]


def _replace_names(table: pd.DataFrame, paths: Mapping[str, str], patients: Mapping[str, str]) -> pd.DataFrame:
    numbers = {name: [paths[str(cell)] for cell in table[name]] for name in _list_path_columns(table)}
    numbers["patient"] = [patients[str(cell)] for cell in table["patient"]]
    if "error" in table:
        numbers["error"] = _hide_errors(table["error"])
    return table.assign(**numbers)


def _hide_errors(cells: Iterable[str]) -> list[str]:
    return [UNREADABLE if cell else "" for cell in cells]


def _reduce_run(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of run.json without command, and without the messages but for the label policy."""
    shared = {name: run[name] for name in RUN_ENTRIES if name in run}
    messages = [line for line in run.get("messages") or [] if isinstance(line, Mapping)]
    shared["messages"] = [line for line in messages if str(line.get("text", "")).startswith(BLANK_MESSAGE)]
    shared["n_messages"] = len(messages)
    shared["n_warnings"] = sum(line.get("level") == "warning" for line in messages)
    for key, names in (("tested", TESTED_ENTRIES), (TUNING_KEY, TUNING_ENTRIES)):
        if isinstance(entry := run.get(key), Mapping):
            shared[key] = {name: entry[name] for name in names if name in entry}
    if "export" in (run.get("tested") or {}):
        shared["tested"]["export"] = ""
    return shared


def _reduce_model(model: Mapping[str, Any]) -> dict[str, Any]:
    shared = {name: model[name] for name in MODEL_ENTRIES if name in model}
    if (model.get("backbone") or {}).get("weights"):
        shared["backbone"] = model["backbone"] | {"weights": _drop_folders(model["backbone"]["weights"])}
    return shared


def _reduce_maps(maps: SaliencyMaps) -> SaliencyMaps:
    """Return the measurements of the maps, and per image only its role and whether it could be read."""
    table = maps.table.assign(error=_hide_errors(maps.table["error"]))
    table = table.assign(**{name: "" for name in table.columns if name not in ("role", "error")})
    return SaliencyMaps(
        table=table, metadata={name: maps.metadata[name] for name in MAP_ENTRIES if name in maps.metadata}
    )
