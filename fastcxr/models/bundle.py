"""Saving and loading of classifiers as model.safetensors, ood.safetensors and model.json, without pickle."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load_file, save
from torch import nn

from fastcxr.config.fields import InferencePrecision, unknown_name_error
from fastcxr.config.recipe import Recipe
from fastcxr.config.tasks import SINGLE_LABEL, describe_model
from fastcxr.data.bit_depth import BitDepths, summarize_depths
from fastcxr.errors import FastcxrError, InputMissingError, ModelError, make_type_error, require_type
from fastcxr.io.files import atomic_write, compute_sha256, write_json
from fastcxr.io.formats import FORMAT_KEY, MODEL_FORMAT
from fastcxr.metrics.calibration_entry import validate_calibration
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.devices import find_device
from fastcxr.models.heads import HeadConfig, find_stages, head_config
from fastcxr.models.hub_download import find_model_dir
from fastcxr.models.model_json import (
    MODEL_JSON_FILE,
    OTHER_VERSION_FIX,
    WEIGHTS_FILE,
    list_models_below,
    read_model_json,
    validate_model_files,
)
from fastcxr.models.ood import ARRAY_FIELDS, OODDetector
from fastcxr.models.precision import AUTOCAST_DTYPES, DTYPE_NAMES, is_native, keep_malloc_arenas, resolve_precision
from fastcxr.models.preprocessing import InputSpec, make_blank_image
from fastcxr.models.state import find_learner_state, get_learner_state, get_loaders_state

if TYPE_CHECKING:  # fastai takes seconds to import, and inference does not need it
    from fastai.learner import Learner

# raised when a network is constructed from inconsistent values in model.json
REBUILD_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, SafetensorError, TypeError,
    ValueError,
)  # fmt: skip
OOD_FILE = "ood.safetensors"
NUMBER_FIELDS = ("threshold", "images", "patients")


@dataclass(frozen=True, kw_only=True, repr=False)
class Classifier:
    """A trained network with all settings of inference.

    Attributes:
        network: the network; its outputs are logits, shape (n, n_classes).
        labels: names of the classes or findings in the order of the logits.
        task: whether an image has one class (single_label) or several findings (multi_label).
        input_spec: size and normalization of the input.
        precision: "fp32", "fp16" or "bf16".
        temperature: divisor of the logits before the softmax; findings have a line each in `thresholds`.
        thresholds: calibration of model.json: thresholds of the classes and of abstention, for
            fastcxr.metrics.decisions.apply_thresholds, and the calibration lines of findings.
        ood_detector: out-of-distribution detector, or None.
        hflip_tta: test-time augmentation: average the probabilities of an image and its flipped image.
        bit_depths: bit depths of images with more than 8 bits whose files do not state one.
    """

    network: nn.Module
    labels: tuple[str, ...]
    input_spec: InputSpec
    task: str = SINGLE_LABEL
    precision: str = "fp32"
    temperature: float = 1.0
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    ood_detector: OODDetector | None = None
    hflip_tta: bool = False
    bit_depths: BitDepths = field(default_factory=BitDepths)

    @property
    def has_ood_detector(self) -> bool:
        """Whether it has an out-of-distribution detector."""
        return self.ood_detector is not None

    @property
    def dtype_and_device(self) -> str:
        """Precision and device of the network, for example `bfloat16 on cpu`."""
        return f"{DTYPE_NAMES[self.precision]} on {next(self.network.parameters()).device.type}"

    def __repr__(self) -> str:
        return describe_model(self, self.input_spec.image_size)


@dataclass(frozen=True, kw_only=True, repr=False)
class Ensemble:
    """The classifiers of all folds of a run.

    The probabilities are the mean of those of the members, each with its own temperature. The OOD score is the mean of
    their scores: above 1 the image is out of distribution. The thresholds are the mean of their thresholds.
    """

    members: tuple[Classifier, ...]

    def __post_init__(self):
        first = self.labels, self.input_spec, self.task
        if any((one.labels, one.input_spec, one.task) != first for one in self.members):
            problem = "the models of the folds differ in their classes, image size or normalization"
            raise ModelError(problem, "Run all folds again with the same recipe and data")

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the probabilities."""
        return self.members[0].labels

    @property
    def input_spec(self) -> InputSpec:
        """Size and normalization of the input."""
        return self.members[0].input_spec

    @property
    def task(self) -> str:
        """Whether an image has one class (single_label) or several findings (multi_label)."""
        return self.members[0].task

    @property
    def bit_depths(self) -> BitDepths:
        """Bit depths of the first fold: every fold reads all images of the dataset."""
        return self.members[0].bit_depths

    @property
    def has_ood_detector(self) -> bool:
        """Whether every member has an out-of-distribution detector."""
        return all(member.has_ood_detector for member in self.members)

    @property
    def dtype_and_device(self) -> str:
        """Number of models, precision and device, for example `mean of 5 models, bfloat16 on cpu`."""
        return f"mean of {len(self.members)} models, {self.members[0].dtype_and_device}"

    def __repr__(self) -> str:
        return describe_model(self, self.input_spec.image_size)

    @property
    def thresholds(self) -> dict[str, Any]:
        """Mean thresholds of the classes that have one in every fold, and of abstention; see Classifier."""
        folds = [member.thresholds for member in self.members]
        rows = [fold.get("thresholds", {}) for fold in folds]
        means = {
            label: {"threshold": float(np.mean([row[label]["threshold"] for row in rows]))}
            for label in self.labels
            if all(label in row for row in rows)
        }
        limits = [limit for fold in folds if (limit := fold.get("uncertain_below")) is not None]
        return {"thresholds": means, "uncertain_below": float(np.mean(limits)) if len(limits) == len(folds) else None}


