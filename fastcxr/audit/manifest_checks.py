"""Checks of the manifest and of exact duplicates, fast enough to run before every training."""

from collections import Counter
from functools import partial

import pandas as pd

from fastcxr.audit.findings import Finding, format_count
from fastcxr.data.duplicates import hash_files
from fastcxr.data.findings import NO_FINDING, is_multi_label, list_findings, split_labels
from fastcxr.data.label_policy import FINDINGS_BESIDE_NO_FINDING, compute_truth
from fastcxr.io.tables import format_names

MIN_SPLIT_IMAGES = 20  # images of a class in a split: one image changes the sensitivity by 5 percentage points
FEW_IMAGES_EFFECT = "One image then changes the sensitivity by five percentage points or more."
FEW_IMAGES_FIX = "Report confidence intervals, or pass --folds 5 to test on every image."
MIN_SOURCE_LABELS = 10  # images with and without a finding, below which its sources are not compared
EXCLUSIVE_FRACTION = 0.9  # of the images of a class: the property alone has an AUROC of .95 or more
MAX_SHOWN_GROUPS = 12  # groups of images in one finding
MAX_NAMED = 8  # labels in a message


def check_manifest(manifest: pd.DataFrame) -> list[Finding]:
    """Check patients across splits, exact duplicates, sources against classes, and the number of images per class.

    With several labels per image, sources and numbers are checked for each label, and "No Finding" against the others.
    """
    manifest = manifest.reset_index(drop=True)
    if is_multi_label(manifest):
        of_labels = [check_label_sources(manifest), check_label_sizes(manifest), check_no_finding(manifest)]
        return [check_patients(manifest), check_duplicates(manifest), *of_labels]
    return [check_patients(manifest), check_duplicates(manifest), check_sources(manifest), check_class_sizes(manifest)]


def check_patients(manifest: pd.DataFrame) -> Finding:
    """Check whether a patient is in several splits."""
    make_finding = partial(Finding, check="patients", title="Patients across splits")
    is_shared = manifest.groupby("patient")["split"].transform("nunique") > 1
    if is_shared.any():
        groups = [tuple(rows.index[:4]) for _, rows in manifest[is_shared].groupby("patient")]
        counts = f"{format_count(len(groups), 'patient')} with {format_count(int(is_shared.sum()))}"
        return make_finding(
            verdict="FAIL", message=f"Patients with images in several splits: {counts}.",
            fix="Split by patient: omit --split image, or pass --ignore-given-splits.",
            value=float(is_shared.mean()), chance_level=0.0, groups=tuple(groups[:MAX_SHOWN_GROUPS]),
        )  # fmt: skip
    origin = manifest["patient_origin"] if "patient_origin" in manifest else pd.Series("image", manifest.index)
    if origin.isin(["image", "copy"]).all():  # duplicate files alone do not identify the patient
        message = "No patient identifiers found: every image is treated as a separate patient."
        return make_finding(
            verdict="WARN", message=message, fix="Pass --patient-table, --patient-regex or --patient-tag."
        )
    n_unknown = int((origin == "image").sum())
    note = f" Images without a patient identifier, treated as separate patients: {n_unknown:,}." if n_unknown else ""
    return make_finding(verdict="PASS", message=f"No patient is in several splits.{note}", value=0.0, chance_level=0.0)


def check_duplicates(manifest: pd.DataFrame) -> Finding:
    """Check whether files with the same bytes are in several splits or classes."""
    make_finding = partial(Finding, check="copies", title="Exact duplicates", chance_level=0.0)
    checksums = hash_files(manifest["file"])
    is_duplicate = checksums.notna() & checksums.duplicated(keep=False)
    groups = [rows for _, rows in manifest[is_duplicate].groupby(checksums[is_duplicate])]
    if not groups:
        return make_finding(verdict="PASS", message="No two files have the same bytes.", value=0.0)
    conflicting = [rows for rows in groups if rows["split"].nunique() > 1 or rows["label"].nunique() > 1]
    reported = conflicting or groups
    make_finding = partial(
        make_finding, value=float(len(reported)),
        groups=tuple(tuple(rows.index[:4]) for rows in reported[:MAX_SHOWN_GROUPS]),
    )  # fmt: skip
    if not conflicting:
        unit = "label" if is_multi_label(manifest) else "class"
        message = f"Exact duplicates within one split and {unit}: {format_count(len(groups))}."
        return make_finding(verdict="WARN", message=message, fix="Pass --deduplicate.")
    n_relabelled = sum(rows["label"].nunique() > 1 for rows in conflicting)
    units = "labels" if is_multi_label(manifest) else "classes"
    message = f"Exact duplicates across splits or {units}: {format_count(len(conflicting))}" + (
        f", {n_relabelled:,} of them with several labels." if n_relabelled else "."
    )
    fix = "Pass --deduplicate; if the labels differ, keep one image of each group."
    return make_finding(verdict="FAIL", message=message, fix=fix)


