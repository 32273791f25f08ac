"""HTML that a notebook shows of predictions: metrics of each split, then the first few rows."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fastcxr.io.formatting import count, score, share
from fastcxr.io.html import escape, html_table

ROWS = 5


def draw_excerpt(splits: Sequence[tuple], table: pd.DataFrame, probability: np.ndarray) -> str:
    """Return two small tables as HTML; of predictions for images without a split, the second alone.

    `splits`: name, images, patients, accuracy and macro AUROC of each. `table`: the rows of predictions.csv.
    `probability`: shape (n, k), NaN for an image that could not be read.
    """
    unread = int((table["error"] != "").sum())
    words = count(len(table), "image") + (f", {unread:,} of them not readable" if unread else "")
    words += f"; the first {ROWS}:" if len(table) > ROWS else ":"
    rows = _draw_rows(table.head(ROWS), probability[:ROWS])
    return (_draw_splits(splits) if splits else "") + f"<p>{escape(words)}</p>" + rows


def _draw_splits(splits: Sequence[tuple]) -> str:
    headings = ("split", "images", "patients", "accuracy", "AUROC, macro")
    rows = [(*counts, share(accuracy), score(auroc)) for *counts, accuracy, auroc in splits]
    return html_table(headings, rows)


def _draw_rows(table: pd.DataFrame, probability: np.ndarray) -> str:
    """Only the columns that say something, the probability of the predicted class last."""
    names = [name for name in ("path", "split", "label", "predicted", "error") if (table[name] != "").any()]
    surest = [score(row.max()) for row in probability]
    rows = [(*words, sure) for words, sure in zip(table[names].itertuples(index=False), surest, strict=True)]
    return html_table((*names, "probability"), rows, words=len(names))
