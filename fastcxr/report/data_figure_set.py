"""From a cohort's record to its plates: classes and splits, gray values; figures as SVG text, each told in words."""

from functools import partial

import pandas as pd

from fastcxr.io.formatting import join_names, pluralize
from fastcxr.report import data_figures
from fastcxr.report.data_tables import make_histogram_name, make_split_table
from fastcxr.report.run_reader import DatasetRecord
from fastcxr.report.style import SvgFigure, to_svg_figure


def make_dataset_figures(record: DatasetRecord) -> dict[str, SvgFigure]:
    """Every figure that this cohort has the values for, by name."""
    svg_figures = [*_make_class_count_figures(record), *_make_histogram_figures(record)]
    return {figure.name: figure for figure in svg_figures}


def _make_class_count_figures(record: DatasetRecord) -> list[SvgFigure]:
    table = make_split_table(record)
    if not table["splits"]:
        return []
    image_counts = [[cell["images"] for cell in row["cells"][:-1]] for row in table["rows"]]
    counts = pd.DataFrame(image_counts, index=[row["label"] for row in table["rows"]], columns=table["splits"])
    class_sizes = join_names(
        [f"{row['label']} {pluralize(row['cells'][-1]['images'], 'image')}" for row in table["rows"]]
    )
    return [
        to_svg_figure(
            partial(data_figures.plot_class_counts, counts),
            "classes",
            f"Images of each class, by split: {class_sizes}.",
        )
    ]


def _make_histogram_figures(record: DatasetRecord) -> list[SvgFigure]:
    table, labels = record.histograms, record.labels
    present_classes = [(k, label) for k, label in enumerate(labels) if (table["label"] == label).any()]
    means = [f"{label} {_compute_mean_gray(table[table['label'] == label]):.0f}" for _, label in present_classes]
    svg_figures = [
        to_svg_figure(
            partial(data_figures.plot_class_histogram, table, label, k),
            make_histogram_name(k),
            f"Histogram of the gray values of {label}, mean of {pluralize(_count_measured(table, label), 'image')}.",
        )
        for k, label in present_classes
    ]
    if 1 < len(present_classes) <= data_figures.MAX_COMBINED_CLASSES:
        description = f"Mean histograms of the gray values of each class; mean gray value: {join_names(means)}."
        svg_figures += [
            to_svg_figure(partial(data_figures.plot_mean_histograms, table, labels), "histograms", description)
        ]
    return svg_figures


def _count_measured(table: pd.DataFrame, label: str) -> int:
    return int(table.loc[table["label"] == label, "images"].iloc[0])


def _compute_mean_gray(rows: pd.DataFrame) -> float:
    return float((rows["mean"] * (rows["bin"] + 0.5)).sum() * data_figures.N_GRAY_LEVELS / (rows["bin"].max() + 1))
