"""All figures of a dataset as SVG: images and patients per class and split, age, sex, gray value histograms."""

from functools import partial

import pandas as pd

from fastcxr.data.findings import is_multi_label
from fastcxr.io.formatting import join_names, pluralize
from fastcxr.report import data_figures
from fastcxr.report.data_tables import make_histogram_name, make_patient_table, make_split_table
from fastcxr.report.html import SPLIT_NAMES
from fastcxr.report.run_reader import DatasetRecord
from fastcxr.report.style import SvgFigure, to_svg_figure


def make_dataset_figures(record: DatasetRecord) -> dict[str, SvgFigure]:
    """Return every figure whose values are in the folder, by name."""
    svg_figures = [
        *_make_class_count_figures(record),
        *_make_demographic_figures(record),
        *_make_histogram_figures(record),
    ]
    return {figure.name: figure for figure in svg_figures}


def _make_class_count_figures(record: DatasetRecord) -> list[SvgFigure]:
    table = make_split_table(record)
    if not table["splits"] or is_multi_label(record.table):  # the shares of findings do not add up to 100 %
        return []
    labels, splits = [row["label"] for row in table["rows"]], [SPLIT_NAMES.get(s, s) for s in table["splits"]]
    svg_figures = []
    for name, unit in (("classes", "image"), ("patients", "patient")):
        rows = [[cell[unit + "s"] for cell in row["cells"][:-1]] for row in table["rows"]]
        counts = pd.DataFrame(rows, index=labels, columns=splits)
        class_sizes = [f"{row['label']} {pluralize(row['cells'][-1][unit + 's'], unit)}" for row in table["rows"]]
        description = f"{unit.capitalize()}s per class and split: {join_names(class_sizes)}."
        svg_figures.append(to_svg_figure(partial(data_figures.plot_class_counts, counts), name, description))
    return svg_figures


def _make_demographic_figures(record: DatasetRecord) -> list[SvgFigure]:
    """Return the distributions of age and sex, as far as the data states them."""
    is_single = not is_multi_label(record.table)
    patients = make_patient_table(record.table if is_single else record.table.assign(label="all images"))
    splits = [SPLIT_NAMES.get(split, split) for split in make_split_table(record)["splits"]] or ["all"]
    names = [SPLIT_NAMES.get(split, split) or "all" for split in patients["split"].tolist()]
    patients = patients.assign(split=pd.Categorical(names, splits))
    if patients["label"].nunique() > data_figures.MAX_COMBINED_CLASSES:
        patients = patients.assign(label="all classes")
    svg_figures = []
    for name, plot in (("age", data_figures.plot_ages), ("sex", data_figures.plot_sexes)):
        if n_known := patients.loc[patients[name].notna(), "patient"].nunique():
            n_patients = pluralize(patients["patient"].nunique(), "patient")
            caption = f"{name.capitalize()} is known for {n_known:,} of {n_patients}."
            description = f"Distribution of {name} by class and split. {caption}"
            svg_figures.append(to_svg_figure(partial(plot, patients), name, description, caption))
    return svg_figures


def _make_histogram_figures(record: DatasetRecord) -> list[SvgFigure]:
    table, labels = record.histograms, record.labels
    svg_figures, means = [], []
    for k, label in enumerate(labels):
        rows = table[table["label"] == label]
        if len(rows):
            means.append(f"{label} {_compute_mean_gray(rows):.0f}")
            n_images = pluralize(int(rows["images"].iloc[0]), "image")
            plot = partial(data_figures.plot_class_histogram, table, label, k)
            description = f"Gray value histogram of {label}, mean of {n_images}."
            svg_figures.append(to_svg_figure(plot, make_histogram_name(k), description))
    if 1 < len(means) <= data_figures.MAX_COMBINED_CLASSES:
        unit = "finding" if is_multi_label(record.table) else "class"
        description = f"Mean gray value histogram of each {unit}; mean gray value: {join_names(means)}."
        plot = partial(data_figures.plot_mean_histograms, table, labels)
        svg_figures.append(to_svg_figure(plot, "histograms", description))
    return svg_figures


def _compute_mean_gray(rows: pd.DataFrame) -> float:
    return float((rows["mean"] * data_figures.compute_bin_centres(rows)).sum())
