"""A trained network and what it needs to be used, as model.safetensors, gate.safetensors and model.json: no pickle."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load_file, save
from torch import nn

from fastcxr.config.fields import Arithmetic, not_known
from fastcxr.config.recipe import Recipe
from fastcxr.data.bit_depth import BitDepths, summarize_depths
from fastcxr.errors import FastcxrError, InputMissingError, ModelError
from fastcxr.io.files import sha256_of, write_json, write_whole
from fastcxr.metrics.calibration import check_calibration
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.devices import find_device
from fastcxr.models.heads import HeadPlan, find_depths, plan_head
from fastcxr.models.model_json import FACTS_FILE, FORMAT_VERSION, OTHER_VERSION, WEIGHTS_FILE, check_files, read_facts
from fastcxr.models.ood import ARRAYS, Gate
from fastcxr.models.precision import NAMES, find_precision, keep_memory
from fastcxr.models.preprocessing import Pixels, blank

if TYPE_CHECKING:  # training needs fastai, which takes seconds to import; prediction does not
    from fastai.learner import Learner

# whatever building a network from numbers that fit together badly may raise
UNFIT = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, SafetensorError, TypeError,
    ValueError,
)  # fmt: skip
GATE_FILE = "gate.safetensors"
NUMBERS = ("limit", "images", "patients")


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network, its labels in the order of its outputs, the pixels that it wants to see, and its arithmetic.

    temperature: what its logits are divided by before they become probabilities. decisions: thresholds of the classes
    and the band that is left open, for fastcxr.metrics.thresholds.decide. gate: tells what is not like the training
    images; None where there is none. mirror_images: an answer is the mean of those to an image and to its mirror image.
    bit_depths: with which images are read that are deeper than 8 bits, and whose files state no depth.
    """

    network: nn.Module
    labels: tuple[str, ...]
    pixels: Pixels
    precision: str = "fp32"
    temperature: float = 1.0
    decisions: Mapping[str, Any] = field(default_factory=dict)
    gate: Gate | None = None
    mirror_images: bool = False
    bit_depths: BitDepths = field(default_factory=BitDepths)

    @property
    def arithmetic(self) -> str:
        """In what it computes, and where: `bfloat16 on cpu`."""
        return f"{NAMES[self.precision]} on {next(self.network.parameters()).device.type}"


def classifier_of(learner: "Learner") -> Classifier:
    """The classifier inside a Learner whose loaders came from make_loaders."""
    fitted = getattr(learner, "fitted", None)
    return Classifier(
        network=learner.model,
        labels=tuple(learner.dls.vocab),
        pixels=learner.dls.pixels,
        precision=getattr(learner, "precision", "fp32"),
        gate=getattr(learner, "gate", None),
        # a head that was fitted on mirror images too and kept: others were not made for them
        mirror_images=fitted is not None and fitted.bank.mirror_images,
        bit_depths=summarize_depths(learner.dls.manifest) if hasattr(learner.dls, "manifest") else BitDepths(),
    )


def save_model(
    folder: str | Path,
    learner: "Learner",
    recipe: Recipe,
    choices: dict[str, Any],
    calibration: dict[str, Any] | None = None,
) -> None:
    """Write the model's files. `choices`: what the run decided by itself; `calibration`: temperature and thresholds."""
    folder, classifier = Path(folder), classifier_of(learner)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in learner.model.state_dict().items()}
    write_whole(folder / WEIGHTS_FILE, save(state))
    write_json(
        folder / FACTS_FILE,
        {
            "format_version": FORMAT_VERSION,
            "kind": recipe.kind,
            "labels": list(classifier.labels),
            "backbone": learner.backbone,
            "head": asdict(plan_head(recipe)),
            "pixels": asdict(classifier.pixels),
            "choices": choices,
            "calibration": calibration or {"temperature": 1.0},
            "mirror_images": classifier.mirror_images,
            "bit_depths": asdict(classifier.bit_depths),
            "gate": write_gate(folder, classifier.gate) if classifier.gate else None,
            "files": {WEIGHTS_FILE: sha256_of(folder / WEIGHTS_FILE)},
        },
    )


