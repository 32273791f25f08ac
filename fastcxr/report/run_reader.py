"""Read all files of a run or dataset folder that a report needs. Only predictions.csv or manifest.csv is required."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.audit.manifest_checks import find_exclusive_classes, find_exclusive_labels
from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.config.validation import parse_prevalence
from fastcxr.data.findings import (
    FINDING_PREFIX,
    explode_labels,
    is_multi_label,
    list_findings,
    list_shown_labels,
    parse_finding_columns,
)
from fastcxr.errors import DataError
from fastcxr.io.files import read_json
from fastcxr.io.formats import FORMAT_KEY, reject_other_format
from fastcxr.io.formulas import unescape_formulas
from fastcxr.io.hub_names import is_hub_name
from fastcxr.io.run_folders import require_run_file
from fastcxr.metrics.calibration_entry import validate_calibration
from fastcxr.metrics.feature_map import COORDINATES, FEATURE_MAP_FILE, TEXT_COLUMNS
from fastcxr.metrics.predictions import IN_DISTRIBUTION_COLUMN, OUT_OF_FOLD, Predictions, read_predictions

# files of every finished run; other files are optional
EXPECTED_FILES = ("recipe.json", "manifest.csv", "history.csv", "model.json", "run.json", "figures/images.csv")
PATIENT_SPLIT_DIR = "patient_split"  # subfolder of image-level folds: patient-level folds of the same strategy
MIME_TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png"}


@dataclass(frozen=True, kw_only=True)
class SaliencyMaps:
    """Saliency maps of a run.

    table: all columns as text: role, source, path, predicted, class, probability, border_share, note, error, file, uri,
    in_distribution (yes or no; empty without an OOD detector, and in runs of earlier versions).
    """

    table: pd.DataFrame
    metadata: dict[str, Any]

    @property
    def is_multi_label(self) -> bool:
        """Whether the maps are those of findings, of which an image may have several."""
        return self.metadata.get("task") == MULTI_LABEL


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """Files of a folder that describe a dataset. A missing file is an empty mapping or table."""

    folder: Path
    recipe: dict[str, Any]
    run: dict[str, Any]
    manifest: pd.DataFrame
    skipped: pd.DataFrame
    histograms: pd.DataFrame  # label, bin, mean, low, high, images
    files: pd.DataFrame  # label, kind, width, height, images
    thumbnails: pd.DataFrame  # role, source, path, uri (data: URI, empty if the file is missing)
    is_shared: bool = False  # whether images and identifiers were removed (see make_shared_record)

    @property
    def table(self) -> pd.DataFrame:
        """One row per image."""
        return self.manifest

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Every class, in the order of their colours; with several labels per image the most frequent findings."""
        return tuple(list_shown_labels(self.manifest))

    @cached_property
    def labelled_images(self) -> pd.DataFrame:
        """One row per image and label: an image with several findings has a row for each of those in `labels`."""
        return explode_labels(self.table, self.labels)

    @cached_property
    def exclusive_classes(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Classes that a property of the image identifies, with the number of these images and of all, by property.

        With several labels per image, only the source is compared: an audit checks the other properties.
        """
        if is_multi_label(self.table):
            return {"source": find_exclusive_labels(self.table)}
        files, images = self.files, self.labelled_images.assign(images=1)
        sizes = [f"{width:g} × {height:g}" for width, height in zip(files["width"], files["height"], strict=True)]
        return {
            "source": find_exclusive_classes(images, "source"),
            "file type": find_exclusive_classes(files, "kind"),
            "image size": find_exclusive_classes(files.assign(size=sizes), "size", single_value_only=True),
        }


@dataclass(frozen=True, kw_only=True)
class RunRecord(DatasetRecord):
    """Files of a run folder; `missing_files` are the required ones that are not there."""

    predictions: Predictions
    model: dict[str, Any]
    history: pd.DataFrame
    lr_curves: pd.DataFrame
    folds: pd.DataFrame  # held-out metrics of each fold; empty without cross-validation
    findings: list[dict[str, Any]]  # of the data audit
    reused_audit: dict[str, str]  # folder and date of an earlier audit with some of the findings, or empty
    patient_split_metrics: dict[str, Any]  # metrics of patient-level folds, or empty
    saliency_maps: SaliencyMaps  # no rows if the run has none
    feature_map: pd.DataFrame  # see make_feature_map; no rows if the run has none
    missing_files: tuple[str, ...]

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per image: the manifest, or the predictions if there is none."""
        if len(self.manifest):
            return self.manifest
        return _parse_findings(self.predictions.table, self.folder / "predictions.csv")

    @property
    def calibration(self) -> dict[str, Any]:
        """Temperature, thresholds and abstention threshold of model.json, validated."""
        return validate_calibration(self.model.get("calibration"), self.folder / "model.json")

    @property
    def initial_weights(self) -> str:
        """Name of the initial weights, or empty if it is in no file of the run."""
        weights = find_initial_weights(self.model) or self.run.get("first_weights") or self.recipe.get("weights") or ""
        name = weights if is_hub_name(weights) else PurePath(weights).name
        return {"none": "random weights", "pretrained": ""}.get(weights, name)

    @property
    def prevalence(self) -> dict[str, float]:
        """Prevalence of each class for which the recipe states one."""
        return dict(parse_prevalence(entry) for entry in self.recipe.get("prevalence") or ())

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Classes of the model, followed by those that occur in the images only; of findings the most frequent ones."""
        if self.predictions.is_multi_label:
            return tuple(list_shown_labels(self.table)) if is_multi_label(self.table) else ()
        model_labels = self.predictions.labels
        return (*model_labels, *sorted(set(self.table["label"]) - {*model_labels, ""}))


def read_dataset_record(folder: str | Path) -> DatasetRecord:
    """Read all files that the page of a dataset needs; raise InputMissingError without manifest.csv."""
    folder = Path(folder)
    reject_other_format(folder)
    require_run_file(folder, "manifest.csv", "Pass an output folder of fastcxr describe")
    return DatasetRecord(**_read_dataset_fields(folder))


def read_run_record(folder: str | Path) -> RunRecord:
    """Read all files that the report of a run needs; raise InputMissingError without predictions.csv."""
    folder = Path(folder)
    reject_other_format(folder)
    require_run_file(folder, "predictions.csv")
    return RunRecord(
        **_read_dataset_fields(folder),
        predictions=read_predictions(folder / "predictions.csv"),
        model=_read_json(folder / "model.json"),
        history=_read_history(folder / "history.csv"),
        lr_curves=_read_numbers(folder / "learning_rate.csv", ("stage", "rate", "loss"), ("stage",)),
        folds=_read_numbers(folder / "folds.csv", ("fold",), ("fold",)),
        findings=read_findings(folder),
        reused_audit=_read_json(folder / "audit.json").get("reused_audit") or {},
        patient_split_metrics=_read_json(folder / PATIENT_SPLIT_DIR / "metrics.json").get(OUT_OF_FOLD, {}),
        saliency_maps=read_saliency_maps(folder),
        feature_map=read_feature_map(folder / FEATURE_MAP_FILE),
        missing_files=tuple(name for name in _list_expected_files(folder) if not (folder / name).is_file()),
    )


def find_initial_weights(model: Mapping[str, Any]) -> str:
    """Return the name of the initial weights in a model.json, or an empty string.

    Early versions wrote the value of the recipe, with the tag of the weights as a separate key.
    """
    backbone = model.get("backbone") or {}
    weights, name, tag = (str(backbone.get(key) or "") for key in ("weights", "name", "tag"))
    if weights == "imagenet" and tag:
        return f"{name}.{tag}" if backbone.get("library") == "timm" else tag
    return weights


def read_saliency_maps(folder: Path) -> SaliencyMaps:
    """Read saliency.csv with its images, and explain.json; empty if they do not exist."""
    columns = ("role", "source", "path", "predicted", "class", "probability", "border_share", "note", "error", "file")
    table = _add_data_uris(folder, _read_text_table(folder / "saliency.csv", columns))
    if IN_DISTRIBUTION_COLUMN not in table:
        table = table.assign(**{IN_DISTRIBUTION_COLUMN: ""})
    return SaliencyMaps(table=table, metadata=_read_json(folder / "explain.json"))


def read_feature_map(path: Path) -> pd.DataFrame:
    """Read feature_map.csv; no rows if it does not exist. Raise DataError for a coordinate that is not finite."""
    table = _read_numbers(path, (*TEXT_COLUMNS, *COORDINATES), TEXT_COLUMNS)
    coordinates = table[list(COORDINATES)].to_numpy(float)
    if not np.isfinite(coordinates).all():
        raise _make_read_error(path, "a coordinate is empty or infinite")
    return table


def read_findings(folder: Path) -> list[dict[str, Any]]:
    """Return the findings of audit.json; empty if the file does not exist."""
    findings = _read_json(folder / "audit.json").get("findings", [])
    required_keys = {"check", "title", "verdict", "message", "fix", "value", "chance_level", "groups"}
    if not isinstance(findings, list) or not all(
        isinstance(row, dict) and required_keys <= set(row) for row in findings
    ):
        raise _make_read_error(folder / "audit.json", "no list of findings")
    return findings


def map_uris(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return the data: URI of each image in a table, by source and path."""
    keys = zip(table["source"], table["path"], strict=True)
    return dict(zip(keys, table["uri"], strict=True))


def _list_expected_files(folder: Path) -> tuple[str, ...]:
    absent: tuple[str, ...] = ()
    if (folder / "folds.csv").is_file():  # the run of each fold has its own history and model
        absent = ("history.csv", "model.json")
    elif "tested" in _read_json(folder / "run.json"):  # evaluation on other data does not train
        absent = ("history.csv",)
    return tuple(name for name in EXPECTED_FILES if name not in absent)


def _read_dataset_fields(folder: Path) -> dict[str, Any]:
    return {
        "folder": folder,
        "recipe": {name: value for name, value in _read_json(folder / "recipe.json").items() if name != FORMAT_KEY},
        "run": _read_json(folder / "run.json"),
        "manifest": _read_manifest(folder / "manifest.csv"),
        "skipped": _read_text_table(folder / "skipped.csv", ("path", "code", "reason")),
        "histograms": _read_numbers(
            folder / "histograms.csv", ("label", "bin", "mean", "low", "high", "images"), ("label",)
        ),
        "files": _read_numbers(
            folder / "file_stats.csv", ("label", "kind", "width", "height", "images"), ("label", "kind")
        ),
        "thumbnails": _add_data_uris(
            folder, _read_text_table(folder / "figures" / "images.csv", ("role", "source", "path", "file"))
        ),
    }


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = read_json(path)
    except ValueError as error:
        raise _make_read_error(path, str(error)) from error
    if not isinstance(value, dict):
        raise _make_read_error(path, "no JSON object")
    return value


def _read_text_table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read every cell as text: a class may be named NA."""
    if not path.is_file():
        return pd.DataFrame(columns=list(columns), dtype=str)
    try:
        table = unescape_formulas(
            pd.read_csv(path, dtype=str, keep_default_na=False, encoding_errors="surrogateescape")
        )
    except ValueError as error:  # an empty file, or not a table
        raise _make_read_error(path, str(error)) from error
    missing_columns = [name for name in columns if name not in table.columns]
    if missing_columns:
        raise _make_read_error(path, f"no column called {', '.join(missing_columns)}")
    return table


def _read_manifest(path: Path) -> pd.DataFrame:
    """Read every cell as text, except those of findings (see fastcxr.data.findings)."""
    return _parse_findings(_read_text_table(path, ("source", "path", "label", "patient", "split")), path)


def _parse_findings(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    columns = {FINDING_PREFIX + name: name for name in list_findings(table)}
    findings = parse_finding_columns(table, columns, path)
    return table.assign(**{name: findings[name] for name in findings.columns})


def _read_numbers(path: Path, columns: tuple[str, ...], text_columns: tuple[str, ...]) -> pd.DataFrame:
    table = _read_text_table(path, columns)
    try:
        return table.assign(**{name: pd.to_numeric(table[name]) for name in table.columns if name not in text_columns})
    except (ValueError, TypeError) as error:  # pandas raises TypeError for text that is not UTF-8
        raise _make_read_error(path, str(error)) from error


def _read_history(path: Path) -> pd.DataFrame:
    table = _read_numbers(path, ("epoch",), ("stage", "best"))
    return table.assign(best=table["best"].str.lower() == "true") if "best" in table else table


def _add_data_uris(folder: Path, table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(uri=[_make_data_uri(folder, file) for file in table["file"]])


def _make_data_uri(folder: Path, file: str) -> str:
    """Return an image as a data: URI; empty for a file outside the folder or one that is no JPEG or PNG."""
    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return ""
    content = path.read_bytes()
    mime_type = next((mime_type for magic, mime_type in MIME_TYPES.items() if content.startswith(magic)), None)
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}" if mime_type else ""


def _make_read_error(path: Path, reason: str) -> DataError:
    reason = " ".join(reason.split()).rstrip(".")
    return DataError(f"the file cannot be read ({reason})", "Restore or delete it, then run fastcxr report", path=path)
