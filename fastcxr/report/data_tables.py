"""From a cohort's record to the rows of its part of a page: classes and splits, looks, files, what was left out."""

from typing import Any

import pandas as pd

from fastcxr.io.formatting import format_percent, join_names, pluralize
from fastcxr.metrics.predictions import SPLITS
from fastcxr.report.run_reader import DatasetRecord

PATIENT_ORIGIN_TEXTS = {
    "column": "a column of the table",
    "table": "a joined table",
    "regex": "a pattern in the path",
    "dicom": "a DICOM tag, as a salted hash",
    "nih": "NIH file names",
    "kermany": "Kermany file names",
    "im": "IM-… file names",
    "copy": "copies of images",
}
SPLIT_ORIGIN_TEXTS = {
    "given": "given by the data",
    "patient": "drawn patient by patient, so that no patient stands in two",
    "image": "drawn image by image",
    "kept": "kept from an earlier run",
    "source": "by source: one is held out, and patients of the others are drawn",
}


def make_dataset_context(record: DatasetRecord) -> dict[str, Any]:
    """All that the templates lay out of a cohort, by name."""
    return {
        "splits": make_split_table(record),
        "skipped": make_skipped_rows(record.skipped),
        "class_images": make_class_images(record),
        "files": make_file_rows(record),
        "measured": describe_measured_images(record),
    }


def make_split_table(record: DatasetRecord) -> dict[str, Any]:
    """Images and patients of each class in each split."""
    table = record.table
    present = set(table["split"])
    splits = [*(s for s in SPLITS if s in present), *sorted(present - {*SPLITS, ""})]
    rows_by_label = {label: table[table["label"] == label] for label in record.labels}
    rows = [{"label": label, "cells": _make_cells(rows, splits)} for label, rows in rows_by_label.items()]
    return {"splits": splits, "rows": rows, "total": _make_cells(table, splits), "remarks": _make_remarks(table)}


def _make_cells(rows: pd.DataFrame, splits: list[str]) -> list[dict[str, int]]:
    parts = [*(rows[rows["split"] == split] for split in splits), rows]
    return [{"images": len(part), "patients": part["patient"].nunique()} for part in parts]


def _make_remarks(table: pd.DataFrame) -> list[str]:
    remarks = []
    if "patient_origin" in table:
        sizes = table["patient_origin"].value_counts()
        origin_texts = [
            f"{PATIENT_ORIGIN_TEXTS.get(k, k)} ({pluralize(n, 'image')})"
            for k, n in sizes.items()
            if k not in ("image", "")
        ]
        remarks += [f"Patients come from {join_names(origin_texts)}."] if origin_texts else []
        if n_without_patient := int(sizes.get("image", 0)):
            remarks.append(f"{pluralize(n_without_patient, 'image')} without a patient, each taken as its own.")
    if "split_origin" in table:
        sizes = table["split_origin"].value_counts()
        split_texts = [f"{SPLIT_ORIGIN_TEXTS.get(k, k)} ({pluralize(n, 'image')})" for k, n in sizes.items() if k]
        split_texts = [SPLIT_ORIGIN_TEXTS.get(sizes.index[0], sizes.index[0])] if len(split_texts) == 1 else split_texts
        remarks += [f"Splits are {join_names(split_texts)}."] if split_texts else []
    return remarks


def make_skipped_rows(skipped: pd.DataFrame) -> list[dict[str, Any]]:
    """Left-out images by code, the most frequent first, with every path and reason."""
    groups = [(code, rows) for code, rows in skipped.groupby("code", sort=True)]
    groups.sort(key=lambda item: -len(item[1]))
    return [
        {"code": code, "count": len(rows), "files": rows[["path", "reason"]].to_dict("records")}
        for code, rows in groups
    ]


def make_class_images(record: DatasetRecord) -> list[dict[str, Any]]:
    """For each class that has either: a strip of thumbnails, and the name of its histogram's plate."""
    images = record.thumbnails[(record.thumbnails["role"] == "sample") & (record.thumbnails["uri"] != "")]
    labels = record.table.drop_duplicates(["source", "path"])[["source", "path", "label"]]
    images = images.merge(labels, on=["source", "path"], how="left").fillna({"label": ""})
    class_indices = {label: k for k, label in enumerate(record.labels)}
    images_by_label = {
        label: rows[["path", "uri"]].to_dict("records") for label, rows in images.groupby("label", sort=True)
    }
    measured_labels = set(record.histograms["label"])
    return [
        {
            "label": label,
            "number": class_indices.get(label),
            "images": images_by_label.get(label, []),
            "figure": make_histogram_name(k),
        }
        for k, label in enumerate([*class_indices, *sorted(set(images_by_label) - set(class_indices))])
        if label in images_by_label or label in measured_labels
    ]


