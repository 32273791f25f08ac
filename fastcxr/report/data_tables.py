"""From a cohort's record to the rows of its part of a page: classes and splits, looks, files, what was left out."""

from typing import Any

import pandas as pd

from fastcxr.io.formatting import count, listed, share
from fastcxr.metrics.predictions import SPLITS
from fastcxr.report.run_reader import CohortRecord

CAME_FROM = {
    "column": "a column of the table",
    "table": "a joined table",
    "regex": "a pattern in the path",
    "dicom": "a DICOM tag, as a salted hash",
    "nih": "NIH file names",
    "kermany": "Kermany file names",
    "im": "IM-… file names",
    "copy": "copies of images",
}
DRAWN = {
    "given": "given by the data",
    "patient": "drawn patient by patient, so that no patient stands in two",
    "image": "drawn image by image",
    "kept": "kept from an earlier run",
    "source": "by source: one is held out, and patients of the others are drawn",
}


def cohort_part(record: CohortRecord) -> dict[str, Any]:
    """All that the templates lay out of a cohort, by name."""
    return {
        "splits": split_table(record),
        "skipped": skipped_rows(record.skipped),
        "looks": class_looks(record),
        "files": file_rows(record),
        "measured": measured_images(record),
    }


def split_table(record: CohortRecord) -> dict[str, Any]:
    """Images and patients of each class in each split."""
    table = record.table
    here = set(table["split"])
    splits = [*(s for s in SPLITS if s in here), *sorted(here - {*SPLITS, ""})]
    of_class = {label: table[table["label"] == label] for label in record.labels}
    rows = [{"label": label, "cells": _cells(rows, splits)} for label, rows in of_class.items()]
    return {"splits": splits, "rows": rows, "total": _cells(table, splits), "remarks": _remarks(table)}


def _cells(rows: pd.DataFrame, splits: list[str]) -> list[dict[str, int]]:
    parts = [*(rows[rows["split"] == split] for split in splits), rows]
    return [{"images": len(part), "patients": part["patient"].nunique()} for part in parts]


def _remarks(table: pd.DataFrame) -> list[str]:
    remarks = []
    if "patient_from" in table:
        sizes = table["patient_from"].value_counts()
        named = [f"{CAME_FROM.get(k, k)} ({count(n, 'image')})" for k, n in sizes.items() if k not in ("own", "")]
        remarks += [f"Patients come from {listed(named)}."] if named else []
        if own := int(sizes.get("own", 0)):
            remarks.append(f"{count(own, 'image')} without a patient, each taken as its own.")
    if "split_from" in table:
        sizes = table["split_from"].value_counts()
        ways = [f"{DRAWN.get(k, k)} ({count(n, 'image')})" for k, n in sizes.items() if k]
        ways = [DRAWN.get(sizes.index[0], sizes.index[0])] if len(ways) == 1 else ways
        remarks += [f"Splits are {listed(ways)}."] if ways else []
    return remarks


def skipped_rows(skipped: pd.DataFrame) -> list[dict[str, Any]]:
    """Left-out images by code, the most frequent first, with every path and reason."""
    groups = [(code, rows) for code, rows in skipped.groupby("code", sort=True)]
    groups.sort(key=lambda item: -len(item[1]))
    return [
        {"code": code, "count": len(rows), "files": rows[["path", "reason"]].to_dict("records")}
        for code, rows in groups
    ]


def class_looks(record: CohortRecord) -> list[dict[str, Any]]:
    """For each class that has either: a strip of thumbnails, and the name of its histogram's plate."""
    images = record.images[(record.images["role"] == "sample") & (record.images["uri"] != "")]
    labels = record.table.drop_duplicates(["source", "path"])[["source", "path", "label"]]
    images = images.merge(labels, on=["source", "path"], how="left").fillna({"label": ""})
    order = {label: k for k, label in enumerate(record.labels)}
    found = {label: rows[["path", "uri"]].to_dict("records") for label, rows in images.groupby("label", sort=True)}
    measured = set(record.histograms["label"])
    return [
        {"label": label, "number": order.get(label), "images": found.get(label, []), "plate": histogram_name(k)}
        for k, label in enumerate([*order, *sorted(set(found) - set(order))])
        if label in found or label in measured
    ]


def histogram_name(number: int) -> str:
    """The plate and file name of the histogram of class number `number`."""
    return f"histogram_{number + 1}"


def measured_images(record: CohortRecord) -> str:
    """How many images of each class the histograms are of, in words: `200 of each class`, `a 82, b 200`."""
    sizes = record.histograms.groupby("label")["images"].first().astype(int).to_dict()
    if len(set(sizes.values())) == 1:
        return f"{next(iter(sizes.values())):,} of each class"
    return listed([f"{label} {n:,}" for label, n in sizes.items()])


def file_rows(record: CohortRecord) -> list[dict[str, Any]]:
    """What the files of each class are: kinds and sizes of those that were measured; sources, of all, if several."""
    several = record.table["source"].nunique() > 1
    rows = []
    for number, label in enumerate(record.labels):
        files = record.files[record.files["label"] == label]
        sources = record.table.loc[record.table["label"] == label, "source"].value_counts()
        if len(files):
            kinds = files.groupby("kind")["images"].sum().sort_values(ascending=False, kind="stable")
            row = {"label": label, "number": number, "kinds": _counts(kinds), "measured": int(files["images"].sum())}
            rows.append(row | _sizes(files) | {"sources": _counts(sources) if several else ""})
    return rows


def _counts(sizes: pd.Series) -> str:
    """One name as it is, several with their numbers: `PNG`, `JPEG 103, PNG 21`."""
    return str(sizes.index[0]) if len(sizes) == 1 else ", ".join(f"{name} {n:,}" for name, n in sizes.items())


def _sizes(files: pd.DataFrame) -> dict[str, str]:
    """The middle size, by area, and the smallest and the largest where they differ."""
    files = files.assign(area=files["width"] * files["height"]).sort_values(["area", "width"], kind="stable")
    middle = files["images"].cumsum().searchsorted(files["images"].sum() / 2)
    words = [f"{row.width:,.0f} × {row.height:,.0f}" for row in files.iloc[[0, middle, -1]].itertuples()]
    return {"size": words[1], "reach": f"{words[0]} to {words[2]}" if words[0] != words[2] else ""}


def cohort_tiles(record: CohortRecord) -> list[tuple[str, str, str]]:
    """The figures at the top of the page: name, figure, what stands below it."""
    sizes, of_patient = record.table["label"].value_counts(), record.table["patient"].value_counts()
    n, most = len(record.table), int(of_patient.max())
    bad = (
        f"{count(len(record.skipped), 'more', 'more')} not readable"
        if len(record.skipped)
        else "every file is readable"
    )
    each = f"{n / len(of_patient):.1f} images each, {most:,} at most" if most > 1 else "one image each"
    rarest = ("Smallest class", share(sizes.iloc[-1] / n), f"{sizes.index[-1]}, {count(int(sizes.iloc[-1]), 'image')}")
    largest = f"largest: {sizes.index[0]}, {share(sizes.iloc[0] / n)}"
    if sizes.nunique() == 1:
        rarest, largest = (
            ("Each class", share(sizes.iloc[0] / n), count(int(sizes.iloc[0]), "image")),
            "all of one size",
        )
    return [
        ("Images", f"{n:,}", bad),
        ("Patients", f"{len(of_patient):,}", each),
        ("Classes", f"{len(sizes):,}", largest),
        rarest,
    ]
