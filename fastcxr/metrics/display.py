"""HTML that a notebook shows of predictions: metrics of each split, then the first few rows."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fastcxr.io.formatting import format_percent, format_score, pluralize
from fastcxr.io.html import escape_html, make_html_table

N_PREVIEW_ROWS = 5


def make_predictions_html(splits: Sequence[tuple], table: pd.DataFrame, probability: np.ndarray) -> str:
    """Return two small tables as HTML; of predictions for images without a split, the second alone.

    `splits`: name, images, patients, accuracy and macro AUROC of each. `table`: the rows of predictions.csv.
    `probability`: shape (n, k), NaN for an image that could not be read.
    """
    n_unreadable = int((table["error"] != "").sum())
    caption = pluralize(len(table), "image") + (f", {n_unreadable:,} of them not readable" if n_unreadable else "")
    caption += f"; the first {N_PREVIEW_ROWS}:" if len(table) > N_PREVIEW_ROWS else ":"
    rows = _make_rows_table(table.head(N_PREVIEW_ROWS), probability[:N_PREVIEW_ROWS])
    return (_make_metrics_table(splits) if splits else "") + f"<p>{escape_html(caption)}</p>" + rows


def _make_metrics_table(splits: Sequence[tuple]) -> str:
    headings = ("split", "images", "patients", "accuracy", "AUROC, macro")
    rows = [(*counts, format_percent(accuracy), format_score(auroc)) for *counts, accuracy, auroc in splits]
    return make_html_table(headings, rows)


def _make_rows_table(table: pd.DataFrame, probability: np.ndarray) -> str:
    """Only the columns that say something, the probability of the predicted class last."""
    names = [name for name in ("path", "split", "label", "predicted", "error") if (table[name] != "").any()]
    top_probabilities = [format_score(row.max()) for row in probability]
    rows = [(*words, sure) for words, sure in zip(table[names].itertuples(index=False), top_probabilities, strict=True)]
    return make_html_table((*names, "probability"), rows, n_text_columns=len(names))
