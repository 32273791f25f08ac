"""From a run's record and its numbers to what a reader must know before believing them, the gravest first."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.io.formatting import format_percent, format_score, join_names, pluralize
from fastcxr.metrics.predictions import OUT_OF_FOLD
from fastcxr.report.data_notices import (
    MIN_CLASS_TEST_IMAGES,
    Notice,
    is_image_level,
    make_shortcut_notices,
    make_skipped_notices,
    make_warning_notices,
)
from fastcxr.report.external_notices import make_drop_notices
from fastcxr.report.fold_notices import format_images_in_split, format_images_of_split, make_constant_fold_notices
from fastcxr.report.run_reader import RunRecord, SaliencyMaps, read_run_record
from fastcxr.report.tables import UNIFORM_BORDER_SHARE, make_border_share_rows

MAX_FALSE_ALARM_RATE = 0.05  # of the OOD detector, on images like those it was fitted on
IMBALANCE_RATIO = 2  # a class so many times larger than another draws all answers to itself
SINGLE_CLASS_TEXT = (
    "All of them have it: a model that says so of any picture would reach the same. Test on other classes too."
)
MAX_PLAUSIBLE_AUROC = 0.98  # macro AUROC: in hospitals, where patients are alike, it is about 0.8


def make_notices(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    """Everything that bears on the figures; the template shows stamps above them and the rest right below."""
    return [
        *_make_failed_check_notices(record),
        *make_drop_notices(record, metrics),
        *_make_training_data_notices(record),
        *_make_implausible_notices(record, metrics),
        *_make_never_predicted_notices(record, metrics),
        *make_constant_fold_notices(record),
        *_make_split_notices(record, metrics),
        *_make_missing_test_notices(record),
        *_make_class_notices(record, metrics),
        *_make_unreported_shortcut_notices(record),
        *_make_unreadable_notices(record, metrics),
        *make_warning_notices(record),
        *make_saliency_notices(record.saliency_maps),
        *_make_lr_find_notices(record),
        *_make_external_validity_notices(record, metrics),
        *_make_ood_notices(record, metrics),
        *_make_flip_notices(record),
        *_make_missing_file_notices(record),
    ]


def read_critical_notices(folder: Path) -> list[Notice]:
    """What doubts the figures of a run whose report is drawn: for all who read its numbers and not the page."""
    return [notice for notice in make_notices(*_read(folder)) if notice.level == "critical"]


def read_terminal_notices(folder: Path) -> list[Notice]:
    """Return what the terminal prints below the headline: the report's stamps, warnings and comparisons with internal.

    Warnings that were logged during the run are left out: the terminal has printed them.
    """
    record, metrics = _read(folder)
    found, drops, logged = (
        make_notices(record, metrics),
        make_drop_notices(record, metrics),
        make_warning_notices(record),
    )
    stamps = [notice for notice in found if notice.level == "critical"]
    return stamps + [n for n in found if n in drops or (n.level == "warning" and n not in logged)]


def _read(folder: Path) -> tuple[RunRecord, dict[str, dict[str, Any]]]:
    return read_run_record(folder), json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def count_shared_patients(manifest: pd.DataFrame, split: str) -> int:
    """How many patients of a split have training images too."""
    train = set(manifest.loc[manifest["split"] == "train", "patient"])
    return len(train & set(manifest.loc[manifest["split"] == split, "patient"]))


def _make_split_notices(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    split = record.predictions.primary_split
    n_shared = count_shared_patients(record.manifest, split) if split else 0
    n_patients = record.manifest.loc[record.manifest["split"] == split, "patient"].nunique()
    fact = f"{n_shared:,} of the {pluralize(n_patients, 'patient')} in the {split} split also have training images."
    if is_image_level(record):
        text = "Images of one patient may stand in several splits; figures are optimistic."
        sentences = [
            text,
            fact if n_shared else "",
            _compare_with_patient_split(metrics.get(split, {}), record.patient_split_metrics),
        ]
        return [Notice("critical", "Image-level split", " ".join(filter(None, sentences)))]
    if n_shared:
        text = "The model has seen them: figures are optimistic. Split by patient to know how it does on new ones."
        return [Notice("critical", "Patients shared between splits", f"{fact} {text}")]
    return []


def _make_failed_check_notices(record: RunRecord) -> list[Notice]:
    """What failed among the checks of the data: figures are not to be believed, unless somebody says why they are."""
    # a split that ignores patients has a stamp of its own
    failed = [row for row in record.findings if row["verdict"] == "FAIL" and row["check"] != "patients"]
    reason = record.recipe.get("waive_audit")
    if failed and reason:
        titles = join_names([row["title"] for row in failed])
        return [Notice("warning", "Accepted confounding", f"{titles} failed. The reason given: {reason}")]
    title = "Confounded: do not use these figures"
    return [Notice("critical", title, f"{row['message']} {row['fix']}") for row in failed]


def _make_implausible_notices(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    """Figures that hospitals do not see, of a model that nobody has tested elsewhere."""
    auroc = (metrics.get(record.predictions.primary_split, {}).get("auroc") or {}).get("macro")
    has_failed_check = any(row["verdict"] == "FAIL" for row in record.findings)
    if auroc is None or auroc <= MAX_PLAUSIBLE_AUROC or metrics.get("external_drop") or has_failed_check:
        return []
    text = (
        f"Macro AUROC is {format_score(auroc)}. Models with such figures have been found to know the hospital and not "
        "the "
        f"disease (DeGrave 2021, doi:10.1038/s42256-021-00338-7). {_describe_single_source(record)}Before publishing, "
        "run fastcxr "
        "audit on this data, and fastcxr evaluate on data of another hospital."
    )
    return [Notice("critical", "Too good to be believed unchecked", text)]


def _make_never_predicted_notices(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    """Classes that some images have and none was given: accuracy hides it where they are rare."""
    split = record.predictions.primary_split
    split_metrics = metrics.get(split, {})
    labels, matrix = split_metrics.get("labels", []), split_metrics.get("confusion_matrix", [])
    predicted_labels = [
        label for label, given in zip(labels, map(sum, zip(*matrix, strict=True)), strict=True) if given
    ]
    true_counts = {label: n for label, n in zip(labels, map(sum, matrix), strict=True) if n}
    never_predicted = {label: n for label, n in true_counts.items() if label not in predicted_labels}
    if len(predicted_labels) == 1:
        suggestion = _suggest_fix(record, true_counts) if never_predicted else SINGLE_CLASS_TEXT
        text = (
            f"That is the answer to all {split_metrics['n_images']:,} {format_images_of_split(split)}, so accuracy is "
            "no more than "
            f"the share of {predicted_labels[0]}. {suggestion}"
        )
        return [Notice("critical", f"Every image is called {predicted_labels[0]}", text)]
    sizes = join_names([f"{label} {n}" for label, n in never_predicted.items()])
    text = f"{format_images_in_split(split)}: {sizes}. None was found, and accuracy hardly shows it where they are few."
    return (
        [Notice("warning", f"No image is called {join_names(list(never_predicted), 'or')}", text)]
        if never_predicted
        else []
    )


def _suggest_fix(record: RunRecord, true_counts: dict[str, int]) -> str:
    """What helps a model that has one answer to everything, as far as its recipe and its classes tell."""
    text = "AUROC says whether the probabilities tell the classes apart all the same."
    if record.run.get("tested"):
        return text
    is_weighted = record.recipe.get("class_weights") == "balanced" or record.recipe.get("sampler") == "weighted"
    is_imbalanced = max(true_counts.values()) > IMBALANCE_RATIO * min(true_counts.values())
    suggestion = (
        "--class-weights balanced, or another loss"
        if is_imbalanced and not is_weighted
        else "more epochs, or another rate"
    )
    return f"{text} Try {suggestion}."


def _describe_single_source(record: RunRecord) -> str:
    """What is not known where nothing says from where each image comes."""
    if record.table["source"].nunique() > 1:
        return ""
    return (
        "This data names one source for all images: if each class came from a hospital or device of its own, the "
        "figures say nothing of the disease. Name them, as --data A --data B or as a column source. "
    )


def _make_training_data_notices(record: RunRecord) -> list[Notice]:
    """What failed among the checks of the data that a model tested here was trained on."""
    failed_messages = (record.run.get("tested") or {}).get("failed") or []
    caution = "The same may hold of the data it is tested on here: good figures do not clear it."
    return [
        Notice("warning", "The model was trained on data that failed a check", f"{words} {caution}")
        for words in failed_messages
    ]


def _make_unreported_shortcut_notices(record: RunRecord) -> list[Notice]:
    """What tells a class by itself; of the source a failed check says it already."""
    has_source_finding = any(row["check"] == "sources" and row["verdict"] == "FAIL" for row in record.findings)
    return [
        notice
        for notice in make_shortcut_notices(record)
        if not (has_source_finding and notice.title == "Class and source are one")
    ]


def _compare_with_patient_split(
    image_level_metrics: Mapping[str, Any], patient_level_metrics: Mapping[str, Any]
) -> str:
    """What the same strategy gives when no patient stands in two folds."""
    if not image_level_metrics or not patient_level_metrics:
        return ""
    accuracy, auroc = (
        (patient_level_metrics["accuracy"], image_level_metrics["accuracy"]),
        (patient_level_metrics["auroc"]["macro"], image_level_metrics["auroc"]["macro"]),
    )
    if None in (*accuracy, *auroc):
        return ""
    accuracy_points, auroc_difference = 100 * (accuracy[0] - accuracy[1]), auroc[0] - auroc[1]
    return (
        f"With patients kept apart: accuracy {format_percent(accuracy[0])} ({accuracy_points:+.1f} points), "
        f"AUROC {format_score(auroc[0])} ({auroc_difference:+.3f})."
    )


def _make_missing_test_notices(record: RunRecord) -> list[Notice]:
    split = record.predictions.primary_split
    if split in ("test", OUT_OF_FOLD):
        return []
    if split == "valid":
        text = "The valid split chose the model and is the headline here too: figures are optimistic."
        return [Notice("critical", "No test split", text)]
    text = f"The figures below are of the images called {split or 'nothing'}, not of held-out ones."
    return [Notice("critical", "Neither test nor valid split", text)]


def _make_class_notices(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    split = record.predictions.primary_split
    support = {label: row["support"] for label, row in metrics.get(split, {}).get("per_class", {}).items()}
    absent_classes = [label for label, n in support.items() if n == 0]
    small_classes = {label: n for label, n in support.items() if 0 < n < MIN_CLASS_TEST_IMAGES}
    class_notices = []
    if absent_classes:
        text = (
            f"{'Its' if len(absent_classes) == 1 else 'Their'} figures are left blank, and means are over the other "
            "classes."
        )
        split_text = "held-out" if split == OUT_OF_FOLD else split
        class_notices += [Notice("warning", f"No {split_text} image of {join_names(absent_classes, 'or')}", text)]
    if small_classes:
        sizes = join_names([f"{label} {n}" for label, n in small_classes.items()])
        step = _format_sensitivity_step(min(small_classes.values()))
        text = f"{format_images_in_split(split)}: {sizes}. Each one moves the class's sensitivity by {step}."
        class_notices += [Notice("warning", "Few images of a class", text)]
    model_labels = record.model.get("labels")
    if model_labels and list(model_labels) != list(record.predictions.labels):
        prediction_labels = join_names(list(record.predictions.labels))
        text = f"model.json has {join_names(list(map(str, model_labels)))}, predictions.csv {prediction_labels}."
        class_notices += [Notice("warning", "The classes of model and predictions differ", text)]
    return class_notices


def _format_sensitivity_step(n: int) -> str:
    return f"up to {100 / n:.0f} points" if n > 1 else "100 points"


def _make_unreadable_notices(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    unreadable_notices = make_skipped_notices(record)
    n_unreadable = {
        split: metrics[split]["n_errors"] for split in record.predictions.splits if metrics[split]["n_errors"]
    }
    if n_unreadable:
        sizes = join_names([f"{split} {n}" for split, n in n_unreadable.items()])
        text = f"{sizes}. They are counted in none of the figures; predictions.csv has each reason."
        unreadable_notices += [Notice("warning", "Images that could not be read when the model was tested", text)]
    return unreadable_notices


def _make_lr_find_notices(record: RunRecord) -> list[Notice]:
    rates = (record.model.get("choices") or {}).get("learning_rates") or []
    not_found = [row for row in rates if isinstance(row, dict) and row.get("found") is False]
    # a rate that was given was never searched for: only a curve without an answer is news
    if record.recipe.get("learning_rate") != "find" or not not_found:
        return []
    text = join_names([f"{row.get('stage')} took {row.get('rate'):g} ({row.get('reason')})" for row in not_found])
    return [Notice("warning", "The learning-rate finder gave no answer", f"{text}.")]


def _make_external_validity_notices(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    """A model that was tested where it was trained says nothing about other places."""
    if metrics.get("external_drop") or not _is_internal_test(record):
        return []
    text = "It was tested on images from where it was trained. fastcxr evaluate RUN --data OTHER tests it elsewhere."
    if record.table["source"].nunique() == 1:
        text += " Nor is it known whether each class came from a place of its own, which a model could learn instead."
    return [Notice("note", "External validity: unknown", text)]


def _is_internal_test(record: RunRecord) -> bool:
    """Whether the test images come from where the training images do."""
    sources = record.manifest.groupby("split")["source"].agg(set)
    trained = set().union(*(sources[split] for split in sources.index if split != "test"))
    return bool(trained) and sources.get("test", trained) <= trained


def _make_ood_notices(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Notice]:
    """Report the OOD rate of held-out images: false alarms if they are from the sources of training."""
    split = record.predictions.primary_split
    ood_rate = metrics.get(split, {}).get("ood")
    if not ood_rate:
        text = "A picture of anything, or a radiograph of another part, is given a class like any other."
        return [Notice("note", "No OOD detector", text)]
    value, low, high = ood_rate["proportion"]
    rate_text = f"{format_percent(value)}, 95 % interval {format_percent(low)} to {format_percent(high)}"
    fact = f"On {split}: {ood_rate['n_ood']:,} of {pluralize(ood_rate['n_images'], 'image')} ({rate_text})."
    explanation = "No class is named for them; in all other figures they count like the others."
    if _is_internal_test(record):
        return [Notice("note", "False alarms of the OOD detector", f"{fact} {explanation}")]
    return [
        Notice(
            "warning" if low > MAX_FALSE_ALARM_RATE else "note", "Not like the training images", f"{fact} {explanation}"
        )
    ]


def _make_flip_notices(record: RunRecord) -> list[Notice]:
    augment = record.recipe.get("augment")
    if not isinstance(augment, dict) or "do_flip" not in augment:
        return []
    if _uses_mirrored_features(record.recipe):
        text = "The head was fitted on images and their mirror images; left and right mean little to the model."
        if record.model.get("hflip_tta"):
            text += " Each answer is the mean of those to an image and to its mirror image."
        return [Notice("note", "Mirrored images", text)]
    if not augment["do_flip"]:
        return [Notice("note", "Horizontal flip: off", "Training images kept their left and right.")]
    text = "Training images were mirrored at random, the heart with them; left and right mean nothing to the model."
    return [Notice("note", "Horizontal flip: on", text)]


def _uses_mirrored_features(recipe: Mapping[str, Any]) -> bool:
    """Whether a head was fitted on features, as strategies linear_probe and lp_ft do it, of mirrored images too."""
    strategy = recipe.get("strategy")
    is_fitted_on_features = strategy == "linear_probe" or (strategy == "lp_ft" and recipe.get("weights") != "none")
    return is_fitted_on_features and bool(recipe.get("hflip_tta"))


def _make_missing_file_notices(record: RunRecord) -> list[Notice]:
    if not record.missing_files:
        return []
    text = f"{join_names(list(record.missing_files))}: what they hold is not shown."
    return [Notice("note", "Not in this run folder", text)]


def make_saliency_notices(maps: SaliencyMaps) -> list[Notice]:
    """Maps that are withheld, attention in the border, and images that could not be read."""
    saliency_notices = []
    if maps.metadata.get("failure_reason"):
        saliency_notices += [
            Notice("warning", "Heat maps withheld", f"{str(maps.metadata['failure_reason']).capitalize()}.")
        ]
    high_border_classes = [
        f"{row['label']} {row['share']} of {row['images']}" for row in make_border_share_rows(maps) if row["is_far"]
    ]
    if high_border_classes:
        text = (
            f"Heat in the outer 15 % of what the model sees, median: {join_names(high_border_classes)}. An even map "
            f"has {format_percent(UNIFORM_BORDER_SHARE)}."
        )
        saliency_notices += [Notice("warning", "Attention outside the central field", text)]
    n_unreadable = int((maps.table["error"] != "").sum())
    if n_unreadable:
        saliency_notices += [
            Notice("warning", f"{pluralize(n_unreadable, 'image')} not readable", "saliency.csv has each reason.")
        ]
    return saliency_notices
