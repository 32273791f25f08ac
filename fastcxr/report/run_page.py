"""Write metrics.json, MODEL_CARD.md, CLAIM.md, the figures and report.html of a run folder, without torch."""

import json
from pathlib import Path
from typing import Any

from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.errors import InputMissingError
from fastcxr.io.files import atomic_write, write_checksums
from fastcxr.io.run_folders import MODEL_CARD_FILE
from fastcxr.metrics.classification import summarize_folds
from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.external import external_drops
from fastcxr.metrics.subgroups import compute_subgroup_metrics
from fastcxr.report.data_notices import is_image_level, is_overlap_unknown, merge_repeated_messages
from fastcxr.report.data_tables import make_dataset_context
from fastcxr.report.feature_map import FIGURE_PREFIX, describe_feature_map
from fastcxr.report.figure_set import make_run_figures
from fastcxr.report.finding_report import make_finding_metrics_context
from fastcxr.report.headline import describe_intervals, find_secondary_split, make_headline_rows
from fastcxr.report.html import render, write_page
from fastcxr.report.markdown import make_claim_checklist, make_model_card
from fastcxr.report.notices import make_notices
from fastcxr.report.run_reader import RunRecord, read_run_record
from fastcxr.report.shared_record import make_shared_record, name_dataset
from fastcxr.report.style import SvgFigure, omit_reason
from fastcxr.report.tables import (
    describe_sanity_check,
    make_border_share_rows,
    make_calibration_line_rows,
    make_calibration_rows,
    make_class_rows,
    make_confusion_rows,
    make_drop_rows,
    make_misclassified_cards,
    make_reason_rows,
    make_saliency_cards,
    make_subgroup_rows,
    make_threshold_rows,
    name_drop_metrics,
)
from fastcxr.report.training_summary import (
    describe_fitted_on,
    describe_fold_refits,
    describe_training,
    describe_valid_predictions,
    is_fit_only,
    resolve_recipe,
)

IMAGE_FREE_REPORT_FILE = "report-no-images.html"
PAGES_OF_IMAGES = {
    "explain.html": "it consists of saliency maps",
    "audit.html": "it lists the images and patients of each problem",
    "describe.html": "it shows example images and file names of the data, and no metrics of a model",
}


def write_run_report(folder: str | Path, *, figures: bool = True) -> Path:
    """Write metrics.json, MODEL_CARD.md, CLAIM.md, figures/*.svg and report.html; return the path of the report.

    Only files of the run folder are read. The output is identical for identical files. Without `figures` none is drawn,
    and the page states how to draw them.
    """
    record = read_run_record(folder)
    metrics = compute_run_metrics(record)
    metrics_json = serialize_metrics(metrics)
    saved_metrics = json.loads(metrics_json)
    atomic_write(record.folder / "metrics.json", metrics_json)
    atomic_write(record.folder / MODEL_CARD_FILE, make_model_card(record, saved_metrics))
    atomic_write(record.folder / "CLAIM.md", make_claim_checklist(record, saved_metrics))
    # last: an error in a figure must not cost the metrics
    svg_figures = make_run_figures(record, metrics) if figures else None
    path = write_page(record.folder / "report.html", render_report(record, metrics, svg_figures), svg_figures or {})
    text_files = ("metrics.json", MODEL_CARD_FILE, "CLAIM.md", "report.html")
    write_checksums(record.folder, (*text_files, *(f"figures/{name}.svg" for name in svg_figures or {})))
    return path


def write_image_free_report(folder: str | Path) -> Path:
    """Write report-no-images.html, the report without images and identifiers; return its path."""
    folder = Path(folder)
    atomic_write(folder / IMAGE_FREE_REPORT_FILE, render_image_free_report(folder).encode())
    write_checksums(folder, (IMAGE_FREE_REPORT_FILE,))
    return folder / IMAGE_FREE_REPORT_FILE


def render_image_free_report(folder: str | Path) -> str:
    """Return the report of a run without images, file names, folders, patient identifiers, command and messages.

    Counts, metrics and figures of statistics are those of the full report. The folder is not changed.

    Raises:
        InputMissingError: the folder is not a finished run, but one of describe, audit or explain.
    """
    folder = Path(folder)
    for name, reason in PAGES_OF_IMAGES.items():
        if (folder / name).is_file() and not (folder / "predictions.csv").is_file():
            fix = "Pass the folder of a finished run, also of an evaluation or of cross-validation"
            raise InputMissingError(f"{name} has no version without images: {reason}", fix, path=folder, code="E711")
    record = read_run_record(folder)
    metrics, shared_record = compute_run_metrics(record), make_shared_record(record)
    svg_figures = {name: omit_reason(figure) for name, figure in make_run_figures(shared_record, metrics).items()}
    return render_report(shared_record, metrics, svg_figures)


def compute_run_metrics(record: RunRecord) -> dict[str, dict[str, Any]]:
    """Return the content of metrics.json, computed from the other files of the run."""
    metrics = evaluate_predictions(record.predictions, record.calibration, record.prevalence)
    return metrics | compute_extra_metrics(record, metrics)


def serialize_metrics(metrics: dict[str, dict[str, Any]]) -> bytes:
    """Return metrics.json as bytes."""
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # file names that are not UTF-8 have lone surrogates


