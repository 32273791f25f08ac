"""A line about a manifest, which a notebook shows with a table of its classes and splits below it."""

from typing import Self

import pandas as pd

from fastcxr.markup import escape, html_table

UNSPLIT = "not split"


class Summary(str):
    """Text like any other; `counts` has a row a class, and a column of images for each split, all and patients."""

    counts: pd.DataFrame

    def __new__(cls, line: str, counts: pd.DataFrame | None = None) -> Self:
        summary = super().__new__(cls, line)
        summary.counts = pd.DataFrame() if counts is None else counts
        return summary

    def _repr_html_(self) -> str:
        rows = [[label, *map(int, numbers)] for label, *numbers in self.counts.itertuples()]
        return f"<p>{escape(self)}</p>" + html_table(["class", *self.counts.columns], rows)


def count_classes(manifest: pd.DataFrame) -> pd.DataFrame:
    """Images of each class in each split and altogether, and its patients; the last row is the whole cohort."""
    split = manifest["split"].fillna(UNSPLIT)
    here = [name for name in ("train", "valid", "test", UNSPLIT) if (split == name).any()]
    counts = pd.crosstab(manifest["label"], split).reindex(columns=here if here != [UNSPLIT] else [])
    counts = counts.assign(all=manifest["label"].value_counts())
    whole = counts.sum().to_frame("all classes").T
    known = manifest[manifest["patient_from"] != "own"]
    if len(known):  # a patient may stand in two classes, so that patients do not add up
        counts = counts.assign(patients=known.groupby("label")["patient"].nunique())
        whole = whole.assign(patients=known["patient"].nunique())
    return pd.concat([counts, whole]).fillna(0)
