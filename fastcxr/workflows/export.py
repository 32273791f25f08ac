"""Export of the model of a finished run, in a new folder: as an ONNX file, or for timm."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.config.fields import unknown_name_error
from fastcxr.config.recipe import Recipe
from fastcxr.config.recipe_paths import make_data_name, redact_paths
from fastcxr.data.bit_depth import find_depths
from fastcxr.data.image_table import make_image_table
from fastcxr.data.manifest_file import read_written_manifest
from fastcxr.data.synthetic.sample import find_or_write_sample
from fastcxr.errors import FastcxrError, ImageError, InputMissingError, require_type
from fastcxr.export.check import compare_scorers
from fastcxr.export.export_json import EXPORT_JSON_FILE, TARGETS, WARNING
from fastcxr.export.exported_model import load_export
from fastcxr.export.onnx import ONNX_PACKAGES, write_onnx
from fastcxr.export.timm_folder import write_timm_folder
from fastcxr.inference.images import read_fitted_images
from fastcxr.inference.torch_scorer import TorchScorer
from fastcxr.io.files import atomic_folder, atomic_write, compute_sha256, write_json
from fastcxr.io.formats import EXPORT_FORMAT, FORMAT_KEY
from fastcxr.io.formatting import pluralize
from fastcxr.io.hub_names import get_model_name, is_published
from fastcxr.io.packages import require_packages
from fastcxr.io.run_folders import MODEL_CARD_FILE, find_model_card
from fastcxr.metrics.feature_map import select_evenly
from fastcxr.models.bundle import Classifier, Ensemble, load_model
from fastcxr.models.hub_download import find_model_dir
from fastcxr.models.model_json import MODEL_JSON_FILE, list_models_below, read_model_json
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress, record_logging
from fastcxr.report.notices import read_critical_notices
from fastcxr.version import VERSION
from fastcxr.workflows.load import read_recipe_manifest
from fastcxr.workflows.published_model import read_published_facts
from fastcxr.workflows.run_state import IMAGE_KEY

log = logging.getLogger("fastcxr")
MAX_CHECK_IMAGES = 200
OWN_IMAGES, SAMPLE_IMAGES = "test images of the run", "bundled sample"
DataPaths = str | Path | Sequence[str | Path]


def export_model(
    run: str | Path,
    folder: str | Path,
    to: str = "onnx",
    *,
    data: DataPaths | None = None,
    progress: Progress | None = None,
) -> Path:
    """Export the model of a run into a new folder, after a comparison with the model in PyTorch; return the folder.

    The folder appears only if the comparison succeeds. A run with folds is exported as the mean of its models.

    Args:
        run: folder of a finished run, also of a run with folds, or of pull; or hf://owner/name for a model on the hub.
        folder: folder to create.
        to: "onnx", for predict, evaluate and serve without torch and for other programs, or "timm", for
            timm.create_model.
        data: images for the comparison: dataset of the run, or other files and folders. Default: the data of the
            recipe if it is found, else the bundled sample.
        progress: progress display.

    Raises:
        InputMissingError: the folder has no model, or an image does not exist.
        ModelError: the model is damaged, a package is missing, the network cannot be converted, or the export does not
            agree with the model.
        OutputError: the folder is not empty or cannot be written.
        RecipeError: unknown value of `to`.
    """
    require_type("run", run, str, Path)
    require_type("folder", folder, str, Path)
    if to not in TARGETS:
        raise unknown_name_error(str(to), TARGETS, "unknown value of `to`")
    if to == "onnx":
        require_packages(ONNX_PACKAGES, "an export to ONNX")
    folder, progress = Path(folder), progress or make_default_progress()
    run = find_model_dir(run, progress)
    model = load_model(run, precision="fp32", device="cpu")
    with atomic_folder(folder) as temporary_dir:
        images, origin = read_check_images(run, model, data, progress)
        description = describe_export(run, model)
        write = write_onnx_export if to == "onnx" else write_timm_export
        description = write(model, temporary_dir, description, images)
        changes: dict[str, Any] = {"check": description["check"] | {"data": origin}}
        if card_file := find_model_card(run):
            atomic_write(temporary_dir / MODEL_CARD_FILE, card_file.read_bytes())
            card = {MODEL_CARD_FILE: compute_sha256(temporary_dir / MODEL_CARD_FILE)}
            changes["files"] = description["files"] | card
        write_json(temporary_dir / EXPORT_JSON_FILE, description | changes)
    return folder


def write_onnx_export(
    model: Classifier | Ensemble, folder: Path, description: dict[str, Any], images: np.ndarray
) -> dict[str, Any]:
    """Write the ONNX file and compare it with the model; return the content of export.json."""
    log.info("converting to ONNX")
    entries = write_onnx(model, folder)
    description = merge_entries(description, entries | {"check": {}})
    write_json(folder / EXPORT_JSON_FILE, description)  # the comparison loads the folder as predict does
    check = compare_scorers(TorchScorer(model), load_export(folder, device="cpu"), images)
    return description | {"check": check}


def write_timm_export(
    model: Classifier | Ensemble, folder: Path, description: dict[str, Any], images: np.ndarray
) -> dict[str, Any]:
    """Write the folder for timm and compare it with the model; return the content of export.json."""
    entries = write_timm_folder(model, folder, description["model"], images)
    return merge_entries(description, {"has_ood_detector": False} | entries)


def merge_entries(description: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any]:
    """Return the description with these entries; versions and notices of both are kept."""
    merged = description | entries
    merged["versions"] = description["versions"] | entries.get("versions", {})
    merged["notices"] = [*description["notices"], *entries.get("notices", [])]
    return merged


def describe_export(run: Path, model: Classifier | Ensemble) -> dict[str, Any]:
    """Return the entries of export.json that do not depend on the target."""
    members = model.members if isinstance(model, Ensemble) else (model,)
    folders = [run] if (run / MODEL_JSON_FILE).is_file() else list_models_below(run, "fold")
    model_jsons = [{name: value for name, value in read_model_json(one).items() if name != "files"} for one in folders]
    if is_published(run):
        notices = read_published_facts(run).notices
    else:
        notices = read_critical_notices(run) if (run / "metrics.json").is_file() else []
    return {
        FORMAT_KEY: EXPORT_FORMAT,
        "warning": WARNING,
        "task": model.task,
        "labels": list(model.labels),
        "image_size": model.input_spec.image_size,
        "calibration": dict(model.thresholds),
        "bit_depths": asdict(model.bit_depths),
        "versions": {"fastcxr": VERSION},
        "notices": [asdict(notice) for notice in notices],
        "run": {
            "name": get_model_name(run),
            "backbone": "{library}:{name}".format(**model_jsons[0]["backbone"]),
            "hflip_tta": any(member.hflip_tta for member in members),
            "n_models": len(members),
        },
        "recipe": json.loads(redact_paths(Recipe.from_json(run)).to_json()),
        "model": model_jsons[0] if isinstance(model, Classifier) else {"members": model_jsons},
    }


def describe_check(check: dict[str, Any]) -> str:
    """Return the result of the comparison as text."""
    text = f"largest difference {check['max_difference']:.1g}"
    if check["same_class"] is None:
        return text
    return f"{text}, same class for {check['same_class']} of {check['images']}"


def read_check_images(
    run: Path, model: Classifier | Ensemble, data: DataPaths | None, progress: Progress
) -> tuple[np.ndarray, str]:
    """Return at most MAX_CHECK_IMAGES images, shape (n, size, size), and which they are.

    Raises InputMissingError if none can be read.
    """
    table, origin = find_check_images(run, data)
    table = table.iloc[select_evenly(len(table), MAX_CHECK_IMAGES)].reset_index(drop=True)
    size, depths = model.input_spec.image_size, find_depths(table, model.bit_depths)
    with progress.bar(len(table), "reading images for the check") as bar:
        images = []
        for image in read_fitted_images(table["file"].tolist(), size, None, depths):
            images += [] if isinstance(image, ImageError) else [image]
            bar.advance(1)
    if not images:
        raise InputMissingError(f"none of {pluralize(len(table), 'image')} can be read", "Pass other images as `data`")
    return np.stack(images), origin


def find_check_images(run: Path, data: DataPaths | None) -> tuple[pd.DataFrame, str]:
    """Return a table of images for the comparison, and which they are: the test images of the run if they are found."""
    recipe = Recipe.from_json(run)
    paths = tuple(map(str, [data] if isinstance(data, str | Path) else data or ()))
    own_images = find_own_images(run, recipe.replace(data=paths) if paths else recipe)
    if len(own_images):
        return own_images, OWN_IMAGES
    if paths:
        return make_image_table(paths), f"{make_data_name(paths)} given with data"
    text = "the images of the run are not found (a run stores no absolute paths): the export is checked with the "
    log.warning("%sbundled sample. To check it with the images of the run, pass `data=DATA`", text)
    return make_image_table([find_or_write_sample()]), SAMPLE_IMAGES


def find_own_images(run: Path, recipe: Recipe) -> pd.DataFrame:
    """Return the images of the test split, or of all folds, that are in the data of the recipe; no rows without them.

    Images of other splits are not used: the scores of some are equal to a threshold, and rounding decides their class.
    """
    manifest_file = run / "manifest.csv"
    if not manifest_file.is_file():
        return pd.DataFrame()
    manifest = read_written_manifest(manifest_file)
    is_test = (manifest["split"] == "test") | manifest["split"].str.startswith("fold", na=False)
    no_patients = {"patient_table": None, "patient_regex": None, "patient_tag": None, "split_file": None}
    try:
        with record_logging([]):  # reading the data logs messages about patients and labels
            found = read_recipe_manifest(recipe.replace(**no_patients, skip_bad=True), only_test=True)
    except FastcxrError as error:
        log.debug("the images of the run are not found: %s", error)
        return pd.DataFrame()
    return found[[*IMAGE_KEY, "file"]].merge(manifest[is_test], on=IMAGE_KEY)
