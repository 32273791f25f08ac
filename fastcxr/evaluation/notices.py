"""From a run's record and its numbers to what a reader must know before believing them, the gravest first."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from fastcxr.evaluation.cohort_notices import (
    FEW,
    Notice,
    find_skipped,
    find_warnings,
    is_image_level,
    one_with_class,
)
from fastcxr.evaluation.explaining import map_notices
from fastcxr.evaluation.predictions import OUT_OF_FOLD
from fastcxr.evaluation.record import RunRecord
from fastcxr.evaluation.words import count, listed, score, share


def notices(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    """Everything that bears on the figures; the template shows stamps above them and the rest right below."""
    return [
        *_confounded(record),
        *_splits(record, metrics),
        *_missing_test(record),
        *_classes(record, metrics),
        *_one_with_class(record),
        *_left_out(record, metrics),
        *find_warnings(record),
        *map_notices(record.maps),
        *_rates(record),
        *_elsewhere(record),
        *_augmentation(record),
        *_files(record),
    ]


def shared_with_training(manifest: pd.DataFrame, split: str) -> int:
    """How many patients of a split have training images too."""
    train = set(manifest.loc[manifest["split"] == "train", "patient"])
    return len(train & set(manifest.loc[manifest["split"] == split, "patient"]))


def _splits(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    split = record.predictions.headline_split
    shared = shared_with_training(record.manifest, split) if split else 0
    patients = record.manifest.loc[record.manifest["split"] == split, "patient"].nunique()
    fact = f"{shared:,} of the {count(patients, 'patient')} in the {split} split also have training images."
    if is_image_level(record):
        words = "Images of one patient may stand in several splits; figures are optimistic."
        parts = [words, fact if shared else "", _gap(metrics.get(split, {}), record.apart)]
        return [Notice("stamp", "Image-level split", " ".join(filter(None, parts)))]
    if shared:
        words = "The model has seen them: figures are optimistic. Split by patient to know how it does on new ones."
        return [Notice("stamp", "Patients shared between splits", f"{fact} {words}")]
    return []


def _confounded(record: RunRecord) -> list[Notice]:
    """What failed among the checks of the data: figures are not to be believed, unless somebody says why they are."""
    # a split that ignores patients has a stamp of its own
    failed = [row for row in record.findings if row["verdict"] == "FAIL" and row["check"] != "patients"]
    reason = record.recipe.get("accept_confounding")
    if failed and reason:
        words = listed([row["title"] for row in failed])
        return [Notice("warning", "Accepted confounding", f"{words} failed. The reason given: {reason}")]
    title = "Confounded: do not use these figures"
    return [Notice("stamp", title, f"{row['words']} {row['remedy']}") for row in failed]


def _one_with_class(record: RunRecord) -> list[Notice]:
    """What tells a class by itself; of the source a failed check says it already."""
    is_said = any(row["check"] == "sources" and row["verdict"] == "FAIL" for row in record.findings)
    return [notice for notice in one_with_class(record) if not (is_said and notice.title == "Class and source are one")]


def _gap(here: Mapping[str, Any], apart: Mapping[str, Any]) -> str:
    """What the same strategy gives when no patient stands in two folds."""
    if not here or not apart:
        return ""
    accuracy, auroc = (apart["accuracy"], here["accuracy"]), (apart["auroc"]["macro"], here["auroc"]["macro"])
    if None in (*accuracy, *auroc):
        return ""
    points, steps = 100 * (accuracy[0] - accuracy[1]), auroc[0] - auroc[1]
    return (
        f"With patients kept apart: accuracy {share(accuracy[0])} ({points:+.1f} points), "
        f"AUROC {score(auroc[0])} ({steps:+.3f})."
    )


def _missing_test(record: RunRecord) -> list[Notice]:
    split = record.predictions.headline_split
    if split in ("test", OUT_OF_FOLD):
        return []
    if split == "valid":
        words = "The valid split chose the model and is the headline here too: figures are optimistic."
        return [Notice("stamp", "No test split", words)]
    words = f"The figures below are of the images called {split or 'nothing'}, not of held-out ones."
    return [Notice("stamp", "Neither test nor valid split", words)]


def _classes(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    split = record.predictions.headline_split
    support = {label: row["support"] for label, row in metrics.get(split, {}).get("per_class", {}).items()}
    absent = [label for label, n in support.items() if n == 0]
    few = {label: n for label, n in support.items() if 0 < n < FEW}
    found = []
    if absent:
        words = "Its figures are left blank, and means are over the other classes."
        found += [Notice("warning", f"No {split} image of {listed(absent)}", words)]
    if few:
        sizes = listed([f"{label} {n}" for label, n in few.items()])
        step = _step(min(few.values()))
        words = f"Images in the {split} split: {sizes}. Each one moves the class's sensitivity by {step}."
        found += [Notice("warning", "Few images of a class", words)]
    known = record.model.get("labels")
    if known and list(known) != list(record.predictions.labels):
        ours = listed(list(record.predictions.labels))
        words = f"model.json has {listed(list(map(str, known)))}, predictions.csv {ours}."
        found += [Notice("warning", "The classes of model and predictions differ", words)]
    return found


def _step(n: int) -> str:
    return f"up to {100 / n:.0f} points" if n > 1 else "100 points"


def _left_out(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    found = find_skipped(record)
    unread = {split: part["n_errors"] for split, part in metrics.items() if part["n_errors"]}
    if unread:
        sizes = listed([f"{split} {n}" for split, n in unread.items()])
        words = f"{sizes}. They are counted in none of the figures; predictions.csv has each reason."
        found += [Notice("warning", "Images that could not be read when the model was tested", words)]
    return found


def _rates(record: RunRecord) -> list[Notice]:
    rates = (record.model.get("choices") or {}).get("learning_rates") or []
    lost = [row for row in rates if isinstance(row, dict) and row.get("found") is False]
    # a rate that was given was never searched for: only a curve without an answer is news
    if record.recipe.get("learning_rate") != "find" or not lost:
        return []
    words = listed([f"{row.get('stage')} took {row.get('rate'):g} ({row.get('reason')})" for row in lost])
    return [Notice("warning", "The learning-rate finder gave no answer", f"{words}.")]


def _elsewhere(record: RunRecord) -> list[Notice]:
    """A model that was tested where it was trained says nothing about other places."""
    sources = record.manifest.groupby("split")["source"].agg(set)
    trained = set().union(*(sources[split] for split in sources.index if split != "test"))
    if not trained or not sources.get("test", trained) <= trained:
        return []
    words = "It was tested on images from where it was trained. fastcxr evaluate RUN --data OTHER tests it elsewhere."
    return [Notice("note", "External validity: unknown", words)]


def _augmentation(record: RunRecord) -> list[Notice]:
    augment = record.recipe.get("augment")
    if not isinstance(augment, dict) or "do_flip" not in augment:
        return []
    if _is_mirrored(record.recipe):
        words = "The head was fitted on images and their mirror images; left and right mean little to the model."
        return [Notice("note", "Mirrored images", words)]
    if not augment["do_flip"]:
        return [Notice("note", "Horizontal flip: off", "Training images kept their left and right.")]
    words = "Training images were mirrored at random, the heart with them; left and right mean nothing to the model."
    return [Notice("note", "Horizontal flip: on", words)]


def _is_mirrored(recipe: Mapping[str, Any]) -> bool:
    """Whether a head was fitted on features, as strategies probe and rapid do it, of mirrored images too."""
    strategy = recipe.get("strategy")
    fitted = strategy == "probe" or (strategy == "rapid" and recipe.get("weights") != "none")
    return fitted and bool(recipe.get("mirror"))


def _files(record: RunRecord) -> list[Notice]:
    if not record.missing:
        return []
    words = f"{listed(list(record.missing))}: what they hold is not shown."
    return [Notice("note", "Not in this run folder", words)]
