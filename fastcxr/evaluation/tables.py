"""From a run's record and its numbers to the rows that the page lays out."""

from typing import Any

import numpy as np
import pandas as pd

from fastcxr.evaluation.predictions import PREFIX, SPLITS, most_wrong
from fastcxr.evaluation.record import RunRecord
from fastcxr.evaluation.words import count, listed

FIGURES = ("sensitivity", "specificity", "precision", "f1")
CAME_FROM = {
    "column": "a column of the table",
    "table": "a joined table",
    "regex": "a pattern in the path",
    "dicom": "a DICOM tag, as a salted hash",
    "nih": "NIH file names",
    "kermany": "Kermany file names",
    "im": "IM-… file names",
}
DRAWN = {
    "given": "given by the data",
    "patient": "drawn patient by patient, so that no patient stands in two",
    "image": "drawn image by image",
    "kept": "kept from an earlier run",
}


def split_table(record: RunRecord) -> dict[str, Any]:
    """Images and patients of each class in each split: from the manifest, else from the predictions that are there."""
    table = record.manifest if len(record.manifest) else record.predictions.table
    here = set(table["split"])
    splits = [*(s for s in SPLITS if s in here), *sorted(here - {*SPLITS, ""})]
    labels = list(record.predictions.labels)
    labels += sorted(set(table["label"]) - {*labels, ""})
    of_class = {label: table[table["label"] == label] for label in labels}
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


def class_rows(part: dict[str, Any]) -> list[dict[str, Any]]:
    """The classification report: a row a class, then their mean and their mean weighted by support."""
    rows = []
    for k, label in enumerate(part["labels"]):
        ranks = {"auroc": part["auroc"]["per_class"][label], "ap": part["average_precision"]["per_class"][label]}
        rows.append({"name": label, "number": k} | part["per_class"][label] | ranks)
    support = sum(row["support"] for row in rows)
    names = (*FIGURES, "auroc", "ap")
    mean = {name: _weighted(rows, name, lambda row: 1) for name in names}
    weighted = {name: _weighted(rows, name, lambda row: row["support"]) for name in names}
    return [
        *rows,
        {"name": "Mean of the classes", "number": None, "support": support} | mean,
        {"name": "Mean weighted by images", "number": None, "support": support} | weighted,
    ]


def mixup_rows(part: dict[str, Any], most: int = 5) -> list[dict[str, Any]]:
    """The cells of the confusion matrix beside its diagonal, the largest share of their row first."""
    labels, matrix = part["labels"], part["confusion_matrix"]
    cells = [(i, k, n, sum(row)) for i, row in enumerate(matrix) for k, n in enumerate(row) if n and i != k]
    cells.sort(key=lambda cell: (-cell[2] / cell[3], -cell[2]))
    return [{"truth": labels[i], "guess": labels[k], "n": n, "of": of, "share": n / of} for i, k, n, of in cells[:most]]


def _weighted(rows: list[dict[str, Any]], name: str, weight) -> float | None:
    known = [(row[name], weight(row)) for row in rows if row[name] is not None and weight(row)]
    values, weights = zip(*known, strict=True) if known else ((), ())
    return float(np.average(values, weights=weights)) if known else None


def reason_rows(part: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Each reason once, with the figures that it explains; two classes need no excuse for top-2."""
    grouped: dict[str, list[str]] = {}
    for name, why in part["reasons"].items():
        if name != "top2_accuracy" or len(part["labels"]) > 2:
            grouped.setdefault(why, []).append(name)
    return list(grouped.items())


def sample_strips(record: RunRecord) -> list[dict[str, Any]]:
    """A strip of thumbnails for each class that has some."""
    images = record.images[(record.images["role"] == "sample") & (record.images["uri"] != "")]
    table = record.manifest if len(record.manifest) else record.predictions.table
    labels = table.drop_duplicates(["source", "path"])[["source", "path", "label"]]
    images = images.merge(labels, on=["source", "path"], how="left").fillna({"label": ""})
    order = {label: k for k, label in enumerate(record.predictions.labels)}
    strips = [
        {"label": label, "number": order.get(label), "images": rows[["path", "uri"]].to_dict("records")}
        for label, rows in images.groupby("label", sort=True)
    ]
    return sorted(strips, key=lambda strip: (strip["number"] is None, strip["number"]))


def wrong_cards(record: RunRecord, without_thumbnails: int = 8) -> list[dict[str, Any]]:
    """The most wrong images, each with its thumbnail (or none) and what the model gave to truth and guess."""
    images = record.images[record.images["role"] == "wrong"]
    uris = {(row.source, row.path): row.uri for row in images.itertuples()}
    rows = most_wrong(record.predictions, len(images) or without_thumbnails)
    return [_card(row, record.predictions.labels, uris) for row in rows.to_dict("records")]


def _card(row: dict[str, Any], labels: tuple[str, ...], uris: dict[tuple[str, str], str]) -> dict[str, Any]:
    given = sorted(((row[PREFIX + label], k) for k, label in enumerate(labels)), key=lambda item: (-item[0], item[1]))
    guess = labels[given[0][1]]
    # a long list of classes is cut to the four that matter, the truth always among them
    shown = (
        [item for i, item in enumerate(given) if i < 3 or labels[item[1]] == row["label"]][:4]
        if len(given) > 4
        else given
    )
    bars = [{"label": labels[k], "number": k, "probability": p, "truth": labels[k] == row["label"]} for p, k in shown]
    uri = uris.get((row["source"], row["path"]), "")
    return {
        "path": row["path"],
        "patient": row["patient"],
        "truth": row["label"],
        "guess": guess,
        "bars": bars,
        "uri": uri,
    }