def compute_extra_metrics(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the metrics of folds, external test sets and subgroups, as far as the run has them."""
    extra_metrics = {
        "folds": summarize_folds(record.folds) if len(record.folds) else {},
        "external_drop": external_drops(record.predictions, metrics),
        "subgroups": compute_subgroup_metrics(record.predictions, record.calibration.get("thresholds")),
    }
    return {name: part for name, part in extra_metrics.items() if part}


def render_report(
    record: RunRecord, metrics: dict[str, dict[str, Any]], svg_figures: dict[str, SvgFigure] | None
) -> str:
    """Return the page as HTML text. `svg_figures`: None if none was drawn, which the page then states."""
    context = _make_context(record, metrics, svg_figures or {}) | _make_headline_context(record, metrics)
    if record.predictions.is_multi_label:
        context |= make_finding_metrics_context(record, metrics)
        return render("finding_report.html.jinja", context, svg_figures)
    return render("report.html.jinja", context | _make_class_context(record, metrics), svg_figures)


def _make_context(
    record: RunRecord, metrics: dict[str, dict[str, Any]], svg_figures: dict[str, SvgFigure]
) -> dict[str, Any]:
    all_notices = make_notices(record, metrics)
    return {
        "record": record,
        "title": _make_title(record),
        "tested_run": _name_tested_run(record),
        "fitted_on": describe_fitted_on(record),
        "valid_predictions": describe_valid_predictions(record),
        "fold_refits": describe_fold_refits(record),
        "training": describe_training(record),
        "is_fit_only": is_fit_only(record),
        "overlap_unknown": is_overlap_unknown(record),
        "monitor": (record.model.get("choices") or {}).get("monitor")
        or resolve_recipe(record).get("monitor")
        or "the monitored metric",
        "image_level": is_image_level(record),
        "critical_notices": [n for n in all_notices if n.level == "critical"],
        "notices": [n for n in all_notices if n.level != "critical"],
        "messages": merge_repeated_messages(record),
        "cohort": make_dataset_context(record),
        "typical": make_saliency_cards(record.saliency_maps, "typical"),
        "border_shares": make_border_share_rows(record.saliency_maps),
        "sanity_check": describe_sanity_check(record.saliency_maps),
        "folds": record.folds.to_dict("records"),
        "by_source": bool(record.recipe.get("leave_one_source_out")),
        "fold_summary": summarize_folds(record.folds),
        "feature_map": describe_feature_map(record),
        "feature_map_figures": [figure for name, figure in svg_figures.items() if name.startswith(FIGURE_PREFIX)],
        "lr_find_figures": [figure for name, figure in svg_figures.items() if name.startswith("learning_rate_")],
    }


def _make_headline_context(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    primary_split, splits = record.predictions.primary_split, record.predictions.splits
    primary = metrics[primary_split] if primary_split else None
    secondary_split = find_secondary_split(metrics)
    if secondary_split not in metrics or (primary_split != "test" and secondary_split != INTERNAL_TEST):
        secondary_split = None
    return {
        "metrics": {split: metrics[split] for split in splits},
        "primary_split": primary_split,
        "secondary_split": secondary_split,
        "headline": make_headline_rows(primary, metrics[secondary_split] if secondary_split else None),
        "intervals": describe_intervals(primary),
    }


def _make_class_context(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the template values of the metrics and errors of classes."""
    predictions, cards = record.predictions, [] if record.is_shared else make_misclassified_cards(record)
    splits, labels = predictions.splits, predictions.labels
    primary = metrics[predictions.primary_split] if predictions.primary_split else None
    return {
        "classes": {split: make_class_rows(metrics[split]) for split in splits},
        "calibration": make_calibration_rows(primary) if primary else [],
        "thresholds": make_threshold_rows(primary) if primary else [],
        "calibration_lines": make_calibration_line_rows(primary) if primary else [],
        "reasons": {split: make_reason_rows(metrics[split]) for split in splits},
        "misclassified": cards,
        "has_maps": any(card["map"] for card in cards),
        "n_misclassified": _count_misclassified(primary),
        "confusions": make_confusion_rows(primary) if primary else [],
        "drops": make_drop_rows(metrics.get("external_drop", {}), name_drop_metrics(labels)),
        "subgroups": make_subgroup_rows(metrics.get("subgroups", {}), labels),
    }


def _make_title(record: RunRecord) -> dict[str, str]:
    """Return backbone, data and initial weights; empty if neither recipe nor model has them."""
    backbone = record.recipe.get("backbone") or (record.model.get("backbone") or {}).get("name") or ""
    data = record.recipe.get("data") or ""
    names = [name_dataset(path) for path in (data if isinstance(data, list | tuple) else [data])] if data else []
    weights = record.initial_weights
    start = weights if weights in ("", "random weights") else f"the weights {weights}"
    return {"backbone": str(backbone), "data": " + ".join(names), "start": start}


def _name_tested_run(record: RunRecord) -> str:
    """Return the run of the model that was evaluated, for a sentence."""
    run = (record.run.get("tested") or {}).get("run")
    return f"run {run}" if run else "another run"


def _count_misclassified(split_metrics: dict[str, Any] | None) -> int:
    matrix = (split_metrics or {}).get("confusion_matrix", [])
    return sum(n for i, row in enumerate(matrix) for k, n in enumerate(row) if i != k)
