"""Rows of the dataset tables: classes and splits, example images, files, unreadable images."""

from typing import Any

import pandas as pd

from fastcxr.data.demographics import find_demographic_column, parse_age, parse_cells, parse_sex
from fastcxr.data.findings import is_multi_label
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
    "chexpert": "CheXpert paths",
    "mimic": "MIMIC-CXR paths",
    "copy": "duplicate images",
}
MAX_CLASS_IMAGES = 6  # an image with several findings is shown for each of them
SPLIT_ORIGIN_TEXTS = {
    "given": "given by the data",
    "patient": "drawn by patient (all images of a patient are in one split)",
    "image": "drawn by image",
    "kept": "reused from an earlier run",
    "source": "by source (one source is held out, the others are split by patient)",
}


def make_dataset_context(record: DatasetRecord) -> dict[str, Any]:
    """Return the template values of a dataset."""
    is_finding = is_multi_label(record.table)
    return {
        "unit": "finding" if is_finding else "class",
        "units": "findings" if is_finding else "classes",
        "splits": make_split_table(record),
        "skipped": make_skipped_rows(record.skipped),
        "class_images": make_class_images(record),
        "files": make_file_rows(record),
        "measured": describe_measured_images(record),
    }


def make_split_table(record: DatasetRecord) -> dict[str, Any]:
    """Return the number of images and patients of each class in each split."""
    table = record.table
    splits = list_splits(table)
    rows_by_label = {label: table[table["label"] == label] for label in record.labels}
    rows = [{"label": label, "cells": _make_cells(rows, splits)} for label, rows in rows_by_label.items()]
    return {"splits": splits, "rows": rows, "total": _make_cells(table, splits), "remarks": _make_remarks(table)}


def list_splits(table: pd.DataFrame) -> list[str]:
    """Return the splits of a table, train, valid and test first."""
    present = set(table["split"].unique())
    return [*(s for s in SPLITS if s in present), *sorted(present - {*SPLITS, ""})]


def _make_cells(rows: pd.DataFrame, splits: list[str]) -> list[dict[str, int]]:
    parts = [*(rows[rows["split"] == split] for split in splits), rows]
    return [{"images": len(part), "patients": part["patient"].nunique()} for part in parts]


def make_patient_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per patient, class and split: patient, label, split, age [years], sex.

    Age and sex are those of the first image that states them; without any, age is NaN and sex None.
    """
    columns = {}
    for name, parse in (("age", parse_age), ("sex", parse_sex)):
        column = find_demographic_column(table.columns, name)
        cells = table[column].astype(str) if column else pd.Series("", index=table.index)
        columns[name] = parse_cells(cells, parse)
    keys = ["patient", "label", "split"]
    patients = table[keys].assign(**columns).groupby(keys, sort=True).first().reset_index()
    return patients.assign(age=patients["age"].astype(float))


def _make_remarks(table: pd.DataFrame) -> list[str]:
    """Return sentences on the origin of patient identifiers and splits."""
    remarks = []
    if "patient_origin" in table:
        origins = describe_patient_origins(table)
        remarks += [f"Patient identifiers: {origins}."] if origins else []
        if n_without_patient := int((table["patient_origin"] == "image").sum()):
            remarks.append(
                f"{pluralize(n_without_patient, 'image')} without a patient identifier: "
                f"{'each' if n_without_patient > 1 else 'it'} is treated as a separate patient."
            )
    if "split_origin" in table:
        texts = _format_origins(table["split_origin"].value_counts().drop("", errors="ignore"), SPLIT_ORIGIN_TEXTS)
        if len(texts) == 1:  # the count of all images is no information
            texts = [texts[0].rpartition(" (")[0]]
        remarks += [f"Splits: {join_names(texts)}."] if texts else []
    return remarks


def describe_patient_origins(table: pd.DataFrame) -> str:
    """Return where the patient identifiers were read; empty if there are none."""
    if "patient_origin" not in table:
        return ""
    sizes = table["patient_origin"].value_counts().drop(["image", ""], errors="ignore")
    return join_names(_format_origins(sizes, PATIENT_ORIGIN_TEXTS))


def _format_origins(sizes: pd.Series, origin_texts: dict[str, str]) -> list[str]:
    return [f"{origin_texts.get(str(name), name)} ({pluralize(int(n), 'image')})" for name, n in sizes.items()]


def make_skipped_rows(skipped: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the unreadable images by error code, the most frequent first, with every path and reason."""
    rows = [
        {"code": code, "count": len(group), "files": group[["path", "reason"]].to_dict("records")}
        for code, group in skipped.groupby("code", sort=True)
    ]
    return sorted(rows, key=lambda row: -row["count"])


