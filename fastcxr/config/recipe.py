"""Every option of one experiment as one frozen value: the command line, recipe.json and the report read it.

A recipe holds what the user chose and nothing that a run computes. Each field declares its help text, its group and
its valid range, from which the command line derives its options.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path, PurePath
from typing import Any, Literal

from fastcxr.config.fields import list_path_options, option, unknown_name_error, validate_fields
from fastcxr.config.validation import parse_oversample, parse_rate_slice, validate_combinations
from fastcxr.errors import ModelError, RecipeError
from fastcxr.io.files import STATE_DIR, read_json
from fastcxr.io.formats import FORMAT_KEY, RECIPE_FORMAT, is_format, make_format_error

Strategy = Literal["lp_ft", "linear_probe", "head", "full", "gradual"]
# a short name, and the names of the published studies
STRATEGY_ALIASES = {"probe": "linear_probe", "shallow": "head", "deep": "full", "fine": "gradual"}


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Arguments of fastai's aug_transforms, and quarter_turns, which fastai does not offer.

    The defaults suit chest radiographs, which are upright and lateralised.
    """

    mult: float = option(1.0, help="factor on rotation, lighting and warp together", minimum=0)
    do_flip: bool = option(False, help="random horizontal flips; they move the heart to the other side")
    flip_vert: bool = option(False, help="with do_flip: random vertical flips too")
    quarter_turns: bool = option(
        True, help="with flip_vert: rotations by 90 degrees too; without them each flip is drawn separately"
    )
    max_rotate: float = option(7.0, help="largest rotation [degrees]", minimum=0)
    min_zoom: float = option(0.95, help="smallest zoom factor", minimum=0.01)
    max_zoom: float = option(1.1, help="largest zoom factor", minimum=0.01)
    max_lighting: float = option(0.2, help="largest change of brightness and contrast", minimum=0, below=1)
    max_warp: float = option(0.1, help="largest perspective warp", minimum=0)
    p_affine: float = option(0.75, help="probability of each rotation, zoom and warp", minimum=0, below=1.0001)
    p_lighting: float = option(0.75, help="probability of each lighting change", minimum=0, below=1.0001)
    min_scale: float = option(
        1.0, help="smallest fraction of the image area kept by a random crop", minimum=0.01, below=1.0001
    )
    mode: Literal["bilinear", "nearest", "bicubic"] = option("bilinear", help="interpolation")
    pad_mode: Literal["zeros", "border", "reflection"] = option("zeros", help="padding at the edges")
    align_corners: bool = option(True, help="grid corners at pixel centres")
    batch: bool = option(False, help="one transformation for the whole batch")

    def __post_init__(self):
        validate_fields(self)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training: which layer groups are trained, at which rate, for how many epochs."""

    name: str = option("all", help="name in history.csv and in the report")
    groups: int | Literal["all"] = option(
        "all", help="number of the last layer groups that are trained; 1 is the head", minimum=1
    )
    epochs: int | None = option(None, help="number of epochs; default: the recipe's", minimum=0)
    scale: float = option(1.0, help="factor on the recipe's learning rate", minimum=0)
    layer_lr_ratio: float | None = option(
        None,
        help="head rate over first-group rate, with geometric interpolation between them; default: the recipe's",
        minimum=1,
    )
    multiples: tuple[float, ...] | None = option(
        None,
        help="factor for each of the last groups, head last, instead of layer_lr_ratio; earlier groups use the first",
        minimum=0,
    )
    batch_norm: Literal["learn", "frozen"] = option(
        "learn", help="frozen keeps the batch-norm statistics of the weights, as frozen layers always do"
    )
    patience: int | None = option(
        None, help="epochs without improvement before the stage stops; default: the recipe's", minimum=0
    )

    def __post_init__(self):
        validate_fields(self)
        if self.multiples == ():
            raise RecipeError("multiples is empty", "Give a factor for each of the last groups, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every option of one experiment; `recipe.replace(epochs=10)` returns the recipe with one option changed."""

    backbone: str = option(
        "mobilenetv2_100", help="timm or torchvision name; torchvision:NAME selects torchvision",
        group="Model", common=True, kw_only=False,
    )  # fmt: skip

    data: str | tuple[str, ...] | None = option(
        None, help="class folders, CSV with path and label, public dataset or packed file; several are merged",
        group="Data", common=True, is_path=True,
    )  # fmt: skip
    data_format: Literal["auto", "folders", "split_folders", "csv", "coronahack", "cohen", "covidx", "hdf5"] = option(
        "auto", help="format of the dataset", group="Data"
    )
    relabel: tuple[str, ...] = option((), help="theirs=ours: new name of a label, applied before filters", group="Data")
    classes: tuple[str, ...] = option((), help="labels to keep", group="Data")
    filter: tuple[str, ...] = option(
        (), help="column=value,value: rows to keep, by the value of a column", group="Data"
    )
    keep_columns: tuple[str, ...] = option(
        (), help="further columns to keep in manifest.csv and predictions.csv; no free text", group="Data"
    )
    deduplicate: bool = option(
        False, help="exact duplicates within one source removed; duplicates across merged sources always are",
        group="Data",
    )  # fmt: skip
    patient_table: str | None = option(
        None, help="CSV that maps image files to patients (columns filename, patient)", group="Data", is_path=True
    )
    patient_regex: str | None = option(
        None, help="regular expression on the path; its first group is the patient", group="Data"
    )
    patient_tag: str | None = option(
        None, help="DICOM tag with the patient identifier; stored as a salted hash only", group="Data"
    )
    skip_bad: bool = option(False, help="unreadable images skipped, and counted in the report", group="Data")

    split: Literal["patient", "image"] = option(
        "patient", help="unit kept within one split; image ignores patients and overestimates performance",
        group="Split",
    )  # fmt: skip
    ignore_given_splits: bool = option(False, help="new splits instead of those given by the data", group="Split")
    reuse_split: str | None = option(
        None, help="run folder whose patients keep their splits", group="Split", is_path=True
    )
    folds: int = option(
        0, help="number of patient-grouped cross-validation folds; 0: one split", group="Split", common=True, minimum=0
    )
    fold: int | None = option(None, help="number of the only fold to run", group="Split", minimum=1)
    leave_one_source_out: bool = option(
        False, help="one run for each source that has every class: trained on the others, tested on it", group="Split"
    )
    test_source: str | None = option(
        None, help="source used as the test set; the others are used for training", group="Split"
    )

    weights: str = option(
        "pretrained", help="pretrained, none, file (.safetensors or plain state dict), or xrv:NAME of torchxrayvision",
        group="Model", common=True, is_path=True,
    )  # fmt: skip
    image_size: int = option(
        224, help="side of the square input image [pixels]", group="Model", common=True, minimum=16
    )
    head_hidden: tuple[int, ...] = option(
        (), help="sizes of hidden layers with ReLU between the features and the classes", group="Model", minimum=1
    )
    dropout: float = option(
        0.0, help="dropout probability after each hidden layer, or before the classes without hidden layers",
        group="Model", minimum=0, below=1,
    )  # fmt: skip

    augment: Augmentation = option(
        default_factory=Augmentation, help="arguments of fastai's aug_transforms", group="Augmentation"
    )

    strategy: Strategy | tuple[Stage, ...] = option(
        "lp_ft", help="layers to train: lp_ft (linear probe, then fine-tuning), linear_probe, head, full (all layers), "
        "gradual (unfreezing)", group="Training", common=True,
    )  # fmt: skip
    hflip_tta: bool = option(
        True, help="strategies lp_ft and linear_probe: head fitted on flipped images too, prediction averaged over "
        "image and flipped image", group="Training",
    )  # fmt: skip
    epochs: int = option(
        5, help="epochs with all layers trained (strategy head: the head)", group="Training", common=True, minimum=1
    )
    batch_size: int = option(32, help="images per step", group="Training", common=True, minimum=1)
    optimizer: str = option(
        "radam", help="radam, adam, adamw, sgd, or timm:NAME for an optimizer of timm", group="Training"
    )
    learning_rate: float | Literal["find"] = option(
        2e-3, help="learning rate of the last layers, scaled by each stage; find: lr_find before each stage",
        group="Training", common=True, minimum=1e-12,
    )  # fmt: skip
    layer_lr_ratio: float = option(
        1.0, help="strategy full and stages without a ratio: head rate over first-group rate, with geometric "
        "interpolation between them; in Python learning_rate=slice(1e-5, 1e-3) sets both",
        group="Training", minimum=1,
    )  # fmt: skip
    lr_find_min: float = option(1e-7, help="lowest learning rate of lr_find", group="Training", minimum=1e-12)
    lr_find_max: float = option(10.0, help="highest learning rate of lr_find", group="Training", minimum=1e-12)
    schedule: Literal["one_cycle", "flat_cosine", "step", "constant"] = option(
        "one_cycle", help="learning rate schedule of each stage", group="Training"
    )
    step_epochs: int = option(
        10, help="schedule step: epochs between two decreases of the learning rate", group="Training", minimum=1
    )
    step_factor: float = option(
        0.5, help="schedule step: factor on the learning rate at each decrease",
        group="Training", minimum=1e-6, below=1.0001,
    )  # fmt: skip
    weight_decay: float | None = option(
        None, help="weight decay; decoupled for radam and adamw (default 0.01), L2 for adam and sgd (default 0)",
        group="Training", minimum=0,
    )  # fmt: skip
    loss: Literal["label_smoothing", "focal", "cross_entropy", "mse", "binary_cross_entropy"] = option(
        "label_smoothing", help="loss function", group="Training", common=True
    )
    label_smoothing: float = option(
        0.1, help="fraction of the target spread evenly over all classes", group="Training", minimum=0, below=1
    )
    focal_gamma: float = option(2.0, help="focusing parameter gamma of the focal loss", group="Training", minimum=0)
    class_weights: Literal["none", "balanced"] = option(
        "none", help="class weights in the loss; balanced: inverse class frequency", group="Training"
    )
    sampler: Literal["shuffle", "weighted"] = option(
        "shuffle", help="order of training images; weighted: drawn with replacement, all classes equally often",
        group="Training",
    )  # fmt: skip
    oversample: tuple[str, ...] = option(
        (), help="LABEL=N: each training image of a class N times an epoch, augmented each time", group="Training"
    )
    monitor: Literal["auroc", "accuracy", "valid_loss"] = option(
        "valid_loss", help="validation metric that selects the best epoch", group="Training"
    )
    patience: int | None = option(
        None, help="epochs without improvement before a stage stops; 0: never; default: 3 for lp_ft, else 0",
        group="Training", minimum=0,
    )  # fmt: skip
    time_limit: str | None = option(
        None, help="time budget of the whole run, all folds together, as 90s, 10m or 1.5h; sets the number of epochs",
        group="Training",
    )  # fmt: skip
    seed: int = option(
        42, help="seed of splits, shuffling, augmentation and new weights", group="Training", common=True, minimum=0
    )

    sensitivity: float = option(
        0.95, help="target sensitivity of each class's threshold on validation images",
        group="Evaluation", minimum=0.01, below=1.0001,
    )  # fmt: skip
    specificity: float | None = option(
        None, help="target specificity of each class's threshold, instead of a sensitivity",
        group="Evaluation", minimum=0.01, below=1.0001,
    )  # fmt: skip
    prevalence: tuple[str, ...] = option(
        (), help="LABEL=0.05: PPV and NPV at this disease prevalence", group="Evaluation"
    )
    abstain_rate: float = option(
        0.0, help="fraction of least confident validation images used to set the abstention threshold",
        group="Evaluation", minimum=0, below=1,
    )  # fmt: skip
    waive_audit: str | None = option(
        None, help="reason for overriding a failed data audit; printed in the report", group="Evaluation"
    )
    predict_train: bool = option(False, help="predictions of the training images too", group="Evaluation")

    device: str = option("auto", help="auto, cpu, cuda, cuda:1, mps", group="Compute")
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", help="floating point format; auto: bf16 if the hardware supports it natively", group="Compute"
    )
    workers: int = option(0, help="number of data loading worker processes", group="Compute", minimum=0)

    def __post_init__(self):
        # JSON has no tuples and no dataclasses
        if isinstance(self.strategy, list | tuple):
            stages = tuple(s if isinstance(s, Stage) else _make_from_mapping(Stage, s) for s in self.strategy)
            object.__setattr__(self, "strategy", stages)
        elif isinstance(self.strategy, str):
            object.__setattr__(self, "strategy", STRATEGY_ALIASES.get(self.strategy, self.strategy))
        if isinstance(self.augment, Mapping):
            object.__setattr__(self, "augment", _make_from_mapping(Augmentation, self.augment))
        if isinstance(self.learning_rate, slice):
            head_rate, layer_lr_ratio = parse_rate_slice(self.learning_rate)
            object.__setattr__(self, "learning_rate", head_rate)
            object.__setattr__(self, "layer_lr_ratio", layer_lr_ratio)
        for name in list_path_options(Recipe):
            object.__setattr__(self, name, _paths_to_text(getattr(self, name)))
        for item in fields(self):
            if isinstance(getattr(self, item.name), list):
                object.__setattr__(self, item.name, tuple(getattr(self, item.name)))
        if self.strategy == ():
            raise RecipeError(
                "strategy is an empty list of stages", "Give at least one Stage, or a name such as 'gradual'"
            )
        validate_fields(self)
        columns = (part.strip() for entry in self.keep_columns for part in entry.split(","))
        object.__setattr__(self, "keep_columns", tuple(part for part in columns if part))
        validate_combinations(self)

    def replace(self, **changes) -> "Recipe":
        """Return the recipe with these options changed."""
        unknown_names = set(changes) - {f.name for f in fields(self)}
        if unknown_names:
            raise unknown_name_error(unknown_names.pop(), [f.name for f in fields(self)], "Recipe has no option called")
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
            raise unknown_name_error(name, field_names, f"{dataclass_type.__name__} has no option called")
    return dataclass_type(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    )


def redact_paths(recipe: Recipe) -> Recipe:
    """Return the recipe for recipe.json: absolute paths lose their folders, relative paths are kept."""
    return recipe.replace(**{name: _redact_value(getattr(recipe, name)) for name in list_path_options(Recipe)})


def _redact_value(value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    if isinstance(value, tuple):
        return tuple(map(_redact_value, value))
    return PurePath(value).name if value and PurePath(value).is_absolute() else value
