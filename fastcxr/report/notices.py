"""Report notices: one list of rules, ordered by gravity, for the pages of runs, datasets and saliency maps."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastcxr.io.files import read_json
from fastcxr.report import data_notices as data
from fastcxr.report import model_notices as model
from fastcxr.report.run_reader import DatasetRecord, SaliencyMaps, read_run_record
from fastcxr.report.tuning_notice import find_tuned_selection
from fastcxr.report.weights_notices import find_unknown_weights_overlap, find_weights_notices


@dataclass(frozen=True)
class Notice:
    """A text shown next to the metrics. `level`: critical (the metrics are not valid), warning or note."""

    level: str
    title: str
    text: str = ""

    def __str__(self) -> str:
        """Return title and text, each with a full stop."""
        return " ".join(f"{part.rstrip('.')}." for part in (self.title, self.text) if part)


@dataclass(frozen=True)
class Rule:
    """A notice and the condition that triggers it.

    `title` has a placeholder {} for each name that `find(record, metrics)` yields after its text. `pages`: the pages
    that apply the rule, of report, describe, audit and explain.
    """

    level: str
    title: str
    find: Callable[..., data.Found]
    pages: str = "report"


EXTERNAL_TESTS = (
    Rule("warning", "The metrics do not generalize to {}", partial(model.find_external_tests, model.LARGE)),
    Rule("warning", "The metrics may not generalize to {}", partial(model.find_external_tests, model.UNCERTAIN)),
    Rule("warning", "Lower performance on external data", partial(model.find_external_tests, model.SMALL)),
    Rule("warning", "No metric to compare with {}", partial(model.find_external_tests, model.NOT_COMPARABLE)),
    Rule("note", "Tested on external data", partial(model.find_external_tests, model.SIMILAR)),
)
FEW_IMAGES = "Few images of a"  # class or finding
LOGGED_WARNING = Rule("warning", "Logged warning", data.find_logged_warnings, "report describe")
RULES = (
    Rule("critical", "Confounded: do not use these metrics", data.find_failed_checks),
    Rule("critical", "Shortcut: the {} predicts the class", data.find_shortcuts, "describe"),
    Rule("critical", "Overlap with the training images of the model: {}", data.find_kept_overlap),
    Rule(
        "critical",
        "No external images: all {} are in the test split of the run",
        partial(data.find_own_test_images, True),
    ),
    Rule("critical", "Implausibly high AUROC: check for shortcuts before reporting", model.find_implausible_auroc),
    Rule("critical", "The model predicts {} for all images", model.find_constant_predictions),
    Rule("critical", "All images of {} are predicted as {}", model.find_constant_folds),
    Rule("critical", "Image-level split", data.find_image_level_split, "report describe"),
    Rule("critical", "Patients shared between splits", data.find_shared_patients),
    Rule("critical", "No test split", data.find_missing_test_split),
    Rule("critical", "Neither test nor validation split", data.find_missing_held_out_split),
    Rule("warning", "Overlap with the training images: unknown", data.find_unknown_overlap),
    Rule("warning", "Overlap with the training images of the initial weights: unknown", find_unknown_weights_overlap),
    Rule("warning", "The published model of the initial weights has a critical notice: {}", find_weights_notices),
    Rule("warning", "Images of the test split of the run: {}", partial(data.find_own_test_images, False)),
    Rule("warning", "Confounding accepted", data.find_accepted_confounding),
    *EXTERNAL_TESTS[:-1],
    Rule("warning", "The model was trained on data that failed a check", data.find_failed_training_checks),
    Rule("warning", "The run of the evaluated model has a critical notice: {}", data.find_export_notices),
    Rule("warning", "Out-of-distribution images", partial(model.find_ood_images, "many")),
    Rule("warning", "No image is predicted as {}", model.find_never_predicted_classes),
    Rule("warning", "All images are predicted as {}", model.find_always_predicted_findings),
    Rule("warning", "No {} of {}", data.find_absent_classes, "report describe"),
    Rule("warning", f"{FEW_IMAGES} {{}}", data.find_small_classes, "report describe"),
    Rule("warning", "The {} of model and predictions differ", model.find_class_mismatch),
    Rule("warning", "{} left out", data.find_skipped_images, "report describe audit"),
    Rule("warning", "Unreadable images in the evaluation", model.find_unreadable_images),
    LOGGED_WARNING,
    Rule("warning", "Saliency maps withheld", model.find_withheld_maps, "report explain"),
    Rule("warning", "High saliency at the image border", model.find_border_saliency, "report explain"),
    Rule("warning", "No saliency map of {}", model.find_images_without_map, "report explain"),
    Rule("warning", "No learning rate found", model.find_failed_lr_searches),
    EXTERNAL_TESTS[-1],
    Rule("note", "The options were selected by {}", find_tuned_selection),
    Rule("note", "Trained by own calls of fastai", model.find_own_training),
    Rule("note", "External validity: unknown", model.find_missing_external_test),
    Rule("note", "Findings of an earlier data audit are reused", data.find_reused_audit),
    Rule("note", "No split in the data", data.find_generated_split, "describe"),
    Rule("note", "No out-of-distribution (OOD) detector", model.find_missing_ood_detector),
    Rule(
        "note", "False positives of the out-of-distribution (OOD) detector", partial(model.find_ood_images, "internal")
    ),
    Rule("note", "Out-of-distribution images", partial(model.find_ood_images, "few")),
    Rule("note", "Horizontal flip: {}", model.find_horizontal_flips),
    Rule("note", "Files missing from the run folder", model.find_missing_files),
)


def make_notices(
    record: DatasetRecord | SaliencyMaps, metrics: Mapping[str, Any] | None = None, page: str = "report"
) -> list[Notice]:
    """Return the notices of a page in the order of RULES; the page explain takes the saliency maps as `record`."""
    return _apply((rule for rule in RULES if page in rule.pages.split()), record, metrics or {})


def read_critical_notices(folder: Path) -> list[Notice]:
    """Return the critical notices of a run folder with metrics.json."""
    return [notice for notice in make_notices(*_read(folder)) if notice.level == "critical"]


def read_terminal_notices(folder: Path) -> list[Notice]:
    """Return the notices printed below the headline: critical ones, warnings and external tests.

    Logged warnings are omitted: the terminal has printed them during the run. The comparison with the internal test set
    is last, which is the result of an evaluation.
    """
    shown = [rule for rule in RULES if rule.level != "note" or rule in EXTERNAL_TESTS]
    shown = [rule for rule in shown if "report" in rule.pages and rule is not LOGGED_WARNING]
    return _apply(sorted(shown, key=lambda rule: rule in EXTERNAL_TESTS), *_read(folder))


def _read(folder: Path) -> tuple[DatasetRecord, dict[str, Any]]:
    return read_run_record(folder), read_json(folder / "metrics.json")


def _apply(rules: Iterable[Rule], record: DatasetRecord | SaliencyMaps, metrics: Mapping[str, Any]) -> list[Notice]:
    return [
        Notice(rule.level, rule.title.format(*names), text)
        for rule in rules
        for text, *names in rule.find(record, metrics)
    ]
