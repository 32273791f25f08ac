"""A manifest comes in; the same manifest with train, valid and test for each image goes out, no patient in two of them.

Exact copies of an image share a split, whoever their patients are and also where images are split one by one. Splits
that the data gives are obeyed, and what is wrong with them is said loudly.
"""

import logging
from itertools import combinations

import pandas as pd

from fastcxr.data.duplicates import group_exact_duplicates, union_exact_duplicates
from fastcxr.data.merge import NO_SPLIT_ORIGIN
from fastcxr.data.stratify import SPLIT_PERCENT, assign_stratified, require_two_groups
from fastcxr.errors import DataError, RecipeError
from fastcxr.io.tables import TEXT_DTYPE, format_names, suggest_name

log = logging.getLogger("fastcxr")
SPLITS = ("train", "valid", "test")
GENERATED_ORIGINS = ("patient", "image", "kept")  # what `split_origin` says of splits that fastcxr made itself
INTERNAL_TEST = "internal_test"  # held-out patients of the sources that are trained on
HELD_OUT_SPLIT_PERCENT = {"train": 70, "valid": 15, INTERNAL_TEST: 15}  # of a hundred patients of the other sources
EARLIER_SPLITS = ("train", "valid", "test")
REQUIRED_COLUMNS = ("source", "path", "patient", "split")


def split_by_patient(
    manifest: pd.DataFrame,
    *,
    unit: str = "patient",
    seed: int = 42,
    earlier: pd.DataFrame | None = None,
    ignore_given_splits: bool = False,
) -> pd.DataFrame:
    """The manifest with `split` and `split_origin`: 70 % of patients train, 15 % valid, 15 % test, of each class alike.

    `unit`: patient, or image for the literature's split that ignores patients. `earlier`: the manifest of an earlier
    run, whose patients keep their place. Splits given by the data are kept unless `ignore_given_splits`; a missing
    valid is cut from train, and sources without splits join train, but for patients who have a place already.
    """
    if unit not in ("patient", "image"):
        suggestion = suggest_name(unit, ("patient", "image"))
        raise RecipeError(f"no unit of splitting called {unit!r}{suggestion}", "Choose patient or image", code="E022")
    manifest = union_exact_duplicates(_add_split_columns(manifest))
    if ignore_given_splits:
        manifest = _drop_given_splits(manifest)
    is_given = manifest["split"].notna() & ~manifest["split_origin"].isin(GENERATED_ORIGINS)
    if is_given.any() and earlier is not None:
        fix = "Leave --reuse-split out, or remove the splits from the data"
        raise RecipeError("the data gives splits, and an earlier run is to give them too", fix, code="E018")
    if is_given.any():
        return _use_given_splits(manifest, unit, seed)
    require_two_groups(manifest.assign(split=None), unit)
    return _assign_splits(manifest, unit, seed, earlier)


def has_given_splits(manifest: pd.DataFrame) -> bool:
    """Whether the data says of any image which split it is in."""
    return bool((manifest["split"].notna() & ~manifest["split_origin"].isin(GENERATED_ORIGINS)).any())


def _add_split_columns(manifest: pd.DataFrame) -> pd.DataFrame:
    """A table of one's own will do, if it says of each image what it is and whose."""
    missing = [name for name in ("source", "path", "label", "patient") if name not in manifest]
    if missing or manifest["patient"].isna().any():
        problem = f"a manifest without {format_names(map(repr, missing))}" if missing else "images without a patient"
        raise DataError(problem, "Make the manifest with read_manifest, which names them all", code="E011")
    blank = pd.Series(index=manifest.index, dtype=TEXT_DTYPE)
    absent = {name: blank for name in ("split", "split_origin") if name not in manifest}
    return manifest.assign(**absent).reset_index(drop=True)


def _assign_splits(manifest: pd.DataFrame, unit: str, seed: int, earlier: pd.DataFrame | None) -> pd.DataFrame:
    keys = group_keys(manifest, unit)
    reused = {} if earlier is None else reuse_splits(manifest, keys, earlier, unit)
    split_by_group = assign_stratified(labels_per_group(manifest, keys), reused, seed=seed)
    origin = pd.Series(unit, index=manifest.index, dtype=TEXT_DTYPE).mask(keys.isin(list(reused)), "kept")
    manifest = manifest.assign(split=keys.map(split_by_group).astype(TEXT_DTYPE), split_origin=origin)
    _validate_splits(manifest)
    return manifest


