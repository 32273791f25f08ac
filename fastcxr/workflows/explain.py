"""Saliency maps of a run or of new images: saliency.csv, explain.json and images."""

from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path

import numpy as np
import pandas as pd

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.data.cache.images import ImageCache
from fastcxr.data.file_names import find_identifying_paths, warn_identifying_paths
from fastcxr.data.findings import split_labels
from fastcxr.data.imaging.sniff import Remarks
from fastcxr.inference.explain import (
    Explainer,
    Method,
    explain_rows,
    make_explainer,
)
from fastcxr.inference.images import log_image_warnings
from fastcxr.inference.saliency_maps import SaliencyMap, encode_pair_jpeg, find_class_indices
from fastcxr.io.files import atomic_write, write_json
from fastcxr.metrics.predictions import Predictions
from fastcxr.models.bundle import Classifier
from fastcxr.progress.base import Progress
from fastcxr.report.saliency_page import write_saliency_page
from fastcxr.workflows.run_dir import THUMBNAIL_PIXELS, acquire_directory, select_wrong_images, write_table
from fastcxr.workflows.run_state import IMAGE_KEY

MAPS_DIR = "figures/maps"
N_TYPICAL_PER_CLASS = 2  # correctly classified images shown
N_TYPICAL_PER_FINDING, MAX_EXPLAINED_FINDINGS = 1, 14
N_MEASURED_PER_CLASS = 6  # images whose border share is measured
N_CHECKED_IMAGES = 4  # images of a run used for the sanity check


def write_explanation(
    classifier: Classifier,
    table: pd.DataFrame,
    folder: Path,
    *,
    classes: Sequence[str] = (),
    method: Method = "grad_cam",
    progress: Progress,
) -> tuple[Path, int]:
    """Write saliency maps of all rows of `table` into a new folder; return the page and the number of unreadable rows.

    Raises RecipeError for an unknown class or finding, OutputError for a folder that is not empty.
    """
    find_class_indices(classifier, classes)
    explainer = make_explainer(classifier, table, method)
    acquire_directory(folder)
    remarks: dict[int, Remarks] = {}
    maps = explain_rows(explainer, table, classes, progress=progress, remarks=remarks)
    written = write_saliency_maps(folder, zip(repeat(""), maps), classifier.input_spec.image_size)
    log_image_warnings(table, remarks, classifier.bit_depths)
    warn_identifying_paths(find_identifying_paths(table))
    write_saliency_metadata(folder, explainer, method, written)
    return write_saliency_page(folder), int((written["error"] != "").sum())


def write_run_saliency(
    folder: Path,
    classifier: Classifier,
    manifest: pd.DataFrame,
    predictions: Predictions,
    image_cache: ImageCache | None,
) -> None:
    """Write saliency maps of the worst errors and of typical images of a run, and measure the border share per class.

    Classes, probabilities and out-of-distribution verdicts are those of `predictions`, which are in predictions.csv.
    """
    choose = choose_finding_images if predictions.is_multi_label else choose_images
    table = choose(predictions).merge(manifest.drop(columns=["role", "finding"], errors="ignore"), on=IMAGE_KEY)
    if not len(table):
        return
    split_table = predictions.for_split(predictions.primary_split).table
    chosen = Predictions(table[IMAGE_KEY].merge(split_table, on=IMAGE_KEY), predictions.labels)
    explainer = make_explainer(classifier, table, image_cache=image_cache, n_checked=N_CHECKED_IMAGES)
    row_classes = table["finding"].tolist() if "finding" in table else None
    maps = explain_rows(explainer, table, (), image_cache, Progress(), chosen, row_classes=row_classes)
    saliency_maps = zip(table["role"], maps, strict=True)
    written = write_saliency_maps(folder, saliency_maps, THUMBNAIL_PIXELS, ("wrong", "typical"))
    write_saliency_metadata(folder, explainer, "grad_cam", written)


def choose_images(predictions: Predictions) -> pd.DataFrame:
    """Return the images to explain: columns source, path and role.

    Roles: wrong; typical (the most confident correct predictions of each class); measured (evenly spaced rows of each
    predicted class).
    """
    scorable = predictions.for_split(predictions.primary_split or "").scorable()
    table = scorable.table.assign(confidence=scorable.probability.max(axis=1))
    correct = table[table["label"] == table["predicted"]].sort_values(["confidence", "path"], ascending=[False, True])
    typical = correct.groupby("label").head(N_TYPICAL_PER_CLASS).sort_values("label", kind="stable")
    misclassified = select_wrong_images(predictions)
    chosen = [misclassified.assign(role="wrong"), typical.assign(role="typical")]
    for _, rows in table[table["predicted"] != ""].groupby("predicted"):
        positions = np.unique(np.linspace(0, len(rows) - 1, min(N_MEASURED_PER_CLASS, len(rows))).round().astype(int))
        chosen.append(rows.iloc[positions].assign(role="measured"))
    return pd.concat(chosen)[["source", "path", "role"]].reset_index(drop=True)


