"""Assign train, valid and test to the images of a manifest; no patient is in two splits.

Exact duplicates share a split, even if their patients differ or images are split one by one. Splits given by the data
are kept, and problems with them are reported as warnings.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import chain, combinations

import pandas as pd

from fastcxr.data.duplicates import SPLIT_PRIORITY, find_exact_duplicates, union_exact_duplicates, union_patients
from fastcxr.data.findings import explode_labels, is_multi_label, list_findings, split_labels
from fastcxr.data.label_policy import UNCERTAIN_POLICIES, compute_truth, parse_policy
from fastcxr.data.merge import NO_SPLIT_ORIGIN
from fastcxr.data.stratify import NO_SPLIT_CODE, SPLIT_PERCENT, assign_stratified, require_two_groups
from fastcxr.errors import DataError, RecipeError, require_type
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import TEXT_DTYPE, format_names, suggest_name

log = logging.getLogger("fastcxr")
SPLITS = ("train", "valid", "test")
GENERATED_ORIGINS = ("patient", "image", "kept")  # values of `split_origin` for splits assigned by fastcxr
INTERNAL_TEST = "internal_test"  # split of held-out patients of the training sources
HELD_OUT_SPLIT_PERCENT = {"train": 70, "valid": 15, INTERNAL_TEST: 15}  # of the patients of the training sources


def split_by_patient(
    manifest: pd.DataFrame,
    *,
    unit: str = "patient",
    seed: int = 42,
    earlier: pd.DataFrame | None = None,
    ignore_given_splits: bool = False,
    uncertain: Sequence[str] = (),
) -> pd.DataFrame:
    """Return the manifest with `split` and `split_origin`: 70 % of the patients train, 15 % valid, 15 % test.

    The splits are stratified by class. Given splits are kept; a missing valid split is drawn from train, and sources
    without splits are assigned to train, except for patients that already have a split.

    Args:
        manifest: table as returned by read_manifest.
        unit: patient, or image, which ignores patients and overestimates performance.
        seed: seed of the random assignment.
        earlier: manifest of an earlier run, whose patients keep their split.
        ignore_given_splits: draw new splits even if the data gives splits.
        uncertain: policy of the recipe for uncertain labels; only the warnings of missing findings depend on it.
    """
    require_type("manifest", manifest, pd.DataFrame)
    if unit not in ("patient", "image"):
        problem = f"unknown split unit {unit!r}{suggest_name(unit, ('patient', 'image'))}"
        raise RecipeError(problem, "Choose patient or image", code="E022")
    manifest = _add_split_columns(manifest)
    duplicates = find_exact_duplicates(manifest)
    manifest, images = union_patients(manifest, duplicates), name_images(manifest, duplicates)
    if has_given_splits(manifest) and ignore_given_splits:
        log.info("the given splits are ignored, and new splits are drawn")
    elif has_given_splits(manifest):
        if earlier is not None:
            fix = "Leave out `earlier`, or remove the splits from the data"
            raise RecipeError("both the data and an earlier run give splits", fix, code="E018")
        manifest = _use_given_splits(manifest, images, unit, seed)
        warn_of_missing_findings(manifest, uncertain)
        return manifest
    if not is_multi_label(manifest):  # a rare finding may be in one split only
        require_two_groups(manifest.assign(split=None), unit)
    keys = manifest["patient"] if unit == "patient" else images
    reused = {} if earlier is None else reuse_splits(manifest, keys, earlier, unit)
    split_by_group = assign_stratified(labels_per_group(manifest, keys), reused, seed=seed)
    origin = pd.Series(unit, index=manifest.index, dtype=TEXT_DTYPE).mask(keys.isin(list(reused)), "kept")
    manifest = manifest.assign(split=keys.map(split_by_group).astype(TEXT_DTYPE), split_origin=origin)
    _validate_splits(manifest, images)
    warn_of_missing_findings(manifest, uncertain)
    return manifest


def has_given_splits(manifest: pd.DataFrame) -> bool:
    """Return whether the data gives a split for any image."""
    return bool((manifest["split"].notna() & ~manifest["split_origin"].isin(GENERATED_ORIGINS)).any())


def _add_split_columns(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the manifest with both split columns; a table made by the user needs only labels and patients."""
    missing = [name for name in ("source", "path", "label", "patient") if name not in manifest]
    if missing or manifest["patient"].isna().any():
        names = format_names(map(repr, missing))
        problem = f"the manifest has no column {names}" if missing else "some images have no patient"
        raise DataError(problem, "Create the manifest with read_manifest", code="E011")
    blank = pd.Series(index=manifest.index, dtype=TEXT_DTYPE)
    absent = {name: blank for name in ("split", "split_origin") if name not in manifest}
    return manifest.assign(**absent).reset_index(drop=True)


