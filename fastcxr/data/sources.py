"""A manifest of several sources comes in; the same with one source held out as test, or the word that none can be."""

import logging

import pandas as pd

from fastcxr.data.cohort.dealing import deal
from fastcxr.data.copies import link_copies
from fastcxr.data.splits import label_units
from fastcxr.errors import DataError, RecipeError

log = logging.getLogger("fastcxr")

INTERNAL = "internal"  # held-out patients of the sources that are trained on
SHARES = {"train": 70, "valid": 15, INTERNAL: 15}  # of a hundred patients of the other sources


def find_whole_sources(manifest: pd.DataFrame) -> list[str]:
    """The sources that hold every class, each of which can be held out while the others still teach every class.

    Raises DataError (E023) where there are fewer than two of them.
    """
    table = pd.crosstab(manifest["source"], manifest["label"])
    whole = list(table.index[(table > 0).all(axis=1)])
    if len(whole) < 2:
        lacking = [
            f"{source} lacks {', '.join(row.index[row == 0])}" for source, row in table.iterrows() if (row == 0).any()
        ]
        said = "; ".join(lacking) or f"the data names one source, {table.index[0]!r}"
        what = f"no source can be held out, for fewer than two hold every class: {said}"
        raise DataError(what, "Name --data of another place with every class, or leave classes out", code="E023")
    for source in sorted(set(table.index) - set(whole)):
        log.info("the source %s does not hold every class: it is always trained on, and never held out", source)
    return whole


def hold_out_source(manifest: pd.DataFrame, source: str, seed: int = 42) -> pd.DataFrame:
    """The manifest with one source as test; of the others' patients 70 % train, 15 % valid, and 15 % `internal`.

    Files with the same bytes are one patient. Images of the other sources whose patient stands in the one that is held
    out are left out of the manifest, aloud. Raises RecipeError for a source that is not there.
    """
    there = sorted(manifest["source"].unique())
    if source not in there:
        what = f"no source is called {source!r}"
        raise RecipeError(what, f"Hold out one of {', '.join(there)}", code="E022")
    manifest = link_copies(manifest)
    is_held = manifest["source"] == source
    crossing = ~is_held & manifest["patient"].isin(manifest.loc[is_held, "patient"])
    if crossing.any():
        text = "%s images of other sources left out: their patients, or copies of them, stand in %s, which is held out"
        log.warning(text, f"{crossing.sum():,}", source)
    others = manifest[~is_held & ~crossing]
    if lost := sorted(set(manifest["label"]) - set(others["label"])):
        what = f"without {source} no image of {', '.join(lost)} is left to train on"
        raise DataError(what, "Hold out another source", code="E023")
    places = deal(label_units(others, others["patient"]), {}, seed=seed, shares=SHARES)
    split = manifest["patient"].map(places).where(~is_held, "test")
    origin = pd.Series("source", index=manifest.index, dtype="str")
    return manifest.assign(split=split.astype("str"), split_from=origin)[~crossing].reset_index(drop=True)