def _drop_given_splits(manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest without the splits that the data gives."""
    is_given = manifest["split"].notna() & ~manifest["split_origin"].isin(GENERATED_ORIGINS)
    if is_given.any():
        log.info("the splits that the data gives are ignored, and drawn anew")
    return manifest.assign(split=manifest["split"].mask(is_given), split_origin=manifest["split_origin"].mask(is_given))


def _assign_unsplit_sources(manifest: pd.DataFrame) -> pd.DataFrame:
    """Whole sources, or --data, without splits, merged with one that gives them: train, or where their patient is."""
    is_blank = manifest["split"].isna()
    has_no_splits = is_blank.groupby(manifest["source"]).transform("all") | is_blank & (
        manifest["split_origin"] == NO_SPLIT_ORIGIN
    )
    if not has_no_splits.any():
        return manifest
    known_splits = manifest[~is_blank].groupby("patient")["split"]
    patient_split = manifest["patient"].map(
        known_splits.agg(lambda splits: min(splits, key=("test", "valid", "train").index))
    )
    split = manifest["split"].where(~has_no_splits, patient_split.fillna("train").astype(TEXT_DTYPE))
    counts = split[has_no_splits].value_counts()
    counts_text = [f"{n:,} join {name}{', where their patient is' * (name != 'train')}" for name, n in counts.items()]
    sources = format_names(sorted(set(manifest.loc[has_no_splits, "source"])))
    log.info("no splits are given by %s: of these images %s", sources, ", ".join(counts_text))
    return manifest.assign(split=split, split_origin=manifest["split_origin"].mask(has_no_splits, "patient"))


def _use_given_splits(manifest: pd.DataFrame, unit: str, seed: int) -> pd.DataFrame:
    if set(manifest["split"].dropna()) <= set(SPLITS):
        manifest = _assign_unsplit_sources(manifest)
    is_blank = manifest["split"].isna()
    if is_blank.any():
        problem = f"{is_blank.sum():,} of {len(manifest):,} images have no split, the others have one"
        raise DataError(problem, "Give every image a split, or none", code="E017")
    if unknown := sorted(set(manifest["split"]) - set(SPLITS)):
        problem = f"splits called {format_names(map(repr, unknown))}"
        raise DataError(problem, "Call each train, valid or test", code="E012")
    manifest = manifest if (manifest["split"] == "valid").any() else _add_valid_split(manifest, unit, seed)
    _validate_splits(manifest)
    if not (manifest["split"] == "test").any():
        log.warning("no test split is given: valid both chooses the model and is the headline, which flatters it")
    return manifest


def _add_valid_split(manifest: pd.DataFrame, unit: str, seed: int) -> pd.DataFrame:
    manifest = split_off_valid(manifest, unit, seed)
    valid_rows = manifest[manifest["split"] == "valid"]
    n_images = _format_count(len(valid_rows), "image")
    n_patients = _format_count(valid_rows["patient"].nunique(), "patient")
    log.info("no valid split is given: %s of %s are cut from train", n_images, n_patients)
    return manifest


def split_off_valid(manifest: pd.DataFrame, unit: str, seed: int) -> pd.DataFrame:
    """Patients of train become valid; whoever is tested on too stays, or one patient would stand in three splits."""
    keys, is_train = group_keys(manifest, unit), manifest["split"] == "train"
    test_patients = set(keys[manifest["split"] == "test"])
    train, keys = manifest[is_train], keys[is_train]
    fixed = dict.fromkeys(keys[keys.isin(test_patients)], "train")
    split_percent = {split: SPLIT_PERCENT[split] for split in ("train", "valid")}
    new_split = keys.map(
        assign_stratified(labels_per_group(train, keys), fixed, seed=seed, split_percent=split_percent)
    )
    is_valid = manifest.index.isin(new_split.index[new_split == "valid"])
    return manifest.assign(
        split=manifest["split"].mask(is_valid, "valid"), split_origin=manifest["split_origin"].mask(is_valid, unit)
    )


def group_keys(manifest: pd.DataFrame, unit: str) -> pd.Series:
    """What goes to a split as a whole: the patient, or the image by source and path, with all of its copies."""
    return manifest["patient"] if unit == "patient" else _name_images(manifest)


def _name_images(manifest: pd.DataFrame) -> pd.Series:
    """Source and path of each image; of exact copies the first name of all."""
    names = manifest["source"] + "\n" + manifest["path"]
    groups = group_exact_duplicates(manifest["file"]) if "file" in manifest else []
    first = {row: min(names[group]) for group in groups for row in group}
    return names.mask(names.index.isin(first), pd.Series(first, dtype=TEXT_DTYPE))


def labels_per_group(manifest: pd.DataFrame, keys: pd.Series) -> dict[str, tuple[str, ...]]:
    labels: dict[str, set[str]] = {}
    for key, label in zip(keys, manifest["label"], strict=True):
        labels.setdefault(key, set()).add(label)
    return {key: tuple(sorted(names)) for key, names in labels.items()}


def _validate_splits(manifest: pd.DataFrame) -> None:
    """Raise for a class that nothing can be learned of; say loudly what weakens the figures."""
    splits_by_label = manifest.groupby("label")["split"].agg(set)
    missing_labels = {
        split: [label for label, splits in splits_by_label.items() if split not in splits] for split in SPLITS
    }
    if missing_labels["train"]:
        problem = f"no image of {format_names(map(repr, missing_labels['train']))} is in train"
        raise DataError(problem, "Give train some patients of every class, or leave the class out", code="E030")
    for split in ("valid", "test"):
        if missing_labels[split] and (manifest["split"] == split).any():
            names = format_names(map(repr, missing_labels[split]))
            log.warning("no image of %s is in %s: nothing can be said about it there", names, split)
    images = _name_images(manifest)
    _warn_copies(manifest, images)
    _warn_shared_patients(manifest[~images.duplicated()])


def _warn_copies(manifest: pd.DataFrame, images: pd.Series) -> None:
    torn = manifest["split"].groupby(images).transform("nunique") > 1
    if torn.any():
        text = ("%s with the same bytes stand in more than one split, which inflates the metrics (such as %s): leave "
                "copies out with --deduplicate")  # fmt: skip
        log.warning(text, _format_count(int(torn.sum()), "file"), format_names(manifest.loc[torn, "path"].head(2)))


def _warn_shared_patients(manifest: pd.DataFrame) -> None:
    shared = find_shared_patients(manifest)
    if shared.empty:
        return
    pairs = {f"{a} and {b}": int(((shared[a] > 0) & (shared[b] > 0)).sum()) for a, b in combinations(SPLITS, 2)}
    counts = ", ".join(f"{number:,} in {pair}" for pair, number in pairs.items() if number)
    log.warning("patients stand in more than one split, which flatters the figures: %s (such as %s)",
                counts, format_names(shared["patient"].head(5)))  # fmt: skip


def find_shared_patients(manifest: pd.DataFrame) -> pd.DataFrame:
    """Patients that stand in more than one split: columns patient, and their images in train, valid and test."""
    counts = pd.crosstab(manifest["patient"], manifest["split"]).reindex(columns=list(SPLITS), fill_value=0)
    shared = counts[(counts > 0).sum(axis=1) > 1]
    return shared.rename_axis(columns=None).reset_index()


def describe_split(manifest: pd.DataFrame) -> str:
    """`train 787 images of 473 patients, valid 168 images of 101 patients, test 169 images of 102 patients`."""
    parts = [(split, manifest[manifest["split"] == split]) for split in SPLITS]
    return ", ".join(
        f"{split} {_format_count(len(rows), 'image')} of {_format_count(rows['patient'].nunique(), 'patient')}"
        for split, rows in parts
        if len(rows)
    )


def _format_count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def split_into_folds(manifest: pd.DataFrame, folds: int, *, unit: str = "patient", seed: int = 42) -> pd.DataFrame:
    """The manifest with a column `fold`, 1 to `folds`: stratified, no patient in two; splits that were given are void.

    Exact copies of an image share a fold, also with the unit image.
    Raises DataError for a class with fewer patients (or images) than folds.
    """
    manifest = union_exact_duplicates(manifest)
    keys = group_keys(manifest, unit)
    labels = labels_per_group(manifest, keys)
    for label in sorted(manifest["label"].unique()):
        n_units = sum(label in own for own in labels.values())
        if n_units < folds:
            problem = f"class {label!r} has {n_units:,} {unit}{'s' * (n_units != 1)}, fewer than {folds} folds"
            raise DataError(problem, f"Give --folds {max(n_units, 2)} or fewer, or leave the class out", code="E004")
    fold_by_unit = assign_stratified(
        labels, {}, seed=seed, split_percent={str(fold): 1 for fold in range(1, folds + 1)}
    )
    return manifest.assign(fold=keys.map(fold_by_unit).astype("int64"))


def select_fold(manifest: pd.DataFrame, fold: int, *, unit: str = "patient", seed: int = 42) -> pd.DataFrame:
    """The manifest of one fold: its images are test; of the others' patients 15 of 85 are valid and the rest train.

    The held-out images choose nothing: early stopping and every other choice look at valid.
    """
    if fold not in set(manifest["fold"]):
        problem = f"there is no fold {fold}, only 1 to {manifest['fold'].max()}"
        raise RecipeError(problem, "Give --fold one of these, or leave it out to run them all")
    held_out = manifest["fold"] == fold
    manifest = manifest.assign(
        split=pd.Series("train", index=manifest.index, dtype="str").mask(held_out, "test"),
        split_origin=pd.Series(unit, index=manifest.index, dtype="str"),
    )
    return split_off_valid(manifest, unit, seed + fold)


def find_complete_sources(manifest: pd.DataFrame) -> list[str]:
    """The sources that hold every class, each of which can be held out while the others still teach every class.

    Raises DataError (E023) where there are fewer than two of them.
    """
    table = pd.crosstab(manifest["source"], manifest["label"])
    complete = list(table.index[(table > 0).all(axis=1)])
    if len(complete) < 2:
        gaps = [
            f"{source} lacks {', '.join(row.index[row == 0])}" for source, row in table.iterrows() if (row == 0).any()
        ]
        explanation = "; ".join(gaps) or f"the data names one source, {table.index[0]!r}"
        problem = f"no source can be held out, for fewer than two hold every class: {explanation}"
        raise DataError(problem, "Name --data of another place with every class, or leave classes out", code="E023")
    for source in sorted(set(table.index) - set(complete)):
        log.info("the source %s does not hold every class: it is always trained on, and never held out", source)
    return complete


def hold_out_source(manifest: pd.DataFrame, source: str, seed: int = 42) -> pd.DataFrame:
    """The manifest with one source as test; of the others' patients 70 % train, 15 % valid, and 15 % `internal_test`.

    Files with the same bytes are one patient. Images of the other sources whose patient stands in the one that is held
    out are left out of the manifest, aloud. Raises RecipeError for a source that is not there.
    """
    sources = sorted(manifest["source"].unique())
    if source not in sources:
        problem = f"no source is called {source!r}"
        raise RecipeError(problem, f"Hold out one of {', '.join(sources)}", code="E022")
    manifest = union_exact_duplicates(manifest)
    is_held_out = manifest["source"] == source
    is_shared = ~is_held_out & manifest["patient"].isin(manifest.loc[is_held_out, "patient"])
    if is_shared.any():
        text = "%s images of other sources left out: their patients, or copies of them, stand in %s, which is held out"
        log.warning(text, f"{is_shared.sum():,}", source)
    others = manifest[~is_held_out & ~is_shared]
    if lost_labels := sorted(set(manifest["label"]) - set(others["label"])):
        problem = f"without {source} no image of {', '.join(lost_labels)} is left to train on"
        raise DataError(problem, "Hold out another source", code="E023")
    split_by_patient = assign_stratified(
        labels_per_group(others, others["patient"]), {}, seed=seed, split_percent=HELD_OUT_SPLIT_PERCENT
    )
    split = manifest["patient"].map(split_by_patient).where(~is_held_out, "test")
    origin = pd.Series("source", index=manifest.index, dtype="str")
    return manifest.assign(split=split.astype("str"), split_origin=origin)[~is_shared].reset_index(drop=True)


def reuse_splits(manifest: pd.DataFrame, keys: pd.Series, earlier: pd.DataFrame, unit: str) -> dict[str, str]:
    """The earlier split of every unit that was there, by image, or by patient for an image that was not there.

    Raises DataError (E018) if there is nothing in common, or if a patient, or copies of an image, stood in several
    splits.
    """
    earlier = _validate_earlier_columns(earlier)
    images = _make_image_keys(manifest)
    by_image = images.map(_join_splits_by_key(earlier, _make_image_keys(earlier)))
    if unit == "image":
        if not by_image.notna().any():
            raise _make_reuse_error("no image in common", "Choose a run on the same images")
        is_known = by_image.notna()
        _reject_conflicts(
            keys[is_known], by_image[is_known], "images with exact copies", "Split anew without --reuse-split"
        )
        return dict(zip(keys[is_known], by_image[is_known], strict=True))
    by_patient = manifest["patient"].map(_join_splits_by_key(earlier, earlier["patient"]))
    if not by_patient.notna().any():
        raise _make_reuse_error(
            f"no patient in common{_make_salt_hint(manifest, earlier)}", "Choose a run on the same patients"
        )
    # by image first: patients who are one by now, for a table or a copy says so, were perhaps two then
    known_splits = by_image.where(by_image.notna(), by_patient)
    is_known = known_splits.notna()
    fix = "Use --split image to keep every image's place, or split anew without --reuse-split"
    _reject_conflicts(keys[is_known], known_splits[is_known], "patients", fix)
    return dict(zip(keys[is_known], known_splits[is_known], strict=True))


def _validate_earlier_columns(earlier: pd.DataFrame) -> pd.DataFrame:
    if missing := [name for name in REQUIRED_COLUMNS if name not in earlier]:
        raise _make_reuse_error(
            f"no columns {format_names(map(repr, missing))}", "Choose the manifest.csv of a run folder"
        )
    earlier = earlier[earlier["split"].notna()]
    if not earlier["split"].isin(EARLIER_SPLITS).all():
        raise _make_reuse_error(
            "splits of another name than train, valid and test", "Choose the manifest.csv of a run folder"
        )
    return earlier


def _join_splits_by_key(earlier: pd.DataFrame, keys: pd.Series) -> pd.Series:
    """The split of each key; several are written as one name, so that they are noticed."""
    return earlier["split"].groupby(keys).agg(lambda splits: " and ".join(sorted(set(splits))))


def _make_image_keys(table: pd.DataFrame) -> pd.Series:
    return table["source"] + "\n" + table["path"]


def _reject_conflicts(keys: pd.Series, known_splits: pd.Series, units: str, fix: str) -> None:
    splits_by_key = known_splits.groupby(keys).agg(set)
    conflicting = splits_by_key.index[
        splits_by_key.map(lambda splits: len(splits) > 1 or not splits <= set(EARLIER_SPLITS))
    ]
    if len(conflicting):
        problem = f"{len(conflicting):,} {units} stood in several splits (such as {format_names(conflicting, 5)})"
        raise _make_reuse_error(problem, fix)


def _make_salt_hint(manifest: pd.DataFrame, earlier: pd.DataFrame) -> str:
    current_ids, earlier_ids = (_find_salt_ids(table["patient"]) for table in (manifest, earlier))
    if not current_ids or not earlier_ids or current_ids & earlier_ids:
        return ""
    return f"; both name patients by hashed DICOM tags, with other salts ({format_names(sorted(current_ids))} now, " + (
        f"{format_names(sorted(earlier_ids))} then): use the salt of that machine (FASTCXR_SALT)"
    )


def _find_salt_ids(patients: pd.Series) -> set[str]:
    return set(patients.str.extract(r"^dicom-([0-9a-f]{4})-[0-9a-f]{16}$")[0].dropna())


def _make_reuse_error(problem: str, fix: str) -> DataError:
    return DataError(f"the splits of the earlier run cannot be kept: {problem}", fix, code="E018")