def _assign_unsplit_sources(manifest: pd.DataFrame) -> pd.DataFrame:
    """Assign images of sources without splits, merged with others that have some, to train or their patient's split."""
    is_blank = manifest["split"].isna()
    has_no_splits = is_blank.groupby(manifest["source"]).transform("all")
    has_no_splits |= is_blank & (manifest["split_origin"] == NO_SPLIT_ORIGIN)
    if not has_no_splits.any():
        return manifest
    known_splits = manifest[~is_blank].groupby("patient")["split"]
    patient_split = manifest["patient"].map(known_splits.agg(lambda splits: min(splits, key=SPLIT_PRIORITY.index)))
    split = manifest["split"].where(~has_no_splits, patient_split.fillna("train").astype(TEXT_DTYPE))
    counts = split[has_no_splits].value_counts()
    counts_text = [f"{n:,} to {name}{' (split of their patient)' * (name != 'train')}" for name, n in counts.items()]
    sources = format_names(sorted(set(manifest.loc[has_no_splits, "source"])))
    log.info("%s without splits: images assigned %s", sources, ", ".join(counts_text))
    return manifest.assign(split=split, split_origin=manifest["split_origin"].mask(has_no_splits, "patient"))


def _use_given_splits(manifest: pd.DataFrame, images: pd.Series, unit: str, seed: int) -> pd.DataFrame:
    if set(manifest["split"].dropna()) <= set(SPLITS):
        manifest = _assign_unsplit_sources(manifest)
    is_blank = manifest["split"].isna()
    if is_blank.any():
        problem = f"{is_blank.sum():,} of {len(manifest):,} images have no split, the others have one"
        fix = "Give every image a split, or none, or draw new splits with `ignore_given_splits=True`"
        raise DataError(problem, fix, code=NO_SPLIT_CODE)
    if unknown := sorted(set(manifest["split"]) - set(SPLITS)):
        problem = f"unknown split names {format_names(map(repr, unknown))}"
        raise DataError(problem, "Rename each to train, valid or test", code="E012")
    if not (manifest["split"] == "valid").any():
        keys = manifest["patient"] if unit == "patient" else images
        manifest = split_off_valid(manifest, keys, unit, seed)
        size = _describe_size(manifest[manifest["split"] == "valid"])
        log.info("no valid split is given: %s are moved from train to valid", size)
    _validate_splits(manifest, images)
    if not (manifest["split"] == "test").any():
        log.warning("no test split is given: valid is used for model selection and for the reported metrics, which "
                    "inflates them")  # fmt: skip
    return manifest


def split_off_valid(manifest: pd.DataFrame, keys: pd.Series, unit: str, seed: int) -> pd.DataFrame:
    """Move groups (see group_keys) from train to valid, except those also in test: they would be in three splits."""
    is_train = manifest["split"] == "train"
    test_patients = set(keys[manifest["split"] == "test"])
    train, keys = manifest[is_train], keys[is_train]
    fixed = dict.fromkeys(keys[keys.isin(test_patients)], "train")
    split_percent = {split: SPLIT_PERCENT[split] for split in ("train", "valid")}
    assigned = assign_stratified(labels_per_group(train, keys), fixed, seed=seed, split_percent=split_percent)
    is_valid = manifest.index.isin(keys.index[keys.map(assigned) == "valid"])
    split, origin = manifest["split"].mask(is_valid, "valid"), manifest["split_origin"].mask(is_valid, unit)
    return manifest.assign(split=split, split_origin=origin)


def group_keys(manifest: pd.DataFrame, unit: str) -> pd.Series:
    """Return the group of each image that is kept in one split: its patient, or the image with its exact duplicates."""
    return manifest["patient"] if unit == "patient" else name_images(manifest, find_exact_duplicates(manifest))


def name_images(manifest: pd.DataFrame, duplicates: list[list[int]]) -> pd.Series:
    """Return source and path of each image; exact duplicates get the first of their names."""
    names = _join_source_and_path(manifest)
    first = {row: min(names[group]) for group in duplicates for row in group}
    return names.mask(names.index.isin(first), pd.Series(first, dtype=TEXT_DTYPE))


def _join_source_and_path(table: pd.DataFrame) -> pd.Series:
    return table["source"] + "\n" + table["path"]


