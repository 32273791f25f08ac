"""Find interrupted and finished runs, and check that they match the current recipe and data."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from fastcxr.config.recipe import Recipe
from fastcxr.config.recipe_paths import redact_paths
from fastcxr.data.findings import encode_labels, list_findings
from fastcxr.data.manifest_file import read_written_manifest
from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.errors import DataError, FastcxrError, InputMissingError, OutputError
from fastcxr.io.files import STATE_DIR, atomic_write
from fastcxr.io.formats import is_unfinished, reject_other_format
from fastcxr.io.formulas import unescape_formulas
from fastcxr.io.hub_names import is_published
from fastcxr.io.lock import is_locked, reject_locked
from fastcxr.io.run_folders import TUNING_FILE, require_run_file
from fastcxr.io.tables import read_table
from fastcxr.progress.base import silence_logging
from fastcxr.workflows.load import Dataset, assign_recipe_splits
from fastcxr.workflows.run_dir import acquire_directory, reject_occupied

IMAGE_HASH_COLUMN = "image_sha256"  # column of manifest.csv that identifies an image in other data
COMMAND_FILE = "command.txt"  # in the checkpoint folder
log = logging.getLogger("fastcxr")
Folds = dict[str, tuple[Recipe, Path]]  # recipe and run folder of each run, by fold number or held-out source
IMAGE_KEY = ["source", "path"]
TRAINING_SOURCE_SPLITS = ("train", "valid", INTERNAL_TEST)  # splits of the sources that are not held out


def find_resumable_run(folders: Iterator[Path], recipe: Recipe | None = None) -> Path | None:
    """Return the newest folder with an interrupted run (of this recipe), or None.

    A run that another process is writing is not interrupted.
    """
    candidates = [
        folder for folder in folders if is_unfinished(folder) and not is_locked(folder) and _has_recipe(folder, recipe)
    ]
    return max(candidates, key=_find_last_change, default=None)


def is_finished(folder: Path) -> bool:
    """Return whether the run and all of its folds have a report, and no checkpoints are left."""
    if not (folder / "report.html").is_file() or (folder / STATE_DIR).exists():
        return False
    table = folder / "folds.csv"
    fold_reports = [page for unit in ("fold", "source") for page in folder.glob(f"{unit}-*/report.html")]
    return len(fold_reports) >= (len(pd.read_csv(table)) if table.is_file() else 0)


def write_run_config(folder: Path, recipe: Recipe, command: str | None) -> str | None:
    """Write the recipe, into `folder` without absolute paths; return the command that started the run.

    That command differs from `command` if the run is resumed.
    """
    (folder / STATE_DIR).mkdir(exist_ok=True)
    atomic_write(folder / "recipe.json", redact_paths(recipe).to_json())
    atomic_write(folder / STATE_DIR / "recipe.json", recipe.to_json())
    command_file = folder / STATE_DIR / COMMAND_FILE
    if not command_file.exists():
        atomic_write(command_file, command or "")
    return command_file.read_text(encoding="utf-8", errors="surrogateescape") or None


def read_run_config(folder: Path) -> Recipe:
    """Return the recipe of the run in a folder. Raise InputMissingError if it contains no run that was trained here."""
    if (folder / TUNING_FILE).is_file():
        fix = "Repeat its command `fastcxr tune`, which resumes it"
        raise InputMissingError("a tuning, not a run", fix, path=folder, code="E304")
    require_run_file(folder, "manifest.csv" if is_published(folder) else "recipe.json")
    state_recipe = folder / STATE_DIR / "recipe.json"
    return Recipe.from_json(state_recipe if state_recipe.is_file() else folder / "recipe.json")


def acquire_or_resume(folder: Path, recipe: Recipe) -> None:
    """Create an empty folder, or accept one with a run of the same recipe.

    Raises BusyError for a folder that another process writes into, OutputError for any other folder.
    """
    if not has_same_recipe(folder, recipe):
        acquire_directory(folder)


def has_same_recipe(folder: Path, recipe: Recipe) -> bool:
    """Return whether a folder has a run of the same recipe, False if it is empty or missing; nothing is created.

    Raises the errors of acquire_or_resume for any other folder.
    """
    recipe_file = folder / "recipe.json"
    if not recipe_file.is_file():
        reject_occupied(folder)
        return False
    saved, current = vars(redact_paths(Recipe.from_json(recipe_file))), vars(redact_paths(recipe))
    changed_fields = [name for name in current if saved[name] != current[name]]
    if changed_fields:
        reject_locked(folder)
        differences = "; ".join(f"{name} was {saved[name]!r}, is {current[name]!r}" for name in changed_fields)
        problem = f"the folder contains a run with a different recipe ({differences})"
        raise OutputError(problem, "Pass the original options, or choose another `folder`", path=folder)
    return True


def validate_unchanged_images(saved: pd.DataFrame, current: pd.DataFrame, folder: Path) -> None:
    """Raise DataError if images, labels, splits or pixel hashes differ from those of the interrupted run."""
    current = current.astype({"source": str, "path": str})
    differing_rows = compare_manifests(saved, current, IMAGE_KEY, ["label", "split", IMAGE_HASH_COLUMN])
    differences = [
        f"{len(rows):,} {word} (such as {rows['path'].iloc[0]})"
        for word, rows in zip(("new", "missing", "changed"), differing_rows, strict=True)
        if len(rows)
    ]
    if differences:
        problem = f"the images differ from those of the interrupted run: {', '.join(differences)}"
        raise DataError(problem, "Restore the images, or choose another `folder` for a new run", path=folder)


def compare_manifests(
    saved: pd.DataFrame, current: pd.DataFrame, key: Sequence[str], columns: Sequence[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Match rows by `key`; return those only in `current`, only in `saved`, and in both with different `columns`.

    With several findings, the labels of all of them are compared as the column label.
    """
    findings = [name for name in list_findings(saved) if name in list_findings(current)]  # a run leaves some out
    saved, current = (table.assign(label=encode_labels(table, findings)) for table in (saved, current))
    merged = saved[[*key, *columns]].merge(current[[*key, *columns]], on=list(key), how="outer", indicator=True)
    is_new, is_missing = merged["_merge"].eq("right_only"), merged["_merge"].eq("left_only")
    is_changed = pd.Series(False, index=merged.index)
    for name in columns:
        is_changed |= merged[f"{name}_x"].ne(merged[f"{name}_y"])
    return merged[is_new], merged[is_missing], merged[is_changed & ~is_new & ~is_missing]