def make_histogram_name(class_index: int) -> str:
    """The plate and file name of the histogram of class number `number`."""
    return f"histogram_{class_index + 1}"


def describe_measured_images(record: DatasetRecord) -> str:
    """How many images of each class the histograms are of, in words: `200 of each class`, `a 82, b 200`."""
    sizes = record.histograms.groupby("label")["images"].first().astype(int).to_dict()
    if len(set(sizes.values())) == 1:
        return f"{next(iter(sizes.values())):,} of each class"
    return join_names([f"{label} {n:,}" for label, n in sizes.items()])


def make_file_rows(record: DatasetRecord) -> list[dict[str, Any]]:
    """What the files of each class are: kinds and sizes of those that were measured; sources, of all, if several."""
    has_several_sources = record.table["source"].nunique() > 1
    rows = []
    for class_index, label in enumerate(record.labels):
        files = record.files[record.files["label"] == label]
        sources = record.table.loc[record.table["label"] == label, "source"].value_counts()
        if len(files):
            kinds = files.groupby("kind")["images"].sum().sort_values(ascending=False, kind="stable")
            row = {
                "label": label,
                "number": class_index,
                "kinds": _format_counts(kinds),
                "measured": int(files["images"].sum()),
            }
            rows.append(
                row | _summarize_sizes(files) | {"sources": _format_counts(sources) if has_several_sources else ""}
            )
    return rows


def _format_counts(sizes: pd.Series) -> str:
    """One name as it is, several with their numbers: `PNG`, `JPEG 103, PNG 21`."""
    return str(sizes.index[0]) if len(sizes) == 1 else ", ".join(f"{name} {n:,}" for name, n in sizes.items())


def _summarize_sizes(files: pd.DataFrame) -> dict[str, str]:
    """The middle size, by area, and the smallest and the largest where they differ."""
    files = files.assign(area=files["width"] * files["height"]).sort_values(["area", "width"], kind="stable")
    median_position = files["images"].cumsum().searchsorted(files["images"].sum() / 2)
    size_texts = [f"{row.width:,.0f} × {row.height:,.0f}" for row in files.iloc[[0, median_position, -1]].itertuples()]
    return {
        "size": size_texts[1],
        "range": f"{size_texts[0]} to {size_texts[2]}" if size_texts[0] != size_texts[2] else "",
    }


def make_tiles(record: DatasetRecord) -> list[tuple[str, str, str]]:
    """The figures at the top of the page: name, figure, what stands below it."""
    sizes, images_per_patient = record.table["label"].value_counts(), record.table["patient"].value_counts()
    n_images, max_per_patient = len(record.table), int(images_per_patient.max())
    unreadable_text = (
        f"{pluralize(len(record.skipped), 'more', 'more')} not readable"
        if len(record.skipped)
        else "every file is readable"
    )
    per_patient_text = (
        f"{n_images / len(images_per_patient):.1f} images each, {max_per_patient:,} at most"
        if max_per_patient > 1
        else "one image each"
    )
    smallest_class_tile = (
        "Smallest class",
        format_percent(sizes.iloc[-1] / n_images),
        f"{sizes.index[-1]}, {pluralize(int(sizes.iloc[-1]), 'image')}",
    )
    largest_class_text = f"largest: {sizes.index[0]}, {format_percent(sizes.iloc[0] / n_images)}"
    if sizes.nunique() == 1:
        smallest_class_tile, largest_class_text = (
            ("Each class", format_percent(sizes.iloc[0] / n_images), pluralize(int(sizes.iloc[0]), "image")),
            "all of one size",
        )
    return [
        ("Images", f"{n_images:,}", unreadable_text),
        ("Patients", f"{len(images_per_patient):,}", per_patient_text),
        ("Classes", f"{len(sizes):,}", largest_class_text),
        smallest_class_tile,
    ]
