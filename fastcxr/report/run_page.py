"""From a run folder to metrics.json, its cards, figures/*.svg and report.html, without network, script or torch."""

import json
from pathlib import Path
from typing import Any

from fastcxr.data.splits import INTERNAL_TEST
from fastcxr.io.files import atomic_write, write_checksums
from fastcxr.metrics.classification import summarize_folds
from fastcxr.metrics.evaluate import evaluate_predictions
from fastcxr.metrics.external import external_drops
from fastcxr.metrics.subgroups import compute_subgroup_metrics
from fastcxr.report.data_notices import is_image_level
from fastcxr.report.data_tables import make_dataset_context
from fastcxr.report.figure_set import make_run_figures
from fastcxr.report.headline import describe_intervals, find_secondary_split, make_headline_rows
from fastcxr.report.html import render, write_page
from fastcxr.report.markdown import make_claim_checklist, make_model_card
from fastcxr.report.notices import make_notices
from fastcxr.report.run_reader import RunRecord, read_run_record
from fastcxr.report.style import SvgFigure
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
)


def write_run_report(folder: str | Path) -> Path:
    """Redraws metrics.json, MODEL_CARD.md, CLAIM.md, figures/*.svg and report.html of a finished run.

    The page's path comes back. Reads nothing but the run folder. The same files give the same page, byte for byte.
    """
    record = read_run_record(folder)
    metrics = compute_run_metrics(record)
    metrics_json = serialize_metrics(metrics)
    saved_metrics = json.loads(metrics_json)
    atomic_write(record.folder / "metrics.json", metrics_json)
    atomic_write(record.folder / "MODEL_CARD.md", make_model_card(record, saved_metrics))
    atomic_write(record.folder / "CLAIM.md", make_claim_checklist(record, saved_metrics))
    svg_figures = make_run_figures(record, metrics)  # after the numbers, which no figure may cost
    path = write_page(record.folder / "report.html", render_report(record, metrics, svg_figures), svg_figures)
    written_files = (
        "metrics.json",
        "MODEL_CARD.md",
        "CLAIM.md",
        "report.html",
        *(f"figures/{name}.svg" for name in svg_figures),
    )
    write_checksums(record.folder, written_files)
    return path


def compute_run_metrics(record: RunRecord) -> dict[str, dict[str, Any]]:
    """The numbers of a run, from its other files alone."""
    metrics = evaluate_predictions(record.predictions, record.calibration, record.prevalence)
    return metrics | compute_extra_metrics(record, metrics)


def serialize_metrics(metrics: dict[str, dict[str, Any]]) -> bytes:
    """The content of metrics.json."""
    text = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")  # surrogates of odd file names become JSON escapes


def compute_extra_metrics(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What metrics.json holds beside the splits: folds, drops and subgroups, where there are any."""
    extra_metrics = {
        "folds": summarize_folds(record.folds) if len(record.folds) else {},
        "external_drop": external_drops(record.predictions, metrics),
        "subgroups": compute_subgroup_metrics(record.predictions),
    }
    return {name: part for name, part in extra_metrics.items() if part}


def render_report(record: RunRecord, metrics: dict[str, dict[str, Any]], svg_figures: dict[str, SvgFigure]) -> str:
    """The page as HTML text."""
    return render("report.html.jinja", _make_context(record, metrics, svg_figures), svg_figures)


def _make_context(
    record: RunRecord, metrics: dict[str, dict[str, Any]], svg_figures: dict[str, SvgFigure]
) -> dict[str, Any]:
    primary_split = record.predictions.primary_split
    secondary_split = find_secondary_split(metrics)
    secondary_split = (
        secondary_split
        if secondary_split in metrics and (primary_split == "test" or secondary_split == INTERNAL_TEST)
        else None
    )
    splits = record.predictions.splits
    all_notices = make_notices(record, metrics)
    return {
        "record": record,
        "metrics": {split: metrics[split] for split in splits},
        "primary_split": primary_split,
        "secondary_split": secondary_split,
        "title": _make_title(record),
        "image_level": is_image_level(record),
        "headline": make_headline_rows(metrics.get(primary_split), metrics.get(secondary_split)),
        "intervals": describe_intervals(metrics.get(primary_split)),
        "critical_notices": [n for n in all_notices if n.level == "critical"],
        "notices": [n for n in all_notices if n.level != "critical"],
        "cohort": make_dataset_context(record),
        "classes": {split: make_class_rows(metrics[split]) for split in splits},
        "calibration": make_calibration_rows(metrics[primary_split]) if primary_split else [],
        "thresholds": make_threshold_rows(metrics[primary_split]) if primary_split else [],
        "calibration_lines": make_calibration_line_rows(metrics[primary_split]) if primary_split else [],
        "reasons": {split: make_reason_rows(metrics[split]) for split in splits},
        "misclassified": make_misclassified_cards(record),
        "typical": make_saliency_cards(record.saliency_maps, "typical"),
        "border_shares": make_border_share_rows(record.saliency_maps),
        "sanity_check": describe_sanity_check(record.saliency_maps),
        "n_misclassified": _count_misclassified(metrics.get(primary_split)),
        "confusions": make_confusion_rows(metrics[primary_split]) if primary_split else [],
        "drops": make_drop_rows(metrics.get("external_drop", {}), record.predictions.labels),
        "subgroups": make_subgroup_rows(metrics.get("subgroups", {}), record.predictions.labels),
        "folds": record.folds.to_dict("records"),
        "by_source": bool(record.recipe.get("leave_one_source_out")),
        "fold_summary": summarize_folds(record.folds),
        "lr_find_figures": [p for p in svg_figures.values() if p.name.startswith("learning_rate_")],
    }


def _make_title(record: RunRecord) -> dict[str, str]:
    """What was trained, on what; each from the recipe, else from the model, else left out."""
    backbone = record.recipe.get("backbone") or (record.model.get("backbone") or {}).get("name") or ""
    data = _join_data_names(record.recipe.get("data"))
    weights = record.initial_weights
    initial_weights = weights if weights in ("", "random weights") else f"the weights {weights}"
    return {"backbone": str(backbone), "data": data, "start": initial_weights}


def _join_data_names(data: Any) -> str:
    """The names of one source or of several."""
    data_paths = data if isinstance(data, list | tuple) else [data or ""]
    return " + ".join(_get_file_name(str(place)).removesuffix(".csv").removesuffix(".h5") for place in data_paths)


def _get_file_name(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def _count_misclassified(split_metrics: dict[str, Any] | None) -> int:
    matrix = (split_metrics or {}).get("confusion_matrix", [])
    return sum(n for i, row in enumerate(matrix) for k, n in enumerate(row) if i != k)
