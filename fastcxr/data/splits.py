"""A manifest comes in; the same manifest with train, valid and test for each image goes out, no patient in two of them.

Exact copies of an image share a split, whoever their patients are and also where images are split one by one. Splits
that the data gives are obeyed, and what is wrong with them is said loudly.
"""

import logging
from itertools import combinations

import pandas as pd

from fastcxr.data.cohort.checks import refuse_lonely
from fastcxr.data.cohort.dealing import SHARES, deal
from fastcxr.data.cohort.earlier import find_kept
from fastcxr.data.cohort.tables import TEXT, name_some, suggest
from fastcxr.data.copies import group_copies, link_copies
from fastcxr.data.merging import NO_SPLITS
from fastcxr.errors import DataError, RecipeError

log = logging.getLogger("fastcxr")

SPLITS = ("train", "valid", "test")
DRAWN = ("patient", "image", "kept")  # what `split_from` says of splits that fastcxr made itself


def split_by_patient(
    manifest: pd.DataFrame,
    *,
    unit: str = "patient",
    seed: int = 42,
    earlier: pd.DataFrame | None = None,
    given: str = "obey",
) -> pd.DataFrame:
    """The manifest with `split` and `split_from`: 70 % of patients train, 15 % valid, 15 % test, of each class alike.

    `unit`: patient, or image for the literature's split that ignores patients. `earlier`: the manifest of an earlier
    run, whose patients keep their place. Splits that the data gives are obeyed, unless `given` says ignore; a missing
    valid is cut from train, and sources without splits join train, but for patients who have a place already.
    """
    if unit not in ("patient", "image"):
        near = suggest(unit, ("patient", "image"))
        raise RecipeError(f"no unit of splitting called {unit!r}{near}", "Choose patient or image", code="E017")
    manifest = link_copies(_complete(manifest))
    if given == "ignore":
        manifest = _forget(manifest)
    is_given = manifest["split"].notna() & ~manifest["split_from"].isin(DRAWN)
    if is_given.any() and earlier is not None:
        fix = "Leave --split-from out, or remove the splits from the data"
        raise RecipeError("the data gives splits, and an earlier run is to give them too", fix, code="E018")
    if is_given.any():
        return _obey(manifest, unit, seed)
    refuse_lonely(manifest.assign(split=None), unit)
    return _draw(manifest, unit, seed, earlier)


def has_given_splits(manifest: pd.DataFrame) -> bool:
    """Whether the data says of any image which split it is in."""
    return bool((manifest["split"].notna() & ~manifest["split_from"].isin(DRAWN)).any())


def _complete(manifest: pd.DataFrame) -> pd.DataFrame:
    """A table of one's own will do, if it says of each image what it is and whose."""
    missing = [name for name in ("source", "path", "label", "patient") if name not in manifest]
    if missing or manifest["patient"].isna().any():
        what = f"a manifest without {name_some(map(repr, missing))}" if missing else "images without a patient"
        raise DataError(what, "Make the manifest with read_manifest, which names them all", code="E017")
    blank = pd.Series(index=manifest.index, dtype=TEXT)
    absent = {name: blank for name in ("split", "split_from") if name not in manifest}
    return manifest.assign(**absent).reset_index(drop=True)


def _draw(manifest: pd.DataFrame, unit: str, seed: int, earlier: pd.DataFrame | None) -> pd.DataFrame:
    keys = name_units(manifest, unit)
    kept = {} if earlier is None else find_kept(manifest, keys, earlier, unit)
    places = deal(label_units(manifest, keys), kept, seed=seed)
    origin = pd.Series(unit, index=manifest.index, dtype=TEXT).mask(keys.isin(list(kept)), "kept")
    manifest = manifest.assign(split=keys.map(places).astype(TEXT), split_from=origin)
    _check(manifest)
    return manifest


