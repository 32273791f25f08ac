"""Read what a run folder holds for a tracker: recipe, epochs, final metrics; no path, no patient, no image."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.io.files import read_json
from fastcxr.io.formats import FORMAT_KEY
from fastcxr.io.formatting import format_interval, format_percent, format_score
from fastcxr.io.formulas import unescape_formulas
from fastcxr.io.run_folders import PART_DIR_NAME, is_best_of_tuning, is_part, name_run
from fastcxr.report.shared_files import make_shared_metrics, make_shared_recipe
from fastcxr.tracking.base import RunDescription
from fastcxr.version import VERSION

RUNS_DIR_NAME = "runs"
# parts of a split in metrics.json that are sent; the others name sources and subgroups, or have no single number
SELECTION_SPLITS = ("train", "valid")  # sent only if there is no other split
METRIC_GROUPS = ("auroc", "average_precision", "per_class", "calibration")
NOT_IN_NAMES = re.compile(r"[^\w.\- ]")  # characters of a class name that a tracker rejects
NOT_VALUES = ("epoch", "stage", "best")  # columns of history.csv
PERCENT_METRICS = (
    "accuracy", "balanced_accuracy", "top2_accuracy", "precision", "recall", "sensitivity", "specificity", "ppv", "npv",
)  # fmt: skip
COUNT = re.compile(r"(/n_\w+|\.support|^best_epoch)$")
ONE_STAGE = ("linear_probe", "full")  # strategies
DEFAULT_PROJECT = "fastcxr"


def list_parts(folder: Path) -> list[Path]:
    """Return the folders of the folds or held-out sources of a run."""
    return sorted(path for path in folder.glob("*-*") if path.is_dir() and PART_DIR_NAME.fullmatch(path.name))


def find_whole_run(folder: Path) -> Path:
    """Return the absolute folder of the run; of a fold that of the whole run."""
    folder = folder.resolve()
    return folder.parent if is_part(folder) else folder


def find_store_dir(folder: Path) -> Path:
    """Return where local files of trackers are: beside runs/, otherwise beside the run folder."""
    whole_run = find_whole_run(folder)
    if is_best_of_tuning(whole_run):
        whole_run = whole_run.parent
    runs_dir = next((parent for parent in whole_run.parents if parent.name == RUNS_DIR_NAME), whole_run)
    return runs_dir.parent


def read_description(folder: Path) -> RunDescription:
    """Return name, project, group and parameters of a run, from its recipe.json.

    Raises InputMissingError without recipe.json.
    """
    recipe, resolved = make_shared_recipe(folder), folder.resolve()
    has_parts = bool(recipe.get("folds") or recipe.get("leave_one_source_out")) and not recipe.get("fold")
    kind = "fold" if is_part(resolved) else "pooled" if has_parts else "run"
    whole = resolved.parent.name if kind == "fold" else resolved.name
    data = recipe.get("data")
    names = [data] if isinstance(data, str) else list(data or ())
    return RunDescription(
        name=name_run(folder),
        project=clean_name("+".join(names)) or DEFAULT_PROJECT,
        group=None if kind == "run" else whole,
        parameters=dict(flatten_options(recipe)),
        tags={"fastcxr.version": f"fastcxr {VERSION}", "fastcxr.kind": kind},
    )


def flatten_options(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """Yield each option that is set, with the augmentation as augment.NAME; lists are JSON."""
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            yield from flatten_options(value, f"{prefix}{name}.")
        elif name != FORMAT_KEY and value not in (None, [], ""):
            yield f"{prefix}{name}", value if isinstance(value, str | int | float) else json.dumps(value)


def read_epochs(folder: Path) -> list[dict[str, float]]:
    """Return the numbers of each row of history.csv, without NaN, and `stage` as a number from 1 if there are several.

    `elapsed` is the time in seconds to the end of the epoch.
    """
    path = folder / "history.csv"
    if not path.is_file():
        return []
    table = unescape_formulas(pd.read_csv(path))
    stages = {name: number for number, name in enumerate(dict.fromkeys(table["stage"]), 1)}
    numbers = table.drop(columns=[name for name in NOT_VALUES if name in table])
    numbers = numbers.assign(elapsed=table["seconds"].cumsum())
    if _read_strategy(folder) not in ONE_STAGE:
        numbers = numbers.assign(stage=table["stage"].map(stages))
    return [
        {str(name): float(value) for name, value in row.items() if not math.isnan(value)}
        for row in numbers.to_dict("records")
    ]


def read_learning_rates(folder: Path) -> list[float | None]:
    """Return for each row of history.csv the highest learning rate of the head in its stage, None if unknown.

    A stage without gradient descent, such as that of a linear probe, has none.
    """
    if not (folder / "history.csv").is_file() or not (folder / "model.json").is_file():
        return []
    choices = read_json(folder / "model.json").get("choices", {})
    rates = {entry["stage"]: entry["rate"] for entry in choices.get("learning_rates", [])}
    stages = unescape_formulas(pd.read_csv(folder / "history.csv"))["stage"]
    return [rates.get(stage) for stage in stages]


def read_final_metrics(folder: Path) -> dict[str, float]:
    """Return the metrics of the test splits with the ends of their intervals, and the best epoch.

    A name is that of metrics.json, such as test/auroc.macro, test/auroc.macro.low and test/auroc.macro.high.

    Raises InputMissingError without metrics.json.
    """
    found: dict[str, float] = {}
    splits = {
        name: content
        for name, content in make_shared_metrics(folder).items()
        if isinstance(content, Mapping) and "n_images" in content
    }
    for split in [name for name in splits if name not in SELECTION_SPLITS] or list(splits):
        content = splits[split]
        intervals = (content.get("intervals") or {}).get("of") or {}
        chosen = {name: value for name, value in content.items() if name in METRIC_GROUPS or _is_number(value)}
        for name, value in _flatten_numbers(chosen):
            low_high = dict(zip(("low", "high"), intervals.get(name) or (), strict=False))
            for suffix, number in {"": value, **low_high}.items():
                if _is_number(number):
                    _add_value(found, f"{split}/{clean_name(name)}" + (suffix and f".{suffix}"), number)
    if (folder / "model.json").is_file() and _read_strategy(folder) != "linear_probe":  # whose head has no epochs
        best_epoch = read_json(folder / "model.json").get("choices", {}).get("best_epoch")
        found |= {"best_epoch": float(best_epoch)} if _is_number(best_epoch) else {}
    return found


def _read_strategy(folder: Path) -> Any:
    path = folder / "recipe.json"
    return read_json(path).get("strategy") if path.is_file() else None


def format_metrics(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return final metrics as text with their intervals, such as `73.2 % (56.3–85.3)` or `0.931 (0.905–0.975)`."""
    texts = {}
    for name, value in metrics.items():
        stem, _, end = name.rpartition(".")
        if end in ("low", "high") and stem in metrics:
            continue
        is_percent = name.rpartition("/")[2].rpartition(".")[2] in PERCENT_METRICS
        formatter = format_percent if is_percent else format_score
        texts[name] = f"{value:.0f}" if COUNT.search(name) else formatter(value)
        if f"{name}.low" in metrics and f"{name}.high" in metrics:
            bounds = {"intervals": {"of": {name: [metrics[f"{name}.low"], metrics[f"{name}.high"]]}}}
            texts[name] += f" ({format_interval(bounds, name, formatter).removesuffix(' %')})"
    return texts


def clean_name(name: str) -> str:
    """Return a name without the characters that a tracker rejects."""
    return NOT_IN_NAMES.sub("_", name)


def _add_value(found: dict[str, float], name: str, value: float) -> None:
    while name in found:  # two classes whose names differ in a rejected character only
        name += "_"
    found[name] = float(value)


def _flatten_numbers(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten_numbers(value, f"{prefix}{name}.")
        elif _is_number(value):
            yield f"{prefix}{name}", value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
