"""Every choice of one experiment as one frozen value: it feeds the command line, recipe.json and the report alike.

A recipe holds what a person chose and nothing that a run computes. Each field carries its own words, so that a flag
of `fastcxr train`, a row of the report and the documentation are the same line.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

from fastcxr.config.fields import check_fields, choice, not_known
from fastcxr.errors import ModelError, RecipeError
from fastcxr.io.files import read_json

if TYPE_CHECKING:
    pass  # FIXME self import

PLACES = ("data", "patients", "weights", "split_from")  # choices of a recipe that may be paths
OPTIMIZERS = ("radam", "adam", "adamw", "sgd")  # beside timm:NAME


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The knobs of fastai's aug_transforms and one more, quarter_turns, which fastai does not let one choose.

    The defaults suit chest radiographs, which are upright and lateralised.
    """

    mult: float = choice(1.0, "factor on rotation, lighting and warp together", at_least=0)
    do_flip: bool = choice(False, "mirror left and right: puts the heart on the other side")
    flip_vert: bool = choice(False, "with do_flip: also upside down")
    quarter_turns: bool = choice(
        True, "with flip_vert: also turned by 90 degrees; without them each flip is drawn alone"
    )
    max_rotate: float = choice(7.0, "largest rotation, in degrees", at_least=0)
    min_zoom: float = choice(0.95, "smallest zoom", at_least=0.01)
    max_zoom: float = choice(1.1, "largest zoom", at_least=0.01)
    max_lighting: float = choice(0.2, "largest change of brightness and contrast", at_least=0, below=1)
    max_warp: float = choice(0.1, "largest perspective warp", at_least=0)
    p_affine: float = choice(0.75, "probability of each rotation, zoom and warp", at_least=0, below=1.0001)
    p_lighting: float = choice(0.75, "probability of each change of lighting", at_least=0, below=1.0001)
    min_scale: float = choice(
        1.0, "smallest part of the image area that a random crop keeps", at_least=0.01, below=1.0001
    )
    mode: Literal["bilinear", "nearest", "bicubic"] = choice("bilinear", "interpolation")
    pad_mode: Literal["zeros", "border", "reflection"] = choice("zeros", "what fills the edges")
    align_corners: bool = choice(True, "grid corners are pixel centres")
    batch: bool = choice(False, "one transformation for the whole batch")

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One phase of training: which layer groups learn, how fast, for how long."""

    name: str = choice("all", "shown in history.csv and the report")
    groups: int | Literal["all"] = choice("all", "how many of the last layer groups learn; 1 is the head", at_least=1)
    epochs: int | None = choice(None, "passes over the training images; none given: the recipe's", at_least=0)
    scale: float = choice(1.0, "factor on the recipe's learning rate", at_least=0)
    spread: float | None = choice(
        None, "head rate over first group's rate, the groups between geometrically; none given: the recipe's",
        at_least=1,
    )  # fmt: skip
    multiples: tuple[float, ...] | None = choice(
        None,
        "a factor for each of the last groups, the head's last, instead of spread; earlier groups take the first",
        at_least=0,
    )
    batch_norm: Literal["learn", "frozen"] = choice(
        "learn", "frozen keeps the statistics that came with the weights, as layers that do not learn always do"
    )
    patience: int | None = choice(
        None, "epochs without improvement before it stops; none given: the recipe's", at_least=0
    )

    def __post_init__(self):
        check_fields(self)
        if self.multiples == ():
            raise RecipeError("multiples is empty", "Give a factor for each of the last groups, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every choice of one experiment; `recipe.but(epochs=10)` is the same experiment with one line changed."""

    backbone: str = choice(
        "mobilenetv2_100", "any timm or torchvision name; torchvision:NAME asks for the latter", kw_only=False
    )
    data: str | tuple[str, ...] | None = choice(
        None, "class folders, a CSV with path and label, a known collection or a packed cohort; several are merged"
    )
    layout: Literal["auto", "folders", "split_folders", "csv", "coronahack", "cohen", "covidx", "hdf5"] = choice(
        "auto", "how the data is laid out"
    )
    relabel: tuple[str, ...] = choice((), "theirs=ours: give a label another name, before all else")
    classes: tuple[str, ...] = choice((), "keep only images of these labels")
    where: tuple[str, ...] = choice((), "column=value,value: keep only rows whose column holds one of these")
    keep_columns: tuple[str, ...] = choice(
        (), "columns that manifest.csv and predictions.csv hold beside source, split, sex, age and view; no free text"
    )
    drop_copies: bool = choice(False, "leave exact copies out of a single source too; merged ones never keep any")
    patients: str | None = choice(None, "table that joins file names to patients (filename, patient)")
    patient_regex: str | None = choice(None, "pattern whose first group, found in the path, is the patient")
    patient_tag: str | None = choice(None, "DICOM tag that holds the patient; kept as a salted hash only")
    split: Literal["patient", "image"] = choice(
        "patient", "what never stands in two splits; image is the literature's, and optimistic"
    )
    given_splits: Literal["obey", "ignore"] = choice("obey", "what becomes of splits that the data gives")
    split_from: str | None = choice(None, "earlier run whose patients keep their place")
    folds: int = choice(0, "patient-grouped folds, each held out once; 0 is a single split", at_least=0)
    fold: int | None = choice(None, "the one fold to run", at_least=1)
    leave_one_source_out: bool = choice(
        False, "a run a source that holds every class: trained on the others, tested on it"
    )
    held_out: str | None = choice(None, "the one source to test on; the others train")
    skip_bad: bool = choice(False, "leave unreadable images out, and count them in the report")

    weights: str = choice(
        "imagenet", "imagenet, none, a file (.safetensors or a plain state dict), or xrv:NAME of torchxrayvision"
    )
    image_size: int = choice(224, "side of the square that the backbone sees, in pixels", at_least=16)
    head: tuple[int, ...] = choice(
        (), "sizes of hidden layers, each with ReLU, between the features and the classes", at_least=1
    )
    dropout: float = choice(
        0.0, "share dropped in training after each hidden layer, or before the classes without one", at_least=0, below=1
    )
    augment: Augmentation = field(default_factory=Augmentation, metadata={"help": "fastai's aug_transforms"})

    strategy: Literal["rapid", "probe", "shallow", "deep", "fine"] | tuple[Stage, ...] = choice(
        "rapid", "which layers learn when; probe and rapid fit the head on kept features first"
    )
    mirror_images: bool = choice(
        True,
        "strategies probe and rapid: the head learns from mirrored images too, and answers for both together",
    )
    epochs: int = choice(5, "passes that teach every layer (strategy shallow: the head)", at_least=1)
    batch_size: int = choice(32, "images a step", at_least=1)
    optimizer: str = choice("radam", "radam, adam, adamw, sgd, or timm:NAME for one of timm's")
    learning_rate: float | Literal["find"] = choice(
        2e-3, "rate of the last layers, scaled by each stage; find runs lr_find before each", at_least=1e-12
    )
    spread: float = choice(
        1.0, "strategy deep, and stages that give none: head rate over first group's rate, the groups between "
        "geometrically; in Python learning_rate=slice(1e-5, 1e-3) gives both",
        at_least=1,
    )  # fmt: skip
    find_from: float = choice(1e-7, "lowest rate that lr_find tries", at_least=1e-12)
    find_to: float = choice(10.0, "highest rate that lr_find tries", at_least=1e-12)
    schedule: Literal["one_cycle", "flat_cosine", "step", "constant"] = choice(
        "one_cycle", "how the rate moves through a stage"
    )
    step_epochs: int = choice(10, "schedule step: epochs of a stage between two falls of the rate", at_least=1)
    step_factor: float = choice(0.5, "schedule step: factor on the rate at each fall", at_least=1e-6, below=1.0001)
    weight_decay: float | None = choice(
        None, "decoupled for radam and adamw (none given: 0.01), L2 for adam and sgd (none given: 0)", at_least=0
    )
    loss: Literal["label_smoothing", "focal", "cross_entropy", "mse", "binary_cross_entropy"] = choice(
        "label_smoothing", "what training minimises"
    )
    label_smoothing: float = choice(0.1, "share of the target spread over all classes", at_least=0, below=1)
    focal_gamma: float = choice(2.0, "how much the focal loss turns to hard images", at_least=0)
    class_weights: Literal["none", "balanced"] = choice(
        "none", "balanced weighs a class by the inverse of its frequency"
    )
    sampler: Literal["shuffle", "weighted"] = choice(
        "shuffle", "weighted draws training images with replacement, every class equally often"
    )
    oversample: tuple[str, ...] = choice(
        (), "LABEL=N shows each training image of a class N times an epoch, each time augmented anew"
    )
    monitor: Literal["auroc", "accuracy", "valid_loss"] = choice(
        "valid_loss", "validation figure that chooses the best epoch"
    )
    patience: int | None = choice(
        None, "epochs without improvement before a stage stops; 0 never stops; none given: rapid 3, others never",
        at_least=0,
    )  # fmt: skip

    sensitivity: float = choice(
        0.95, "what each class's threshold is to reach on validation images", at_least=0.01, below=1.0001
    )
    specificity: float | None = choice(
        None, "instead of a sensitivity: what each class's threshold is to reach", at_least=0.01, below=1.0001
    )
    prevalence: tuple[str, ...] = choice(
        (), "LABEL=0.05: predictive values where so large a share of the people have it, not the share of the folder"
    )
    abstain: float = choice(
        0.0, "share of validation images, the least sure ones, that sets where predict answers uncertain",
        at_least=0, below=1,
    )  # fmt: skip

    accept_confounding: str | None = choice(
        None, "why figures are to be believed although a check of the data failed; the report prints it"
    )

    time_limit: str | None = choice(
        None, "90s, 10m or 1.5h for the whole run: as many epochs as fit are taught; folds share it"
    )
    seed: int = choice(42, "seed of split, shuffling, augmentation and new weights", at_least=0)
    device: str = choice("auto", "auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "fp32", "bf16"] = choice(
        "auto", "arithmetic of the network; auto is bf16 where the machine computes in it by itself"
    )
    workers: int = choice(0, "processes that read images beside the one that trains", at_least=0)
    score_train: bool = choice(False, "write predictions for the training images too")
    kind: Literal["single_label"] = choice("single_label", "one label an image")

    def __post_init__(self):
        # JSON has no tuples and no stages: a strategy read back becomes what it was
        if isinstance(self.strategy, list | tuple):
            stages = tuple(s if isinstance(s, Stage) else _from_mapping(Stage, s) for s in self.strategy)
            object.__setattr__(self, "strategy", stages)
        if isinstance(self.augment, Mapping):
            object.__setattr__(self, "augment", _from_mapping(Augmentation, self.augment))
        if isinstance(self.learning_rate, slice):
            rate, spread = read_slice(self.learning_rate)
            object.__setattr__(self, "learning_rate", rate)
            object.__setattr__(self, "spread", spread)
        for name in ("data", "patients", "split_from", "weights"):
            object.__setattr__(self, name, _as_text(getattr(self, name)))
        for name in ("relabel", "classes", "where", "keep_columns", "head", "oversample", "prevalence"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.strategy == ():
            raise RecipeError(
                "strategy is an empty list of stages", "Give at least one Stage, or a name such as 'fine'"
            )
        check_fields(self)
        columns = (part.strip() for entry in self.keep_columns for part in entry.split(","))
        object.__setattr__(self, "keep_columns", tuple(filter(None, columns)))
        check_agreement(self)

    def but(self, **changes) -> "Recipe":
        """The same experiment with these choices changed."""
        unknown = set(changes) - {f.name for f in fields(self)}
        if unknown:
            raise not_known(unknown.pop(), [f.name for f in fields(self)], "a recipe has no choice called")
        return replace(self, **changes)

    def to_json(self) -> str:
        """The recipe as the text of recipe.json."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @property
    def is_pooled(self) -> bool:
        """Whether several runs make up the experiment: all folds, or every source held out once."""
        return self.leave_one_source_out or bool(self.folds and not self.fold)

    @property
    def copies(self) -> dict[str, int]:
        """How often an epoch shows each training image of the oversampled classes."""
        return dict(read_copies(entry) for entry in self.oversample)


def _as_text(places: Any) -> Any:
    """Paths as text; of several sources a tuple, and one alone is no several."""
    if isinstance(places, list | tuple):
        places = tuple(map(_as_text, places))
        return places[0] if len(places) == 1 else places or None
    return str(places) if isinstance(places, Path) else places


def name_data(data: str | tuple[str, ...] | None) -> str:
    """The data of a recipe in a word: the name of its folder or file, several joined by a plus."""
    places = (data,) if isinstance(data, str) else data or ()
    return "+".join(_name_place(PurePath(place)) for place in places)


def _name_place(place: PurePath) -> str:
    return Path(place).resolve().name if place.name in ("", "..") else place.stem


def read_recipe(path: str | Path) -> Recipe:
    """The recipe that a run folder's recipe.json holds."""
    try:
        return _from_mapping(Recipe, read_json(path))
    except RecipeError:
        raise
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"no recipe can be read here ({type(error).__name__})", "Name a run folder that fastcxr made", path=path
        ) from error