def extract_classifier(learner: "Learner") -> Classifier:
    """Return the classifier of a Learner whose loaders were made by make_loaders.

    Raises ArgumentTypeError for a value that is not a Learner, such as the path of a run folder.
    """
    if not hasattr(learner, "dls"):  # fastai takes seconds to import
        raise make_type_error("model", learner, "Learner, Classifier or Ensemble")
    state, loaders_state = find_learner_state(learner), get_loaders_state(learner.dls)
    return Classifier(
        network=cast(nn.Module, learner.model),  # fastai has no type annotations
        labels=tuple(learner.dls.vocab),
        input_spec=loaders_state.input_spec,
        task=loaders_state.task,
        precision=state.precision,
        ood_detector=state.ood_detector,
        # only a head fitted on cached features is fitted on flipped images too
        hflip_tta=state.fitted_probe is not None and state.fitted_probe.cache.hflip_tta,
        bit_depths=summarize_depths(loaders_state.manifest),
    )


def save_model(
    folder: str | Path,
    learner: "Learner",
    recipe: Recipe,
    choices: dict[str, Any],
    calibration: dict[str, Any] | None = None,
) -> None:
    """Write model.safetensors, model.json and, if there is an OOD detector, ood.safetensors.

    `choices`: automatic decisions of the run; `calibration`: temperature and thresholds.
    """
    folder, classifier = Path(folder), extract_classifier(learner)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in learner.model.state_dict().items()}
    atomic_write(folder / WEIGHTS_FILE, save(state))
    write_json(
        folder / MODEL_JSON_FILE,
        {
            FORMAT_KEY: MODEL_FORMAT,
            "kind": classifier.task,
            "labels": list(classifier.labels),
            "backbone": get_learner_state(learner).backbone,
            "head": asdict(head_config(recipe)),
            "input_spec": asdict(classifier.input_spec),
            "choices": choices,
            "fitted_on": describe_fitted_images(learner),
            "calibration": calibration or {"temperature": 1.0},
            "hflip_tta": classifier.hflip_tta,
            "bit_depths": asdict(classifier.bit_depths),
            "ood": write_ood_detector(folder, classifier.ood_detector) if classifier.ood_detector else None,
            "files": {WEIGHTS_FILE: compute_sha256(folder / WEIGHTS_FILE)},
        },
    )


