"""A recipe of several runs, one a fold or one a source, becomes these runs and one report of all that was held out."""

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.audit.manifest_checks import check_tables
from fastcxr.config.recipe import Recipe
from fastcxr.data.manifest import read_written_manifest
from fastcxr.data.splits import find_whole_sources
from fastcxr.errors import DataError
from fastcxr.io.files import SUMS, read_json, write_json
from fastcxr.io.lock import held
from fastcxr.metrics.predictions import INTERNAL, OUT_OF_FOLD, Predictions, read_predictions, write_predictions
from fastcxr.progress.auto import find_progress
from fastcxr.progress.base import Progress, heard_once
from fastcxr.report.run_reader import APART, CohortRecord, name_first_weights, read_description
from fastcxr.training.time_budget import Deadline
from fastcxr.workflows.audit import write_findings
from fastcxr.workflows.load import NOT_USED, find_manifest
from fastcxr.workflows.run_dir import write_table
from fastcxr.workflows.run_state import find_finished, refuse_other_parts
from fastcxr.workflows.train import run
from fastcxr.workflows.train_dir import RunFolder

log = logging.getLogger("fastcxr")
IMAGE_WARNING = "FCX-W2"  # codes of what was remarked on images: the same ones in every fold
FIGURES = ("n_images", "n_patients", "accuracy", "balanced_accuracy", "auroc", "average_precision", "top2_accuracy")


def cross_validate(
    recipe: Recipe,
    folder: str | Path,
    progress: Progress | None = None,
    command: str | None = None,
    mirror: str | Path | None = None,
) -> Path:
    """Run every fold into `folder`/fold-<k>, or every source held out into `folder`/source-<k>, and pool them.

    Returns the path of the pooled report.html. A run that is finished is not run again: remove its folder, give the
    same command, and it alone is redone. Folds that ignore patients, of heads that cost seconds, are run with patients
    apart as well: the report gives both.
    """
    parts = list_parts(recipe)
    record = RunFolder(folder, recipe, command, goes_on=True)
    record.started, record.watcher = time.time(), progress or find_progress()
    record.claim()
    places = place_parts(recipe, parts, record.folder)
    if all((place / "report.html").exists() for place in (record.folder, *places.values())):
        return find_finished(folder, recipe)
    refuse_other_parts(parts, places, part_word(recipe))
    if is_run_apart(recipe):  # these would be told only when all others have run
        apart = list_parts(recipe.but(split="patient"))
        refuse_other_parts(apart, place_parts(recipe, apart, record.folder / APART), part_word(recipe))
    with held(record.folder), heard_once(NOT_USED, IMAGE_WARNING):
        (record.folder / SUMS).unlink(missing_ok=True)  # all of the pool is written anew where one run was
        record.begin()
        run_parts(record, parts, places, progress, mirror)
        return record.finish()


def run_parts(
    record: RunFolder,
    parts: dict[str, Recipe],
    places: dict[str, Path],
    progress: Progress | None,
    mirror: str | Path | None,
) -> None:
    """Every run that is not finished, then what a report of all of them is drawn from."""
    recipe, word, whole = record.recipe, part_word(record.recipe), Deadline.read(record.recipe.time_limit)
    for number, (name, place) in enumerate(places.items()):
        if (place / "report.html").exists():
            log.info("%s %s of %d is finished already", word, name, len(places))
            continue
        log.info("%s %s of %d", word, name, len(places))
        share = Deadline(whole.left / (len(places) - number))
        run(parts[name], place, progress, record.command, share, mirror and Path(mirror) / place.name)
    manifest = write_pool(record, recipe, places)
    if is_run_apart(recipe) and manifest["patient"].duplicated().any():
        log.info("the same folds once more, with patients apart")
        cross_validate(recipe.but(split="patient"), record.folder / APART, progress, record.command)
    write_json(record.folder / "run.json", record.account())