def _from_mapping(kind: type, values: Mapping[str, Any]) -> Any:
    if not isinstance(values, Mapping):
        raise TypeError(f"a {kind.__name__} is a mapping of names to values")
    known = [f.name for f in fields(kind)]
    for name in values:
        if name not in known:
            raise not_known(name, known, f"{kind.__name__} has no choice called")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def without_places(recipe: Recipe) -> Recipe:
    """The recipe as recipe.json holds it; relative paths stay as they were typed."""
    return recipe.but(**{name: _hide(getattr(recipe, name)) for name in PLACES})


def _hide(value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    if isinstance(value, tuple):
        return tuple(map(_hide, value))
    return PurePath(value).name if value and PurePath(value).is_absolute() else value


def check_agreement(recipe: "Recipe") -> None:
    """What one field alone cannot tell: names with a prefix, and wishes that exclude each other.

    Raises RecipeError.
    """
    if recipe.folds == 1:
        raise RecipeError("folds is 1", "Give --folds 2 or more, or leave it out for one split into train, valid, test")
    if recipe.fold is not None and recipe.fold > recipe.folds:
        raise RecipeError(
            f"fold {recipe.fold} of {recipe.folds} folds", "Give --folds 2 or more, and --fold one of them"
        )
    if recipe.folds and recipe.split_from:
        raise RecipeError("folds and an earlier run cannot both give the splits", "Leave out --folds or --split-from")
    if recipe.leave_one_source_out or recipe.held_out:
        _check_sources(recipe)
    if not recipe.optimizer.startswith("timm:") and recipe.optimizer not in OPTIMIZERS:
        raise not_known(recipe.optimizer, [*OPTIMIZERS, "timm:NAME"], "optimizer cannot be")
    if recipe.spread != 1 and recipe.strategy in ("rapid", "probe", "shallow", "fine"):
        what = f"strategy {recipe.strategy} gives each layer group its own rate, or teaches the head alone"
        raise RecipeError(f"spread is {recipe.spread:g}, and {what}", "Choose --strategy deep, or leave spread out")
    if recipe.find_from >= recipe.find_to:
        raise RecipeError(
            f"find_from is {recipe.find_from:g} and find_to {recipe.find_to:g}", "Give a find_to above find_from"
        )
    if recipe.time_limit is not None and not re.fullmatch(r"\d+(\.\d+)?[smh]", recipe.time_limit):
        raise RecipeError(f"time limit is {recipe.time_limit!r}", "Write a number and s, m or h, as 90s, 10m or 1.5h")
    for entry in recipe.prevalence:
        read_prevalence(entry)
    if len(recipe.copies) < len(recipe.oversample):
        raise RecipeError("oversample names a class twice", "Give each class one LABEL=N")
    if recipe.oversample and recipe.sampler == "weighted":
        raise RecipeError(
            "sampler weighted and oversample both say how often a class is shown", "Choose one of the two"
        )


def _check_sources(recipe: "Recipe") -> None:
    """A source that is held out is all that is tested, and no patient crosses over."""
    if recipe.leave_one_source_out and recipe.held_out:
        raise RecipeError("one source is held out, and every source in turn", "Leave out --held-out")
    if recipe.folds or recipe.split_from:
        raise RecipeError("a held-out source gives the test images", "Leave out --folds and --split-from")
    if recipe.split == "image":
        raise RecipeError("a held-out source keeps patients apart", "Leave out --split image")


def read_prevalence(entry: str) -> tuple[str, float]:
    """LABEL=0.05 as its two parts."""
    label, _, share = entry.rpartition("=")
    if not label or not re.fullmatch(r"0?\.[0-9]+", share) or not 0 < float(share) < 1:
        raise RecipeError(f"prevalence is {entry!r}", "Write LABEL=SHARE, a share between 0 and 1, as COVID-19=0.05")
    return label, float(share)


def read_copies(entry: str) -> tuple[str, int]:
    """LABEL=5 as its two parts."""
    label, _, times = entry.rpartition("=")
    if not label or not re.fullmatch(r"[1-9][0-9]{0,5}", times):
        raise RecipeError(f"oversample is {entry!r}", "Write LABEL=N with a whole number, as COVID-19=5")
    return label, int(times)


def read_slice(rates: slice) -> tuple[float, float]:
    """slice(first group's rate, head's rate), as fastai takes it, as the head's rate and the spread below it."""
    low, high = rates.start, rates.stop
    if rates.step is not None or not (_is_rate(low) and _is_rate(high)) or low > high:
        what = f"learning_rate is slice({low}, {high})"
        raise RecipeError(what, "Give the first group's rate and then the head's, as slice(1e-5, 1e-3)")
    return float(high), high / low


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and value > 0