def describe_fitted_images(learner: "Learner") -> dict[str, Any]:
    """Return the entry `fitted_on` of model.json.

    `splits`, `images`, `patients`: the images that the saved weights were fitted on. `valid_predictions`: the predictor
    of the validation rows of predictions.csv, `saved_model` or, for a head that was refitted on training and validation
    images, `train_only_head`. Rows of a split in `splits` that the saved model predicts are not out-of-sample.
    """
    state, manifest = find_learner_state(learner), get_loaders_state(learner.dls).manifest
    fitted = manifest[manifest["split"].isin(state.fitted_splits)]
    predictor = "train_only_head" if state.fitted_probe is not None else "saved_model"
    n_patients = int(fitted["patient"].nunique())
    return {
        "splits": list(state.fitted_splits), "images": len(fitted), "patients": n_patients,
        "valid_predictions": predictor,
    }  # fmt: skip


def load_model(
    folder: str | Path, *, precision: InferencePrecision = "trained", device: str = "auto"
) -> Classifier | Ensemble:
    """Load the classifier of a run folder onto a device, or the ensemble of a cross-validation.

    The members of an ensemble were trained on most images of the run: predict other images with it.

    Args:
        folder: the run folder, the folder of a run with folds, or hf://owner/name for a model on the hub.
        precision: see load_classifier.
        device: see load_classifier.

    Raises:
        HubError: the hub rejects the request or cannot be reached, and its cache does not have the model.
        InputMissingError: a file of the model is missing, or a fold is not finished.
        ModelError: a file of the model is damaged or invalid, or the folds differ.
        RecipeError: the device is not available or the precision is unknown.
    """
    require_type("folder", folder, str, Path)
    folder = find_model_dir(folder)
    fold_dirs = [] if (Path(folder) / MODEL_JSON_FILE).is_file() else list_models_below(folder, "fold")
    if not fold_dirs:
        return load_classifier(folder, precision=precision, device=device)
    n_folds = Recipe.from_json(Path(folder) / "recipe.json").folds
    if len(fold_dirs) < n_folds:
        problem = f"{len(fold_dirs)} of {n_folds} folds have a model"
        raise InputMissingError(problem, "Run `fastcxr resume` first, or pass the folder of one fold", path=folder)
    return Ensemble(members=tuple(load_classifier(one, precision=precision, device=device) for one in fold_dirs))


def load_classifier(
    folder: str | Path, *, precision: InferencePrecision = "trained", device: str = "auto"
) -> Classifier:
    """Load the classifier of a run folder with one model onto a device.

    Args:
        folder: the run folder, or hf://owner/name for a model on the hub.
        precision: "trained" uses the precision of training if the device supports it natively, else fp32; "auto":
            see resolve_precision.
        device: name of a torch device; "auto" selects a GPU if there is one.

    Raises:
        InputMissingError: a file of the model is missing.
        ModelError: a file of the model is damaged or invalid.
        RecipeError: the device is not available or the precision is unknown.
    """
    if precision not in get_args(InferencePrecision):
        raise unknown_name_error(str(precision), get_args(InferencePrecision), "unknown precision")
    folder, torch_device = find_model_dir(folder), find_device(device)
    model_json = read_model_json(folder)
    validate_model_files(folder, model_json)
    calibration = validate_calibration(model_json.get("calibration"), folder / MODEL_JSON_FILE)
    detector = read_ood_detector(folder, model_json.get("ood"))
    input_spec = InputSpec(**_lists_to_tuples(model_json["input_spec"]))
    network = _build_network(folder, model_json, input_spec, detector)
    if precision == "trained":
        trained_precision = model_json["choices"].get("precision")
        # a tuple, because model.json may have been changed to a value that is not hashable
        is_usable = trained_precision in tuple(AUTOCAST_DTYPES) and is_native(trained_precision, torch_device)
        precision = trained_precision if is_usable else "fp32"
    if torch_device.type == "cpu":
        keep_malloc_arenas()
    return Classifier(
        network=network.eval().to(torch_device),
        labels=tuple(model_json["labels"]),
        input_spec=input_spec,
        task=model_json.get("kind", SINGLE_LABEL),
        precision=resolve_precision(precision, torch_device),
        temperature=float(calibration.get("temperature", 1.0)),
        thresholds=calibration,
        ood_detector=detector,
        hflip_tta=model_json.get("hflip_tta", False),
        bit_depths=BitDepths(**model_json.get("bit_depths", {})),
    )


