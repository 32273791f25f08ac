"""From a cohort's record to its plates: classes and splits, gray values; figures as SVG text, each told in words."""

from functools import partial

import pandas as pd

from fastcxr.io.formatting import count, listed
from fastcxr.report import data_figures
from fastcxr.report.data_tables import histogram_name, split_table
from fastcxr.report.run_reader import CohortRecord
from fastcxr.report.style import Plate, make_plate


def draw_cohort_plates(record: CohortRecord) -> dict[str, Plate]:
    """Every figure that this cohort has the values for, by name."""
    plates = [*_bars(record), *_histograms(record)]
    return {plate.name: plate for plate in plates}


def _bars(record: CohortRecord) -> list[Plate]:
    table = split_table(record)
    if not table["splits"]:
        return []
    images = [[cell["images"] for cell in row["cells"][:-1]] for row in table["rows"]]
    counts = pd.DataFrame(images, index=[row["label"] for row in table["rows"]], columns=table["splits"])
    sizes = listed([f"{row['label']} {count(row['cells'][-1]['images'], 'image')}" for row in table["rows"]])
    return [
        make_plate(partial(data_figures.class_bars, counts), "classes", f"Images of each class, by split: {sizes}.")
    ]


def _histograms(record: CohortRecord) -> list[Plate]:
    table, labels = record.histograms, record.labels
    here = [(k, label) for k, label in enumerate(labels) if (table["label"] == label).any()]
    means = [f"{label} {_mean_gray(table[table['label'] == label]):.0f}" for _, label in here]
    plates = [
        make_plate(
            partial(data_figures.class_histogram, table, label, k),
            histogram_name(k),
            f"Histogram of the gray values of {label}, mean of {count(_measured(table, label), 'image')}.",
        )
        for k, label in here
    ]
    if 1 < len(here) <= data_figures.TOGETHER:
        words = f"Mean histograms of the gray values of each class; mean gray value: {listed(means)}."
        plates += [make_plate(partial(data_figures.mean_histograms, table, labels), "histograms", words)]
    return plates


def _measured(table: pd.DataFrame, label: str) -> int:
    return int(table.loc[table["label"] == label, "images"].iloc[0])


def _mean_gray(rows: pd.DataFrame) -> float:
    return float((rows["mean"] * (rows["bin"] + 0.5)).sum() * data_figures.GRAY / (rows["bin"].max() + 1))
