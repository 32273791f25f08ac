"""A manifest comes in; a few of its rows for each class, spread evenly over the patients, go out."""

import numpy as np
import pandas as pd


def samples_of_each_class(manifest: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` rows of each class, spread evenly over its patients, one a patient as far as they reach.

    Training images when there are any: the test images stay unseen for as long as possible.
    """
    train = manifest[manifest["split"] == "train"]
    chosen = []
    for label, everywhere in manifest.groupby("label", sort=True):
        rows = train[train["label"] == label]
        rows = (rows if len(rows) else everywhere).sort_values(["source", "path"], kind="stable")
        # the first image of every patient, then the second of those who have one, ...
        rows = rows.assign(turn=rows.groupby("patient").cumcount())
        first = rows[rows["turn"] == 0]
        pool = first if len(first) >= count else rows.sort_values("turn", kind="stable").head(count)
        at = np.unique(np.linspace(0, len(pool) - 1, num=min(count, len(pool))).round().astype(int))
        chosen.append(pool.iloc[at].drop(columns="turn"))
    return pd.concat(chosen).reset_index(drop=True) if chosen else manifest.iloc[:0]
