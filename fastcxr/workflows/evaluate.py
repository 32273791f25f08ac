"""A finished run and the data of somewhere else become a report of how the model does there."""

import logging
from dataclasses import asdict
from difflib import SequenceMatcher
from pathlib import Path

import pandas as pd

from fastcxr.config.fields import Arithmetic
from fastcxr.config.recipe import Recipe, read_recipe
from fastcxr.data.bit_depth import read_depths
from fastcxr.data.cache.images import open_pictures
from fastcxr.data.manifest import read_written_manifest
from fastcxr.data.merge import hold_everywhere
from fastcxr.errors import DataError, ImageError
from fastcxr.inference.predict import predict
from fastcxr.io.files import write_json
from fastcxr.metrics.predictions import INTERNAL, PREFIX, Predictions, read_predictions, write_predictions
from fastcxr.models.bundle import load_model
from fastcxr.models.model_json import FACTS_FILE, read_facts
from fastcxr.progress.auto import find_progress
from fastcxr.progress.base import Progress
from fastcxr.report.run_reader import read_findings
from fastcxr.workflows.load import read_cohort
from fastcxr.workflows.run_state import CONTENT
from fastcxr.workflows.train_dir import RunFolder

log = logging.getLogger("fastcxr")
ALIKE = 0.8  # "covid" and "covid19" have 0.83
OF_DATA = (
    "data", "layout", "relabel", "classes", "where", "keep_columns", "drop_copies", "patients", "patient_regex",
    "patient_tag", "skip_bad",
)  # fmt: skip


def evaluate(
    run: str | Path,
    data: Recipe,
    folder: str | Path,
    progress: Progress | None = None,
    command: str | None = None,
    *,
    precision: Arithmetic = "trained",
    device: str = "auto",
) -> Path:
    """Score every image of `data` with the model of `run`, into a new `folder`; returns the path of report.html.

    `data`: a recipe of which only the choices of data are looked at. Nothing is trained and nothing is chosen, so all
    images are test. `precision`, `device`: see load_model. Raises DataError for a label that the model does not know.
    """
    classifier = load_model(run, precision=precision, device=device)
    facts, trained = read_facts(run), read_recipe(Path(run) / "recipe.json")
    recipe = trained.but(**{name: asdict(data)[name] for name in OF_DATA})
    with RunFolder(folder, recipe, command).open(progress or find_progress()) as record:
        manifest = read_cohort(recipe, record, only_test=True, depths=classifier.bit_depths)
        check_labels(manifest, classifier.labels)
        log.info("arithmetic: %s", classifier.arithmetic)
        manifest = leave_out_seen(manifest, run, classifier.pixels.image_size, record)
        manifest = manifest.assign(split="test", split_from="given")
        predictions = predict(classifier, manifest, splits=None, progress=record, tell=False)
        failed = [row["words"] for row in read_findings(Path(run)) if row["verdict"] == "FAIL"]
        record.facts = {"tested": {"run": Path(run).resolve().name, "failed": failed}}
        record.write_cohort(manifest)
        write_predictions(beside_internal(predictions, Path(run)), record.folder / "predictions.csv")
        record.write_thumbnails(manifest, predictions)
        record.write_maps(classifier, manifest, predictions)
        write_json(record.folder / FACTS_FILE, facts)
    return record.finish()


def beside_internal(predictions: Predictions, run: Path) -> Predictions:
    """The predictions, and after them what the run said of its own test images, as the split `internal`.

    A run that was tested elsewhere itself gives those of home that it was compared with.
    """
    if not (run / "predictions.csv").is_file():
        log.warning("the run has no predictions.csv: there are no figures of home to compare with")
        return predictions
    own = read_predictions(run / "predictions.csv")
    split = INTERNAL if INTERNAL in own.splits else "test"
    if split not in own.splits:
        log.warning("the run has no test split: there are no figures of home to compare with")
        return predictions
    both = pd.concat([predictions.table, own.part(split).table.assign(split=INTERNAL)], ignore_index=True)
    further = [name for name in both.columns if name not in [PREFIX + label for label in predictions.labels]]
    return Predictions(both.assign(**both[further].fillna("")), predictions.labels)


def leave_out_seen(manifest: pd.DataFrame, run: str | Path, size: int, record: RunFolder) -> pd.DataFrame:
    """The manifest without pictures, and without patients known by a name that holds everywhere, that the model was
    trained or chosen on; they are counted in skipped.csv. Raises DataError where none is left.
    """
    trained = read_written_manifest(Path(run) / "manifest.csv")
    if CONTENT not in trained:
        log.warning("the run is of an earlier version: whether it was trained on some of these images is not known")
        return manifest
    contents = open_pictures(manifest["file"].tolist(), size, depths=read_depths(manifest)).name_contents()
    taught = trained[trained["split"].isin(["train", "valid"])]
    is_picture = pd.Series(contents, index=manifest.index).isin(taught[CONTENT])
    is_patient = hold_everywhere(manifest) & manifest["patient"].isin(taught["patient"]) & ~is_picture
    if (is_picture | is_patient).all():
        what = f"the model was trained on all {len(manifest):,} images of this data"
        raise DataError(what, "Name data that it has not seen", code="E303")
    errors = [
        *_refuse(manifest[is_picture], "images left out: the model was trained or chosen on them", "this picture"),
        *_refuse(manifest[is_patient], "images left out: the model was trained or chosen on others of their patients",
                 "other pictures of this patient"),
    ]  # fmt: skip
    if errors:
        record.write_skipped(errors, manifest)
    tested = pd.Series(contents, index=manifest.index).isin(trained.loc[trained["split"] == "test", CONTENT])
    if tested.any():
        text = "%s images are of the run's own test split: they say nothing of elsewhere"
        log.warning(text, f"{tested.sum():,}")
    return manifest[~(is_picture | is_patient)].reset_index(drop=True)


def _refuse(rows: pd.DataFrame, said: str, seen: str) -> list[ImageError]:
    """An error for each row, and one warning of them all."""
    if len(rows):
        log.warning("%s %s", f"{len(rows):,}", said)
    what, fix = f"the model was trained or chosen on {seen}", "It is in none of the figures"
    return [ImageError(what, fix, path=file, code="E303") for file in rows["file"]]


def check_labels(manifest: pd.DataFrame, known: tuple[str, ...]) -> None:
    """Raise for labels that the model has no output for."""
    unknown = sorted(set(manifest["label"]) - set(known))
    if not unknown:
        return
    pairs = [(theirs, ours) for theirs in unknown for ours in known if is_alike(theirs, ours)]
    theirs, ours = pairs[0] if pairs else (unknown[0], "CLASS")
    among = "" if pairs else f" with one of {', '.join(known)} as CLASS"
    raise DataError(
        f"the model knows {', '.join(known)}, the data has {', '.join(unknown)} too",
        f"Match them, as --map '{theirs}={ours}'{among}, or leave them out with --classes",
        code="E302",
    )


def is_alike(theirs: str, ours: str) -> bool:
    """Whether two labels are spellings of one, as "Covid" and "COVID-19" are; "abnormal" and "normal" are not.

    Whoever copies a suggested pair gets the figures of it: better none than one that means something else.
    """
    one, two = ("".join(filter(str.isalnum, label.casefold())) for label in (theirs, ours))
    return one[:1] == two[:1] and SequenceMatcher(None, one, two).ratio() >= ALIKE
