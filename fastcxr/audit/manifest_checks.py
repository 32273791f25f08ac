"""Checks of a manifest and of its files' bytes, quick enough to come before every training."""

import pandas as pd

from fastcxr.audit.findings import Finding, count_images
from fastcxr.data.duplicates import name_contents

FEW = 20  # images of a class in a split: one more or less moves its sensitivity by five points
TELLING = 0.99  # share of a class's images from sources that hold nothing else
SHOWN = 12  # groups of images that a finding shows


def check_tables(manifest: pd.DataFrame) -> list[Finding]:
    """Patients across splits, copies, source against class, and how many images each class has in each split."""
    manifest = manifest.reset_index(drop=True)
    return [check_patients(manifest), check_copies(manifest), check_sources(manifest), check_sizes(manifest)]


def check_patients(manifest: pd.DataFrame) -> Finding:
    """Does a patient stand in two splits?"""
    about = {"check": "patients", "title": "Patients across splits"}
    shared = manifest.groupby("patient")["split"].transform("nunique") > 1
    if shared.any():
        groups = [tuple(rows.index[:4]) for _, rows in manifest[shared].groupby("patient")]
        words = (
            f"{count_images(len(groups), 'patient')} with {count_images(int(shared.sum()))} stand in several splits."
        )
        remedy = "Split by patient: leave --split image out, or give --given-splits ignore."
        return Finding(
            **about, verdict="FAIL", words=words, remedy=remedy, figure=float(shared.mean()), null=0.0,
            groups=tuple(groups[:SHOWN]),
        )  # fmt: skip
    origin = manifest["patient_from"] if "patient_from" in manifest else pd.Series("own", manifest.index)
    unknown = origin == "own"
    if origin.isin(["own", "copy"]).all():  # that two files are copies says nothing of who is on them
        words = "Nobody says whose the images are, so each counts as a patient of its own."
        return Finding(
            **about, verdict="WARN", words=words, remedy="Give --patients, --patient-regex or --patient-tag."
        )
    rest = f" {count_images(int(unknown.sum()))} without a patient count as their own." if unknown.any() else ""
    return Finding(**about, verdict="PASS", words=f"No patient stands in two splits.{rest}", figure=0.0, null=0.0)


def check_copies(manifest: pd.DataFrame) -> Finding:
    """Do files with the same bytes stand in two splits, or under two labels?"""
    about = {"check": "copies", "title": "Exact copies"}
    content = name_contents(manifest["file"])
    copied = content.notna() & content.duplicated(keep=False)
    groups = [rows for _, rows in manifest[copied].groupby(content[copied])]
    torn = [rows for rows in groups if rows["split"].nunique() > 1 or rows["label"].nunique() > 1]
    if torn:
        labels = sum(rows["label"].nunique() > 1 for rows in torn)
        words = f"{count_images(len(torn), 'picture')} several times across splits" + (
            f", {labels:,} of them under two labels." if labels else "."
        )
        found, verdict, remedy = torn, "FAIL", "Give --drop-copies; where labels differ, keep one of each."
    elif groups:
        words, found = f"{count_images(len(groups), 'picture')} several times, within one split and class.", groups
        verdict, remedy = "WARN", "Give --drop-copies."
    else:
        return Finding(**about, verdict="PASS", words="No two files have the same bytes.", figure=0.0, null=0.0)
    return Finding(
        **about, verdict=verdict, words=words, remedy=remedy, figure=float(len(found)), null=0.0,
        groups=tuple(tuple(rows.index[:4]) for rows in found[:SHOWN]),
    )  # fmt: skip


def check_sources(manifest: pd.DataFrame) -> Finding:
    """Can a class be told by where its images come from?"""
    about = {"check": "sources", "title": "Source against class"}
    table = pd.crosstab(manifest["source"], manifest["label"])
    if len(table) < 2:
        words = "The data names one source for all images: nothing to compare, and no other to test on."
        return Finding(**about, verdict="PASS", words=words)
    alone = table.loc[(table > 0).sum(axis=1) == 1].sum() / table.sum()
    told = [label for label, share in alone.items() if share >= TELLING]
    known, most = table.max(axis=1).sum() / table.to_numpy().sum(), table.sum().max() / table.to_numpy().sum()
    words = (
        f"Naming the commonest class of each source is right for {100 * known:.1f} % of the images, "
        f"naming the commonest of all for {100 * most:.1f} %."
    )
    if told:
        said, remedy = _say_told(told, is_all=len(told) == table.shape[1])
        words = f"{said} {words}"
        return Finding(**about, verdict="FAIL", words=words, remedy=remedy, figure=float(known), null=float(most))
    return Finding(**about, verdict="PASS", words=words, figure=float(known), null=float(most))


def _say_told(told: list[str], is_all: bool) -> tuple[str, str]:
    """What a model may learn in place of these classes, and what would prevent it."""
    if is_all:
        words = (
            "Every class comes from sources of its own: a model may know the source and not the disease, and what it "
            "says of people from any other hospital means nothing."
        )
        return words, "Add images of every class from one of the sources at least."
    names, either = ", ".join(told), " or ".join(told)
    words = (
        f"No other class has the sources of {names}: a model may know the source and not the disease, and call healthy "
        f"people from any other hospital {either} too."
    )
    return words, f"Add images of other classes from the sources of {names}, or of {names} from the others."


def check_sizes(manifest: pd.DataFrame) -> Finding:
    """Has every class enough images where figures are printed?"""
    about = {"check": "sizes", "title": "Images behind the figures"}
    table = pd.crosstab(manifest["split"], manifest["label"])
    scored = table.loc[[split for split in table.index if split != "train"]]
    few = [f"{label} {n} in {split}" for split, row in scored.iterrows() for label, n in row.items() if n < FEW]
    if few:
        words = f"Fewer than {FEW} images: {', '.join(few)}. One image moves such a sensitivity by five points or more."
        remedy = "Read the intervals, not the figures; --folds 5 scores every image."
        return Finding(**about, verdict="WARN", words=words, remedy=remedy, figure=float(scored.min(axis=None)))
    least = float(scored.min(axis=None)) if scored.size else None
    return Finding(**about, verdict="PASS", words=f"At least {FEW} images of each class in each split.", figure=least)