def list_parts(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe of each run, by the name of what it holds out. Raises DataError where no source can be."""
    if recipe.leave_one_source_out:
        apart = recipe.but(leave_one_source_out=False)
        return {source: apart.but(held_out=source) for source in find_whole_sources(find_manifest(recipe))}
    return {str(fold): recipe.but(fold=fold) for fold in range(1, recipe.folds + 1)}


def place_parts(recipe: Recipe, parts: Iterable[str], folder: Path) -> dict[str, Path]:
    """The run folder of each run, by the name of what it holds out."""
    return {name: folder / f"{part_word(recipe)}-{number}" for number, name in enumerate(parts, 1)}


def is_run_apart(recipe: Recipe) -> bool:
    """Whether its runs ignore patients and cost seconds, so that they are run with patients apart too."""
    return recipe.split == "image" and recipe.strategy == "probe"


def part_word(recipe: Recipe) -> str:
    """What each run holds out."""
    return "source" if recipe.leave_one_source_out else "fold"


def write_pool(record: RunFolder, recipe: Recipe, places: dict[str, Path]) -> pd.DataFrame:
    """What a report of all runs together is drawn from; returns the manifest."""
    folder = record.folder
    predictions = pool_predictions({name: read_predictions(p / "predictions.csv") for name, p in places.items()})
    written = {name: read_written_manifest(place / "manifest.csv") for name, place in places.items()}
    refuse_uneven(predictions, written, part_word(recipe), folder)
    manifest = pool_manifest(written, find_manifest(recipe), part_word(recipe))
    write_findings(folder, check_tables(manifest), manifest)
    write_predictions(predictions, folder / "predictions.csv")
    write_table(folder / "folds.csv", pd.DataFrame([read_figures(place, name) for name, place in places.items()]))
    with record.listening():
        record.write_cohort(manifest)
        record.write_thumbnails(manifest, predictions)
    record.facts |= {"first_weights": name_weights(places.values())}
    tell_trouble(record, {name: read_description(place) for name, place in places.items()})
    return manifest


def name_weights(places: Iterable[Path]) -> str:
    """The name of the weights that the runs began with, which is one unless a library changed between them."""
    return " and ".join(dict.fromkeys(name_first_weights(read_json(place / "model.json")) for place in places))


def tell_trouble(record: RunFolder, parts: dict[str, CohortRecord]) -> None:
    """Images that the runs left out into skipped.csv; their warnings into what is said of all runs."""
    write_left_out(record.folder, pool_skipped([part.skipped for part in parts.values()]))
    said = {name: part.run.get("said") or [] for name, part in parts.items()}
    record.said += [*pool_facts(said), *pool_warnings(said, part_word(record.recipe))]


def pool_predictions(runs: dict[str, Predictions]) -> Predictions:
    """The held-out rows of every run, split `oof`, with the name of what was held out as `fold`; then, where a source
    was, what each model said of test images of its own sources, split `internal`.
    """
    parts = [each.part("test").table.assign(split=OUT_OF_FOLD, fold=name) for name, each in runs.items()]
    parts += [each.part(INTERNAL).table.assign(fold=name) for name, each in runs.items()]
    return Predictions(pd.concat(parts, ignore_index=True), next(iter(runs.values())).labels)


def refuse_uneven(predictions: Predictions, written: dict[str, pd.DataFrame], word: str, folder: Path) -> None:
    """Raises DataError for folds of which two hold out one image, or none does: they are not of the same images."""
    key = ["source", "path"]
    held = predictions.part(OUT_OF_FOLD).table[key]
    known = pd.concat(written.values())[key].drop_duplicates()
    twice = int(held.duplicated().sum())
    never = len(known) - len(held.drop_duplicates()) if word == "fold" else 0  # a source that lacks a class is not
    if twice or never:
        what = f"the {word}s are not of the same images: {twice:,} are held out twice, and {never:,} never"
        raise DataError(what, "Remove the folders of all of them and run them anew", path=folder, code="E302")


def pool_manifest(written: dict[str, pd.DataFrame], read: pd.DataFrame, word: str) -> pd.DataFrame:
    """The cohort with what held each image out as its split, and the file that this machine has it in.

    An image that nothing held out, for its source lacks a class, is of train. Raises DataError
    for images that are gone.
    """
    key = ["source", "path"]
    held = [table[table["split"] == "test"].assign(split=f"{word} {name}") for name, table in written.items()]
    rest = [table.assign(split="train") for table in written.values()]
    table = pd.concat([*held, *rest]).drop_duplicates(key)
    found = read[[*key, "file"]].merge(table, on=key)[[*table.columns, "file"]]
    if len(found) < len(table):
        what = f"{len(table) - len(found):,} images of the finished {word}s are not in the data any more"
        raise DataError(what, f"Give the data that the {word}s were run on, or choose another --out", code="E302")
    return found


def pool_skipped(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Each image that the runs left out, once: every run reads the whole cohort."""
    # two sources may hold one path: its first row in each run is one image, its second another
    numbered = [table.assign(number=table.groupby("path").cumcount()) for table in tables]
    return pd.concat(numbered).drop_duplicates(["path", "number"]).drop(columns="number")


def write_left_out(folder: Path, skipped: pd.DataFrame) -> None:
    """skipped.csv, where anything was left out."""
    if len(skipped):
        write_table(folder / "skipped.csv", skipped)
    else:  # of runs that were done again since, with images that are whole now
        (folder / "skipped.csv").unlink(missing_ok=True)


def pool_warnings(said: dict[str, list[dict[str, str]]], word: str) -> list[dict[str, str]]:
    """Each warning of the runs once; before one that not all of them gave stands which did: `fold 2: ...`."""
    runs: dict[str, list[str]] = {}
    for name, lines in said.items():
        for text in dict.fromkeys(line["text"] for line in lines if line["level"] == "warning"):
            runs.setdefault(text, []).append(name)
    parts = {text: "" if len(names) == len(said) else f"{word} {', '.join(names)}: " for text, names in runs.items()}
    return [{"level": "warning", "text": part + text} for text, part in parts.items()]


def pool_facts(said: dict[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    """What the runs said of given splits, once."""
    texts = dict.fromkeys(line["text"] for lines in said.values() for line in lines)
    return [{"level": "info", "text": text} for text in texts if text.startswith(NOT_USED)]


def read_figures(place: Path, name: str) -> dict[str, Any]:
    """One row of folds.csv: the held-out figures of a run, macro where a figure has several parts."""
    part = json.loads((place / "metrics.json").read_text(encoding="utf-8"))["test"]
    figures = {name: part[name] for name in FIGURES}
    return {"fold": name} | {name: v["macro"] if isinstance(v, dict) else v for name, v in figures.items()}