def check_sources(manifest: pd.DataFrame) -> Finding:
    """Check whether the source of an image determines its class."""
    make_finding = partial(Finding, check="sources", title="Source and class")
    table = pd.crosstab(manifest["source"], manifest["label"])
    if len(table) < 2:
        message = "All images have the same source: sources cannot be compared or used as external test sets."
        return make_finding(verdict="PASS", message=message)
    exclusive_labels = list(find_exclusive_classes(manifest.assign(images=1), "source"))
    n_images = table.to_numpy().sum()
    source_accuracy, majority_accuracy = table.max(axis=1).sum() / n_images, table.sum().max() / n_images
    message = (
        "Predicting the most frequent class of each source is correct for "
        f"{100 * source_accuracy:.1f} % of the images. "
        f"Predicting the most frequent class overall is correct for {100 * majority_accuracy:.1f} %."
    )
    make_finding = partial(make_finding, value=float(source_accuracy), chance_level=float(majority_accuracy))
    if not exclusive_labels:
        return make_finding(verdict="PASS", message=message)
    explanation, fix = _explain_source_leak(exclusive_labels, is_all=len(exclusive_labels) == table.shape[1])
    return make_finding(verdict="FAIL", message=f"{explanation} {message}", fix=fix)


def find_exclusive_classes(
    table: pd.DataFrame, column: str, *, single_value_only: bool = False
) -> dict[str, tuple[int, int]]:
    """Return the classes that a property identifies: images with values that no other class has, and all images.

    This rule holds for sources, and in the report for file types and image sizes.

    Args:
        table: columns label, `column` (values of the property) and images (number of images with this value).
        column: name of the property.
        single_value_only: for a property that varies within every class, such as the image size: whether the class or
            all other classes together must have a single value.
    """
    counts = {str(label): rows.groupby(column)["images"].sum() for label, rows in table.groupby("label")}
    exclusive = {}
    for label, values in counts.items():
        others = {value for other, found in counts.items() if other != label for value in found.index}
        n_images, n_exclusive = int(values.sum()), int(values[~values.index.isin(others)].sum())
        is_exclusive = others and n_exclusive >= EXCLUSIVE_FRACTION * n_images
        if is_exclusive and (not single_value_only or 1 in (len(values), len(others))):
            exclusive[label] = n_exclusive, n_images
    return exclusive


def _explain_source_leak(exclusive_labels: list[str], is_all: bool) -> tuple[str, str]:
    """Return what a model may learn instead of these classes, and how to prevent it."""
    leak = "the model may learn the source instead of the disease."
    if is_all:
        message = (
            f"Every class has its own sources: {leak} Its predictions for any other hospital are then meaningless."
        )
        return message, "Add images of every class from at least one of the sources."
    names, either = ", ".join(exclusive_labels), " or ".join(exclusive_labels)
    message = (
        f"No other class has the sources of {names}: {leak} "
        f"It may then predict {either} for healthy people from any other hospital."
    )
    return message, f"Add images of other classes from the sources of {names}, or of {names} from other sources."


def check_class_sizes(manifest: pd.DataFrame) -> Finding:
    """Check whether every class has enough images in each split with reported metrics."""
    table = pd.crosstab(manifest["split"], manifest["label"])
    scored = table.loc[[split for split in table.index if split != "train"]]
    too_small = [
        f"{label} {n} in {split}"
        for split, row in scored.iterrows()
        for label, n in row.items()
        if n < MIN_SPLIT_IMAGES
    ]
    smallest = float(scored.to_numpy().min()) if scored.size else None
    make_finding = partial(Finding, check="sizes", title="Images per class", value=smallest)
    if not too_small:
        message = f"At least {MIN_SPLIT_IMAGES} images of each class in each split."
        return make_finding(verdict="PASS", message=message)
    message = f"Fewer than {MIN_SPLIT_IMAGES} images: {', '.join(too_small)}. " + FEW_IMAGES_EFFECT
    return make_finding(verdict="WARN", message=message, fix=FEW_IMAGES_FIX)


