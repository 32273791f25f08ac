"""Write saliency maps: saliency.csv, explain.json and images, into a run folder or a folder of their own."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fastcxr.data.cache.images import ImageCache
from fastcxr.data.imaging.sniff import Remarks
from fastcxr.inference.explain import (
    Explainer,
    Method,
    SaliencyMap,
    encode_pair_jpeg,
    explain_rows,
    find_class_indices,
    make_explainer,
)
from fastcxr.inference.predict import log_image_warnings
from fastcxr.io.files import atomic_write, write_json
from fastcxr.metrics.predictions import PROBABILITY_PREFIX, Predictions
from fastcxr.models.bundle import Classifier
from fastcxr.progress.base import Progress
from fastcxr.report.saliency_page import write_saliency_page
from fastcxr.workflows.run_dir import THUMBNAIL_PIXELS, acquire_directory, write_table

MAPS_DIR = "figures/maps"
N_TYPICAL_PER_CLASS, N_MEASURED_PER_CLASS = (
    2,
    6,
)  # of each class: right answers that are shown, and images whose attention is measured
N_CHECKED_IMAGES = 4  # images of a run that the check looks at


def write_explanation(
    classifier: Classifier,
    table: pd.DataFrame,
    folder: Path,
    *,
    classes: Sequence[str] = (),
    method: Method = "grad_cam",
    progress: Progress,
) -> tuple[Path, int]:
    """Explain every row of `table` into a new folder; returns the path of its page and how many rows could not be read.

    Raises RecipeError for a class that the model does not know, OutputError for a folder that holds anything.
    """
    find_class_indices(classifier.labels, classes)
    explainer = make_explainer(classifier, table, method)
    acquire_directory(folder)
    remarks: dict[int, Remarks] = {}
    saliency_maps = (("", heat) for heat in explain_rows(explainer, table, classes, progress=progress, remarks=remarks))
    written = write_saliency_maps(folder, saliency_maps, classifier.input_spec.image_size)
    log_image_warnings(table, remarks, classifier.bit_depths)
    write_saliency_metadata(folder, explainer, method, written)
    return write_saliency_page(folder), int((written["error"] != "").sum())


def write_run_saliency(
    folder: Path,
    classifier: Classifier,
    manifest: pd.DataFrame,
    predictions: Predictions,
    misclassified: pd.DataFrame,
    image_cache: ImageCache | None,
) -> None:
    """Explain the most wrong and some typical images of a run, and measure where the attention of each class lies.

    Classes and probabilities are those of `predictions`, as predictions.csv has them.
    """
    columns = [PROBABILITY_PREFIX + label for label in predictions.labels]
    probability_table = predictions.for_split(predictions.primary_split or "").table[["source", "path", *columns]]
    table = choose_images(predictions, misclassified).merge(
        manifest.drop(columns="role", errors="ignore"), on=["source", "path"]
    )
    table = table.merge(probability_table, on=["source", "path"])
    if not len(table):
        return
    explainer = make_explainer(classifier, table, image_cache=image_cache, n_checked=N_CHECKED_IMAGES)
    saliency_maps = explain_rows(explainer, table, (), image_cache, Progress(), table[columns].to_numpy(float))
    saliency_maps = zip(table["role"], saliency_maps, strict=True)
    write_saliency_metadata(
        folder,
        explainer,
        "grad_cam",
        write_saliency_maps(folder, saliency_maps, THUMBNAIL_PIXELS, ("wrong", "typical")),
    )


def choose_images(predictions: Predictions, misclassified: pd.DataFrame) -> pd.DataFrame:
    """source, path and role: wrong; typical, the surest right answers of each class; or measured, spread evenly."""
    scorable = predictions.for_split(predictions.primary_split or "").scorable()
    table = scorable.table.assign(surest=scorable.probability.max(axis=1))[
        ["source", "path", "label", "predicted", "surest"]
    ]
    chosen = [misclassified[["source", "path"]].assign(role="wrong")]
    correct = table[table["label"] == table["predicted"]].sort_values(["surest", "path"], ascending=[False, True])
    chosen += [
        correct.groupby("label").head(N_TYPICAL_PER_CLASS).sort_values("label", kind="stable").assign(role="typical")
    ]
    for _, rows in table.groupby("predicted"):
        positions = np.unique(np.linspace(0, len(rows) - 1, min(N_MEASURED_PER_CLASS, len(rows))).round().astype(int))
        chosen.append(rows.iloc[positions].assign(role="measured"))
    return pd.concat(chosen)[["source", "path", "role"]].reset_index(drop=True)


def write_saliency_maps(
    folder: Path, saliency_maps: Iterable[tuple[str, SaliencyMap]], image_size: int, drawn_roles: Sequence[str] = ("",)
) -> pd.DataFrame:
    """saliency.csv, and a picture of `size` pixels for each map whose role is among `drawn`; returns the table."""
    (folder / MAPS_DIR).mkdir(parents=True, exist_ok=True)
    rows = []
    for role, saliency_map in saliency_maps:
        name = f"{MAPS_DIR}/{len(rows):04d}.jpg" if role in drawn_roles and saliency_map.normalized is not None else ""
        if name:
            atomic_write(folder / name, encode_pair_jpeg(saliency_map.image, saliency_map.normalized, image_size))
        rows.append({"role": role} | saliency_map.to_row() | {"file": name})
    table = pd.DataFrame(rows)
    write_table(folder / "saliency.csv", table)
    return table


def write_saliency_metadata(folder: Path, explainer: Explainer, method: Method, map_table: pd.DataFrame) -> None:
    """explain.json: the method, its check, and for each predicted class the median share of heat in the border."""
    check = explainer.check
    measured = map_table[(map_table["class"] == map_table["predicted"]) & map_table["border_share"].notna()]
    measured = measured[measured["role"].isin(["", "measured"])]  # the most wrong images say little of the others
    border_shares = measured.groupby("class")["border_share"].agg(["median", "size"])
    metadata = {
        "method": method,
        "failure_reason": explainer.failure_reason,
        "check": check and {"correlation": list(check.correlation), "images": check.images, "passed": check.is_passed},
        "border_share": {
            label: {"median": row["median"], "images": int(row["size"])} for label, row in border_shares.iterrows()
        },
    }
    write_json(folder / "explain.json", metadata)
