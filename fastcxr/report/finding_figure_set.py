"""The figures of the metrics of findings as SVG: forest plot, panels of curves, co-occurrence.

The name of a panel is that of its curve and the position of its finding in the predictions, from 1.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from fastcxr.io.formatting import format_number, format_percent, format_score, join_names
from fastcxr.metrics.predictions import Predictions
from fastcxr.report import finding_figures as figures
from fastcxr.report.figures import compute_reliability_points
from fastcxr.report.finding_panels import (
    Panel,
    compute_precision_recall_points,
    compute_roc_points,
    draw_panel,
)
from fastcxr.report.finding_rows import MEANS, rank_findings
from fastcxr.report.html import format_split
from fastcxr.report.style import SvgFigure, to_svg_figure

MAX_PANELS = 40  # findings with curves; PadChest has 174
ROC, PRECISION_RECALL, RELIABILITY = "roc", "precision_recall", "reliability"
FORESTS = {  # name, title and caption of the forest plot of each metric
    "auroc": ("auroc_forest", "AUROC", "Diamonds: means over the findings. Gray: chance level."),
    "average_precision": (
        "average_precision_forest", "Average precision", "In the order of AUROC. Gray: chance level (the prevalence).",
    ),
}  # fmt: skip
TRUE_PAIRS, PREDICTED_PAIRS = "co_occurrence_truth", "co_occurrence_predicted"


def make_finding_figures(predictions: Predictions, metrics: Mapping[str, Any]) -> list[SvgFigure]:
    """Return the figures of the primary split; those of a finding need images with and without it."""
    split = predictions.primary_split
    split_metrics = metrics.get(split) if split else None
    if not split or not split_metrics or not split_metrics["n_images"]:
        return []
    scored = predictions.for_split(split).scorable()
    return [
        *_make_forests(split_metrics, split),
        *_make_panels(scored, split_metrics),
        *_make_co_occurrence(split_metrics, split),
    ]


def list_panels(split_metrics: Mapping[str, Any], kind: str) -> list[str]:
    """Return the names of the panels of a kind of curve, the finding with the highest AUROC first."""
    labels = split_metrics["labels"]
    return [name_panel(kind, labels.index(label)) for label in _select_findings(split_metrics)]


def name_panel(kind: str, position: int) -> str:
    """Return the figure name of the panel of a finding by its position from 0."""
    return f"{kind}_{position + 1}"


def _select_findings(split_metrics: Mapping[str, Any]) -> list[str]:
    """Return the findings with curves by AUROC: of more than MAX_PANELS those with most positive images."""
    defined = [
        label for label in rank_findings(split_metrics) if split_metrics["auroc"]["per_class"][label] is not None
    ]
    by_count = sorted(defined, key=lambda label: -split_metrics["per_class"][label]["positives"])
    kept = set(by_count[:MAX_PANELS])
    return [label for label in defined if label in kept]


def _make_forests(split_metrics: Mapping[str, Any], split: str) -> list[SvgFigure]:
    """Return the forest plots of AUROC and average precision, both in the order of AUROC."""
    svg_figures = []
    for key, (name, title, caption) in FORESTS.items():
        rows = _make_forest_rows(split_metrics, key)
        if rows:
            text = join_names([f"{row.name} {format_score(row.value)}" for row in rows])
            description = f"{title} of each finding with its 95 % confidence interval, {format_split(split)}: {text}."
            svg_figures.append(to_svg_figure(partial(figures.plot_forest, rows, title), name, description, caption))
    return svg_figures


def _make_forest_rows(split_metrics: Mapping[str, Any], key: str) -> list[figures.ForestRow]:
    intervals, part = split_metrics["intervals"]["of"], split_metrics[key]
    rows = []
    for label in rank_findings(split_metrics):
        if part["per_class"][label] is not None:
            bounds = intervals.get(f"{key}.per_class.{label}", (None, None))
            counts = split_metrics["per_class"][label]
            prevalence = counts["positives"] / (counts["positives"] + counts["negatives"])
            chance = 0.5 if key == "auroc" else prevalence
            rows.append(figures.ForestRow(label, part["per_class"][label], *bounds, chance=chance))
    means = [(name, part[mean], f"{key}.{mean}") for mean, name in MEANS.items() if part.get(mean) is not None]
    return rows + [
        figures.ForestRow(name, value, *intervals.get(dotted, (None, None)), is_mean=True)
        for name, value, dotted in means
        if len(rows) > 1
    ]


def _make_panels(scored: Predictions, split_metrics: Mapping[str, Any]) -> list[SvgFigure]:
    truth, probability = scored.truth, scored.probability
    svg_figures = []
    for label in _select_findings(split_metrics):
        position = scored.labels.index(label)
        is_known = ~np.isnan(truth[:, position])
        is_present, scores = truth[is_known, position] == 1, probability[is_known, position]
        for kind, make_panel in PANELS.items():
            panel = make_panel(label, is_present, scores, split_metrics)
            description = f"{PANEL_TITLES[kind]} of {label}; {panel.text}."
            svg_figures.append(SvgFigure(name_panel(kind, position), draw_panel(panel, description)))
    return svg_figures


def _make_roc_panel(label: str, is_present: np.ndarray, scores: np.ndarray, metrics: Mapping[str, Any]) -> Panel:
    text = f"AUROC {format_score(metrics['auroc']['per_class'][label])}"
    return Panel(label, compute_roc_points(is_present, scores), text, "1 − specificity")


def _make_precision_recall_panel(
    label: str, is_present: np.ndarray, scores: np.ndarray, metrics: Mapping[str, Any]
) -> Panel:
    text = f"AP {format_score(metrics['average_precision']['per_class'][label])}"
    curve = compute_precision_recall_points(is_present, scores)
    return Panel(label, curve, text, "recall", baseline=float(is_present.mean()), is_text_low=False)


def _make_reliability_panel(
    label: str, is_present: np.ndarray, scores: np.ndarray, metrics: Mapping[str, Any]
) -> Panel:
    line = metrics["calibration"]["per_class"].get(label)
    text = f"slope {format_number(line['slope'][0])}" if line else "no slope"
    curve = compute_reliability_points(is_present, scores)
    is_text_low = bool(curve[1][-1] > 0.3)  # the last bin is at the right
    return Panel(
        label, curve, text, "predicted", has_points=True, is_text_low=is_text_low, is_text_left=not is_text_low
    )


PANELS: dict[str, Callable[..., Panel]] = {
    ROC: _make_roc_panel,
    PRECISION_RECALL: _make_precision_recall_panel,
    RELIABILITY: _make_reliability_panel,
}
PANEL_TITLES = {
    ROC: "ROC curve", PRECISION_RECALL: "Precision-recall curve", RELIABILITY: "Reliability diagram"
}  # fmt: skip


def _make_co_occurrence(split_metrics: Mapping[str, Any], split: str) -> list[SvgFigure]:
    """Return the matrices of labels and decisions, the most frequent finding first, of at most MAX_PANELS findings."""
    pairs = split_metrics["co_occurrence"]
    truth, predicted = (np.array(pairs[name], dtype=float) for name in ("truth", "predicted"))
    order = np.argsort(-truth.diagonal(), kind="stable")[:MAX_PANELS]
    if len(order) < 2:
        return []
    names = [split_metrics["labels"][k] for k in order]
    svg_figures = []
    for name, counts, title in ((TRUE_PAIRS, truth, "Labels"), (PREDICTED_PAIRS, predicted, "Decisions of the model")):
        chosen = counts[np.ix_(order, order)].astype(int)
        description = f"Co-occurrence, {title.lower()}, {format_split(split)}. {_describe_pairs(chosen, names)}"
        svg_figures.append(to_svg_figure(partial(figures.plot_co_occurrence, chosen, names, title), name, description))
    return svg_figures


def _describe_pairs(counts: np.ndarray, names: list[str]) -> str:
    """Return the largest share of images with one finding that have another, as a sentence."""
    n_images = counts.diagonal()
    shares = np.where(n_images[:, None] > 0, counts / np.maximum(n_images, 1)[:, None], 0)
    np.fill_diagonal(shares, 0)
    row, column = np.unravel_index(shares.argmax(), shares.shape)
    return f"Highest share: {format_percent(shares[row, column])} of {names[row]} also have {names[column]}."