def load_model(folder: str | Path, *, precision: Arithmetic = "trained", device: str = "auto") -> Classifier:
    """The classifier of a run folder, ready to predict on a device; "auto" takes a GPU where there is one.

    precision: as it was trained where the device can, what suits the device ("auto"), or by name.
    Raises ModelError for anything but an intact model, RecipeError for a device or a precision that is not there.
    """
    if precision not in get_args(Arithmetic):
        raise not_known(str(precision), get_args(Arithmetic), "precision cannot be")
    folder, place = Path(folder), find_device(device)
    facts = read_facts(folder)
    check_files(folder, facts)
    calibration = check_calibration(facts.get("calibration"), folder / FACTS_FILE)
    gate = read_gate(folder, facts.get("gate"))  # files of earlier versions have none
    try:
        labels, pixels = tuple(facts["labels"]), Pixels(**_with_tuples(facts["pixels"]))
        network = _rebuild(facts, len(labels), pixels)
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
        if gate and gate.depths != find_depths(network, blank(pixels)):
            raise KeyError("its gate looks at other stages")
        chosen = facts["choices"].get("precision")
    except (*UNFIT, FastcxrError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"the model cannot be rebuilt ({first_line})",
            OTHER_VERSION,
            path=folder,
            code="E302",
        ) from error
    if precision == "trained":
        precision = "auto" if chosen == "bf16" else "fp32"
    if place.type == "cpu":
        keep_memory()
    return Classifier(
        network=network.eval().to(place),
        labels=labels,
        pixels=pixels,
        precision=find_precision(precision, place),
        temperature=float(calibration.get("temperature", 1.0)),
        decisions=calibration,
        gate=gate,
        mirror_images=facts.get("mirror_images", False),
        bit_depths=BitDepths(**facts.get("bit_depths", {})),
    )


def _rebuild(facts: dict[str, Any], classes: int, pixels: Pixels) -> nn.Module:
    """The network with the channels and the head that it was trained with, its weights not yet in it."""
    backbone = find_backbone(f"{facts['backbone']['library']}:{facts['backbone']['name']}", "none")
    backbone = replace(backbone, mean=pixels.mean, std=pixels.std)
    head = HeadPlan(**_with_tuples(facts.get("head", {})))  # files of earlier versions: one linear layer
    return make_network(backbone, classes, "none", pixels.image_size, head)


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def write_gate(folder: Path, gate: Gate) -> dict[str, Any]:
    """Write gate.safetensors; returns what model.json is to say of it."""
    write_whole(folder / GATE_FILE, save_arrays({name: getattr(gate, name) for name in ARRAYS}))
    facts = {name: getattr(gate, name) for name in NUMBERS}
    return {"depths": dict(gate.depths), **facts, "sha256": sha256_of(folder / GATE_FILE)}


def read_gate(folder: Path, facts: Mapping[str, Any] | None) -> Gate | None:
    """The gate that model.json speaks of; None for a model without one, as those of earlier versions are.

    Raises InputMissingError where its file is gone, ModelError where it is not the one that was written.
    """
    if facts is None:
        return None
    path = folder / GATE_FILE
    if not path.is_file():
        raise InputMissingError("model.json speaks of a gate that is not here", "Copy the whole run folder", path=path)
    try:
        if sha256_of(path) != facts["sha256"]:
            raise ValueError("sha256 differs from model.json")
        gate = Gate(depths=dict(facts["depths"]), **load_arrays(path), **{name: facts[name] for name in NUMBERS})
        _check(gate)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"this gate makes no sense ({first_line})", "Copy it again", path=path, code="E301") from error
    return gate


def _check(gate: Gate) -> None:
    width, count = sum(gate.depths.values()), len(gate.variances)
    wanted = {"mean": (width,), "deviation": (width,), "directions": (count, width), "variances": (count,)}
    shapes = {name: getattr(gate, name).shape for name in ARRAYS}
    if shapes != wanted | {"noise": (1,)}:
        raise ValueError(f"arrays of the shapes {shapes}")
    divisors = np.concatenate([gate.deviation, gate.variances, gate.noise, [gate.limit]])
    if not (np.isfinite([*gate.mean, *gate.directions.ravel()]).all() and (divisors > 0).all()):
        raise ValueError("numbers that no fit gives")