def labels_per_group(manifest: pd.DataFrame, keys: pd.Series) -> dict[str, tuple[str, ...]]:
    """Return the sorted labels of each group; with several labels per image those that are present."""
    label_lists = map(split_labels if is_multi_label(manifest) else lambda label: [label], manifest["label"].tolist())
    labels: dict[str, set[str]] = {}
    for key, names in zip(keys.tolist(), label_lists, strict=True):
        labels.setdefault(key, set()).update(names)
    return {key: tuple(sorted(names)) for key, names in labels.items()}


def _validate_splits(manifest: pd.DataFrame, images: pd.Series) -> None:
    """Raise DataError for a class without training images (E030); warn of problems that affect the metrics.

    `images`: the name of each image, see name_images.
    """
    splits_by_label = {} if is_multi_label(manifest) else manifest.groupby("label")["split"].agg(set)
    for split in SPLITS:
        missing = [label for label, splits in splits_by_label.items() if split not in splits]
        names = format_names(map(repr, missing))
        if missing and split == "train":
            fix = "Add patients of every class to train, or leave out the class"
            raise DataError(f"no image of {names} is in train", fix, code="E030")
        if missing and (manifest["split"] == split).any():
            log.warning("no image of %s is in %s: this split has no metrics for it", names, split)
    is_divided = manifest["split"].groupby(images).transform("nunique") > 1
    if is_divided.any():
        text = ("%s with the same bytes are in more than one split, which inflates the metrics (such as %s): remove "
                "exact duplicates with `deduplicate=True`")  # fmt: skip
        log.warning(text, pluralize(int(is_divided.sum()), "file"), format_names(manifest["path"][is_divided].head(2)))
    shared = find_shared_patients(manifest[~images.duplicated()])
    if len(shared):
        pairs = {f"{a} and {b}": int(((shared[a] > 0) & (shared[b] > 0)).sum()) for a, b in combinations(SPLITS, 2)}
        counts = ", ".join(f"{number:,} in {pair}" for pair, number in pairs.items() if number)
        log.warning("patients are in more than one split, which inflates the metrics: %s (such as %s)",
                    counts, format_names(shared["patient"].head(5)))  # fmt: skip


def warn_of_missing_findings(manifest: pd.DataFrame, uncertain: Sequence[str] = ()) -> None:
    """Log the findings that no image of a split has, with their patients in all splits; nothing for classes.

    Unlike a class, a finding may be in one split only: it is rare, or the data gives the splits. `uncertain`: see
    split_by_patient; uncertain labels that are trained as present count in train only.
    """
    findings, policy = list_findings(manifest), parse_policy(uncertain, UNCERTAIN_POLICIES, "uncertain", "ignore")
    is_present = dict(zip(findings, (compute_truth(manifest) == 1).T, strict=True))
    is_trained = is_present
    if uncertain:
        is_trained = dict(zip(findings, (compute_truth(manifest, uncertain=policy) == 1).T, strict=True))
    patients = {name: manifest.loc[rows, "patient"].nunique() for name, rows in is_present.items()}
    nowhere = [name for name, n in patients.items() if not n]
    if lost := [name for name in nowhere if not is_trained[name].any()]:
        log.warning("no image has %s: nothing can be learned or measured of it", format_names(lost))
    if guessed := [f"{name} ({is_trained[name].sum():,} images)" for name in nowhere if is_trained[name].any()]:
        text = "%s: only uncertain labels, which are trained as present; no metric can be measured of it"
        log.warning(text, format_names(guessed))
    for split in dict.fromkeys([*SPLITS, *sorted(set(manifest["split"]))]):
        is_in_split = (manifest["split"] == split).to_numpy(bool)
        has_finding = is_trained if split == "train" else is_present
        missing = [name for name, rows in has_finding.items() if patients[name] and not rows[is_in_split].any()]
        if missing and is_in_split.any():
            names = format_names(f"{name} ({pluralize(patients[name], 'patient')})" for name in missing)
            effect = "it is not learned" if split == "train" else "this split has no AUROC for it"
            log.warning("no image of %s has %s: %s", split, names, effect)


