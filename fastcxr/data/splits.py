"""A manifest comes in; the same manifest with train, valid and test for each image goes out, no patient in two of them.

Exact copies of an image share a split, whoever their patients are and also where images are split one by one. Splits
that the data gives are obeyed, and what is wrong with them is said loudly.
"""

import logging
from itertools import combinations

import pandas as pd

from fastcxr.data.duplicates import group_copies, link_copies
from fastcxr.data.merge import NO_SPLITS
from fastcxr.data.stratify import SHARES, deal, refuse_lonely
from fastcxr.errors import DataError, RecipeError
from fastcxr.io.tables import TEXT, name_some, suggest

log = logging.getLogger("fastcxr")
SPLITS = ("train", "valid", "test")
DRAWN = ("patient", "image", "kept")  # what `split_from` says of splits that fastcxr made itself
INTERNAL = "internal"  # held-out patients of the sources that are trained on
SOURCE_SPLIT_SHARES = {"train": 70, "valid": 15, INTERNAL: 15}  # of a hundred patients of the other sources
EARLIER_SPLITS = ("train", "valid", "test")
NEEDED = ("source", "path", "patient", "split")


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
    places = deal(label_units(others, others["patient"]), {}, seed=seed, shares=SOURCE_SPLIT_SHARES)
    split = manifest["patient"].map(places).where(~is_held, "test")
    origin = pd.Series("source", index=manifest.index, dtype="str")
    return manifest.assign(split=split.astype("str"), split_from=origin)[~crossing].reset_index(drop=True)


def find_kept(manifest: pd.DataFrame, keys: pd.Series, earlier: pd.DataFrame, unit: str) -> dict[str, str]:
    """The earlier split of every unit that was there, by image, or by patient for an image that was not there.

    Raises DataError (E018) if there is nothing in common, or if a patient, or copies of an image, stood in several
    splits.
    """
    earlier = _check_columns(earlier)
    images = _image_keys(manifest)
    by_image = images.map(_choose(earlier, _image_keys(earlier)))
    if unit == "image":
        if not by_image.notna().any():
            raise _refuse("no image in common", "Choose a run on the same images")
        known = by_image.notna()
        _refuse_torn(keys[known], by_image[known], "images with exact copies", "Split anew without --split-from")
        return dict(zip(keys[known], by_image[known], strict=True))
    by_patient = manifest["patient"].map(_choose(earlier, earlier["patient"]))
    if not by_patient.notna().any():
        raise _refuse(f"no patient in common{_hint_salt(manifest, earlier)}", "Choose a run on the same patients")
    # by image first: patients who are one by now, for a table or a copy says so, were perhaps two then
    found = by_image.where(by_image.notna(), by_patient)
    known = found.notna()
    fix = "Use --split image to keep every image's place, or split anew without --split-from"
    _refuse_torn(keys[known], found[known], "patients", fix)
    return dict(zip(keys[known], found[known], strict=True))


def _check_columns(earlier: pd.DataFrame) -> pd.DataFrame:
    if missing := [name for name in NEEDED if name not in earlier]:
        raise _refuse(f"no columns {name_some(map(repr, missing))}", "Choose the manifest.csv of a run folder")
    earlier = earlier[earlier["split"].notna()]
    if not earlier["split"].isin(EARLIER_SPLITS).all():
        raise _refuse("splits of another name than train, valid and test", "Choose the manifest.csv of a run folder")
    return earlier


def _choose(earlier: pd.DataFrame, keys: pd.Series) -> pd.Series:
    """The split of each key; several are written as one name, so that they are noticed."""
    return earlier["split"].groupby(keys).agg(lambda splits: " and ".join(sorted(set(splits))))


def _image_keys(table: pd.DataFrame) -> pd.Series:
    return table["source"] + "\n" + table["path"]


def _refuse_torn(keys: pd.Series, found: pd.Series, units: str, fix: str) -> None:
    places = found.groupby(keys).agg(set)
    torn = places.index[places.map(lambda splits: len(splits) > 1 or not splits <= set(EARLIER_SPLITS))]
    if len(torn):
        what = f"{len(torn):,} {units} stood in several splits (such as {name_some(torn, 5)})"
        raise _refuse(what, fix)


def _hint_salt(manifest: pd.DataFrame, earlier: pd.DataFrame) -> str:
    now, then = (_find_salts(table["patient"]) for table in (manifest, earlier))
    if not now or not then or now & then:
        return ""
    return f"; both name patients by hashed DICOM tags, with other salts ({name_some(sorted(now))} now, " + (
        f"{name_some(sorted(then))} then): use the salt of that machine (FASTCXR_SALT)"
    )


def _find_salts(patients: pd.Series) -> set[str]:
    return set(patients.str.extract(r"^dicom-([0-9a-f]{4})-[0-9a-f]{16}$")[0].dropna())


def _refuse(what: str, fix: str) -> DataError:
    return DataError(f"the splits of the earlier run cannot be kept: {what}", fix, code="E018")
