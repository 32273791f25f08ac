"""From a run folder on disk to one value that holds all a report speaks of; only predictions.csv must be there."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from fastcxr.config.validation import parse_prevalence
from fastcxr.errors import DataError, InputMissingError
from fastcxr.io.files import read_json
from fastcxr.io.formats import FORMAT_KEY, reject_other_format
from fastcxr.io.tables import unescape_formulas
from fastcxr.metrics.calibration import validate_calibration
from fastcxr.metrics.predictions import OUT_OF_FOLD, Predictions, read_predictions

# what a finished run always has; the others are there when there was something to write
EXPECTED_FILES = ("recipe.json", "manifest.csv", "history.csv", "model.json", "run.json", "figures/images.csv")
PATIENT_SPLIT_DIR = "patient_split"  # folder inside a run of image-level folds: the same with patients kept apart
MIME_TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png"}


@dataclass(frozen=True, kw_only=True)
class SaliencyMaps:
    """Saliency maps of a run.

    table, as text: role, source, path, predicted, class, probability, border_share, note, error, file, uri.
    """

    table: pd.DataFrame
    metadata: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """What a folder holds about a cohort. A file that is not there is an empty mapping or table."""

    folder: Path
    recipe: dict[str, Any]
    run: dict[str, Any]
    manifest: pd.DataFrame
    skipped: pd.DataFrame
    histograms: pd.DataFrame  # label, bin, mean, low, high, images
    files: pd.DataFrame  # label, kind, width, height, images
    thumbnails: (
        pd.DataFrame
    )  # role, source, path, uri: a thumbnail as a data: URI, or "" when its file is not to be had

    @property
    def table(self) -> pd.DataFrame:
        """A row for each image that is known."""
        return self.manifest

    @property
    def labels(self) -> tuple[str, ...]:
        """Every class, in the order that gives it its colour."""
        return tuple(sorted(set(self.manifest["label"]) - {""}))


@dataclass(frozen=True, kw_only=True)
class RunRecord(DatasetRecord):
    """What a run left behind; a file that every run has and this one has not is named in `missing`."""

    predictions: Predictions
    model: dict[str, Any]
    history: pd.DataFrame
    lr_curves: pd.DataFrame
    folds: pd.DataFrame  # the held-out figures of each fold, or no row
    findings: list[dict[str, Any]]  # of the checks of its data
    patient_split_metrics: dict[str, Any]  # figures of the same folds with patients kept apart, or nothing
    saliency_maps: SaliencyMaps  # no rows where the run made none
    missing_files: tuple[str, ...]

    @property
    def table(self) -> pd.DataFrame:
        """A row for each image that is known: without a manifest, those that were scored."""
        return self.manifest if len(self.manifest) else self.predictions.table

    @property
    def calibration(self) -> dict[str, Any]:
        """What model.json holds of temperature, thresholds and the band left open; checked to be numbers."""
        return validate_calibration(self.model.get("calibration"), self.folder / "model.json")

    @property
    def initial_weights(self) -> str:
        """The name of the weights that training began with; empty where no file of the run has it."""
        weights = find_initial_weights(self.model) or self.run.get("first_weights") or self.recipe.get("weights") or ""
        return {"none": "random weights", "pretrained": ""}.get(weights, PurePath(weights).name)

    @property
    def prevalence(self) -> dict[str, float]:
        """The share of people that has each class, where the recipe states one."""
        return dict(parse_prevalence(entry) for entry in self.recipe.get("prevalence") or ())

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of the model, then those that only the images have."""
        model_labels = self.predictions.labels
        return (*model_labels, *sorted(set(self.table["label"]) - {*model_labels, ""}))


def read_dataset_record(folder: str | Path) -> DatasetRecord:
    """All files of a folder that the page of a cohort needs, each read once."""
    folder = Path(folder)
    reject_other_format(folder)
    if not (folder / "manifest.csv").is_file():
        problem = "no manifest.csv in this folder" if folder.is_dir() else "no such folder"
        raise InputMissingError(problem, "Name a folder that fastcxr describe made", path=folder, code="E304")
    return DatasetRecord(**_read_dataset_fields(folder))


def read_run_record(folder: str | Path) -> RunRecord:
    """All files of a run folder that a report needs, each read once."""
    folder = Path(folder)
    reject_other_format(folder)
    if not (folder / "predictions.csv").is_file():
        problem = "no predictions.csv in this folder" if folder.is_dir() else "no such folder"
        raise InputMissingError(problem, "Name the folder of a finished run, as runs/first", path=folder, code="E304")
    return RunRecord(
        **_read_dataset_fields(folder),
        predictions=read_predictions(folder / "predictions.csv"),
        model=_read_json(folder / "model.json"),
        history=_read_history(folder / "history.csv"),
        lr_curves=_read_lr_curves(folder / "learning_rate.csv"),
        folds=_read_numbers(folder / "folds.csv", ("fold",), ("fold",)),
        findings=read_findings(folder),
        patient_split_metrics=_read_json(folder / PATIENT_SPLIT_DIR / "metrics.json").get(OUT_OF_FOLD, {}),
        saliency_maps=read_saliency_maps(folder),
        missing_files=tuple(name for name in _list_expected_files(folder) if not (folder / name).is_file()),
    )


