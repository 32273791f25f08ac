"""A manifest comes in; the same manifest with a fold for each image, or the three splits of one fold, goes out."""

import pandas as pd

from fastcxr.data.cohort.dealing import deal
from fastcxr.data.copies import link_copies
from fastcxr.data.splits import cut_valid, label_units, name_units
from fastcxr.errors import DataError, RecipeError


def split_into_folds(manifest: pd.DataFrame, folds: int, *, unit: str = "patient", seed: int = 42) -> pd.DataFrame:
    """The manifest with a column `fold`, 1 to `folds`: stratified, no patient in two; splits that were given are void.

    Exact copies of an image share a fold, also with the unit image.
    Raises DataError for a class with fewer patients (or images) than folds.
    """
    manifest = link_copies(manifest)
    keys = name_units(manifest, unit)
    labels = label_units(manifest, keys)
    for label in sorted(manifest["label"].unique()):
        there = sum(label in own for own in labels.values())
        if there < folds:
            what = f"class {label!r} has {there:,} {unit}{'s' * (there != 1)}, fewer than {folds} folds"
            raise DataError(what, f"Give --folds {max(there, 2)} or fewer, or leave the class out", code="E004")
    places = deal(labels, {}, seed=seed, shares={str(fold): 1 for fold in range(1, folds + 1)})
    return manifest.assign(fold=keys.map(places).astype("int64"))


def take_fold(manifest: pd.DataFrame, fold: int, *, unit: str = "patient", seed: int = 42) -> pd.DataFrame:
    """The manifest of one fold: its images are test; of the others' patients 15 of 85 are valid and the rest train.

    The held-out images choose nothing: early stopping and every other choice look at valid.
    """
    if fold not in set(manifest["fold"]):
        what = f"there is no fold {fold}, only 1 to {manifest['fold'].max()}"
        raise RecipeError(what, "Give --fold one of these, or leave it out to run them all")
    held_out = manifest["fold"] == fold
    manifest = manifest.assign(
        split=pd.Series("train", index=manifest.index, dtype="str").mask(held_out, "test"),
        split_from=pd.Series(unit, index=manifest.index, dtype="str"),
    )
    return cut_valid(manifest, unit, seed + fold)