def choose_finding_images(predictions: Predictions) -> pd.DataFrame:
    """Return the images and findings to explain: columns source, path, role and finding; roles as in choose_images.

    Typical are the images with a finding that has the highest probability there. Measured are evenly spaced images that
    reach the threshold of a finding. At most MAX_EXPLAINED_FINDINGS findings are explained, those with most images.
    """
    scorable = predictions.for_split(predictions.primary_split or "").scorable()
    truth, probability, keys = scorable.truth, scorable.probability, scorable.table[IMAGE_KEY]
    order = np.argsort(-(truth == 1).sum(axis=0), kind="stable")[:MAX_EXPLAINED_FINDINGS]
    wrong = select_wrong_images(predictions)[[*IMAGE_KEY, "finding"]].assign(role="wrong")
    parts = [wrong[wrong["finding"].isin([scorable.labels[k] for k in order])]]
    predicted = [set(split_labels(names)) for names in scorable.table["predicted"]]
    for k in order:
        name = scorable.labels[k]
        present = np.flatnonzero(truth[:, k] == 1)
        typical = present[np.argsort(-probability[present, k], kind="stable")][:N_TYPICAL_PER_FINDING]
        reached = np.flatnonzero([name in names for names in predicted])
        positions = np.linspace(0, len(reached) - 1, min(N_MEASURED_PER_CLASS, len(reached))).round().astype(int)
        parts += [
            keys.iloc[rows].assign(finding=name, role=role)
            for role, rows in (("typical", typical), ("measured", reached[np.unique(positions)]))
        ]
    return pd.concat(parts)[[*IMAGE_KEY, "role", "finding"]].reset_index(drop=True)


def write_saliency_maps(
    folder: Path, saliency_maps: Iterable[tuple[str, SaliencyMap]], image_size: int, drawn_roles: Sequence[str] = ("",)
) -> pd.DataFrame:
    """Write and return saliency.csv; write images of `image_size` pixels of the maps with a role in `drawn_roles`."""
    (folder / MAPS_DIR).mkdir(parents=True, exist_ok=True)
    rows = []
    for role, saliency_map in saliency_maps:
        name, image = "", saliency_map.image
        if role in drawn_roles and image is not None and (normalized := saliency_map.normalized) is not None:
            name = f"{MAPS_DIR}/{len(rows):04d}.jpg"
            atomic_write(folder / name, encode_pair_jpeg(image, normalized, image_size))
        rows.append({"role": role} | saliency_map.to_row() | {"file": name})
    table = pd.DataFrame(rows)
    write_table(folder / "saliency.csv", table)
    return table


def write_saliency_metadata(folder: Path, explainer: Explainer, method: Method, map_table: pd.DataFrame) -> None:
    """Write explain.json: the method, its sanity check, and the median border share of each predicted class."""
    check = explainer.check
    is_predicted = [label in split_labels(names) or label == names for label, names in _list_predicted(map_table)]
    measured = map_table[pd.Series(is_predicted, index=map_table.index, dtype=bool) & map_table["border_share"].notna()]
    measured = measured[measured["role"].isin(["", "measured"])]  # the worst errors are not representative
    border_shares = measured.groupby("class")["border_share"].agg(["median", "size"])
    metadata = {
        "method": method,
        **({"task": MULTI_LABEL} if explainer.classifier.task == MULTI_LABEL else {}),
        "failure_reason": explainer.failure_reason,
        "check": check and {"correlation": list(check.correlation), "images": check.images, "passed": check.is_passed},
        "border_share": {
            label: {"median": row["median"], "images": int(row["size"])} for label, row in border_shares.iterrows()
        },
    }
    write_json(folder / "explain.json", metadata)


def _list_predicted(map_table: pd.DataFrame) -> Iterable[tuple[str, str]]:
    """Return the explained class or finding and the predicted ones of each map."""
    return zip(map_table["class"], map_table["predicted"], strict=True)