def find_initial_weights(model: Mapping[str, Any]) -> str:
    """The name that a model.json has for the weights that training began with; empty where there is none.

    Earlier versions wrote what the recipe says, and the tag beside it.
    """
    backbone = model.get("backbone") or {}
    weights, name, tag = (str(backbone.get(key) or "") for key in ("weights", "name", "tag"))
    if weights == "imagenet" and tag:
        return f"{name}.{tag}" if backbone.get("library") == "timm" else tag
    return weights


def read_saliency_maps(folder: Path) -> SaliencyMaps:
    """saliency.csv with its pictures, and explain.json; empty where there are none."""
    columns = ("role", "source", "path", "predicted", "class", "probability", "border_share", "note", "error", "file")
    table = _read_text_table(folder / "saliency.csv", columns)
    image_uris = [_make_data_uri(folder, file) for file in table["file"]]
    return SaliencyMaps(table=table.assign(uri=image_uris), metadata=_read_json(folder / "explain.json"))


def read_findings(folder: Path) -> list[dict[str, Any]]:
    """The findings of audit.json; none where there is no such file."""
    findings = _read_json(folder / "audit.json").get("findings", [])
    required_keys = {"check", "title", "verdict", "message", "fix", "value", "chance_level", "groups"}
    if not isinstance(findings, list) or not all(
        isinstance(row, dict) and required_keys <= set(row) for row in findings
    ):
        raise _make_read_error(folder / "audit.json", "no list of findings")
    return findings


def _list_expected_files(folder: Path) -> tuple[str, ...]:
    # the history and the model of pooled folds lie in the folders of the folds
    is_pooled = (folder / "folds.csv").is_file()
    elsewhere = ("history.csv", "model.json") if is_pooled else ()
    # and the history of a model that was tested on other data in the folder of its run
    elsewhere = elsewhere or ("history.csv",) * ("tested" in _read_json(folder / "run.json"))
    return tuple(name for name in EXPECTED_FILES if name not in elsewhere)


def _read_dataset_fields(folder: Path) -> dict[str, Any]:
    return {
        "folder": folder,
        "recipe": {name: value for name, value in _read_json(folder / "recipe.json").items() if name != FORMAT_KEY},
        "run": _read_json(folder / "run.json"),
        "manifest": _read_text_table(folder / "manifest.csv", ("source", "path", "label", "patient", "split")),
        "skipped": _read_text_table(folder / "skipped.csv", ("path", "code", "reason")),
        "histograms": _read_numbers(
            folder / "histograms.csv", ("label", "bin", "mean", "low", "high", "images"), ("label",)
        ),
        "files": _read_numbers(
            folder / "file_stats.csv", ("label", "kind", "width", "height", "images"), ("label", "kind")
        ),
        "thumbnails": _read_thumbnails(folder),
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
    """Every cell as the text it is: a class may be called NA."""
    if not path.is_file():
        return pd.DataFrame(columns=list(columns), dtype=str)
    try:
        table = unescape_formulas(
            pd.read_csv(path, dtype=str, keep_default_na=False, encoding_errors="surrogateescape")
        )
    except ValueError as error:  # empty, or no table
        raise _make_read_error(path, str(error)) from error
    missing_columns = [name for name in columns if name not in table.columns]
    if missing_columns:
        raise _make_read_error(path, f"no column called {', '.join(missing_columns)}")
    return table


def _read_numbers(path: Path, columns: tuple[str, ...], text_columns: tuple[str, ...]) -> pd.DataFrame:
    table = _read_text_table(path, columns)
    try:
        return table.assign(**{name: pd.to_numeric(table[name]) for name in table.columns if name not in text_columns})
    except (ValueError, TypeError) as error:  # TypeError: letters that are not UTF-8, says pandas
        raise _make_read_error(path, str(error)) from error


def _read_history(path: Path) -> pd.DataFrame:
    table = _read_numbers(path, ("epoch",), ("stage", "best"))
    return table.assign(best=table["best"].str.lower() == "true") if "best" in table else table


def _read_lr_curves(path: Path) -> pd.DataFrame:
    return _read_numbers(path, ("stage", "rate", "loss"), ("stage",))


def _read_thumbnails(folder: Path) -> pd.DataFrame:
    table = _read_text_table(folder / "figures" / "images.csv", ("role", "source", "path", "file"))
    return table.assign(uri=[_make_data_uri(folder, file) for file in table["file"]])


def _make_data_uri(folder: Path, file: str) -> str:
    """The picture inside the page. A file outside the run folder, or no image at all, does not get in."""
    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return ""
    content = path.read_bytes()
    mime_type = next((kind for magic, kind in MIME_TYPES.items() if content.startswith(magic)), None)
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}" if mime_type else ""


def _make_read_error(path: Path, reason: str) -> DataError:
    reason = " ".join(reason.split()).rstrip(".")
    return DataError(
        f"cannot be read ({reason})", "Restore the file as the run wrote it, or remove it and redraw", path=path
    )