def _has_recipe(folder: Path, recipe: Recipe | None) -> bool:
    try:
        saved = read_run_config(folder)
    except FastcxrError as error:  # damaged, or of another version
        log.info("not resumed: %s", error)
        return False
    return recipe is None or saved == recipe


def _find_last_change(folder: Path) -> float:
    state = folder / STATE_DIR
    return (state if state.exists() else folder / "recipe.json").stat().st_mtime


def find_finished_report(folder: str | Path, recipe: Recipe, dataset: Dataset | None = None) -> Path | None:
    """Return the report of a finished run of this recipe in `folder`, or None if the folder has no report.

    Raises OutputError for a run of another recipe, or on images or labels other than those of the data. `dataset`: the
    data of the recipe, if it is already read.
    """
    report = Path(folder) / "report.html"
    if not report.is_file():
        return None
    acquire_or_resume(report.parent, recipe)
    # recipe.json contains only the last part of a path, which two folders can share
    _validate_finished_run(report.parent, recipe, dataset or Dataset(recipe))
    log.info("this run is finished: %s", report)
    return report


def _validate_finished_run(folder: Path, recipe: Recipe, dataset: Dataset) -> None:
    saved = read_written_manifest(folder / "manifest.csv")
    with silence_logging():
        current = drop_skipped(dataset.read_manifest(), saved, folder)
    new, missing, _ = compare_manifests(saved, current, [*IMAGE_KEY, "label"])
    if recipe.test_source or recipe.leave_one_source_out:  # such a run leaves out images of the training sources
        held_out_sources = saved.loc[~saved["split"].isin(TRAINING_SOURCE_SPLITS), "source"]
        new = new[new["source"].isin(held_out_sources)]
    if len(new) or len(missing):
        problem = (
            f"the folder contains a run on other images ({len(new):,} only in the data, {len(missing):,} only in the "
            "run)"
        )
        raise OutputError(problem, "Pass the data of this run, or choose another `folder`", path=folder)


def validate_finished_folds(folds: Folds, unit: str, dataset: Dataset) -> None:
    """Raise DataError if a finished fold differs from the same fold of the current data, without reading images.

    Folds of different data would score some images twice and others never. `unit`: what each fold holds out, "fold" or
    "source".
    """
    for name, (recipe, folder) in folds.items():
        if not (folder / "report.html").is_file():
            continue
        reject_other_format(folder)
        saved = read_written_manifest(folder / "manifest.csv")
        with silence_logging():
            current = assign_recipe_splits(drop_skipped(dataset.read_manifest(), saved, folder), recipe)
        # whether an image is in train or valid follows from label, patient and held-out images
        saved, current = (table.assign(held_out=table["split"].eq("test")) for table in (saved, current))
        differences = compare_manifests(saved, current, IMAGE_KEY, ["label", "patient", "held_out"])
        new, missing, changed = map(len, differences)
        if new or missing or changed:
            problem = (
                f"{unit} {name} was run on other images: {new:,} only in the data, {missing:,} only in the {unit}, "
                f"{changed:,} with another label, patient or {unit}"
            )
            fix = f"Pass the data of this {unit}, or choose another `folder`"
            raise DataError(problem, fix, path=folder, code="E313")


def drop_skipped(current: pd.DataFrame, saved: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Return the manifest without the unreadable images that the run in `folder` left out."""
    if not (folder / "skipped.csv").is_file():
        return current
    skipped = unescape_formulas(read_table(folder / "skipped.csv"))["path"]
    # two sources can have the same path: an image in the manifest of the run was readable
    was_read = pd.MultiIndex.from_frame(current[IMAGE_KEY]).isin(pd.MultiIndex.from_frame(saved[IMAGE_KEY]))
    return current[was_read | ~current["path"].isin(skipped)].reset_index(drop=True)
