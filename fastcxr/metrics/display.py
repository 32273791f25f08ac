"""HTML display of predictions in a notebook: metrics of each split and the first rows."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fastcxr.io.formatting import format_percent, format_score, pluralize
from fastcxr.io.html import escape_html, make_html_table

N_PREVIEW_ROWS = 5


def make_predictions_html(
    splits: Sequence[tuple], table: pd.DataFrame, probability: np.ndarray, *, is_multi_label: bool = False
) -> str:
    """Return a table of metrics, omitted without splits, and a table of the first rows.

    Args:
        splits: name, number of images, number of patients, accuracy (of findings, macro average precision) and macro
            AUROC of each split.
        table: the rows of predictions.csv; columns without any text are omitted.
        probability: shape (n, k), NaN for an unreadable image.
        is_multi_label: whether the labels are findings.
    """
    second, formatter = ("average precision, macro", format_score) if is_multi_label else ("accuracy", format_percent)
    headings = ("split", "images", "patients", second, "AUROC, macro")
    metric_rows = [(*counts, formatter(value), format_score(auroc)) for *counts, value, auroc in splits]
    n_unreadable = int((table["error"] != "").sum())
    caption = pluralize(len(table), "image") + (f", {n_unreadable:,} unreadable" if n_unreadable else "")
    caption += f"; the first {N_PREVIEW_ROWS}:" if len(table) > N_PREVIEW_ROWS else ":"
    table = table.head(N_PREVIEW_ROWS)
    names = [name for name in ("path", "split", "label", "predicted", "error") if (table[name] != "").any()]
    cells = zip(table[names].itertuples(index=False), probability[:N_PREVIEW_ROWS], strict=True)
    rows = [(*texts, format_score(row.max())) for texts, row in cells]
    heading = "highest probability" if is_multi_label else "probability"
    preview = make_html_table((*names, heading), rows, n_text_columns=len(names))
    return (make_html_table(headings, metric_rows) if splits else "") + f"<p>{escape_html(caption)}</p>" + preview
