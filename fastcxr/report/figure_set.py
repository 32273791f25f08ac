"""All figures of a run report as SVG, each with a caption and a description for screen readers."""

from functools import partial
from typing import Any

import pandas as pd

from fastcxr.io.formatting import format_learning_rate, format_score, join_names, pluralize
from fastcxr.io.html import replace_unprintable
from fastcxr.metrics.predictions import Predictions
from fastcxr.report import figures
from fastcxr.report.data_figure_set import make_dataset_figures
from fastcxr.report.feature_map import make_feature_map_figures
from fastcxr.report.finding_figure_set import make_finding_figures
from fastcxr.report.html import format_split
from fastcxr.report.run_reader import RunRecord
from fastcxr.report.style import SvgFigure, to_svg_figure

LEARNING_CURVES = {
    "loss": ("Loss", {"train": "train_loss", "validation": "valid_loss"}),
    "accuracy": ("Validation accuracy", {"validation": "accuracy"}),
    "auroc": ("Validation AUROC (macro)", {"validation": "auroc"}),
}


def make_run_figures(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> dict[str, SvgFigure]:
    """Return every figure whose values are in the run folder, by name."""
    svg_figures = [
        *_make_learning_figures(record.history),
        *_make_lr_find_figures(record),
        *_make_metrics_figures(record, metrics),
        *make_feature_map_figures(record),
    ]
    return {figure.name: figure for figure in svg_figures} | make_dataset_figures(record)


def _make_learning_figures(history: pd.DataFrame) -> list[SvgFigure]:
    svg_figures = []
    for name, (title, columns) in LEARNING_CURVES.items():
        columns = {line: column for line, column in columns.items() if column in history}
        if len(history) and columns and history[list(columns.values())].notna().any(axis=None):
            last_values = [f"{line} {history[column].iloc[-1]:.3g}" for line, column in columns.items()]
            n_epochs = pluralize(len(history), "epoch")
            description = f"{title} over {n_epochs}; value of the last epoch: {join_names(last_values)}."
            plot = partial(figures.plot_learning_curve, history, columns, title)
            svg_figures.append(to_svg_figure(plot, name, description))
    return svg_figures


def _make_lr_find_figures(record: RunRecord) -> list[SvgFigure]:
    chosen = {row.get("stage"): row for row in (record.model.get("choices") or {}).get("learning_rates") or []}
    svg_figures = []
    for i, (stage, curve) in enumerate(record.lr_curves.groupby("stage", sort=False), 1):
        rate, reason = (chosen.get(stage, {}).get(key) for key in ("rate", "reason"))
        title = f"Loss, stage {replace_unprintable(stage)}"
        caption = str(stage)
        if rate is not None:
            caption += f": learning rate {format_learning_rate(rate)}" + (f" ({reason})" if reason else "")
        plot = partial(figures.plot_lr_find_curve, curve["rate"], curve["loss"], rate, title)
        svg_figures.append(to_svg_figure(plot, f"learning_rate_{i}", f"Learning rate finder, {caption}.", caption))
    return svg_figures


def _make_metrics_figures(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[SvgFigure]:
    if record.predictions.is_multi_label:
        return make_finding_figures(record.predictions, metrics)
    return _make_class_figures(record, metrics)


def _make_class_figures(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[SvgFigure]:
    """Return the confusion matrix and the curves of the primary split."""
    split, labels = record.predictions.primary_split, record.predictions.labels
    split_metrics = metrics.get(split) if split else None
    if not split or not split_metrics or not split_metrics["n_images"]:
        return []
    matrix = split_metrics["confusion_matrix"]
    correct = [f"{row[k]} of {sum(row)} {labels[k]}" for k, row in enumerate(matrix)]
    description = f"Confusion matrix, {format_split(split)}; correct: {join_names(correct)}."
    plot = partial(figures.plot_confusion_matrix, matrix, labels)
    svg_figures = [to_svg_figure(plot, "confusion_matrix", description)]
    if split_metrics["auroc"]["macro"] is not None:
        svg_figures += _make_curve_figures(record.predictions.for_split(split).scorable(), split_metrics, split)
    return svg_figures


def _make_curve_figures(scored: Predictions, split_metrics: dict[str, Any], split: str) -> list[SvgFigure]:
    labels, split_name = scored.labels, format_split(split)
    lines = split_metrics["calibration"]["per_class"]
    slopes = {label: lines[label]["slope"][0] if lines[label] else None for label in labels}
    per_class = {name: _format_values(split_metrics[name]["per_class"]) for name in ("auroc", "average_precision")}
    inputs = (scored.class_index, scored.probability, labels)
    baseline_caption = "Dotted: chance level (the prevalence of the class)."
    return [
        to_svg_figure(
            partial(figures.plot_roc_curves, *inputs),
            "roc",
            f"ROC curves, {split_name}; AUROC: {per_class['auroc']}.",
            "Dashed: chance level.",
        ),
        to_svg_figure(
            partial(figures.plot_precision_recall_curves, *inputs),
            "precision_recall",
            f"Precision-recall curves, {split_name}; average precision: {per_class['average_precision']}.",
            baseline_caption if len(labels) <= figures.MAX_BASELINE_CLASSES else "",
        ),
        to_svg_figure(
            partial(figures.plot_reliability_curves, *inputs, list(slopes.values())),
            "reliability",
            f"Reliability diagram, {split_name}; calibration slope: {_format_values(slopes)}.",
            "Dashed: perfect calibration. Above the line, probabilities are too low; below it, too high.",
        ),
        to_svg_figure(
            partial(figures.plot_net_benefit_curves, *inputs),
            "net_benefit",
            f"Decision curves, {split_name}.",
            "Net benefit at each threshold probability. Dotted: treat all; gray line: treat none. "
            "The model has clinical utility only at thresholds where its net benefit is above both.",
        ),
    ]


def _format_values(value_by_class: dict[str, float | None]) -> str:
    return join_names([f"{label} {format_score(value)}" for label, value in value_by_class.items()])