def make_class_images(record: DatasetRecord) -> list[dict[str, Any]]:
    """Return thumbnails and name of the histogram for each class that has either of them."""
    images = record.thumbnails[(record.thumbnails["role"] == "sample") & (record.thumbnails["uri"] != "")]
    labels = record.labelled_images.drop_duplicates(["source", "path", "label"])[["source", "path", "label"]]
    images = images.merge(labels, on=["source", "path"], how="left").fillna({"label": ""})
    images_by_label = {
        str(label): rows[["path", "uri"]].head(MAX_CLASS_IMAGES).to_dict("records")
        for label, rows in images.groupby("label")
    }
    n_classes, measured_labels = len(record.labels), set(record.histograms["label"])
    return [
        {
            "label": label,
            "number": k if k < n_classes else None,
            "images": images_by_label.get(label, []),
            "figure": make_histogram_name(k),
        }
        for k, label in enumerate([*record.labels, *sorted(images_by_label.keys() - set(record.labels))])
        if label in images_by_label or label in measured_labels
    ]


def make_histogram_name(class_index: int) -> str:
    """Return the figure name of the histogram of a class, numbered from 1."""
    return f"histogram_{class_index + 1}"


def describe_measured_images(record: DatasetRecord) -> str:
    """Return the number of images behind the histograms: `200 of each class` or `a 82 and b 200`."""
    sizes = record.histograms.groupby("label")["images"].first().astype(int).to_dict()
    if len(set(sizes.values())) == 1:
        return f"{next(iter(sizes.values())):,} of each {'finding' if is_multi_label(record.table) else 'class'}"
    return join_names([f"{label} {n:,}" for label, n in sizes.items()])


def make_file_rows(record: DatasetRecord) -> list[dict[str, Any]]:
    """Return formats and sizes of the measured files of each class, and its sources if there are several."""
    has_several_sources = record.table["source"].nunique() > 1
    rows = []
    for class_index, label in enumerate(record.labels):
        files = record.files[record.files["label"] == label]
        if len(files):
            kinds = files.groupby("kind")["images"].sum().sort_values(ascending=False, kind="stable")
            images = record.labelled_images
            sources = images.loc[images["label"] == label, "source"].value_counts()
            row = {
                "label": label,
                "number": class_index,
                "kinds": _format_counts(kinds),
                "measured": int(files["images"].sum()),
                "sources": _format_counts(sources) if has_several_sources else "",
            }
            rows.append(row | _summarize_sizes(files))
    return rows


def _format_counts(sizes: pd.Series) -> str:
    """Return a single name without count, several with their counts: `PNG` or `JPEG 103, PNG 21`."""
    return str(sizes.index[0]) if len(sizes) == 1 else ", ".join(f"{name} {n:,}" for name, n in sizes.items())


def _summarize_sizes(files: pd.DataFrame) -> dict[str, str]:
    """Return the median image size by area, and the range if sizes differ."""
    files = files.assign(area=files["width"] * files["height"]).sort_values(["area", "width"], kind="stable")
    median_position = files["images"].cumsum().searchsorted(files["images"].sum() / 2)
    low, median, high = (
        f"{row.width:,.0f} × {row.height:,.0f}" for row in files.iloc[[0, median_position, -1]].itertuples()
    )
    return {"size": median, "range": f"{low} to {high}" if low != high else ""}


def make_tiles(record: DatasetRecord) -> list[tuple[str, str, str]]:
    """Return the numbers of images, patients and classes at the top of the page as (name, value, explanation)."""
    return [*make_image_tiles(record), *_make_class_tiles(record)]


def make_image_tiles(record: DatasetRecord) -> list[tuple[str, str, str]]:
    """Return the numbers of images and patients as (name, value, explanation)."""
    images_per_patient = record.table["patient"].value_counts()
    n_images, n_patients, max_per_patient = len(record.table), len(images_per_patient), int(images_per_patient.max())
    mean_per_patient = f"mean {n_images / n_patients:.1f} images per patient, maximum {max_per_patient:,}"
    n_skipped = len(record.skipped)
    readable = f"{n_skipped:,} more unreadable" if n_skipped else "all files readable"
    if decoded := record.run.get("decoded"):
        readable = f"{n_skipped:,} unreadable in a sample of {decoded['images']:,}"
    return [
        ("Images", f"{n_images:,}", readable),
        ("Patients", f"{n_patients:,}", mean_per_patient if max_per_patient > 1 else "one image per patient"),
    ]


def describe_decoded(record: DatasetRecord) -> str:
    """Return how many images were decoded and how many of them are unreadable; empty if all were decoded."""
    decoded = record.run.get("decoded")
    if not decoded:
        return ""
    numbers = f"{decoded['images']:,} of {decoded['all_images']:,} images were decoded (random sample)"
    return f"{numbers}; unreadable images: {len(record.skipped):,} of {decoded['images']:,}"


def _make_class_tiles(record: DatasetRecord) -> list[tuple[str, str, str]]:
    sizes, n_images = record.table["label"].value_counts(), len(record.table)
    (largest, n_largest), (smallest, n_smallest) = ((sizes.index[k], int(sizes.iloc[k])) for k in (0, -1))
    largest_share, smallest_share = format_percent(n_largest / n_images), format_percent(n_smallest / n_images)
    class_text = f"largest: {largest}, {largest_share}"
    smallest_class_tile = ("Smallest class", smallest_share, f"{smallest}, {pluralize(n_smallest, 'image')}")
    if n_smallest == n_largest:
        class_text, smallest_class_tile = "equal size", ("Each class", largest_share, pluralize(n_largest, "image"))
    return [("Classes", f"{len(sizes):,}", class_text), smallest_class_tile]
