"""From a run's record and its numbers to what a reader must know before believing them, the gravest first."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.io.formatting import count, listed, score, share
from fastcxr.metrics.predictions import OUT_OF_FOLD
from fastcxr.report.data_notices import FEW, Notice, find_skipped, find_warnings, is_image_level, one_with_class
from fastcxr.report.external_notices import drop_notices
from fastcxr.report.fold_notices import images_in, images_of, one_answer_in_a_fold
from fastcxr.report.run_reader import Maps, RunRecord, read_run
from fastcxr.report.tables import EVEN, attention_rows

ALARMING = 0.05  # a gate shuts out fewer of the images that it was made for
UNEVEN = 2  # a class so many times larger than another draws all answers to itself
ONE_CLASS = "All of them have it: a model that says so of any picture would reach the same. Test on other classes too."
PLAUSIBLE = 0.98  # macro AUROC: in hospitals, where patients are alike, it is about 0.8


def notices(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    """Everything that bears on the figures; the template shows stamps above them and the rest right below."""
    return [
        *_confounded(record),
        *drop_notices(record, metrics),
        *_trained_on(record),
        *_too_good(record, metrics),
        *_never_named(record, metrics),
        *one_answer_in_a_fold(record),
        *_splits(record, metrics),
        *_missing_test(record),
        *_classes(record, metrics),
        *_one_with_class(record),
        *_left_out(record, metrics),
        *find_warnings(record),
        *map_notices(record.maps),
        *_rates(record),
        *_elsewhere(record, metrics),
        *_gate(record, metrics),
        *_augmentation(record),
        *_files(record),
    ]


def read_stamps(folder: Path) -> list[Notice]:
    """What doubts the figures of a run whose report is drawn: for all who read its numbers and not the page."""
    return [notice for notice in notices(*_read(folder)) if notice.level == "stamp"]


def read_terminal_notices(folder: Path) -> list[Notice]:
    """Return what the terminal prints below the headline: the report's stamps, warnings and comparisons with internal.

    Warnings that were logged during the run are left out: the terminal has printed them.
    """
    record, metrics = _read(folder)
    found, drops, logged = notices(record, metrics), drop_notices(record, metrics), find_warnings(record)
    stamps = [notice for notice in found if notice.level == "stamp"]
    return stamps + [n for n in found if n in drops or (n.level == "warning" and n not in logged)]


def _read(folder: Path) -> tuple[RunRecord, dict[str, dict[str, Any]]]:
    return read_run(folder), json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


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


def _too_good(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    """Figures that hospitals do not see, of a model that nobody has tested elsewhere."""
    auroc = (metrics.get(record.predictions.headline_split, {}).get("auroc") or {}).get("macro")
    is_said = any(row["verdict"] == "FAIL" for row in record.findings)
    if auroc is None or auroc <= PLAUSIBLE or metrics.get("drops") or is_said:
        return []
    words = (
        f"Macro AUROC is {score(auroc)}. Models with such figures have been found to know the hospital and not the "
        f"disease (DeGrave 2021, doi:10.1038/s42256-021-00338-7). {_places(record)}Before publishing, run fastcxr "
        "audit on this data, and fastcxr evaluate on data of another hospital."
    )
    return [Notice("stamp", "Too good to be believed unchecked", words)]


def _never_named(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    """Classes that some images have and none was given: accuracy hides it where they are rare."""
    split = record.predictions.headline_split
    part = metrics.get(split, {})
    labels, matrix = part.get("labels", []), part.get("confusion_matrix", [])
    named = [label for label, given in zip(labels, map(sum, zip(*matrix, strict=True)), strict=True) if given]
    had = {label: n for label, n in zip(labels, map(sum, matrix), strict=True) if n}
    lost = {label: n for label, n in had.items() if label not in named}
    if len(named) == 1:
        cure = _way_out(record, had) if lost else ONE_CLASS
        words = (
            f"That is the answer to all {part['n_images']:,} {images_of(split)}, so accuracy is no more than "
            f"the share of {named[0]}. {cure}"
        )
        return [Notice("stamp", f"Every image is called {named[0]}", words)]
    sizes = listed([f"{label} {n}" for label, n in lost.items()])
    words = f"{images_in(split)}: {sizes}. None was found, and accuracy hardly shows it where they are few."
    return [Notice("warning", f"No image is called {listed(list(lost), 'or')}", words)] if lost else []


def _way_out(record: RunRecord, had: dict[str, int]) -> str:
    """What helps a model that has one answer to everything, as far as its recipe and its classes tell."""
    words = "AUROC says whether the probabilities tell the classes apart all the same."
    if record.run.get("tested"):
        return words
    is_weighed = record.recipe.get("class_weights") == "balanced" or record.recipe.get("sampler") == "weighted"
    uneven = max(had.values()) > UNEVEN * min(had.values())
    cure = "--class-weights balanced, or another loss" if uneven and not is_weighed else "more epochs, or another rate"
    return f"{words} Try {cure}."


def _places(record: RunRecord) -> str:
    """What is not known where nothing says from where each image comes."""
    if record.table["source"].nunique() > 1:
        return ""
    return (
        "This data names one source for all images: if each class came from a hospital or device of its own, the "
        "figures say nothing of the disease. Name them, as --data A --data B or as a column source. "
    )


def _trained_on(record: RunRecord) -> list[Notice]:
    """What failed among the checks of the data that a model tested here was trained on."""
    failed = (record.run.get("tested") or {}).get("failed") or []
    after = "The same may hold of the data it is tested on here: good figures do not clear it."
    return [
        Notice("warning", "The model was trained on data that failed a check", f"{words} {after}") for words in failed
    ]


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
        words = (
            f"{'Its' if len(absent) == 1 else 'Their'} figures are left blank, and means are over the other classes."
        )
        held = "held-out" if split == OUT_OF_FOLD else split
        found += [Notice("warning", f"No {held} image of {listed(absent, 'or')}", words)]
    if few:
        sizes = listed([f"{label} {n}" for label, n in few.items()])
        step = _step(min(few.values()))
        words = f"{images_in(split)}: {sizes}. Each one moves the class's sensitivity by {step}."
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
    unread = {split: metrics[split]["n_errors"] for split in record.predictions.splits if metrics[split]["n_errors"]}
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


def _elsewhere(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    """A model that was tested where it was trained says nothing about other places."""
    if metrics.get("drops") or not _is_tested_at_home(record):
        return []
    words = "It was tested on images from where it was trained. fastcxr evaluate RUN --data OTHER tests it elsewhere."
    if record.table["source"].nunique() == 1:
        words += " Nor is it known whether each class came from a place of its own, which a model could learn instead."
    return [Notice("note", "External validity: unknown", words)]


def _is_tested_at_home(record: RunRecord) -> bool:
    """Whether the test images come from where the training images do."""
    sources = record.manifest.groupby("split")["source"].agg(set)
    trained = set().union(*(sources[split] for split in sources.index if split != "test"))
    return bool(trained) and sources.get("test", trained) <= trained


def _gate(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    """How many held-out pictures the gate keeps out: false alarms, where they come from where it was fitted."""
    split = record.predictions.headline_split
    found = metrics.get(split, {}).get("gate")
    if not found:
        words = "A picture of anything, or a radiograph of another part, is given a class like any other."
        return [Notice("note", "No gate", words)]
    value, low, high = found["share"]
    reached = f"{share(value)}, 95 % interval {share(low)} to {share(high)}"
    fact = f"On {split}: {found['strange']:,} of {count(found['images'], 'image')} ({reached})."
    rest = "No class is named for them; in all other figures they count like the others."
    if _is_tested_at_home(record):
        return [Notice("note", "False alarms of the gate", f"{fact} {rest}")]
    return [Notice("warning" if low > ALARMING else "note", "Not like the training images", f"{fact} {rest}")]


def _augmentation(record: RunRecord) -> list[Notice]:
    augment = record.recipe.get("augment")
    if not isinstance(augment, dict) or "do_flip" not in augment:
        return []
    if _is_mirrored(record.recipe):
        words = "The head was fitted on images and their mirror images; left and right mean little to the model."
        if record.model.get("mirror_images"):
            words += " Each answer is the mean of those to an image and to its mirror image."
        return [Notice("note", "Mirrored images", words)]
    if not augment["do_flip"]:
        return [Notice("note", "Horizontal flip: off", "Training images kept their left and right.")]
    words = "Training images were mirrored at random, the heart with them; left and right mean nothing to the model."
    return [Notice("note", "Horizontal flip: on", words)]


def _is_mirrored(recipe: Mapping[str, Any]) -> bool:
    """Whether a head was fitted on features, as strategies probe and rapid do it, of mirrored images too."""
    strategy = recipe.get("strategy")
    fitted = strategy == "probe" or (strategy == "rapid" and recipe.get("weights") != "none")
    return fitted and bool(recipe.get("mirror_images"))


def _files(record: RunRecord) -> list[Notice]:
    if not record.missing:
        return []
    words = f"{listed(list(record.missing))}: what they hold is not shown."
    return [Notice("note", "Not in this run folder", words)]


def map_notices(maps: Maps) -> list[Notice]:
    """Maps that are withheld, attention in the border, and images that could not be read."""
    found = []
    if maps.facts.get("withheld"):
        found += [Notice("warning", "Heat maps withheld", f"{str(maps.facts['withheld']).capitalize()}.")]
    far = [f"{row['label']} {row['share']} of {row['images']}" for row in attention_rows(maps) if row["is_far"]]
    if far:
        words = f"Heat in the outer 15 % of what the model sees, median: {listed(far)}. An even map has {share(EVEN)}."
        found += [Notice("warning", "Attention outside the central field", words)]
    unread = int((maps.table["error"] != "").sum())
    if unread:
        found += [Notice("warning", f"{count(unread, 'image')} not readable", "explain.csv has each reason.")]
    return found
