"""Conditions of report notices about the dataset: audit, patients, splits, shortcuts, class sizes and left-out images.

Each function yields, for each notice, its text and the names in its title.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from fastcxr.audit.findings import FILE_FIX
from fastcxr.data.findings import is_multi_label
from fastcxr.io.formatting import format_percent, format_score, join_names, pluralize
from fastcxr.metrics.predictions import OUT_OF_FOLD
from fastcxr.report.headline import get_primary_metrics
from fastcxr.report.run_reader import DatasetRecord, RunRecord
from fastcxr.report.weights_notices import is_of_initial_model

Found = Iterator[tuple[str, ...]]  # text, names in the title
Metrics = Mapping[str, Any]
MAX_LISTED = 12  # classes or findings in one notice
MIN_CLASS_IMAGES = 20  # below it one image moves the sensitivity of the class by more than five points
EXCLUSIVE_ATTRIBUTES = {  # with the check of the audit that includes them, and the fix
    "source": ("sources", "Add images of all classes from the same sources."),
    "file type": ("kind", FILE_FIX),
    "image size": ("size", FILE_FIX),
}


def name_split(split: str | None) -> str:
    """Return the name of a split for a sentence that starts with "the"."""
    return "pooled folds" if split == OUT_OF_FOLD else f"{split} split"


def is_image_level(record: DatasetRecord) -> bool:
    """Return whether the splits ignore patients."""
    return record.recipe.get("split") == "image" or "image" in _get_split_origins(record)


def find_failed_checks(record: RunRecord, metrics: Metrics) -> Found:
    """Yield each failed check of the data."""
    if not record.recipe.get("waive_audit"):
        yield from ((f"{row['message']} {row['fix']}",) for row in list_failed_checks(record))


def find_accepted_confounding(record: RunRecord, metrics: Metrics) -> Found:
    """Yield the failed checks that the user accepted, with the reason."""
    failed, reason = list_failed_checks(record), record.recipe.get("waive_audit")
    if failed and reason:
        yield (f"{join_names([row['title'] for row in failed])} failed. Reason given: {reason}",)


def find_failed_training_checks(record: RunRecord, metrics: Metrics) -> Found:
    """Yield each failed check of the data that an evaluated model was trained on."""
    for message in (record.run.get("tested") or {}).get("failed") or []:
        yield (f"{message} The test data may have the same fault; good metrics do not exclude it.",)


def find_export_notices(record: RunRecord, metrics: Metrics) -> Found:
    """Yield each critical notice of the run whose export or published model was evaluated."""
    for notice in (record.run.get("tested") or {}).get("notices") or []:
        yield notice["text"], notice["title"]


def find_kept_overlap(record: RunRecord, metrics: Metrics) -> Found:
    """Yield the number of images that overlap with training images of the evaluated model, and that the user kept."""
    overlap = (record.run.get("tested") or {}).get("overlap") or {}
    if overlap.get("kept") and overlap.get("training"):
        text = "The evaluation includes them (--keep-overlap). The metrics are optimistic."
        counts = overlap["training"]
        yield f"By reason: {format_reasons(counts)}. {text}", pluralize(sum(counts.values()), "image")


def is_overlap_unknown(record: RunRecord) -> bool:
    """Return whether an export or a published model was evaluated, without the list of training images."""
    tested = record.run.get("tested") or {}
    return bool({"export", "published"} & set(tested)) and not tested.get("overlap")


def find_unknown_overlap(record: RunRecord, metrics: Metrics) -> Found:
    """Yield that the images of the evaluation may be training images of an export or a published model."""
    if is_overlap_unknown(record):
        tested = record.run["tested"]
        kind = "published model" if "published" in tested else "export of run"
        name = f"{kind} {run}" if (run := tested.get("run")) else kind.removesuffix(" of run")
        text = (
            f"The {name} does not contain the list of training images. If the "
            "model was trained on some of these images or patients, the metrics are optimistic, and this is not an "
            "external test. fastcxr evaluate with the run folder checks it."
        )
        yield (text,)


def find_own_test_images(is_all: bool, record: RunRecord, metrics: Metrics) -> Found:
    """Yield the number of images from the test split of the evaluated run; `is_all`: only if these are all images."""
    counts = ((record.run.get("tested") or {}).get("overlap") or {}).get("test") or {}
    n_own, n_images = sum(counts.values()), int((record.manifest["split"] == "test").sum())
    if n_own and (n_own >= n_images) == is_all:
        text = "They are not external data: the model was already evaluated on them."
        yield f"By reason: {format_reasons(counts)}. {text}", pluralize(n_own, "image")


def format_reasons(counts: Mapping[str, int]) -> str:
    """Return `same pixels 2, near-duplicate 78` for the numbers of images by reason of their overlap."""
    return ", ".join(f"{reason} {number:,}" for reason, number in counts.items())


def find_reused_audit(record: RunRecord, metrics: Metrics) -> Found:
    """Yield folder and date of an earlier audit whose findings the run reuses."""
    if record.reused_audit:
        origin = " ".join(f"{key.capitalize()}: {value}." for key, value in record.reused_audit.items())
        yield (f"{origin} It checked the same images, labels, splits and patients.",)


def find_image_level_split(record: DatasetRecord, metrics: Metrics) -> Found:
    """Yield the effect of a split that ignores patients."""
    if is_image_level(record):
        texts = ["Images of one patient may be in several splits; the metrics are optimistic.", _count_shared(record)]
        if isinstance(record, RunRecord):
            texts.append(_compare_with_patient_split(get_primary_metrics(record, metrics), record))
        yield (" ".join(filter(None, texts)),)


def find_shared_patients(record: RunRecord, metrics: Metrics) -> Found:
    """Yield the number of test patients with training images in a patient-level split."""
    shared = _count_shared(record)
    if shared and not is_image_level(record):
        yield (f"{shared} The metrics are optimistic. Split by patient to measure performance on new patients.",)


def find_missing_test_split(record: RunRecord, metrics: Metrics) -> Found:
    """Yield that the metrics come from the validation split."""
    if record.predictions.primary_split == "valid":
        yield ("The validation split selected the model and also provides the metrics; they are optimistic.",)


def find_missing_held_out_split(record: RunRecord, metrics: Metrics) -> Found:
    """Yield that no split with metrics was held out."""
    split = record.predictions.primary_split
    if split not in ("test", OUT_OF_FOLD, "valid"):
        yield (f"The metrics are those of the {split or 'empty'} split, not of held-out images.",)


def find_generated_split(record: DatasetRecord, metrics: Metrics) -> Found:
    """Yield the seed of a split that describe drew."""
    origins = _get_split_origins(record)
    if origins and origins <= {"patient", "image"}:
        yield (f"This page shows the split that fastcxr train draws with seed {record.run.get('seed', 42)}.",)


def find_absent_classes(record: DatasetRecord, metrics: Metrics) -> Found:
    """Yield the classes without a test image."""
    absent = [label for label, n in _count_class_images(record, metrics).items() if n == 0]
    if absent:
        split = _get_split(record)
        units = "findings" if is_multi_label(record.table) else "classes"
        text = f"{'Its' if len(absent) == 1 else 'Their'} metrics are missing; means cover the other {units}."
        adjective = {OUT_OF_FOLD: "held-out", "valid": "validation"}.get(str(split), split)
        yield text, f"{adjective} image", join_names(absent, "or")


def find_small_classes(record: DatasetRecord, metrics: Metrics) -> Found:
    """Yield the classes with too few test images for a precise sensitivity."""
    counts = {label: n for label, n in _count_class_images(record, metrics).items() if 0 < n < MIN_CLASS_IMAGES}
    if counts:
        n_min = min(counts.values())
        points = f"{'up to ' * (n_min > 1)}{100 / n_min:.0f} points"
        sizes = _list_smallest(counts)
        unit = "finding" if is_multi_label(record.table) else "class"
        yield f"In the {name_split(_get_split(record))}: {sizes}. One image changes the sensitivity by {points}.", unit


def _list_smallest(counts: Mapping[str, int]) -> str:
    """Return the number of images of each class; of many, the smallest ones first and the number of the others."""
    texts = [f"{label} {n}" for label, n in counts.items()]
    if len(texts) <= MAX_LISTED:
        return join_names(texts)
    smallest = sorted(counts, key=lambda label: counts[label])[: MAX_LISTED - 1]
    others = pluralize(len(counts) - len(smallest), "other")
    return join_names([*(f"{label} {counts[label]}" for label in smallest), others])


def find_skipped_images(record: DatasetRecord, metrics: Metrics) -> Found:
    """Yield the number of images that were left out of the dataset."""
    if len(record.skipped):
        listed = "" if record.is_shared else "; skipped.csv lists the reasons"
        yield f"All checks and metrics exclude them{listed}.", pluralize(len(record.skipped), "image")


def find_logged_warnings(record: DatasetRecord, metrics: Metrics) -> Found:
    """Yield each warning that was logged when the folder was written; of a shared record their number."""
    if record.is_shared and (n_warnings := record.run.get("n_warnings")):
        yield (f"{pluralize(n_warnings, 'warning')} of the run: only the full report has the text.",)
    for message in merge_repeated_messages(record):
        if message["level"] == "warning" and not is_of_initial_model(message["text"]):
            yield (message["text"],)


def merge_repeated_messages(record: DatasetRecord) -> list[dict[str, str]]:
    """Return level and text of the logged messages; equal messages are merged, with their number in the text."""
    lines = [line for line in record.run.get("messages") or [] if isinstance(line, dict)]
    counts = Counter((str(line.get("level", "")), str(line.get("text", ""))) for line in lines)
    return [{"level": level, "text": f"{text} ({n} times)" if n > 1 else text} for (level, text), n in counts.items()]


def find_shortcuts(record: DatasetRecord, metrics: Metrics) -> Found:
    """Yield the classes that source, file type or image size separate from all other classes."""
    for attribute, text in _describe_exclusive_classes(record).items():
        yield text, attribute


def list_failed_checks(record: RunRecord) -> list[dict[str, Any]]:
    """Return title, message and fix of each failed check of the audit, and of the file properties of the run.

    Training does not check the file properties that the audit checks; they are known when the images are measured.
    """
    failed = [row for row in record.findings if row["verdict"] == "FAIL"]
    names, rows = {row["check"] for row in failed}, []
    for attribute, text in _describe_exclusive_classes(record).items():
        check, fix = EXCLUSIVE_ATTRIBUTES[attribute]
        if check not in names:
            unit = "finding" if is_multi_label(record.table) else "class"
            rows.append({"title": f"{attribute.capitalize()} and {unit}", "message": text, "fix": fix})
    # an image-level split has its own rule
    return [row for row in failed if row["check"] != "patients"] + rows


def _describe_exclusive_classes(record: DatasetRecord) -> dict[str, str]:
    """Return a sentence for each attribute that separates a class from all other classes."""
    texts = {}
    for attribute, classes in record.exclusive_classes.items():
        names = join_names([f"{label} ({n:,} of {pluralize(n_all, 'image')})" for label, (n, n_all) in classes.items()])
        if classes:
            unit = "finding" if is_multi_label(record.table) else "class"
            text = f"No other {unit} has the {attribute} of {names}. "
            texts[attribute] = f"{text}A model may learn the {attribute} instead of the disease."
    return texts


def _get_split_origins(record: DatasetRecord) -> set[str]:
    return set(record.manifest["split_origin"].unique()) if "split_origin" in record.manifest else set()


def _get_split(record: DatasetRecord) -> str | None:
    return record.predictions.primary_split if isinstance(record, RunRecord) else "test"


def _count_class_images(record: DatasetRecord, metrics: Metrics) -> dict[str, int]:
    """Return the test images of each class; of a dataset without test split, nothing."""
    if isinstance(record, RunRecord):
        per_class = get_primary_metrics(record, metrics).get("per_class", {})
        return {label: row["positives" if "positives" in row else "support"] for label, row in per_class.items()}
    test_labels = record.labelled_images.loc[record.labelled_images["split"] == "test", "label"]
    counts = test_labels.value_counts()
    return {label: int(counts.get(label, 0)) for label in record.labels} if len(counts) else {}


def _count_shared(record: DatasetRecord) -> str:
    """Return a sentence with the number of test patients that have training images, or ""."""
    split = _get_split(record)
    train, held_out = (
        set(record.manifest.loc[record.manifest["split"] == s, "patient"].unique()) for s in ("train", split)
    )
    n_shared, patients = len(train & held_out), pluralize(len(held_out), "patient")
    return f"{n_shared:,} of the {patients} in the {split} split also have training images." if n_shared else ""


def _compare_with_patient_split(image_level_metrics: Metrics, record: RunRecord) -> str:
    """Return the metrics of the same folds with a patient-level split, or "" if there are none."""
    if not image_level_metrics or not record.patient_split_metrics:
        return ""
    (accuracy, auroc), (image_accuracy, image_auroc) = (
        (part.get("accuracy"), part["auroc"]["macro"]) for part in (record.patient_split_metrics, image_level_metrics)
    )
    if auroc is None or image_auroc is None:
        return ""
    auroc_text = f"AUROC {format_score(auroc)} ({auroc - image_auroc:+.3f})"
    if accuracy is None or image_accuracy is None:  # of findings
        return f"With a patient-level split: {auroc_text}."
    points = 100 * (accuracy - image_accuracy)
    return f"With a patient-level split: accuracy {format_percent(accuracy)} ({points:+.1f} points), {auroc_text}."
