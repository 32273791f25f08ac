"""Heat maps become files: explain.csv, explain.json and pictures, beside a run's report or in a folder of their own."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fastcxr.data.cache.images import Pictures
from fastcxr.data.imaging.sniff import Remarks
from fastcxr.inference.explain import Explainer, Heat, Method, explain_each, find_classes, make_explainer, pair_jpeg
from fastcxr.inference.predict import tell_remarks
from fastcxr.io.files import write_json, write_whole
from fastcxr.metrics.predictions import PREFIX, Predictions
from fastcxr.models.bundle import Classifier
from fastcxr.progress.base import Progress
from fastcxr.report.saliency_page import draw_explanation
from fastcxr.workflows.run_dir import THUMBNAIL_SIZE, claim, write_table

MAPS = "figures/maps"
TYPICAL, EACH = 2, 6  # of each class: right answers that are shown, and images whose attention is measured
CHECKED = 4  # images of a run that the check looks at


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
    find_classes(classifier.labels, classes)
    explainer = make_explainer(classifier, table, method)
    claim(folder)
    remarks: dict[int, Remarks] = {}
    heats = (("", heat) for heat in explain_each(explainer, table, classes, progress=progress, remarks=remarks))
    written = write_maps(folder, heats, classifier.pixels.image_size)
    tell_remarks(table, remarks, classifier.bit_depths)
    write_facts(folder, explainer, method, written)
    return draw_explanation(folder), int((written["error"] != "").sum())


def write_run_maps(
    folder: Path,
    classifier: Classifier,
    manifest: pd.DataFrame,
    predictions: Predictions,
    wrong: pd.DataFrame,
    pictures: Pictures | None,
) -> None:
    """Explain the most wrong and some typical images of a run, and measure where the attention of each class lies.

    Classes and probabilities are those of `predictions`, as predictions.csv has them.
    """
    columns = [PREFIX + label for label in predictions.labels]
    scored = predictions.part(predictions.headline_split or "").table[["source", "path", *columns]]
    table = choose_images(predictions, wrong).merge(
        manifest.drop(columns="role", errors="ignore"), on=["source", "path"]
    )
    table = table.merge(scored, on=["source", "path"])
    if not len(table):
        return
    explainer = make_explainer(classifier, table, pictures=pictures, checked=CHECKED)
    heats = explain_each(explainer, table, (), pictures, Progress(), table[columns].to_numpy(float))
    heats = zip(table["role"], heats, strict=True)
    write_facts(folder, explainer, "grad_cam", write_maps(folder, heats, THUMBNAIL_SIZE, ("wrong", "typical")))


def choose_images(predictions: Predictions, wrong: pd.DataFrame) -> pd.DataFrame:
    """source, path and role: wrong; typical, the surest right answers of each class; or measured, spread evenly."""
    part = predictions.part(predictions.headline_split or "").scored()
    table = part.table.assign(surest=part.probability.max(axis=1))[["source", "path", "label", "predicted", "surest"]]
    chosen = [wrong[["source", "path"]].assign(role="wrong")]
    right = table[table["label"] == table["predicted"]].sort_values(["surest", "path"], ascending=[False, True])
    chosen += [right.groupby("label").head(TYPICAL).sort_values("label", kind="stable").assign(role="typical")]
    for _, rows in table.groupby("predicted"):
        at = np.unique(np.linspace(0, len(rows) - 1, min(EACH, len(rows))).round().astype(int))
        chosen.append(rows.iloc[at].assign(role="measured"))
    return pd.concat(chosen)[["source", "path", "role"]].reset_index(drop=True)


def write_maps(
    folder: Path, heats: Iterable[tuple[str, Heat]], size: int, drawn: Sequence[str] = ("",)
) -> pd.DataFrame:
    """explain.csv, and a picture of `size` pixels for each map whose role is among `drawn`; returns the table."""
    (folder / MAPS).mkdir(parents=True, exist_ok=True)
    rows = []
    for role, heat in heats:
        name = f"{MAPS}/{len(rows):04d}.jpg" if role in drawn and heat.shown is not None else ""
        if name:
            write_whole(folder / name, pair_jpeg(heat.square, heat.shown, size))
        rows.append({"role": role} | heat.row() | {"file": name})
    table = pd.DataFrame(rows)
    write_table(folder / "explain.csv", table)
    return table


def write_facts(folder: Path, explainer: Explainer, method: Method, written: pd.DataFrame) -> None:
    """explain.json: the method, its check, and for each predicted class the median share of heat in the border."""
    check = explainer.check
    own = written[(written["class"] == written["predicted"]) & written["outside"].notna()]
    own = own[own["role"].isin(["", "measured"])]  # the most wrong images say little of the others
    outside = own.groupby("class")["outside"].agg(["median", "size"])
    facts = {
        "method": method,
        "withheld": explainer.withheld,
        "check": check and {"correlation": list(check.correlation), "images": check.images, "passed": check.is_passed},
        "outside": {label: {"median": row["median"], "images": int(row["size"])} for label, row in outside.iterrows()},
    }
    write_json(folder / "explain.json", facts)
