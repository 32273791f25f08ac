"""Checks of a manifest and of its files' bytes, quick enough to come before every training."""

import pandas as pd

from fastcxr.audit.findings import Finding, format_count
from fastcxr.data.duplicates import hash_files

MIN_SPLIT_IMAGES = 20  # images of a class in a split: one more or less moves its sensitivity by five points
EXCLUSIVE_SOURCE_FRACTION = 0.99  # share of a class's images from sources that hold nothing else
MAX_SHOWN_GROUPS = 12  # groups of images that a finding shows


def check_manifest(manifest: pd.DataFrame) -> list[Finding]:
    """Patients across splits, copies, source against class, and how many images each class has in each split."""
    manifest = manifest.reset_index(drop=True)
    return [check_patients(manifest), check_duplicates(manifest), check_sources(manifest), check_class_sizes(manifest)]


def check_patients(manifest: pd.DataFrame) -> Finding:
    """Does a patient stand in two splits?"""
    common = {"check": "patients", "title": "Patients across splits"}
    is_shared = manifest.groupby("patient")["split"].transform("nunique") > 1
    if is_shared.any():
        groups = [tuple(rows.index[:4]) for _, rows in manifest[is_shared].groupby("patient")]
        message = (
            f"{format_count(len(groups), 'patient')} with {format_count(int(is_shared.sum()))} stand in several splits."
        )
        fix = "Split by patient: leave --split image out, or give --ignore-given-splits."
        return Finding(
            **common, verdict="FAIL", message=message, fix=fix, value=float(is_shared.mean()), chance_level=0.0,
            groups=tuple(groups[:MAX_SHOWN_GROUPS]),
        )  # fmt: skip
    origin = manifest["patient_origin"] if "patient_origin" in manifest else pd.Series("image", manifest.index)
    has_no_patient = origin == "image"
    if origin.isin(["image", "copy"]).all():  # that two files are copies says nothing of who is on them
        message = "Nobody says whose the images are, so each counts as a patient of its own."
        return Finding(
            **common, verdict="WARN", message=message, fix="Give --patient-table, --patient-regex or --patient-tag."
        )
    note = (
        f" {format_count(int(has_no_patient.sum()))} without a patient count as their own."
        if has_no_patient.any()
        else ""
    )
    return Finding(
        **common, verdict="PASS", message=f"No patient stands in two splits.{note}", value=0.0, chance_level=0.0
    )


def check_duplicates(manifest: pd.DataFrame) -> Finding:
    """Do files with the same bytes stand in two splits, or under two labels?"""
    common = {"check": "copies", "title": "Exact copies"}
    checksums = hash_files(manifest["file"])
    is_duplicate = checksums.notna() & checksums.duplicated(keep=False)
    groups = [rows for _, rows in manifest[is_duplicate].groupby(checksums[is_duplicate])]
    conflicting = [rows for rows in groups if rows["split"].nunique() > 1 or rows["label"].nunique() > 1]
    if conflicting:
        labels = sum(rows["label"].nunique() > 1 for rows in conflicting)
        message = f"{format_count(len(conflicting), 'picture')} several times across splits" + (
            f", {labels:,} of them under two labels." if labels else "."
        )
        reported, verdict, fix = conflicting, "FAIL", "Give --deduplicate; where labels differ, keep one of each."
    elif groups:
        message, reported = f"{format_count(len(groups), 'picture')} several times, within one split and class.", groups
        verdict, fix = "WARN", "Give --deduplicate."
    else:
        return Finding(
            **common, verdict="PASS", message="No two files have the same bytes.", value=0.0, chance_level=0.0
        )
    return Finding(
        **common, verdict=verdict, message=message, fix=fix, value=float(len(reported)), chance_level=0.0,
        groups=tuple(tuple(rows.index[:4]) for rows in reported[:MAX_SHOWN_GROUPS]),
    )  # fmt: skip


def check_sources(manifest: pd.DataFrame) -> Finding:
    """Can a class be told by where its images come from?"""
    common = {"check": "sources", "title": "Source against class"}
    table = pd.crosstab(manifest["source"], manifest["label"])
    if len(table) < 2:
        message = "The data names one source for all images: nothing to compare, and no other to test on."
        return Finding(**common, verdict="PASS", message=message)
    exclusive_fraction = table.loc[(table > 0).sum(axis=1) == 1].sum() / table.sum()
    exclusive_labels = [label for label, share in exclusive_fraction.items() if share >= EXCLUSIVE_SOURCE_FRACTION]
    source_accuracy, majority_accuracy = (
        table.max(axis=1).sum() / table.to_numpy().sum(),
        table.sum().max() / table.to_numpy().sum(),
    )
    message = (
        f"Naming the commonest class of each source is right for {100 * source_accuracy:.1f} % of the images, "
        f"naming the commonest of all for {100 * majority_accuracy:.1f} %."
    )
    if exclusive_labels:
        explanation, fix = _explain_source_leak(exclusive_labels, is_all=len(exclusive_labels) == table.shape[1])
        message = f"{explanation} {message}"
        return Finding(
            **common,
            verdict="FAIL",
            message=message,
            fix=fix,
            value=float(source_accuracy),
            chance_level=float(majority_accuracy),
        )
    return Finding(
        **common, verdict="PASS", message=message, value=float(source_accuracy), chance_level=float(majority_accuracy)
    )


def _explain_source_leak(exclusive_labels: list[str], is_all: bool) -> tuple[str, str]:
    """What a model may learn in place of these classes, and what would prevent it."""
    if is_all:
        message = (
            "Every class comes from sources of its own: a model may know the source and not the disease, and what it "
            "says of people from any other hospital means nothing."
        )
        return message, "Add images of every class from one of the sources at least."
    names, either = ", ".join(exclusive_labels), " or ".join(exclusive_labels)
    message = (
        f"No other class has the sources of {names}: a model may know the source and not the disease, and call healthy "
        f"people from any other hospital {either} too."
    )
    return message, f"Add images of other classes from the sources of {names}, or of {names} from the others."


def check_class_sizes(manifest: pd.DataFrame) -> Finding:
    """Has every class enough images where figures are printed?"""
    common = {"check": "sizes", "title": "Images behind the figures"}
    table = pd.crosstab(manifest["split"], manifest["label"])
    scored = table.loc[[split for split in table.index if split != "train"]]
    too_small = [
        f"{label} {n} in {split}"
        for split, row in scored.iterrows()
        for label, n in row.items()
        if n < MIN_SPLIT_IMAGES
    ]
    if too_small:
        message = (
            f"Fewer than {MIN_SPLIT_IMAGES} images: {', '.join(too_small)}. One image moves such a sensitivity by five "
            "points or more."
        )
        fix = "Read the intervals, not the figures; --folds 5 scores every image."
        return Finding(**common, verdict="WARN", message=message, fix=fix, value=float(scored.min(axis=None)))
    smallest = float(scored.min(axis=None)) if scored.size else None
    return Finding(
        **common,
        verdict="PASS",
        message=f"At least {MIN_SPLIT_IMAGES} images of each class in each split.",
        value=smallest,
    )
