"""Predictions become what a notebook shows of them: the figures of each split, then the first few rows."""

from typing import Any

from fastcxr.evaluation.metrics import measure_predictions
from fastcxr.evaluation.predictions import Predictions
from fastcxr.evaluation.words import count, score, share
from fastcxr.markup import escape, html_table

ROWS = 5


def draw_excerpt(predictions: Predictions) -> str:
    """Two small tables as HTML; of predictions for images without a split, the second alone."""
    metrics = measure_predictions(predictions)
    table = predictions.table
    unread = int((table["error"] != "").sum())
    words = count(len(table), "image") + (f", {unread:,} of them not readable" if unread else "")
    words += f"; the first {ROWS}:" if len(table) > ROWS else ":"
    return (_draw_splits(metrics) if metrics else "") + f"<p>{escape(words)}</p>" + _draw_rows(predictions)


def _draw_splits(metrics: dict[str, dict[str, Any]]) -> str:
    headings = ("split", "images", "patients", "accuracy", "AUROC, macro")
    rows = [
        (split, part["n_images"], part["n_patients"], share(part["accuracy"]), score(part["auroc"]["macro"]))
        for split, part in metrics.items()
    ]
    return html_table(headings, rows)


def _draw_rows(predictions: Predictions) -> str:
    """Only the columns that say something, the probability of the predicted class last."""
    table = predictions.table.head(ROWS)
    names = [name for name in ("path", "split", "label", "predicted", "error") if (table[name] != "").any()]
    surest = [score(row.max()) for row in predictions.probability[:ROWS]]
    rows = [(*words, sure) for words, sure in zip(table[names].itertuples(index=False), surest, strict=True)]
    return html_table((*names, "probability"), rows, words=len(names))
