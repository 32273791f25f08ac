"""Every choice of one experiment as one frozen value: it feeds the command line, recipe.json and the report alike.

A recipe holds what a person chose and nothing that a run computes. Each field carries its own words, so that a flag
of `fastcxr train`, a row of the report and the documentation are the same line.
"""

import json
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastcxr.errors import ModelError, RecipeError


def choice(default: Any, words: str, *, at_least: float | None = None, below: float | None = None, **options) -> Any:
    """A field of a recipe: its default, the words that explain it, and the range that makes sense."""
    return field(default=default, metadata={"help": words, "at_least": at_least, "below": below}, **options)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The knobs of fastai's aug_transforms; the defaults suit chest radiographs, which are upright and lateralised."""

    mult: float = choice(1.0, "factor on rotation, lighting and warp together", at_least=0)
    do_flip: bool = choice(False, "mirror left and right: puts the heart on the other side")
    flip_vert: bool = choice(False, "with do_flip: also upside down and turned by 90 degrees")
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
        _check(self)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One phase of training: which layer groups learn, how fast, for how long."""

    name: str = choice("all", "shown in history.csv and the report")
    groups: int | Literal["all"] = choice("all", "how many of the last layer groups learn; 1 is the head", at_least=1)
    epochs: int | None = choice(None, "passes over the training images; none given: the recipe's", at_least=0)
    scale: float = choice(1.0, "factor on the recipe's learning rate", at_least=0)
    spread: float = choice(
        1.0, "head rate over first group's rate; the groups between follow geometrically", at_least=1
    )
    multiples: tuple[float, ...] | None = choice(
        None, "a factor for each learning group, first to head, instead of spread"
    )
    batch_norm: Literal["learn", "frozen"] = choice("learn", "frozen keeps the statistics that came with the weights")
    patience: int | None = choice(
        None, "epochs without improvement before it stops; none given: the recipe's", at_least=0
    )

    def __post_init__(self):
        _check(self)


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
    skip_bad: bool = choice(False, "leave unreadable images out, and count them in the report")

    weights: str = choice("imagenet", "imagenet, none, or a file (.safetensors or a plain state dict)")
    image_size: int = choice(224, "side of the square that the backbone sees, in pixels", at_least=16)
    augment: Augmentation = field(default_factory=Augmentation, metadata={"help": "fastai's aug_transforms"})

    strategy: Literal["shallow", "deep", "fine"] | tuple[Stage, ...] = choice("fine", "which layers learn when")
    epochs: int = choice(5, "passes that teach every layer (strategy shallow: the head)", at_least=1)
    batch_size: int = choice(32, "images a step", at_least=1)
    optimizer: Literal["radam", "adam"] = choice("radam", "fastai's optimizer of that name")
    learning_rate: float | Literal["find"] = choice(
        2e-3, "rate of the last layers, scaled by each stage; find runs lr_find before each", at_least=1e-12
    )
    weight_decay: float = choice(0.01, "decoupled weight decay", at_least=0)
    loss: Literal["label_smoothing", "focal", "cross_entropy"] = choice("label_smoothing", "what training minimises")
    label_smoothing: float = choice(0.1, "share of the target spread over all classes", at_least=0, below=1)
    focal_gamma: float = choice(2.0, "how much the focal loss turns to hard images", at_least=0)
    class_weights: Literal["none", "balanced"] = choice(
        "none", "balanced weighs a class by the inverse of its frequency"
    )
    monitor: Literal["auroc", "accuracy", "valid_loss"] = choice(
        "valid_loss", "validation figure that chooses the best epoch"
    )
    patience: int = choice(0, "epochs without improvement before a stage stops; 0 never stops", at_least=0)

    seed: int = choice(42, "seed of split, shuffling, augmentation and new weights", at_least=0)
    device: str = choice("auto", "auto, cpu, cuda, cuda:1, mps")
    precision: Literal["fp32", "bf16"] = choice("fp32", "arithmetic of the network")
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
        for name in ("data", "patients", "split_from", "weights"):
            object.__setattr__(self, name, _as_text(getattr(self, name)))
        for name in ("relabel", "classes", "where"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.folds == 1 or (self.fold is not None and self.fold > self.folds):
            raise RecipeError(
                f"fold {self.fold} of {self.folds} folds", "Give --folds 2 or more, and --fold one of them"
            )
        if self.folds and self.split_from:
            raise RecipeError(
                "folds and an earlier run cannot both give the splits", "Leave out --folds or --split-from"
            )
        if self.strategy == ():
            raise RecipeError(
                "strategy is an empty list of stages", "Give at least one Stage, or a name such as 'fine'"
            )
        _check(self)

    def but(self, **changes) -> "Recipe":
        """The same experiment with these choices changed."""
        unknown = set(changes) - {f.name for f in fields(self)}
        if unknown:
            raise _unknown(unknown.pop(), [f.name for f in fields(self)], "a recipe has no choice called")
        return replace(self, **changes)

    def to_json(self) -> str:
        """The recipe as the text of recipe.json."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def _as_text(places: Any) -> Any:
    """Paths as text; of several sources a tuple, and one alone is no several."""
    if isinstance(places, list | tuple):
        places = tuple(map(_as_text, places))
        return places[0] if len(places) == 1 else places or None
    return str(places) if isinstance(places, Path) else places