def find_shared_patients(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the patients in more than one split: column patient, and images in columns train, valid and test."""
    counts = manifest.groupby(["patient", "split"]).size().unstack(fill_value=0)  # pd.crosstab is 10 times slower
    counts = counts.reindex(columns=list(SPLITS), fill_value=0)
    shared = counts[(counts > 0).sum(axis=1) > 1]
    return shared.rename_axis(columns=None).reset_index()


def describe_split(manifest: pd.DataFrame) -> str:
    """Return `train 787 images of 473 patients, valid 168 images of 101 patients, test 169 images of 102 patients`."""
    parts = [(split, manifest[manifest["split"] == split]) for split in SPLITS]
    return ", ".join(f"{split} {_describe_size(rows)}" for split, rows in parts if len(rows))


def _describe_size(rows: pd.DataFrame) -> str:
    return f"{pluralize(len(rows), 'image')} of {pluralize(rows['patient'].nunique(), 'patient')}"


def split_into_folds(manifest: pd.DataFrame, folds: int, *, unit: str = "patient", seed: int = 42) -> pd.DataFrame:
    """Return the manifest with a stratified column `fold`, 1 to `folds`; given splits are ignored.

    A patient and exact duplicates of an image are in one fold; with the unit image, this applies to duplicates only.
    Raises DataError (E004) for a class with fewer patients (or images) than folds. A rare finding may be absent from
    some folds; there need to be as many patients as folds.
    """
    require_type("manifest", manifest, pd.DataFrame)
    manifest = union_exact_duplicates(manifest)
    keys = group_keys(manifest, unit)
    labels = labels_per_group(manifest, keys)
    if is_multi_label(manifest):
        if len(labels) < folds:
            problem = f"the data has {pluralize(len(labels), unit)}, fewer than {folds} folds"
            raise DataError(problem, f"Pass `folds={max(len(labels), 2)}` or fewer", code="E004")
    else:
        _require_class_in_folds(labels, folds, unit)
    fold_percent = {str(fold): 1 for fold in range(1, folds + 1)}
    fold_by_group = assign_stratified(labels, {}, seed=seed, split_percent=fold_percent)
    return manifest.assign(fold=keys.map(fold_by_group).astype("int64"))


def _require_class_in_folds(labels: Mapping[str, tuple[str, ...]], folds: int, unit: str) -> None:
    """Raise DataError (E004) for a class with fewer groups than folds. `labels`: of each group."""
    for label in sorted(set(chain.from_iterable(labels.values()))):
        n_groups = sum(label in group_labels for group_labels in labels.values())
        if n_groups < folds:
            problem = f"class {label!r} has {pluralize(n_groups, unit)}, fewer than {folds} folds"
            raise DataError(problem, f"Pass `folds={max(n_groups, 2)}` or fewer, or leave out the class", code="E004")


def select_fold(
    manifest: pd.DataFrame, fold: int, *, unit: str = "patient", seed: int = 42, uncertain: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the manifest of one fold: its images are test, 15 of 85 other patients are valid, and the rest train.

    Early stopping and all other decisions use valid, never the held-out images. `uncertain`: see split_by_patient.
    """
    require_type("manifest", manifest, pd.DataFrame)
    if fold not in set(manifest["fold"]):
        problem = f"there is no fold {fold}, only 1 to {manifest['fold'].max()}"
        raise RecipeError(problem, "Pass `fold` with one of these, or leave it out to run all folds")
    held_out = manifest["fold"] == fold
    split = pd.Series("train", index=manifest.index, dtype="str").mask(held_out, "test")
    keys = group_keys(manifest, unit)
    selected = split_off_valid(manifest.assign(split=split, split_origin=unit), keys, unit, seed + fold)
    warn_of_missing_findings(selected, uncertain)
    return selected


def find_complete_sources(manifest: pd.DataFrame) -> list[str]:
    """Return the sources with every class, each of which can be held out while the others still have every class.

    With findings, these are the sources with images of any label.
    Raises DataError (E023) for fewer than two such sources.
    """
    labelled = explode_labels(manifest)
    table = pd.crosstab(labelled["source"], labelled["label"]).reindex(
        sorted(manifest["source"].unique()), fill_value=0
    )
    complete = list(table.index[(table > 0).all(axis=1)])
    if len(complete) < 2:
        gaps = [f"{name} lacks {', '.join(row.index[row == 0])}" for name, row in table.iterrows() if (row == 0).any()]
        explanation = "; ".join(gaps) or f"the data has one source, {table.index[0]!r}"
        problem = f"no source can be held out: fewer than two have every class ({explanation})"
        raise DataError(problem, "Add `data` of another source with every class, or leave out classes", code="E023")
    for source in sorted(set(table.index) - set(complete)):
        log.info("the source %s does not have every class: it is always used for training, never held out", source)
    return complete


def hold_out_source(manifest: pd.DataFrame, source: str, seed: int = 42) -> pd.DataFrame:
    """Return the manifest with one source as test; other patients: 70 % train, 15 % valid, 15 % `internal_test`.

    Images of the other sources are left out with a warning if their patients or exact duplicates are in the held-out
    source. Raises RecipeError for an unknown source (E022), DataError if a class has no training image left (E023).
    """
    sources = sorted(manifest["source"].unique())
    if source not in sources:
        raise RecipeError(f"no source is called {source!r}", f"Hold out one of {', '.join(sources)}", code="E022")
    manifest = union_exact_duplicates(manifest)
    is_held_out = manifest["source"] == source
    is_shared = ~is_held_out & manifest["patient"].isin(manifest.loc[is_held_out, "patient"])
    if is_shared.any():
        text = "%s of other sources left out: their patients or exact duplicates are in %s, which is held out"
        log.warning(text, pluralize(int(is_shared.sum()), "image"), source)
    others = manifest[~is_held_out & ~is_shared]
    lost_labels = sorted(set(explode_labels(manifest)["label"]) - set(explode_labels(others)["label"]))
    if lost_labels and is_multi_label(manifest):
        log.warning("without %s, no training image has %s", source, format_names(lost_labels))
    elif lost_labels:
        problem = f"without {source}, no image of {', '.join(lost_labels)} is left for training"
        raise DataError(problem, "Hold out another source", code="E023")
    labels = labels_per_group(others, others["patient"])
    assigned = assign_stratified(labels, {}, seed=seed, split_percent=HELD_OUT_SPLIT_PERCENT)
    split = manifest["patient"].map(assigned).where(~is_held_out, "test").astype("str")
    return manifest.assign(split=split, split_origin="source")[~is_shared].reset_index(drop=True)


def reuse_splits(manifest: pd.DataFrame, keys: pd.Series, earlier: pd.DataFrame, unit: str) -> dict[str, str]:
    """Return the earlier split of every known group: that of its images, or of its patients for new images.

    Raises DataError (E018) without common images or patients, or if a group was in several splits.
    """
    if missing := [name for name in ("source", "path", "patient", "split") if name not in earlier]:
        problem = f"no columns {format_names(map(repr, missing))}"
        raise _make_reuse_error(problem, "Choose the manifest.csv of a run folder")
    earlier = earlier[earlier["split"].notna()]
    if not earlier["split"].isin(SPLITS).all():
        problem = "split names other than train, valid and test"
        raise _make_reuse_error(problem, "Choose the manifest.csv of a run folder")
    known_splits = _join_source_and_path(manifest).map(_join_splits(earlier, _join_source_and_path(earlier)))
    members, fix = "images with exact duplicates", "Leave out `earlier` to draw a new split"
    if unit == "image":
        if not known_splits.notna().any():
            raise _make_reuse_error("no image in common", "Choose a run on the same images")
    else:
        by_patient = manifest["patient"].map(_join_splits(earlier, earlier["patient"]))
        if not by_patient.notna().any():
            problem = f"no patient in common{_make_salt_hint(manifest, earlier)}"
            raise _make_reuse_error(problem, "Choose a run on the same patients")
        # by image first: two patients of the earlier run may be one now, because of a table or a duplicate
        known_splits = known_splits.where(known_splits.notna(), by_patient)
        members = "patients"
        fix = "Pass `unit='image'` to keep the split of every image, or leave out `earlier` to draw a new split"
    is_known = known_splits.notna()
    keys, known_splits = keys[is_known], known_splits[is_known]
    is_conflict = ~known_splits.isin(SPLITS) | (known_splits.groupby(keys).transform("nunique") > 1)
    if is_conflict.any():
        conflicts = sorted(set(keys[is_conflict]))
        problem = f"{len(conflicts):,} {members} were in several splits (such as {format_names(conflicts, 5)})"
        raise _make_reuse_error(problem, fix)
    return dict(zip(keys, known_splits, strict=True))


def _join_splits(earlier: pd.DataFrame, keys: pd.Series) -> pd.Series:
    """Return the split of each key; several are joined into one invalid name."""
    return earlier["split"].groupby(keys).agg(lambda splits: " and ".join(sorted(set(splits))))


def _make_salt_hint(manifest: pd.DataFrame, earlier: pd.DataFrame) -> str:
    ids, earlier_ids = (
        set(table["patient"].str.extract(r"^dicom-([0-9a-f]{4})-[0-9a-f]{16}$")[0].dropna())
        for table in (manifest, earlier)
    )
    if not ids or not earlier_ids or ids & earlier_ids:
        return ""
    ids_text, earlier_text = (format_names(sorted(each)) for each in (ids, earlier_ids))
    return (f"; both identify patients by hashed DICOM tags, with different salts ({ids_text} now, {earlier_text} "
            "then): use the salt of the earlier run (FASTCXR_SALT)")  # fmt: skip


def _make_reuse_error(problem: str, fix: str) -> DataError:
    return DataError(f"the split of the earlier run cannot be reused: {problem}", fix, code="E018")