def _forget(manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest without the splits that the data gives."""
    given = manifest["split"].notna() & ~manifest["split_from"].isin(DRAWN)
    if given.any():
        log.info("the splits that the data gives are ignored, and drawn anew")
    return manifest.assign(split=manifest["split"].mask(given), split_from=manifest["split_from"].mask(given))


def _join_train(manifest: pd.DataFrame) -> pd.DataFrame:
    """Whole sources, or --data, without splits, merged with one that gives them: train, or where their patient is."""
    blank = manifest["split"].isna()
    bare = blank.groupby(manifest["source"]).transform("all") | blank & (manifest["split_from"] == NO_SPLITS)
    if not bare.any():
        return manifest
    placed = manifest[~blank].groupby("patient")["split"]
    where = manifest["patient"].map(placed.agg(lambda splits: min(splits, key=("test", "valid", "train").index)))
    split = manifest["split"].where(~bare, where.fillna("train").astype(TEXT))
    counts = split[bare].value_counts()
    joined = [f"{n:,} join {name}{', where their patient is' * (name != 'train')}" for name, n in counts.items()]
    sources = name_some(sorted(set(manifest.loc[bare, "source"])))
    log.info("no splits are given by %s: of these images %s", sources, ", ".join(joined))
    return manifest.assign(split=split, split_from=manifest["split_from"].mask(bare, "patient"))


def _obey(manifest: pd.DataFrame, unit: str, seed: int) -> pd.DataFrame:
    if set(manifest["split"].dropna()) <= set(SPLITS):
        manifest = _join_train(manifest)
    blank = manifest["split"].isna()
    if blank.any():
        what = f"{blank.sum():,} of {len(manifest):,} images have no split, the others have one"
        raise DataError(what, "Give every image a split, or none", code="E017")
    if unknown := sorted(set(manifest["split"]) - set(SPLITS)):
        what = f"splits called {name_some(map(repr, unknown))}"
        raise DataError(what, "Call each train, valid or test", code="E017")
    manifest = manifest if (manifest["split"] == "valid").any() else _give_valid(manifest, unit, seed)
    _check(manifest)
    if not (manifest["split"] == "test").any():
        log.warning("no test split is given: valid both chooses the model and is the headline, which flatters it")
    return manifest


def _give_valid(manifest: pd.DataFrame, unit: str, seed: int) -> pd.DataFrame:
    manifest = cut_valid(manifest, unit, seed)
    cut = manifest[manifest["split"] == "valid"]
    log.info("no valid split is given: %s of %s are cut from train",
             _count(len(cut), "image"), _count(cut["patient"].nunique(), "patient"))  # fmt: skip
    return manifest


def cut_valid(manifest: pd.DataFrame, unit: str, seed: int) -> pd.DataFrame:
    """Patients of train become valid; whoever is tested on too stays, or one patient would stand in three splits."""
    keys, is_train = name_units(manifest, unit), manifest["split"] == "train"
    tested = set(keys[manifest["split"] == "test"])
    train, keys = manifest[is_train], keys[is_train]
    kept = dict.fromkeys(keys[keys.isin(tested)], "train")
    shares = {split: SHARES[split] for split in ("train", "valid")}
    places = keys.map(deal(label_units(train, keys), kept, seed=seed, shares=shares))
    is_cut = manifest.index.isin(places.index[places == "valid"])
    return manifest.assign(
        split=manifest["split"].mask(is_cut, "valid"), split_from=manifest["split_from"].mask(is_cut, unit)
    )


def name_units(manifest: pd.DataFrame, unit: str) -> pd.Series:
    """What goes to a split as a whole: the patient, or the image by source and path, with all of its copies."""
    return manifest["patient"] if unit == "patient" else _name_images(manifest)


def _name_images(manifest: pd.DataFrame) -> pd.Series:
    """Source and path of each image; of exact copies the first name of all."""
    names = manifest["source"] + "\n" + manifest["path"]
    groups = group_copies(manifest["file"]) if "file" in manifest else []
    first = {row: min(names[group]) for group in groups for row in group}
    return names.mask(names.index.isin(first), pd.Series(first, dtype=TEXT))


def label_units(manifest: pd.DataFrame, keys: pd.Series) -> dict[str, tuple[str, ...]]:
    labels: dict[str, set[str]] = {}
    for key, label in zip(keys, manifest["label"], strict=True):
        labels.setdefault(key, set()).add(label)
    return {key: tuple(sorted(names)) for key, names in labels.items()}


def _check(manifest: pd.DataFrame) -> None:
    """Raise for a class that nothing can be learned of; say loudly what weakens the figures."""
    present = manifest.groupby("label")["split"].agg(set)
    lacking = {split: [label for label, splits in present.items() if split not in splits] for split in SPLITS}
    if lacking["train"]:
        what = f"no image of {name_some(map(repr, lacking['train']))} is in train"
        raise DataError(what, "Give train some patients of every class, or leave the class out", code="E017")
    for split in ("valid", "test"):
        if lacking[split] and (manifest["split"] == split).any():
            names = name_some(map(repr, lacking[split]))
            log.warning("no image of %s is in %s: nothing can be said about it there", names, split)
    images = _name_images(manifest)
    _warn_copies(manifest, images)
    _warn_shared(manifest[~images.duplicated()])


def _warn_copies(manifest: pd.DataFrame, images: pd.Series) -> None:
    torn = manifest["split"].groupby(images).transform("nunique") > 1
    if torn.any():
        text = ("%s with the same bytes stand in more than one split, which inflates the metrics (such as %s): leave "
                "copies out with --drop-copies")  # fmt: skip
        log.warning(text, _count(int(torn.sum()), "file"), name_some(manifest.loc[torn, "path"].head(2)))


def _warn_shared(manifest: pd.DataFrame) -> None:
    shared = shared_patients(manifest)
    if shared.empty:
        return
    pairs = {f"{a} and {b}": int(((shared[a] > 0) & (shared[b] > 0)).sum()) for a, b in combinations(SPLITS, 2)}
    counts = ", ".join(f"{number:,} in {pair}" for pair, number in pairs.items() if number)
    log.warning("patients stand in more than one split, which flatters the figures: %s (such as %s)",
                counts, name_some(shared["patient"].head(5)))  # fmt: skip


def shared_patients(manifest: pd.DataFrame) -> pd.DataFrame:
    """Patients that stand in more than one split: columns patient, and their images in train, valid and test."""
    counts = pd.crosstab(manifest["patient"], manifest["split"]).reindex(columns=list(SPLITS), fill_value=0)
    shared = counts[(counts > 0).sum(axis=1) > 1]
    return shared.rename_axis(columns=None).reset_index()


def describe_split(manifest: pd.DataFrame) -> str:
    """`train 787 images of 473 patients, valid 168 images of 101 patients, test 169 images of 102 patients`."""
    parts = [(split, manifest[manifest["split"] == split]) for split in SPLITS]
    return ", ".join(
        f"{split} {_count(len(rows), 'image')} of {_count(rows['patient'].nunique(), 'patient')}"
        for split, rows in parts
        if len(rows)
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
