"""From a run's record and its numbers to its plates: figures as SVG text, each with what it shows in words."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.io.formatting import format_learning_rate, format_score, join_names
from fastcxr.io.html import replace_unprintable
from fastcxr.report import figures
from fastcxr.report.data_figure_set import make_dataset_figures
from fastcxr.report.run_reader import RunRecord
from fastcxr.report.style import SvgFigure, to_svg_figure

LEARNING_CURVES = {
    "loss": ("Loss", {"train": "train_loss", "valid": "valid_loss"}),
    "accuracy": ("Accuracy, valid", {"valid": "accuracy"}),
    "auroc": ("AUROC (macro), valid", {"valid": "auroc"}),
}


def make_run_figures(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> dict[str, SvgFigure]:
    """Every figure that this run has the values for, by name."""
    svg_figures = [
        *_make_learning_figures(record.history),
        *_make_lr_find_figures(record),
        *_make_test_figures(record, metrics),
    ]
    return {figure.name: figure for figure in svg_figures} | make_dataset_figures(record)


def _make_learning_figures(history: pd.DataFrame) -> list[SvgFigure]:
    svg_figures = []
    for name, (title, columns) in LEARNING_CURVES.items():
        columns = {line: column for line, column in columns.items() if column in history}
        if len(history) and columns and history[list(columns.values())].notna().any(axis=None):
            last_values = [f"{line} ends at {history[column].iloc[-1]:.3g}" for line, column in columns.items()]
            description = f"{title} by epoch, {len(history)} epochs: {join_names(last_values)}."
            svg_figures.append(
                to_svg_figure(partial(figures.plot_learning_curve, history, columns, title), name, description)
            )
    return svg_figures


def _make_lr_find_figures(record: RunRecord) -> list[SvgFigure]:
    chosen = {row.get("stage"): row for row in (record.model.get("choices") or {}).get("learning_rates") or []}
    svg_figures = []
    for i, (stage, curve) in enumerate(record.lr_curves.groupby("stage", sort=False), 1):
        row = chosen.get(stage, {})
        chosen_rate, reason = row.get("rate"), row.get("reason")
        make_figure = partial(
            figures.plot_lr_find_curve,
            curve["rate"],
            curve["loss"],
            chosen_rate,
            f"Loss, stage {replace_unprintable(stage)}",
        )
        caption = (
            f"{stage}: took {format_learning_rate(chosen_rate)}" + (f" ({reason})" if reason else "")
            if chosen_rate is not None
            else str(stage)
        )
        svg_figures.append(
            to_svg_figure(make_figure, f"learning_rate_{i}", f"Learning-rate finder, {caption}.", caption)
        )
    return svg_figures


def _make_test_figures(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[SvgFigure]:
    """The curves and the confusion matrix of the split that the headline speaks of."""
    split, labels = record.predictions.primary_split, record.predictions.labels
    split_metrics = metrics.get(split)
    if not split_metrics or not split_metrics["n_images"]:
        return []
    matrix = split_metrics["confusion_matrix"]
    class_hits = join_names([f"{matrix[i][i]} of {sum(matrix[i])} {label}" for i, label in enumerate(labels)])
    confusion_description = f"Confusion matrix on {split}; predicted rightly: {class_hits}."
    svg_figures = [
        to_svg_figure(partial(figures.plot_confusion_matrix, matrix, labels), "confusion_matrix", confusion_description)
    ]
    if split_metrics["auroc"]["macro"] is None:
        return svg_figures
    scored = record.predictions.for_split(split).scorable()
    truth_and_probability: tuple[np.ndarray, ...] = (scored.truth, scored.probability)
    roc_description = f"ROC curves on {split}, area for each class: {_format_per_class(split_metrics['auroc'])}."
    precision_recall_description = (
        f"Precision-recall curves on {split}, average precision for each class: "
        f"{_format_per_class(split_metrics['average_precision'])}."
    )
    baseline_caption = (
        "Dotted: what guessing reaches, the share of the class." if len(labels) <= figures.MAX_BASELINE_CLASSES else ""
    )
    calibration_lines = split_metrics["calibration"]["per_class"]
    slopes = [line["slope"][0] if (line := calibration_lines[label]) else None for label in labels]
    reliability_description = (
        f"Reliability on {split}, calibration slope for each class: {_format_slopes(labels, slopes)}."
    )
    reliability_caption = "Dashed: probabilities that mean what they say. Above it they are too low, below it too high."
    net_benefit_caption = (
        "True alarms less false ones, as somebody weighs them who acts at this probability. Dotted: acting on all."
    )
    return [
        to_svg_figure(
            partial(figures.plot_roc_curves, *truth_and_probability, labels), "roc", roc_description, "Dashed: chance."
        ),
        to_svg_figure(
            partial(figures.plot_precision_recall_curves, *truth_and_probability, labels),
            "precision_recall",
            precision_recall_description,
            baseline_caption,
        ),
        *svg_figures,
        to_svg_figure(
            partial(figures.plot_reliability_curves, *truth_and_probability, labels, slopes),
            "reliability",
            reliability_description,
            reliability_caption,
        ),
        to_svg_figure(
            partial(figures.plot_net_benefit_curves, *truth_and_probability, labels),
            "net_benefit",
            f"Decision curves on {split}.",
            net_benefit_caption,
        ),
    ]


def _format_slopes(labels: Sequence[str], slopes: Sequence[float | None]) -> str:
    return join_names([f"{label} {format_score(slope)}" for label, slope in zip(labels, slopes, strict=True)])


def _format_per_class(metric: dict[str, Any]) -> str:
    return join_names([f"{label} {format_score(value)}" for label, value in metric["per_class"].items()])
