"""A finished run and the data of somewhere else become a report of how the model does there."""

import logging
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from fastcxr.cohort import read_cohort
from fastcxr.data.manifest import read_written_manifest
from fastcxr.data.store import open_pictures
from fastcxr.errors import DataError, ImageError
from fastcxr.evaluation.predictions import write_predictions
from fastcxr.evaluation.report import draw_report
from fastcxr.inference.bundle import FACTS_FILE, load_model, read_facts
from fastcxr.inference.predict import predict
from fastcxr.progress import Progress, find_progress
from fastcxr.recipe import Recipe, read_recipe
from fastcxr.run_folder import CONTENT, RunFolder
from fastcxr.storage import write_json

log = logging.getLogger("fastcxr")
OF_DATA = (
    "data", "layout", "relabel", "classes", "where", "drop_copies", "patients", "patient_regex", "patient_tag",
    "skip_bad",
)  # fmt: skip


def evaluate(
    run: str | Path, data: Recipe, folder: str | Path, progress: Progress | None = None, command: str | None = None
) -> Path:
    """Score every image of `data` with the model of `run`, into a new `folder`; returns the path of report.html.

    `data`: a recipe of which only the choices of data are looked at. Nothing is trained and nothing is chosen, so all
    images are test. Raises DataError for a label that the model does not know.
    """
    classifier, facts, trained = load_model(run), read_facts(run), read_recipe(Path(run) / "recipe.json")
    recipe = trained.but(**{name: asdict(data)[name] for name in OF_DATA})
    with RunFolder(folder, recipe, command).open(progress or find_progress()) as record:
        manifest = read_cohort(recipe, record)
        check_labels(manifest, classifier.labels)
        manifest = leave_out_seen(manifest, run, classifier.pixels.image_size, record)
        manifest = manifest.assign(split="test", split_from="given")
        predictions = predict(classifier, manifest, splits=None, progress=record)
        record.write_cohort(manifest)
        write_predictions(predictions, record.folder / "predictions.csv")
        record.write_thumbnails(manifest, predictions)
        record.write_maps(classifier, manifest, predictions)
        write_json(record.folder / FACTS_FILE, facts)
    return draw_report(folder)


def leave_out_seen(manifest: pd.DataFrame, run: str | Path, size: int, record: RunFolder) -> pd.DataFrame:
    """The manifest without the pictures that the model was trained or chosen on; they are counted in skipped.csv.

    Raises DataError where none is left.
    """
    trained = read_written_manifest(Path(run) / "manifest.csv")
    if CONTENT not in trained:
        log.warning("the run is of an earlier version: whether it was trained on some of these images is not known")
        return manifest
    known = set(trained.loc[trained["split"].isin(["train", "valid"]), CONTENT])
    seen = pd.Series(open_pictures(manifest["file"].tolist(), size).name_contents(), index=manifest.index).isin(known)
    if not seen.any():
        return manifest
    if seen.all():
        what = f"the model was trained on all {len(manifest):,} images of this data"
        raise DataError(what, "Name data that it has not seen", code="E303")
    what, fix = "the model was trained or chosen on this picture", "It is in none of the figures"
    errors = [ImageError(what, fix, path=file, code="E303") for file in manifest.loc[seen, "file"]]
    record.write_skipped(errors, manifest)
    log.warning("%s images left out: the model was trained or chosen on them", f"{seen.sum():,}")
    return manifest[~seen].reset_index(drop=True)


def check_labels(manifest: pd.DataFrame, known: tuple[str, ...]) -> None:
    """Raise for labels that the model has no output for."""
    unknown = sorted(set(manifest["label"]) - set(known))
    if not unknown:
        return
    near = get_close_matches(unknown[0], known, n=1) or [known[0]]
    raise DataError(
        f"the model knows {', '.join(known)}, the data has {', '.join(unknown)} too",
        f"Match them, as --map '{unknown[0]}={near[0]}', or leave them out with --classes",
        code="E302",
    )
