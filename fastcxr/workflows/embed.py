"""Feature vectors of images from an encoder or the model of a run, with patients and labels of a dataset."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from fastcxr.config.fields import unknown_option_error
from fastcxr.config.recipe import EMBED_OPTIONS, Recipe
from fastcxr.data.bit_depth import BitDepths, open_dataset_images
from fastcxr.data.embeddings import Embeddings, make_embedding_table, validate_embedding_file, write_embeddings
from fastcxr.data.file_names import hash_name_columns
from fastcxr.data.findings import list_findings
from fastcxr.data.image_table import make_image_table
from fastcxr.data.imaging.sniff import looks_like_image
from fastcxr.data.manifest import DataInput, detect_datasets, read_manifest, replace_error_paths
from fastcxr.data.readers.csv_table import is_label_table
from fastcxr.data.readers.folders import list_folders, list_loose_files
from fastcxr.data.readers.hdf5 import parse_reference
from fastcxr.data.readers.label_tables import find_tables
from fastcxr.data.readers.registry import detect_public_datasets
from fastcxr.data.readers.signs import describe_tables, make_table_fix
from fastcxr.errors import BadImagesError, DataError, ImageError, InputMissingError, RecipeError, require_type
from fastcxr.io.hub_names import get_model_name, is_hub_name
from fastcxr.io.paths import reject_missing_paths
from fastcxr.models.backbones import (
    describe_backbone,
    describe_weights_choice,
    find_backbone,
    make_network,
    validate_pretrained,
)
from fastcxr.models.bundle import load_classifier
from fastcxr.models.device_images import DeviceImages
from fastcxr.models.devices import find_device
from fastcxr.models.encoder_files import describe_terms
from fastcxr.models.encoders import ENCODERS, find_image_size
from fastcxr.models.heads import LINEAR_HEAD, HeadConfig
from fastcxr.models.hub_download import find_model_dir
from fastcxr.models.model_json import MODEL_JSON_FILE, WEIGHTS_FILE, read_model_json
from fastcxr.models.precision import keep_malloc_arenas, keep_stem_fp32, resolve_precision
from fastcxr.models.preprocessing import InputSpec
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress, record_logging
from fastcxr.training.feature_cache import FrozenNetwork, compute_features
from fastcxr.version import VERSION
from fastcxr.workflows.load import read_recipe_manifest

log = logging.getLogger("fastcxr")
MAX_SAMPLED_IMAGES = 20  # searched for in the tables above a folder of images
TERMS = ("licence", "citation")  # of a chest encoder, in the entry `backbone` of model.json
UNLABELLED_FIX = "For vectors without labels, pass the folders that contain the images, or the images"


@dataclass(frozen=True, kw_only=True)
class FeatureNetwork:
    """A network for feature vectors.

    Attributes:
        network: the network on its device.
        backbone: library and name.
        input_spec: size and normalization of the images.
        precision: "fp32", "fp16" or "bf16".
        metadata: network and weights, as plain values.
        depths: bit depths that the training of the network has determined, or None.
    """

    network: nn.Module
    backbone: str
    input_spec: InputSpec
    precision: str
    metadata: dict[str, Any]
    depths: BitDepths | None = None


def embed(
    model: str | Path,
    data: DataInput | Sequence[DataInput],
    to: str | Path | None = None,
    *,
    hash_names: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Embeddings:
    """Return the feature vectors of images, with the patients and labels of a dataset, and write them to a file.

    The vector of an image is what the head of the network receives from its last layer. Vectors are cached: the next
    call, and a linear probe on the same images, do not compute them again, and an interrupted call continues.

    Args:
        model: run folder with one model, hf://owner/name, or name of a backbone as for `fastcxr train`.
        data: class folders, a CSV, a DataFrame, a public dataset, a packed file or several of them, as for
            read_manifest, or its result; or images and folders without subfolders, which have no patients and labels.
        to: file to write, ending in .parquet or .npz; an existing one is replaced.
        hash_names: hashes instead of file and folder names; see data.file_names.hash_name_columns.
        progress: progress display.
        **options: of a Recipe: weights, image_size, device, precision and data options.

    Raises:
        BadImagesError: none of the images can be read.
        DataError: the data is ambiguous or invalid.
        InputMissingError: a path does not exist.
        OutputError: the file cannot be written, or pyarrow is missing.
        RecipeError: unknown model or option.
        WeightsError: the weights are not available or do not fit.
    """
    require_type("model", model, str, Path, fix="Pass a run folder, or the name of a backbone")
    progress = progress or make_default_progress()
    if to is not None:
        validate_embedding_file(to)
    recipe = make_embed_recipe(options)
    feature_network = load_feature_network(model, recipe)
    rows = read_rows(data, recipe, log_names=not hash_names)
    embeddings = compute_embeddings(feature_network, rows, progress, hash_names=hash_names)
    if to is not None:
        write_embeddings(embeddings, to)
    return embeddings


def make_embed_recipe(options: dict[str, Any]) -> Recipe:
    """Return a recipe with these options. Raise RecipeError for an option that has no meaning for vectors."""
    for name in options:
        if name not in EMBED_OPTIONS:
            raise unknown_option_error(name, EMBED_OPTIONS, "embed")
    return Recipe(**options)


def load_feature_network(model: str | Path, recipe: Recipe) -> FeatureNetwork:
    """Return the network of a run folder, or a backbone with the weights of the recipe.

    Raises RecipeError for a name that is both, or neither.
    """
    if is_hub_name(model):
        return load_run(find_model_dir(model), recipe)
    folder = Path(model).expanduser()
    is_name = not {os.sep, "/"} & set(str(model))
    if not folder.is_dir():
        if not is_name:
            reject_missing_paths([folder], "Pass a run folder, or the name of a backbone")
        return load_encoder(recipe.replace(backbone=str(model)))
    is_run = any((folder / name).exists() for name in (MODEL_JSON_FILE, "recipe.json"))
    if is_name and is_backbone(str(model)):
        if is_run:
            problem = f"{model} is the name of a backbone and of a run folder"
            raise RecipeError(problem, f"Pass ./{model} for the run, or the backbone with its library, as timm:{model}")
        return load_encoder(recipe.replace(backbone=str(model)))
    return load_run(folder, recipe)


def is_backbone(name: str) -> bool:
    """Return whether a library has a backbone of this name."""
    try:
        find_backbone(name, "none")
    except RecipeError:
        return False
    return True


def load_run(folder: Path, recipe: Recipe) -> FeatureNetwork:
    """Return the network of a run folder with one model. Raises InputMissingError for a run with folds."""
    if recipe.weights != "pretrained" or recipe.image_size != "auto":
        problem = "a run has its own weights and image size"
        raise RecipeError(problem, "Leave `weights` and `image_size` out, or pass the name of a backbone")
    model_json = read_model_json(folder)
    classifier = load_classifier(folder, precision=recipe.precision, device=recipe.device)
    backbone = "{library}:{name}".format(**model_json["backbone"])
    weights = {"weights": WEIGHTS_FILE, "weights_sha256": model_json["files"][WEIGHTS_FILE]}
    terms = {key: model_json["backbone"][key] for key in TERMS if key in model_json["backbone"]}
    return FeatureNetwork(
        network=classifier.network, backbone=backbone, input_spec=classifier.input_spec,
        precision=classifier.precision, depths=classifier.bit_depths,
        metadata={"run": get_model_name(folder), "encoder": backbone} | weights | terms,
    )  # fmt: skip


def load_encoder(recipe: Recipe) -> FeatureNetwork:
    """Return the backbone of a recipe. Licence and access of an encoder are logged before its weights are fetched."""
    device, backbone = find_device(recipe.device), find_backbone(recipe.backbone, recipe.weights)
    input_spec = InputSpec(image_size=find_image_size(recipe), mean=backbone.mean, std=backbone.std)
    if backbone.library == "chest" and recipe.weights != "none":
        log.info(describe_terms(ENCODERS[backbone.name]))
    if recipe.weights == "pretrained":
        validate_pretrained(backbone)
    if choice := describe_weights_choice(recipe.backbone, backbone, recipe.weights):
        log.info(choice)
    if recipe.weights == "none":
        log.warning("random weights: the vectors have no meaning without training")
    torch.manual_seed(recipe.seed)
    arguments = backbone, 2, recipe.weights, input_spec.image_size
    try:  # the features of a linear probe, of which the vectors are a part
        network = make_network(*arguments, HeadConfig(multi_scale=True))
    except RecipeError:  # its head is no linear layer
        network = make_network(*arguments, LINEAR_HEAD)
    network, precision = network.to(device), resolve_precision(recipe.precision, device)
    if device.type == "cpu":
        keep_malloc_arenas()
        if precision == "bf16":
            keep_stem_fp32(network, input_spec)
    record = describe_backbone(backbone, recipe.weights, network)
    name = f"{backbone.library}:{backbone.name}"
    facts = {key: record[key] for key in ("weights", "weights_sha256", *TERMS) if key in record}
    return FeatureNetwork(
        network=network, backbone=name, input_spec=input_spec, precision=precision, metadata={"encoder": name} | facts
    )


def read_rows(data: DataInput | Sequence[DataInput], recipe: Recipe, *, log_names: bool) -> pd.DataFrame:
    """Return the manifest of datasets, or a table of images without patients and labels.

    Raises DataError for a folder that may be either, or for datasets and images together.
    """
    if isinstance(data, pd.DataFrame) and {"path", "source", "file"} <= set(data):
        return data  # the result of read_manifest or make_image_table
    inputs = [data] if isinstance(data, DataInput) or not isinstance(data, Iterable) else list(data)
    paths = [one for one in inputs if isinstance(one, str | Path)]
    if len(paths) < len(inputs) or not paths:
        return read_manifest(inputs, recipe, only_test=True)
    files = [(parse_reference(path) or (path,))[0] for path in paths]
    reject_missing_paths(files, "Correct these paths, or leave them out", log_names=log_names)
    is_plain = [recipe.data_format == "auto" and holds_plain_images(path) for path in paths]
    if all(is_plain):
        return make_image_table(paths, log_names=log_names)
    if any(is_plain):
        unlabelled, labelled = (paths[is_plain.index(value)] for value in (True, False))
        problem = f"{unlabelled} has no labels, and {labelled} is a dataset with labels"
        raise DataError(problem, "Pass them in two commands", code="E036")
    _reject_ambiguous_folders(paths, recipe)
    return read_recipe_manifest(recipe.replace(data=tuple(map(str, paths))), only_test=True)


def holds_plain_images(path: str | Path) -> bool:
    """Return whether a path is an image, or a folder of images without subfolders, dataset or table of labels.

    Raises DataError for a folder of images that a table names.
    """
    path = Path(path).expanduser()
    if parse_reference(path):
        return True
    if path.is_file():
        return looks_like_image(path)
    if list_folders(str(path)) or detect_public_datasets(path):
        return False
    names = list_loose_files(str(path))
    images = [name for name in names if looks_like_image(path / name)]
    if not images or any(is_label_table(path / name) for name in names):
        return False
    if tables := find_tables(path, images[:MAX_SAMPLED_IMAGES]):
        problem = f"a folder of images without class folders{describe_tables(tables)}"
        fix = f"{make_table_fix(path, tables)}. For vectors without labels, pass the images instead of the folder"
        raise DataError(problem, fix, path=path, code="E036")
    log.info("no labels: %s is a folder of images", path.name)
    return True


def _reject_ambiguous_folders(paths: Sequence[str | Path], recipe: Recipe) -> None:
    """Raise DataError for a folder with only one class folder, whose name may be no label.

    For a folder whose layout is unknown, the error of the readers is raised with the way to pass images without labels.
    """
    for path in paths:
        try:
            with record_logging([]):  # reading the data logs the same messages
                (dataset,) = detect_datasets(path, recipe.data_format)
            labels = {folder.label for folder in dataset.folders}
            if len(labels) == 1 and recipe.data_format == "auto":
                problem = f"only one class, the folder {labels.pop()!r}"
                raise DataError(
                    problem, f"Pass `data_format={dataset.layout!r}` if this is the label", path=path, code="E003"
                )
        except (DataError, InputMissingError) as error:
            if not Path(path).is_dir():
                raise
            fix = f"{error.fix}. {UNLABELLED_FIX}"
            raise type(error)(error.problem, fix, path=error.path, code=error.code) from error


def compute_embeddings(
    feature_network: FeatureNetwork, rows: pd.DataFrame, progress: Progress, *, hash_names: bool = False
) -> Embeddings:
    """Return the vectors of the readable images. Raises BadImagesError if there is none."""
    input_spec, errors = feature_network.input_spec, list[ImageError]()
    rows, image_cache = open_dataset_images(rows, input_spec.image_size, progress, errors, feature_network.depths)
    image_cache.log_warnings()
    rows = rows.reset_index(drop=True)
    shown = hash_name_columns(rows) if hash_names else rows
    named_errors = replace_error_paths(errors, shown.assign(file=rows["file"]))
    is_readable = ~rows["file"].isin([error.path for error in errors])
    readable_cache = image_cache.select(rows["file"][is_readable].tolist(), input_spec.image_size)
    if readable_cache is None or not is_readable.any():
        raise BadImagesError(named_errors)
    frozen = FrozenNetwork(
        network=feature_network.network, backbone=feature_network.backbone, images=DeviceImages(readable_cache),
        input_spec=input_spec, precision=feature_network.precision,
    )  # fmt: skip
    vectors = compute_features(frozen, progress).features[0][:, frozen.n_stage_features :]
    preprocessing = {
        "image_size": input_spec.image_size, "mean": list(input_spec.mean), "std": list(input_spec.std),
        "precision": feature_network.precision, "dimension": vectors.shape[1], "fastcxr": VERSION,
    }  # fmt: skip
    if findings := list_findings(rows):
        preprocessing["findings"] = findings
    table = make_embedding_table(shown[is_readable])
    return Embeddings(table, vectors, feature_network.metadata | preprocessing, named_errors)