def check_label_sources(manifest: pd.DataFrame) -> Finding:
    """Check whether the source of an image determines one of its labels."""
    make_finding = partial(Finding, check="sources", title="Sources and findings")
    if manifest["source"].nunique() < 2:
        message = "All images have the same source: sources cannot be compared or used as external test sets."
        return make_finding(verdict="PASS", message=message)
    exclusive = find_exclusive_labels(manifest)
    if not exclusive:
        return make_finding(verdict="PASS", message="Every finding is present and absent in images of common sources.")
    shares = {label: n / n_all for label, (n, n_all) in exclusive.items()}
    ranked = sorted(shares, key=lambda label: -shares[label])
    names = format_names(
        (f"{label} ({exclusive[label][0]:,} of {exclusive[label][1]:,})" for label in ranked), MAX_NAMED
    )
    message = (
        f"Images from sources where every other image has the opposite label: {names}. "
        "The model may learn the source instead of the finding."
    )
    fix = "Add images with and without these findings from each source, or mark their labels as unknown in one source."
    return make_finding(verdict="FAIL", message=message, fix=fix, value=shares[ranked[0]])


def find_exclusive_labels(manifest: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """Return the labels that the source identifies: images in sources without the opposite label, and all images.

    The name of an absent finding begins with "no". Unknown labels are left out.
    """
    truth, exclusive = compute_truth(manifest), {}
    for number, name in enumerate(list_findings(manifest)):
        counts = [manifest.loc[truth[:, number] == value, "source"].value_counts() for value in (1, 0)]
        if min(one.sum() for one in counts) < MIN_SOURCE_LABELS:
            continue
        for label, one, other in ((name, *counts), (f"no {name}", *reversed(counts))):
            n_images, n_exclusive = int(one.sum()), int(one[~one.index.isin(other.index)].sum())
            if n_exclusive >= EXCLUSIVE_FRACTION * n_images:
                exclusive[label] = n_exclusive, n_images
    return exclusive


def check_label_sizes(manifest: pd.DataFrame) -> Finding:
    """Check whether each split with reported metrics has enough images with each finding that any image has."""
    names, is_present = list_findings(manifest), compute_truth(manifest) == 1
    splits = [split for split in sorted(set(manifest["split"])) if split != "train"]
    counts = {
        (name, split): int(is_present[manifest["split"] == split, number].sum())
        for split in splits
        for number, name in enumerate(names)
        if is_present[:, number].any()
    }
    make_finding = partial(
        Finding, check="sizes", title="Images per finding", value=float(min(counts.values())) if counts else None
    )
    too_few = sorted((n, key) for key, n in counts.items() if n < MIN_SPLIT_IMAGES)
    if not too_few:
        message = f"At least {MIN_SPLIT_IMAGES} images with each finding in each split."
        return make_finding(verdict="PASS", message=message)
    examples = format_names((f"{name} {n} in {split}" for n, (name, split) in too_few), MAX_NAMED)
    message = f"Fewer than {MIN_SPLIT_IMAGES} images with a finding: {examples}. " + FEW_IMAGES_EFFECT
    return make_finding(verdict="WARN", message=message, fix=FEW_IMAGES_FIX)


def check_no_finding(manifest: pd.DataFrame) -> Finding:
    """Check whether images labelled "No Finding" have a finding; a support device is none."""
    make_finding = partial(Finding, check="no_finding", title=f"{NO_FINDING} and findings", chance_level=0.0)
    labels = {row: split_labels(label) for row, label in enumerate(manifest["label"])}
    n_stated = sum(NO_FINDING in names for names in labels.values())
    if not n_stated:
        return make_finding(verdict="PASS", message=f"No image is labelled {NO_FINDING}.")
    allowed = {NO_FINDING, *FINDINGS_BESIDE_NO_FINDING}
    found = {row: [n for n in names if n not in allowed] for row, names in labels.items() if NO_FINDING in names}
    conflicting = {row: names for row, names in found.items() if names}
    make_finding = partial(make_finding, value=float(len(conflicting)))
    if not conflicting:
        return make_finding(verdict="PASS", message=f"No image labelled {NO_FINDING} has a finding.")
    counts = Counter(name for names in conflicting.values() for name in names)
    examples = format_names((f"{name} {n:,}" for name, n in counts.most_common()), MAX_NAMED)
    message = (
        f"Images labelled {NO_FINDING} that have a finding: {len(conflicting):,} of {n_stated:,} ({examples}). "
        "The label of the finding is used."
    )
    fix = f"Correct these labels, or ask the makers of the dataset what {NO_FINDING} means beside a finding."
    groups = tuple((row,) for row in list(conflicting)[:MAX_SHOWN_GROUPS])
    return make_finding(verdict="WARN", message=message, fix=fix, groups=groups)
