"""From a run's record and its numbers to its plates: figures as SVG text, each with what it shows in words."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.io.formatting import listed, rate, score
from fastcxr.io.html import plain
from fastcxr.report import figures
from fastcxr.report.data_figure_set import draw_cohort_plates
from fastcxr.report.run_reader import RunRecord
from fastcxr.report.style import Plate, make_plate

CURVES = {
    "loss": ("Loss", {"train": "train_loss", "valid": "valid_loss"}),
    "accuracy": ("Accuracy, valid", {"valid": "accuracy"}),
    "auroc": ("AUROC (macro), valid", {"valid": "auroc"}),
}


def draw_plates(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> dict[str, Plate]:
    """Every figure that this run has the values for, by name."""
    plates = [*_learning(record.history), *_rates(record), *_test(record, metrics)]
    return {plate.name: plate for plate in plates} | draw_cohort_plates(record)


def _learning(history: pd.DataFrame) -> list[Plate]:
    plates = []
    for name, (title, columns) in CURVES.items():
        columns = {line: column for line, column in columns.items() if column in history}
        if len(history) and columns and history[list(columns.values())].notna().any(axis=None):
            ends = [f"{line} ends at {history[column].iloc[-1]:.3g}" for line, column in columns.items()]
            description = f"{title} by epoch, {len(history)} epochs: {listed(ends)}."
            plates.append(make_plate(partial(figures.learning_curve, history, columns, title), name, description))
    return plates


def _rates(record: RunRecord) -> list[Plate]:
    chosen = {row.get("stage"): row for row in (record.model.get("choices") or {}).get("learning_rates") or []}
    plates = []
    for i, (stage, curve) in enumerate(record.rates.groupby("stage", sort=False), 1):
        row = chosen.get(stage, {})
        taken, reason = row.get("rate"), row.get("reason")
        draw = partial(figures.rate_curve, curve["rate"], curve["loss"], taken, f"Loss, stage {plain(stage)}")
        caption = (
            f"{stage}: took {rate(taken)}" + (f" ({reason})" if reason else "") if taken is not None else str(stage)
        )
        plates.append(make_plate(draw, f"learning_rate_{i}", f"Learning-rate finder, {caption}.", caption))
    return plates


def _test(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[Plate]:
    """The curves and the confusion matrix of the split that the headline speaks of."""
    split, labels = record.predictions.headline_split, record.predictions.labels
    part = metrics.get(split)
    if not part or not part["n_images"]:
        return []
    matrix = part["confusion_matrix"]
    hits = listed([f"{matrix[i][i]} of {sum(matrix[i])} {label}" for i, label in enumerate(labels)])
    right = f"Confusion matrix on {split}; predicted rightly: {hits}."
    plates = [make_plate(partial(figures.confusion_matrix, matrix, labels), "confusion_matrix", right)]
    if part["auroc"]["macro"] is None:
        return plates
    scored = record.predictions.part(split).scored()
    values: tuple[np.ndarray, ...] = (scored.truth, scored.probability)
    roc = f"ROC curves on {split}, area for each class: {_each(part['auroc'])}."
    recall = (
        f"Precision-recall curves on {split}, average precision for each class: {_each(part['average_precision'])}."
    )
    guessing = "Dotted: what guessing reaches, the share of the class." if len(labels) <= figures.GUESSED else ""
    lines = part["calibration"]["per_class"]
    slopes = [line["slope"][0] if (line := lines[label]) else None for label in labels]
    reliability = f"Reliability on {split}, calibration slope for each class: {_slopes(labels, slopes)}."
    ideal = "Dashed: probabilities that mean what they say. Above it they are too low, below it too high."
    acting = "True alarms less false ones, as somebody weighs them who acts at this probability. Dotted: acting on all."
    return [
        make_plate(partial(figures.roc_curves, *values, labels), "roc", roc, "Dashed: chance."),
        make_plate(partial(figures.precision_recall_curves, *values, labels), "precision_recall", recall, guessing),
        *plates,
        make_plate(partial(figures.reliability_curves, *values, labels, slopes), "reliability", reliability, ideal),
        make_plate(
            partial(figures.net_benefit_curves, *values, labels), "net_benefit", f"Decision curves on {split}.", acting
        ),
    ]


def _slopes(labels: Sequence[str], slopes: Sequence[float | None]) -> str:
    return listed([f"{label} {score(slope)}" for label, slope in zip(labels, slopes, strict=True)])


def _each(figure: dict[str, Any]) -> str:
    return listed([f"{label} {score(value)}" for label, value in figure["per_class"].items()])