def _build_network(
    folder: Path, model_json: Mapping[str, Any], input_spec: InputSpec, detector: OODDetector | None
) -> nn.Module:
    """Return the network of model.json with the saved weights. Raises ModelError if they do not fit."""
    try:
        backbone = find_backbone("{library}:{name}".format(**model_json["backbone"]), "none")
        backbone = replace(backbone, mean=input_spec.mean, std=input_spec.std)
        head = HeadConfig(**_lists_to_tuples(model_json.get("head", {})))
        network = make_network(backbone, len(model_json["labels"]), "none", input_spec.image_size, head)
        state = {}
        for name in model_json["files"]:  # a published model may have the head in a file by itself
            state |= load_file(folder / name)
        network.load_state_dict(state)
        if detector and detector.stage_channels != find_stages(network, make_blank_image(input_spec)):
            raise ValueError("the OOD detector uses stages that the network does not have")
    except (*REBUILD_ERRORS, FastcxrError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        problem = f"the network cannot be constructed from model.json ({first_line})"
        raise ModelError(problem, OTHER_VERSION_FIX, path=folder, code="E305") from error
    return network


def _lists_to_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def write_ood_detector(folder: Path, detector: OODDetector) -> dict[str, Any]:
    """Write ood.safetensors and return the entry `ood` of model.json."""
    atomic_write(folder / OOD_FILE, save_arrays({name: getattr(detector, name) for name in ARRAY_FIELDS}))
    numbers = {name: getattr(detector, name) for name in NUMBER_FIELDS}
    return {"stage_channels": dict(detector.stage_channels), **numbers, "sha256": compute_sha256(folder / OOD_FILE)}


def read_ood_detector(folder: Path, saved: Mapping[str, Any] | None) -> OODDetector | None:
    """Return the OOD detector of a model from its entry in model.json, or None for a model without one.

    Raise InputMissingError if ood.safetensors is missing, and ModelError if it is damaged or invalid.
    """
    if saved is None:
        return None
    path = folder / OOD_FILE
    if not path.is_file():
        raise InputMissingError("the OOD detector of model.json is missing", "Copy the whole run folder", path=path)
    try:
        if compute_sha256(path) != saved["sha256"]:
            raise ValueError("sha256 differs from model.json")
        numbers = {name: saved[name] for name in NUMBER_FIELDS}
        detector = OODDetector(stage_channels=dict(saved["stage_channels"]), **load_arrays(path), **numbers)
        _validate_detector(detector)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"invalid OOD detector ({first_line})", "Copy it again", path=path, code="E301") from error
    return detector


def _validate_detector(detector: OODDetector) -> None:
    n_features, n_components = sum(detector.stage_channels.values()), len(detector.variances)
    expected_shapes = ((n_features,), (n_features,), (n_components, n_features), (n_components,), (1,))
    shapes = {name: getattr(detector, name).shape for name in ARRAY_FIELDS}
    if tuple(shapes.values()) != expected_shapes:
        raise ValueError(f"unexpected array shapes {shapes}")
    divisors = np.concatenate([detector.std, detector.variances, detector.noise, [detector.threshold]])
    if not (np.isfinite([*detector.mean, *detector.directions.ravel()]).all() and (divisors > 0).all()):
        raise ValueError("values that are not finite or not positive")
