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

from fastcxr.config.fields import option, unknown_name_error, validate_fields
from fastcxr.errors import ModelError, RecipeError
from fastcxr.io.files import STATE_DIR, read_json
from fastcxr.io.formats import FORMAT_KEY, RECIPE_FORMAT, is_format, make_format_error

if TYPE_CHECKING:
    pass  # FIXME self import

PATH_FIELDS = ("data", "patients", "weights", "split_from")  # choices of a recipe that may be paths
OPTIMIZERS = ("radam", "adam", "adamw", "sgd")  # beside timm:NAME


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The knobs of fastai's aug_transforms and one more, quarter_turns, which fastai does not let one choose.

    The defaults suit chest radiographs, which are upright and lateralised.
    """

    mult: float = option(1.0, "factor on rotation, lighting and warp together", at_least=0)
    do_flip: bool = option(False, "mirror left and right: puts the heart on the other side")
    flip_vert: bool = option(False, "with do_flip: also upside down")
    quarter_turns: bool = option(
        True, "with flip_vert: also turned by 90 degrees; without them each flip is drawn alone"
    )
    max_rotate: float = option(7.0, "largest rotation, in degrees", at_least=0)
    min_zoom: float = option(0.95, "smallest zoom", at_least=0.01)
    max_zoom: float = option(1.1, "largest zoom", at_least=0.01)
    max_lighting: float = option(0.2, "largest change of brightness and contrast", at_least=0, below=1)
    max_warp: float = option(0.1, "largest perspective warp", at_least=0)
    p_affine: float = option(0.75, "probability of each rotation, zoom and warp", at_least=0, below=1.0001)
    p_lighting: float = option(0.75, "probability of each change of lighting", at_least=0, below=1.0001)
    min_scale: float = option(
        1.0, "smallest part of the image area that a random crop keeps", at_least=0.01, below=1.0001
    )
    mode: Literal["bilinear", "nearest", "bicubic"] = option("bilinear", "interpolation")
    pad_mode: Literal["zeros", "border", "reflection"] = option("zeros", "what fills the edges")
    align_corners: bool = option(True, "grid corners are pixel centres")
    batch: bool = option(False, "one transformation for the whole batch")

    def __post_init__(self):
        validate_fields(self)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One phase of training: which layer groups learn, how fast, for how long."""

    name: str = option("all", "shown in history.csv and the report")
    groups: int | Literal["all"] = option("all", "how many of the last layer groups learn; 1 is the head", at_least=1)
    epochs: int | None = option(None, "passes over the training images; none given: the recipe's", at_least=0)
    scale: float = option(1.0, "factor on the recipe's learning rate", at_least=0)
    spread: float | None = option(
        None, "head rate over first group's rate, the groups between geometrically; none given: the recipe's",
        at_least=1,
    )  # fmt: skip
    multiples: tuple[float, ...] | None = option(
        None,
        "a factor for each of the last groups, the head's last, instead of spread; earlier groups take the first",
        at_least=0,
    )
    batch_norm: Literal["learn", "frozen"] = option(
        "learn", "frozen keeps the statistics that came with the weights, as layers that do not learn always do"
    )
    patience: int | None = option(
        None, "epochs without improvement before it stops; none given: the recipe's", at_least=0
    )

    def __post_init__(self):
        validate_fields(self)
        if self.multiples == ():
            raise RecipeError("multiples is empty", "Give a factor for each of the last groups, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every choice of one experiment; `recipe.but(epochs=10)` is the same experiment with one line changed."""

    backbone: str = option(
        "mobilenetv2_100", "any timm or torchvision name; torchvision:NAME asks for the latter", kw_only=False
    )
    data: str | tuple[str, ...] | None = option(
        None, "class folders, a CSV with path and label, a known collection or a packed cohort; several are merged"
    )
    layout: Literal["auto", "folders", "split_folders", "csv", "coronahack", "cohen", "covidx", "hdf5"] = option(
        "auto", "how the data is laid out"
    )
    relabel: tuple[str, ...] = option((), "theirs=ours: give a label another name, before all else")
    classes: tuple[str, ...] = option((), "keep only images of these labels")
    where: tuple[str, ...] = option((), "column=value,value: keep only rows whose column holds one of these")
    keep_columns: tuple[str, ...] = option(
        (), "columns that manifest.csv and predictions.csv hold beside source, split, sex, age and view; no free text"
    )
    drop_copies: bool = option(False, "leave exact copies out of a single source too; merged ones never keep any")
    patients: str | None = option(None, "table that joins file names to patients (filename, patient)")
    patient_regex: str | None = option(None, "pattern whose first group, found in the path, is the patient")
    patient_tag: str | None = option(None, "DICOM tag that holds the patient; kept as a salted hash only")
    split: Literal["patient", "image"] = option(
        "patient", "what never stands in two splits; image is the literature's, and optimistic"
    )
    given_splits: Literal["obey", "ignore"] = option("obey", "what becomes of splits that the data gives")
    split_from: str | None = option(None, "earlier run whose patients keep their place")
    folds: int = option(0, "patient-grouped folds, each held out once; 0 is a single split", at_least=0)
    fold: int | None = option(None, "the one fold to run", at_least=1)
    leave_one_source_out: bool = option(
        False, "a run a source that holds every class: trained on the others, tested on it"
    )
    held_out: str | None = option(None, "the one source to test on; the others train")
    skip_bad: bool = option(False, "leave unreadable images out, and count them in the report")

    weights: str = option(
        "imagenet", "imagenet, none, a file (.safetensors or a plain state dict), or xrv:NAME of torchxrayvision"
    )
    image_size: int = option(224, "side of the square that the backbone sees, in pixels", at_least=16)
    head: tuple[int, ...] = option(
        (), "sizes of hidden layers, each with ReLU, between the features and the classes", at_least=1
    )
    dropout: float = option(
        0.0, "share dropped in training after each hidden layer, or before the classes without one", at_least=0, below=1
    )
    augment: Augmentation = field(default_factory=Augmentation, metadata={"help": "fastai's aug_transforms"})

    strategy: Literal["rapid", "probe", "shallow", "deep", "fine"] | tuple[Stage, ...] = option(
        "rapid", "which layers learn when; probe and rapid fit the head on kept features first"
    )
    mirror_images: bool = option(
        True,
        "strategies probe and rapid: the head learns from mirrored images too, and answers for both together",
    )
    epochs: int = option(5, "passes that teach every layer (strategy shallow: the head)", at_least=1)
    batch_size: int = option(32, "images a step", at_least=1)
    optimizer: str = option("radam", "radam, adam, adamw, sgd, or timm:NAME for one of timm's")
    learning_rate: float | Literal["find"] = option(
        2e-3, "rate of the last layers, scaled by each stage; find runs lr_find before each", at_least=1e-12
    )
    spread: float = option(
        1.0, "strategy deep, and stages that give none: head rate over first group's rate, the groups between "
        "geometrically; in Python learning_rate=slice(1e-5, 1e-3) gives both",
        at_least=1,
    )  # fmt: skip
    find_from: float = option(1e-7, "lowest rate that lr_find tries", at_least=1e-12)
    find_to: float = option(10.0, "highest rate that lr_find tries", at_least=1e-12)
    schedule: Literal["one_cycle", "flat_cosine", "step", "constant"] = option(
        "one_cycle", "how the rate moves through a stage"
    )
    step_epochs: int = option(10, "schedule step: epochs of a stage between two falls of the rate", at_least=1)
    step_factor: float = option(0.5, "schedule step: factor on the rate at each fall", at_least=1e-6, below=1.0001)
    weight_decay: float | None = option(
        None, "decoupled for radam and adamw (none given: 0.01), L2 for adam and sgd (none given: 0)", at_least=0
    )
    loss: Literal["label_smoothing", "focal", "cross_entropy", "mse", "binary_cross_entropy"] = option(
        "label_smoothing", "what training minimises"
    )
    label_smoothing: float = option(0.1, "share of the target spread over all classes", at_least=0, below=1)
    focal_gamma: float = option(2.0, "how much the focal loss turns to hard images", at_least=0)
    class_weights: Literal["none", "balanced"] = option(
        "none", "balanced weighs a class by the inverse of its frequency"
    )
    sampler: Literal["shuffle", "weighted"] = option(
        "shuffle", "weighted draws training images with replacement, every class equally often"
    )
    oversample: tuple[str, ...] = option(
        (), "LABEL=N shows each training image of a class N times an epoch, each time augmented anew"
    )
    monitor: Literal["auroc", "accuracy", "valid_loss"] = option(
        "valid_loss", "validation figure that chooses the best epoch"
    )
    patience: int | None = option(
        None, "epochs without improvement before a stage stops; 0 never stops; none given: rapid 3, others never",
        at_least=0,
    )  # fmt: skip

    sensitivity: float = option(
        0.95, "what each class's threshold is to reach on validation images", at_least=0.01, below=1.0001
    )
    specificity: float | None = option(
        None, "instead of a sensitivity: what each class's threshold is to reach", at_least=0.01, below=1.0001
    )
    prevalence: tuple[str, ...] = option(
        (), "LABEL=0.05: predictive values where so large a share of the people have it, not the share of the folder"
    )
    abstain: float = option(
        0.0, "share of validation images, the least sure ones, that sets where predict answers uncertain",
        at_least=0, below=1,
    )  # fmt: skip

    accept_confounding: str | None = option(
        None, "why figures are to be believed although a check of the data failed; the report prints it"
    )

    time_limit: str | None = option(
        None, "90s, 10m or 1.5h for the whole run: as many epochs as fit are taught; folds share it"
    )
    seed: int = option(42, "seed of split, shuffling, augmentation and new weights", at_least=0)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "arithmetic of the network; auto is bf16 where the machine computes in it by itself"
    )
    workers: int = option(0, "processes that read images beside the one that trains", at_least=0)
    score_train: bool = option(False, "write predictions for the training images too")
    kind: Literal["single_label"] = option("single_label", "one label an image")

    def __post_init__(self):
        # JSON has no tuples and no stages: a strategy read back becomes what it was
        if isinstance(self.strategy, list | tuple):
            stages = tuple(s if isinstance(s, Stage) else _make_from_mapping(Stage, s) for s in self.strategy)
            object.__setattr__(self, "strategy", stages)
        if isinstance(self.augment, Mapping):
            object.__setattr__(self, "augment", _make_from_mapping(Augmentation, self.augment))
        if isinstance(self.learning_rate, slice):
            head_rate, spread = parse_rate_slice(self.learning_rate)
            object.__setattr__(self, "learning_rate", head_rate)
            object.__setattr__(self, "spread", spread)
        for name in ("data", "patients", "split_from", "weights"):
            object.__setattr__(self, name, _paths_to_text(getattr(self, name)))
        for name in ("relabel", "classes", "where", "keep_columns", "head", "oversample", "prevalence"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.strategy == ():
            raise RecipeError(
                "strategy is an empty list of stages", "Give at least one Stage, or a name such as 'fine'"
            )
        validate_fields(self)
        columns = (part.strip() for entry in self.keep_columns for part in entry.split(","))
        object.__setattr__(self, "keep_columns", tuple(filter(None, columns)))
        validate_combinations(self)

    def replace(self, **changes) -> "Recipe":
        """The same experiment with these choices changed."""
        unknown_names = set(changes) - {f.name for f in fields(self)}
        if unknown_names:
            raise unknown_name_error(
                unknown_names.pop(), [f.name for f in fields(self)], "a recipe has no choice called"
            )
        return replace(self, **changes)

    def to_json(self) -> str:
        """The recipe as the text of recipe.json."""
        return json.dumps({FORMAT_KEY: RECIPE_FORMAT} | asdict(self), indent=2, ensure_ascii=False) + "\n"

    @property
    def is_multi_run(self) -> bool:
        """Whether several runs make up the experiment: all folds, or every source held out once."""
        return self.leave_one_source_out or bool(self.folds and not self.fold)

    @property
    def oversample_factors(self) -> dict[str, int]:
        """How often an epoch shows each training image of the oversampled classes."""
        return dict(parse_oversample(entry) for entry in self.oversample)


def _paths_to_text(paths: Any) -> Any:
    """Paths as text; of several sources a tuple, and one alone is no several."""
    if isinstance(paths, list | tuple):
        paths = tuple(map(_paths_to_text, paths))
        return paths[0] if len(paths) == 1 else paths or None
    return str(paths) if isinstance(paths, Path) else paths


def make_data_name(data: str | tuple[str, ...] | None) -> str:
    """The data of a recipe in a word: the name of its folder or file, several joined by a plus."""
    paths = (data,) if isinstance(data, str) else data or ()
    return "+".join(_make_path_name(PurePath(place)) for place in paths)


def _make_path_name(path: PurePath) -> str:
    return Path(path).resolve().name if path.name in ("", "..") else path.stem


def read_recipe(path: str | Path) -> Recipe:
    """The recipe that a run folder's recipe.json holds. Raises ModelError for one of another format."""
    try:
        values = dict(read_json(path))
        if not is_format(values.pop(FORMAT_KEY, None), RECIPE_FORMAT):
            folder = Path(path).parent
            raise make_format_error(folder.parent if folder.name == STATE_DIR else folder)
        return _make_from_mapping(Recipe, values)
    except (RecipeError, ModelError):
        raise
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(
            f"no recipe can be read here ({type(error).__name__})", "Name a run folder that fastcxr made", path=path
        ) from error


def _make_from_mapping(dataclass_type: type, values: Mapping[str, Any]) -> Any:
    if not isinstance(values, Mapping):
        raise TypeError(f"a {dataclass_type.__name__} is a mapping of names to values")
    field_names = [f.name for f in fields(dataclass_type)]
    for name in values:
        if name not in field_names:
            raise unknown_name_error(name, field_names, f"{dataclass_type.__name__} has no choice called")
    return dataclass_type(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    )


def redact_paths(recipe: Recipe) -> Recipe:
    """The recipe as recipe.json holds it; relative paths stay as they were typed."""
    return recipe.replace(**{name: _redact_value(getattr(recipe, name)) for name in PATH_FIELDS})


def _redact_value(value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    if isinstance(value, tuple):
        return tuple(map(_redact_value, value))
    return PurePath(value).name if value and PurePath(value).is_absolute() else value


def validate_combinations(recipe: "Recipe") -> None:
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
        _validate_source_options(recipe)
    if not recipe.optimizer.startswith("timm:") and recipe.optimizer not in OPTIMIZERS:
        raise unknown_name_error(recipe.optimizer, [*OPTIMIZERS, "timm:NAME"], "optimizer cannot be")
    if recipe.spread != 1 and recipe.strategy in ("rapid", "probe", "shallow", "fine"):
        problem = f"strategy {recipe.strategy} gives each layer group its own rate, or teaches the head alone"
        raise RecipeError(f"spread is {recipe.spread:g}, and {problem}", "Choose --strategy deep, or leave spread out")
    if recipe.find_from >= recipe.find_to:
        raise RecipeError(
            f"find_from is {recipe.find_from:g} and find_to {recipe.find_to:g}", "Give a find_to above find_from"
        )
    if recipe.time_limit is not None and not re.fullmatch(r"\d+(\.\d+)?[smh]", recipe.time_limit):
        raise RecipeError(f"time limit is {recipe.time_limit!r}", "Write a number and s, m or h, as 90s, 10m or 1.5h")
    for entry in recipe.prevalence:
        parse_prevalence(entry)
    if len(recipe.oversample_factors) < len(recipe.oversample):
        raise RecipeError("oversample names a class twice", "Give each class one LABEL=N")
    if recipe.oversample and recipe.sampler == "weighted":
        raise RecipeError(
            "sampler weighted and oversample both say how often a class is shown", "Choose one of the two"
        )


def _validate_source_options(recipe: "Recipe") -> None:
    """A source that is held out is all that is tested, and no patient crosses over."""
    if recipe.leave_one_source_out and recipe.held_out:
        raise RecipeError("one source is held out, and every source in turn", "Leave out --held-out")
    if recipe.folds or recipe.split_from:
        raise RecipeError("a held-out source gives the test images", "Leave out --folds and --split-from")
    if recipe.split == "image":
        raise RecipeError("a held-out source keeps patients apart", "Leave out --split image")


def parse_prevalence(entry: str) -> tuple[str, float]:
    """LABEL=0.05 as its two parts."""
    label, _, prevalence = entry.rpartition("=")
    if not label or not re.fullmatch(r"0?\.[0-9]+", prevalence) or not 0 < float(prevalence) < 1:
        raise RecipeError(f"prevalence is {entry!r}", "Write LABEL=SHARE, a share between 0 and 1, as COVID-19=0.05")
    return label, float(prevalence)


def parse_oversample(entry: str) -> tuple[str, int]:
    """LABEL=5 as its two parts."""
    label, _, factor = entry.rpartition("=")
    if not label or not re.fullmatch(r"[1-9][0-9]{0,5}", factor):
        raise RecipeError(f"oversample is {entry!r}", "Write LABEL=N with a whole number, as COVID-19=5")
    return label, int(factor)


def parse_rate_slice(rates: slice) -> tuple[float, float]:
    """slice(first group's rate, head's rate), as fastai takes it, as the head's rate and the spread below it."""
    low, high = rates.start, rates.stop
    if rates.step is not None or not (_is_positive_number(low) and _is_positive_number(high)) or low > high:
        problem = f"learning_rate is slice({low}, {high})"
        raise RecipeError(problem, "Give the first group's rate and then the head's, as slice(1e-5, 1e-3)")
    return float(high), high / low


def _is_positive_number(value: object) -> bool:
    return isinstance(value, int | float) and value > 0
