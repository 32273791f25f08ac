"""Options of one experiment, as a frozen dataclass that the command line, recipe.json and the report read.

A recipe holds the options of the user, never results of a run. The command line derives its options from the help text,
group and valid range of each field.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from fastcxr.config.combinations import validate_combinations
from fastcxr.config.components import Augmentation, Stage
from fastcxr.config.fields import (
    document_options,
    list_options,
    list_path_options,
    option,
    reject_unknown_options,
    validate_fields,
)
from fastcxr.config.validation import parse_oversample, parse_rate_slice, paths_to_text
from fastcxr.errors import FastcxrError, ModelError, RecipeError
from fastcxr.io.files import STATE_DIR, read_json
from fastcxr.io.formats import FORMAT_KEY, RECIPE_FORMAT, is_format, make_format_error
from fastcxr.io.run_folders import require_run_file

Strategy = Literal["lp_ft", "linear_probe", "head", "full", "gradual"]
Loss = Literal["auto", "label_smoothing", "focal", "cross_entropy", "mse", "binary_cross_entropy", "asymmetric"]
DataFormat = Literal[
    "auto", "folders", "split_folders", "csv", "hdf5", "nih", "chexpert", "chexlocalize", "mimic_cxr_jpg", "padchest",
    "vindr_cxr", "vinbigdata", "brax", "rsna", "siim", "tbx11k", "shenzhen", "montgomery", "coronahack", "cohen",
    "covidx", "covid_radiography", "kermany", "imagefolder",
]  # fmt: skip
# a short name, and the names in the published studies
STRATEGY_ALIASES = {"probe": "linear_probe", "shallow": "head", "deep": "full", "fine": "gradual"}
DEFAULT_BATCH_SIZE = 32  # images; the default learning rate is for this size


@document_options
@reject_unknown_options
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options of one experiment; `recipe.replace(epochs=10)` returns the recipe with one option changed."""

    backbone: str = option(
        "mobilenetv2_100", help="timm or torchvision name, torchvision:NAME, or a chest encoder, as rad-dino (see "
        "fastcxr models)",
        group="Model", common=True, kw_only=False,
    )  # fmt: skip

    data: str | tuple[str, ...] | None = option(
        None, help="class folders, CSV with path and label, public dataset or packed file; repeatable, all are merged",
        group="Data", common=True, is_path=True,
    )  # fmt: skip
    data_format: DataFormat = option(
        "auto", help="format of the dataset: a layout, or a public dataset (see fastcxr datasets)", group="Data"
    )
    columns: tuple[str, ...] = option(
        (),
        help="ROLE=COLUMN of a table: path, label, patient, sex, age, view, split or source; repeatable",
        group="Data",
    )
    label_separator: str | None = option(
        None, help="character between several labels in one cell of a table; none: a cell is one label", group="Data"
    )
    label_variant: str | None = option(
        None, help="variant of the labels of a public dataset, see fastcxr datasets NAME", group="Data"
    )
    task: Literal["auto", "single_label", "multi_label"] = option(
        "auto", help="one class per image, or several findings per image; auto: multi_label if the data has findings",
        group="Data",
    )  # fmt: skip
    blank: tuple[str, ...] = option(
        (), help="blank labels of findings: negative or unknown, or FINDING=POLICY; repeatable; default: that of the "
        "dataset, else unknown", group="Data",
    )  # fmt: skip
    uncertain: tuple[str, ...] = option(
        (), help="uncertain labels (-1) of findings in training: ignore, positive or negative, or FINDING=POLICY; "
        "repeatable; default ignore; they are never evaluated", group="Data",
    )  # fmt: skip
    test_labels: Literal["radiologist"] | None = option(
        None, help="labels of the test images of MIMIC-CXR-JPG by radiologists, not by a program", group="Data"
    )
    split_file: str | tuple[str, ...] | None = option(
        None, help="list of the images of a split: SPLIT=FILE, train*.txt, or table with path and split; repeatable",
        group="Data", is_path=True,
    )  # fmt: skip
    relabel: tuple[str, ...] = option(
        (), help="OLD=NEW: new name of a label, applied before filters; repeatable", group="Data"
    )
    classes: tuple[str, ...] = option(
        (),
        help="labels to keep: A,B or repeated; with findings, images with exactly one of them, or with the task "
        "multi_label these findings",
        group="Data",
    )
    filter: tuple[str, ...] = option(
        (), help="COLUMN=VALUE,VALUE: rows to keep, by their values in a column; repeatable", group="Data"
    )
    keep_columns: tuple[str, ...] = option(
        (), help="further column to copy to manifest.csv and predictions.csv, no free text; repeatable", group="Data"
    )
    deduplicate: bool = option(
        False, help="removal of exact duplicates within a source; those across merged sources are always removed",
        group="Data",
    )  # fmt: skip
    patient_table: str | None = option(
        None, help="CSV that maps image files to patients (columns filename, patient)", group="Data", is_path=True
    )
    patient_regex: str | None = option(
        None, help="regular expression for the path; its first group is the patient", group="Data"
    )
    patient_tag: str | None = option(
        None, help="DICOM tag with the patient identifier; stored as a salted hash only", group="Data"
    )
    skip_bad: bool = option(
        False, help="exclusion of missing files, blank labels and unreadable images, all counted", group="Data"
    )

    split: Literal["patient", "image"] = option(
        "patient", help="unit kept within one split; image ignores patients and overestimates performance",
        group="Split",
    )  # fmt: skip
    ignore_given_splits: bool = option(False, help="new splits instead of those in the dataset", group="Split")
    reuse_split: str | None = option(
        None, help="earlier run folder; its patients get the same splits in this run", group="Split", is_path=True
    )
    folds: int = option(
        0, help="number of patient-grouped cross-validation folds; 0: one split", group="Split", common=True, minimum=0
    )
    fold: int | None = option(None, help="number of the single fold to run, from 1", group="Split", minimum=1)
    leave_one_source_out: bool = option(
        False,
        help="one run per source that has all classes: training on the others, test on this source",
        group="Split",
    )
    test_source: str | None = option(
        None, help="source used as the test set; all other sources are used for training", group="Split"
    )

    weights: str = option(
        "pretrained", help="pretrained, none, a file, hf://OWNER/NAME of the hub, or xrv:NAME of torchxrayvision",
        group="Model", common=True, is_path=True,
    )  # fmt: skip
    image_size: int | Literal["auto"] = option(
        "auto", help="side of the square input image [pixels]; auto: size of the weights of a chest encoder, else 224",
        group="Model", common=True, minimum=16, alias="size",
    )  # fmt: skip
    head_hidden: tuple[int, ...] = option(
        (),
        help="size of a hidden layer with ReLU between the features and the classes; repeatable",
        group="Model",
        minimum=1,
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
        True, help="test-time augmentation of strategies lp_ft and linear_probe: head also fitted on flipped images, "
        "predictions averaged over image and flipped image", group="Training",
    )  # fmt: skip
    epochs: int = option(
        5,
        help="number of epochs with all layers trained (strategy head: the head only)",
        group="Training",
        common=True,
        minimum=1,
    )
    batch_size: int | Literal["auto"] = option(
        DEFAULT_BATCH_SIZE, help="images per step of all processes together; auto: largest power of two that fits into "
        "memory with at least 20 steps per epoch, learning_rate scaled by the square root of batch size / 32",
        group="Training", common=True, minimum=1, alias="bs",
    )  # fmt: skip
    optimizer: str = option(
        "radam", help="radam, adam, adamw, sgd, or timm:NAME for an optimizer of timm", group="Training"
    )
    learning_rate: float | Literal["find"] = option(
        2e-3, help="learning rate of the head, scaled by each stage; find: learning rate finder before each stage",
        group="Training", common=True, minimum=1e-12, alias="lr",
    )  # fmt: skip
    layer_lr_ratio: float = option(
        1.0, help="learning rate of the head divided by that of the first layer group, with geometric interpolation "
        "for the groups in between; for strategies lp_ft and full, and stages without a ratio; in Python, "
        "learning_rate=slice(1e-5, 1e-3) sets both rates",
        group="Training", minimum=1,
    )  # fmt: skip
    lr_find_min: float = option(
        1e-7, help="lowest learning rate tried by the learning rate finder", group="Training", minimum=1e-12
    )
    lr_find_max: float = option(
        10.0, help="highest learning rate tried by the learning rate finder", group="Training", minimum=1e-12
    )
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
    loss: Loss = option(
        "auto", help="loss function; auto: label_smoothing, for findings binary_cross_entropy of the known labels",
        group="Training", common=True,
    )  # fmt: skip
    label_smoothing: float | None = option(
        None, help="fraction of the target spread evenly over all classes, or over both values of a finding; default: "
        "0.1 with the loss label_smoothing, 0 for findings", group="Training", minimum=0, below=1,
    )  # fmt: skip
    focal_gamma: float = option(2.0, help="focusing parameter gamma of the focal loss", group="Training", minimum=0)
    class_weights: Literal["none", "balanced"] = option(
        "none", help="class weights in the loss; balanced: inverse class frequency, for findings the ratio of "
        "negative to positive images as the weight of positive ones, from 0.1 to 10", group="Training",
    )  # fmt: skip
    sampler: Literal["shuffle", "weighted"] = option(
        "shuffle", help="sampling of training images; weighted: with replacement, all classes equally often, images "
        "with rare findings more often", group="Training",
    )  # fmt: skip
    oversample: tuple[str, ...] = option(
        (),
        help="LABEL=N: images of a class used N times per epoch, each time with new augmentation; repeatable",
        group="Training",
    )
    monitor: Literal["auto", "auroc", "accuracy", "valid_loss"] = option(
        "auto", help="validation metric that selects the best epoch; auto: valid_loss, for findings auroc (macro)",
        group="Training",
    )  # fmt: skip
    patience: int | None = option(
        None, help="early stopping: epochs without improvement before a stage ends; 0: none; default: lp_ft 3, else 0",
        group="Training", minimum=0,
    )  # fmt: skip
    time_limit: str | None = option(
        None, help="time budget of the whole run with all folds, as 90s, 10m or 1.5h; sets the number of epochs",
        group="Training",
    )  # fmt: skip
    seed: int = option(
        42, help="seed of splits, shuffling, augmentation and new weights", group="Training", common=True, minimum=0
    )

    sensitivity: float = option(
        0.95, help="target sensitivity for the threshold of each class, on validation images",
        group="Evaluation", minimum=0.01, below=1.0001,
    )  # fmt: skip
    specificity: float | None = option(
        None, help="target specificity for the threshold of each class, instead of a sensitivity",
        group="Evaluation", minimum=0.01, below=1.0001,
    )  # fmt: skip
    prevalence: tuple[str, ...] = option(
        (), help="LABEL=0.05: PPV and NPV at this disease prevalence; repeatable", group="Evaluation"
    )
    abstain_rate: float = option(
        0.0, help="fraction of least confident validation images used to set the abstention threshold",
        group="Evaluation", minimum=0, below=1,
    )  # fmt: skip
    waive_audit: str | None = option(
        None, help="reason for overriding a failed data audit; printed in the report", group="Evaluation"
    )
    reuse_audit: bool = option(
        True, help="findings of a finished audit of the same data in runs/, shown with its date in the report",
        group="Evaluation",
    )  # fmt: skip
    predict_train: bool = option(False, help="predictions also of the training images", group="Evaluation")
    figures: Literal["all", "main", "none"] = option(
        "main", help="reports with figures; main: all but those of folds; fastcxr report RUN draws figures later",
        group="Evaluation",
    )  # fmt: skip

    device: str = option("auto", help="auto, cpu, cuda, cuda:1, mps; auto: a GPU if there is one", group="Compute")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = option(
        "auto",
        help="floating point format; auto: bf16 if the hardware supports it natively, else fp16 on CUDA and fp32 on "
        "other devices",
        group="Compute",
    )
    deterministic: bool = option(
        False, help="only algorithms with identical results in repeated runs on the same GPU; not needed on a CPU",
        group="Compute",
    )  # fmt: skip
    sync_batch_norm: bool = option(
        False, help="batch-norm statistics of the whole batch in a training on several GPUs; otherwise each GPU uses "
        "those of its images", group="Compute",
    )  # fmt: skip
    workers: int = option(
        0, help="number of data loading worker processes; none are used for decoded images on a GPU",
        group="Compute", minimum=0,
    )  # fmt: skip

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
            object.__setattr__(self, name, paths_to_text(getattr(self, name)))
        for item in fields(self):
            if isinstance(getattr(self, item.name), list):
                object.__setattr__(self, item.name, tuple(getattr(self, item.name)))
        if self.weights is None:
            raise RecipeError(
                "weights is None, it must be a name or a file", "Pass `weights='none'` for random weights"
            )
        if self.strategy == ():
            raise RecipeError("strategy is an empty list of stages", "Pass a Stage, or a name such as 'gradual'")
        validate_fields(self)
        columns = (part.strip() for entry in self.keep_columns for part in entry.split(","))
        object.__setattr__(self, "keep_columns", tuple(part for part in columns if part))
        validate_combinations(self)

    def replace(self, **changes) -> "Recipe":
        """Return the recipe with these options changed."""
        return replace(self, **changes)

    @classmethod
    def from_json(cls, path: str | Path) -> "Recipe":
        """Read the recipe of a run folder, or a file with the text of `to_json`.

        Raises:
            InputMissingError: the folder has no recipe.json.
            ModelError: the file cannot be read, or has another format.
            RecipeError: an option is invalid.
        """
        path = Path(path)
        if not path.is_file() and path.suffix != ".json":
            require_run_file(path, "recipe.json")
            path = path / "recipe.json"
        try:
            return cls.from_content(read_json(path), path)
        except FastcxrError:
            raise
        except (OSError, ValueError, TypeError) as error:
            problem = f"the recipe cannot be read ({type(error).__name__})"
            raise ModelError(problem, "Name a run folder that fastcxr made", path=path) from error

    @classmethod
    def from_content(cls, content: Any, path: Path) -> "Recipe":
        """Return the recipe of the content of `path`, a recipe.json. Raises what from_json raises, and TypeError."""
        values = dict(content)
        if not is_format(values.pop(FORMAT_KEY, None), RECIPE_FORMAT):
            folder = path.parent
            raise make_format_error(folder.parent if folder.name == STATE_DIR else folder)
        return _make_from_mapping(cls, values)

    def to_json(self) -> str:
        """Return the recipe as the text of recipe.json."""
        return json.dumps({FORMAT_KEY: RECIPE_FORMAT} | asdict(self), indent=2, ensure_ascii=False) + "\n"

    @property
    def is_multi_run(self) -> bool:
        """Whether the experiment has several runs: all folds, or each source held out once."""
        return self.leave_one_source_out or bool(self.folds and not self.fold)

    @property
    def draws_figures(self) -> bool:
        """Whether the report of this run has figures."""
        return self.figures == "all" or (self.figures == "main" and self.fold is None)

    @property
    def oversample_factors(self) -> dict[str, int]:
        """How often each training image of the oversampled classes is used per epoch."""
        return dict(parse_oversample(entry) for entry in self.oversample)


def _make_from_mapping(dataclass_type: type, values: Mapping[str, Any]) -> Any:
    if not isinstance(values, Mapping):
        raise TypeError(f"a {dataclass_type.__name__} must be a mapping of names to values")
    return dataclass_type(**{name: tuple(item) if isinstance(item, list) else item for name, item in values.items()})


EMBED_OPTIONS = (  # of a recipe that have a meaning for feature vectors
    *list_options(Recipe, "Data", without=("data", "keep_columns", "split_file", "test_labels")),
    "weights", "image_size", "device", "precision",
)  # fmt: skip