def choose_fields(name: str, *chosen: str) -> type:
    """A dataclass of some of a recipe's choices, words and all, for a command that needs no more."""
    hints = get_type_hints(Recipe)
    items = {item.name: item for item in fields(Recipe)}
    parts = [(part, hints[part], field(default=items[part].default, metadata=items[part].metadata)) for part in chosen]
    made = make_dataclass(name, parts, frozen=True, kw_only=True)
    made.__module__ = __name__  # without it Python calls it a type of its own, which has no fields for cyclopts
    return made


def name_data(data: str | tuple[str, ...] | None) -> str:
    """The data of a recipe in a word: the name of its folder or file, several joined by a plus."""
    places = (data,) if isinstance(data, str) else data or ()
    return "+".join(PurePath(place).stem for place in places)


def read_recipe(path: str | Path) -> Recipe:
    """The recipe that a run folder's recipe.json holds."""
    try:
        return _from_mapping(Recipe, json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise ModelError(
            f"no recipe can be read here ({type(error).__name__})", "Name a run folder that fastcxr made", path=path
        ) from error


def _from_mapping(kind: type, values: Mapping[str, Any]) -> Any:
    if not isinstance(values, Mapping):
        raise TypeError(f"a {kind.__name__} is a mapping of names to values")
    known = [f.name for f in fields(kind)]
    for name in values:
        if name not in known:
            raise _unknown(name, known, f"{kind.__name__} has no choice called")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _check(value: Any) -> None:
    """Every field against its type, its names and its range, so that a typo ends here and not an hour into training."""
    hints = get_type_hints(type(value))
    for item in fields(value):
        given = getattr(value, item.name)
        _check_kind(item.name, given, hints[item.name])
        low, high = item.metadata.get("at_least"), item.metadata.get("below")
        if not isinstance(given, int | float) or isinstance(given, bool):
            continue
        # a nan fails every comparison, so ask what must hold and not what must not
        if not ((low is None or given >= low) and (high is None or given < high)):
            reach = f"at least {low:g}" if high is None else f"from {low:g} to below {high:g}"
            raise RecipeError(f"{item.name} is {given!r}, it must be {reach}", f"Give another {item.name}")


def _check_kind(name: str, given: Any, hint: Any) -> None:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    names = [n for kind in kinds if get_origin(kind) is Literal for n in get_args(kind)]
    plain = tuple(get_origin(kind) or kind for kind in kinds if get_origin(kind) is not Literal)
    if given in names and type(given) is str:
        return
    if isinstance(given, plain) and not (isinstance(given, bool) and bool not in plain):
        if isinstance(given, tuple):
            _check_parts(name, given, kinds)
        return
    if float in plain and isinstance(given, int) and not isinstance(given, bool):
        return
    if names and isinstance(given, str):
        raise _unknown(given, names, f"{name} cannot be")
    wanted = " or ".join([*names, *(getattr(kind, "__name__", str(kind)) for kind in plain)])
    raise RecipeError(f"{name} is {given!r}, it must be {wanted}", f"Give another {name}")


def _check_parts(name: str, given: tuple, kinds: tuple) -> None:
    """Every part of a tuple of texts; of numbers and stages their users know more."""
    wants_text = any(get_origin(kind) is tuple and get_args(kind)[0] is str for kind in kinds)
    if wants_text and (bad := [part for part in given if not isinstance(part, str)]):
        raise RecipeError(f"{name} holds {bad[0]!r}, each part must be str", f"Give another {name}")


def _unknown(given: str, known: list[str], words: str) -> RecipeError:
    close = get_close_matches(given, known, n=1)
    meant = f"did you mean {close[0]!r}?" if close else f"Choose from {', '.join(known)}"
    return RecipeError(f"{words} {given!r}", meant[0].upper() + meant[1:])
