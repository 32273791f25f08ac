"""Runs that were begun and not ended: which one a person means, and whether it is still the same run."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from fastcxr.config.recipe import Recipe, read_recipe, redact_paths
from fastcxr.data.manifest import read_written_manifest
from fastcxr.errors import DataError, FastcxrError, InputMissingError, OutputError
from fastcxr.io.files import STATE_DIR, atomic_write
from fastcxr.io.formats import reject_other_format
from fastcxr.io.lock import is_locked
from fastcxr.io.tables import read_table, unescape_formulas
from fastcxr.progress.base import silence_logging
from fastcxr.workflows.load import Dataset, assign_recipe_splits
from fastcxr.workflows.run_dir import acquire_directory

IMAGE_HASH_COLUMN = "image_sha256"  # column of manifest.csv that tells a picture of this run in other data
COMMAND_FILE = "command.txt"  # in the folder of states
log = logging.getLogger("fastcxr")
IMAGE_KEY = ["source", "path"]
LABELLED_IMAGE_KEY = [*IMAGE_KEY, "label"]  # of an image, in a finished run and in the data
TRAINING_SOURCE_SPLITS = ("train", "valid", "internal_test")  # splits of the sources that are not held out


def find_resumable_run(folders: Iterator[Path], recipe: Recipe | None = None) -> Path | None:
    """The newest of these folders in which a run (of this recipe) was broken off; None where there is none.

    One that a living process writes into is not broken off.
    """
    candidates = [
        place for place in folders if is_unfinished(place) and not is_locked(place) and _has_recipe(place, recipe)
    ]
    return max(candidates, key=_find_last_change, default=None)


def is_unfinished(folder: Path) -> bool:
    """Whether a run was begun here and has no report yet."""
    return (folder / "recipe.json").is_file() and not (folder / "report.html").is_file()


def is_finished(folder: Path) -> bool:
    """Whether a run has its report here, and each of its folds its own: nothing is left to go on with."""
    if not (folder / "report.html").is_file() or (folder / STATE_DIR).exists():
        return False
    table = folder / "folds.csv"
    part_reports = [page for word in ("fold", "source") for page in folder.glob(f"{word}-*/report.html")]
    return len(part_reports) >= (len(pd.read_csv(table)) if table.is_file() else 0)


def list_runs(parent: Path = Path("runs")) -> Iterator[Path]:
    """Every run folder in `parent`, those of a study one folder deeper; not the folds of one."""
    for recipe in [*parent.glob("*/recipe.json"), *parent.glob("*/*/recipe.json")]:
        if not (recipe.parent.parent / "recipe.json").exists():
            yield recipe.parent


def write_run_config(folder: Path, recipe: Recipe, command: str | None) -> str | None:
    """The recipe of a run that begins: as it is while the run lasts, and without its places for good.

    Returns the command that the run was begun with, which is another one where it is gone on with.
    """
    (folder / STATE_DIR).mkdir(exist_ok=True)
    atomic_write(folder / "recipe.json", redact_paths(recipe).to_json())
    atomic_write(folder / STATE_DIR / "recipe.json", recipe.to_json())
    command_file = folder / STATE_DIR / COMMAND_FILE
    if not command_file.exists():
        atomic_write(command_file, command or "")
    return command_file.read_text(encoding="utf-8", errors="surrogateescape") or None


def read_run_config(folder: Path) -> Recipe:
    """The recipe that was begun in a folder. Raises InputMissingError where none was."""
    if not (folder / "recipe.json").is_file():
        raise InputMissingError("no run was begun here", "Name a run folder, as runs/first", path=folder)
    state_recipe = folder / STATE_DIR / "recipe.json"
    return read_recipe(state_recipe if state_recipe.is_file() else folder / "recipe.json")


def acquire_or_resume(folder: Path, recipe: Recipe) -> None:
    """Claim an empty folder for this recipe, or take up one that the same recipe has begun.

    Raises OutputError for a folder that holds anything else, with the difference where it is another recipe.
    """
    recipe_file = folder / "recipe.json"
    if not recipe_file.is_file():
        acquire_directory(folder)
        return
    saved, current = vars(redact_paths(read_recipe(recipe_file))), vars(redact_paths(recipe))
    changed_fields = [name for name in current if saved[name] != current[name]]
    if changed_fields:
        differences = "; ".join(f"{name} was {saved[name]!r}, is {current[name]!r}" for name in changed_fields)
        fix = "Give the flags that it was begun with, or choose another --out"
        raise OutputError(f"a run of another recipe is here ({differences})", fix, path=folder)


def validate_unchanged_images(saved: pd.DataFrame, current: pd.DataFrame, state_file: Path) -> None:
    """Raises DataError where the images, their labels, splits or pictures are not those that they were."""
    merged = saved.merge(
        current.astype({"source": str, "path": str}), on=["source", "path"], how="outer", indicator=True
    )
    in_both = merged["_merge"].eq("both")
    changed = merged[in_both & (merged[["label_x", "split_x", f"{IMAGE_HASH_COLUMN}_x"]].ne(
        merged[["label_y", "split_y", f"{IMAGE_HASH_COLUMN}_y"]].to_numpy()).any(axis=1))]  # fmt: skip
    counts = {
        "new": merged[merged["_merge"].eq("right_only")],
        "gone": merged[merged["_merge"].eq("left_only")],
        "changed": changed,
    }
    differences = [f"{len(rows):,} {word} (as {rows['path'].iloc[0]})" for word, rows in counts.items() if len(rows)]
    if differences:
        problem = f"images are not those that this run began with: {', '.join(differences)}"
        raise DataError(problem, "Restore them, or start a new run with --no-resume", path=state_file.parent.parent)


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
    """The report of a run of this recipe that is finished in this folder. `dataset`: its data, where they were read.

    Raises OutputError for a run of another recipe, or of other images than the data holds.
    """
    report = Path(folder) / "report.html"
    if not report.is_file():
        return None
    acquire_or_resume(report.parent, recipe)
    # recipe.json keeps of a path only its last part, which two folders may share
    validate_finished_run(report.parent, recipe, dataset or Dataset(recipe))
    log.info("this run is finished: %s", report)
    return report


def validate_finished_run(folder: Path, recipe: Recipe, dataset: Dataset) -> None:
    """Raises OutputError for a finished run of other images or labels than the data holds; no image is read."""
    saved = read_written_manifest(folder / "manifest.csv")
    with silence_logging():
        current = drop_skipped(dataset.read_manifest(), saved, folder)
    merged = saved[LABELLED_IMAGE_KEY].merge(current[LABELLED_IMAGE_KEY], how="outer", indicator=True)
    missing, new = merged["_merge"].eq("left_only"), merged["_merge"].eq("right_only")
    if recipe.test_source or recipe.leave_one_source_out:  # of the other sources such a run leaves images out
        new &= merged["source"].isin(saved.loc[~saved["split"].isin(TRAINING_SOURCE_SPLITS), "source"])
    if missing.any() or new.any():
        problem = (
            f"a run of other images is here ({new.sum():,} of the data are not among them, {missing.sum():,} are not in"
        )
        fix = "Give the data that it was made of, or choose another --out"
        raise OutputError(f"{problem} the data)", fix, path=folder)


def validate_finished_parts(
    part_recipes: Mapping[str, Recipe], part_folders: Mapping[str, Path], part_kind: str, dataset: Dataset
) -> None:
    """Raises DataError for a finished fold that is not what it would be of today's data; no image is read.

    Folds of two cohorts would score some images twice and others never. `part_kind`: what each part holds out.
    """
    finished_folders = {name: place for name, place in part_folders.items() if (place / "report.html").is_file()}
    if not finished_folders:
        return
    with silence_logging():
        manifest = dataset.read_manifest()
    for name, folder in finished_folders.items():
        reject_other_format(folder)
        saved = read_written_manifest(folder / "manifest.csv")
        with silence_logging():
            current = assign_recipe_splits(drop_skipped(manifest, saved, folder), part_recipes[name])
        new, missing, changed = count_differences(saved, current)
        if new or missing or changed:
            problem = (
                f"{part_kind} {name} was run on other images: {new:,} of the data are not among them, {missing:,} are "
                "not in"
            )
            problem += f" the data, {changed:,} have another label, patient or {part_kind}"
            fix = "Give the data that it was run on, or choose another --out"
            raise DataError(problem, fix, path=folder, code="E313")


def count_differences(saved: pd.DataFrame, current: pd.DataFrame) -> tuple[int, int, int]:
    """How many images are new, are gone, or have another label, another patient, or are held out where they were not.

    Which of the others chose the model, and which taught it, follows from these.
    """
    columns = ["label", "patient", "held"]
    saved_rows, current_rows = (
        table.assign(held=table["split"].eq("test"))[[*IMAGE_KEY, *columns]] for table in (saved, current)
    )
    merged = saved_rows.merge(current_rows, on=IMAGE_KEY, how="outer", indicator=True)
    common = merged[merged["_merge"].eq("both")]
    differs = pd.concat([common[f"{name}_x"].ne(common[f"{name}_y"]) for name in columns], axis=1).any(axis=1)
    return int(merged["_merge"].eq("right_only").sum()), int(merged["_merge"].eq("left_only").sum()), int(differs.sum())


def drop_skipped(current: pd.DataFrame, saved: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The manifest without the images that the run here left out, which it could not read."""
    if not (folder / "skipped.csv").is_file():
        return current
    skipped = unescape_formulas(read_table(folder / "skipped.csv"))["path"]
    # two sources may hold one path, of which one could be read
    was_read = pd.MultiIndex.from_frame(current[IMAGE_KEY]).isin(pd.MultiIndex.from_frame(saved[IMAGE_KEY]))
    return current[was_read | ~current["path"].isin(skipped)].reset_index(drop=True)
