"""Check whether properties of the file, device or patient predict the class without any pixel."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.audit.findings import FILE_FIX, Finding, Verdict
from fastcxr.audit.probe_models import SEED, score_indicators
from fastcxr.data.demographics import find_demographic_column, has_value, parse_age, parse_sex

N_PERMUTATIONS = 40
MIN_CLASS_IMAGES = 10  # images of a class, below which the class is not compared
N_VALUE_BINS = 8
MIN_COMMON_FRACTION = 0.02  # of the images; more frequent numbers are a category, not part of a bin
FILE_ATTRIBUTES = {
    "size": ("Width and height", ["width", "height"]),
    "aspect": ("Aspect ratio", ["aspect"]),
    "bytes": ("File size", ["bytes", "density"]),
    "kind": ("File format", ["kind"]),
    "mode": ("Colour mode", ["mode"]),
    "coarseness": ("JPEG compression", ["coarseness"]),
}
PATIENT_ATTRIBUTES = {
    "maker": ("Device manufacturer", ["maker"]),
    "view": ("View", ["view"]),
    "age": ("Age (years)", ["age"]),
    "sex": ("Sex", ["sex"]),
}
FIXES = {
    "file": FILE_FIX,
    "person": "Select patients and devices with the same distribution in all classes.",
}


def check_metadata(manifest: pd.DataFrame, metadata: pd.DataFrame, folds: np.ndarray) -> list[Finding]:
    """Check all file properties together, then each property that varies between images of two classes.

    Each property is checked on the images that have it.

    Args:
        manifest: One row per image.
        metadata: One row per image, see ImageFeatures.
        folds: Fold of each image.
    """
    table = make_metadata_table(manifest, metadata)
    labels = manifest["label"].to_numpy()
    single_findings = [
        finding
        for group, attributes in (("file", FILE_ATTRIBUTES), ("person", PATIENT_ATTRIBUTES))
        for name, (title, columns) in attributes.items()
        if (finding := _check_attribute(name, title, table[columns], labels, folds, FIXES[group]))
    ]
    return [_check_file_attributes(table, labels, folds), *single_findings]


def make_metadata_table(manifest: pd.DataFrame, metadata: pd.DataFrame) -> pd.DataFrame:
    """Return one column per property, missing if unknown: numbers or categories as text."""
    pixels = metadata["width"] * metadata["height"]
    parsers = {"age": parse_age, "sex": parse_sex, "view": lambda cell: cell.strip().upper()}
    demographics = {name: _read_demographic(manifest, name, parse) for name, parse in parsers.items()}
    return metadata.assign(
        aspect=metadata["width"] / metadata["height"], density=metadata["bytes"] / pixels, **demographics
    )


def _read_demographic(manifest: pd.DataFrame, name: str, parse: Callable[[str], Any]) -> list[Any]:
    column = find_demographic_column(manifest.columns, name)
    if column is None:
        return [None] * len(manifest)
    return [parse(cell) if has_value(cell) else None for cell in manifest[column].astype(str)]


def _check_file_attributes(table: pd.DataFrame, labels: np.ndarray, folds: np.ndarray) -> Finding:
    columns = [column for _, columns in FILE_ATTRIBUTES.values() for column in columns]
    auroc, chance_level, best_class = _score_attributes(table[columns], labels, folds)
    verdict = _grade_auroc(auroc, chance_level)
    if verdict == "PASS" and auroc > chance_level:
        verdict = "WARN"
    message = f"File format, size and colour mode predict {best_class} (against the rest) with an AUROC of {auroc:.3f}."
    return Finding(
        check="files", title="File properties and class", verdict=verdict, message=message,
        fix="" if verdict == "PASS" else FIXES["file"], value=auroc, chance_level=chance_level,
    )  # fmt: skip


def _check_attribute(
    name: str, title: str, table: pd.DataFrame, labels: np.ndarray, folds: np.ndarray, fix: str
) -> Finding | None:
    """Check one property, or return None if too few images have it or all have the same value."""
    is_known = table.notna().all(axis=1).to_numpy()
    counts = pd.Series(labels[is_known]).value_counts()
    is_known = is_known & np.isin(labels, counts.index[counts >= MIN_CLASS_IMAGES])
    table, labels, folds = table[is_known], labels[is_known], folds[is_known]
    if len(np.unique(labels)) < 2 or len(np.unique(folds)) < 2 or table.nunique().max() < 2:
        return None
    auroc, chance_level, best_class = _score_attributes(table, labels, folds)
    verdict = _grade_auroc(auroc, chance_level)
    message = f"This property alone predicts {best_class} (against the rest) with an AUROC of {auroc:.3f}. "
    message += describe_typical_values(table.iloc[:, 0], labels)
    fix = "" if verdict == "PASS" else fix
    return Finding(
        check=name, title=title, verdict=verdict, message=message, fix=fix, value=auroc, chance_level=chance_level
    )


def _grade_auroc(auroc: float, chance_level: float) -> Verdict:
    if auroc <= chance_level:
        return "PASS"
    return "FAIL" if auroc >= 0.9 else "WARN" if auroc >= 0.8 else "PASS"


def _score_attributes(table: pd.DataFrame, labels: np.ndarray, folds: np.ndarray) -> tuple[float, float, str]:
    """Return the highest AUROC of a class, the 95th percentile with shuffled labels, and that class."""
    indicators = make_indicators(table)

    def best(classes: np.ndarray) -> tuple[float, str]:
        return max((value, name) for name, value in score_indicators(indicators, classes, folds).items())

    (auroc, best_class), rng = best(labels), np.random.default_rng(SEED)
    chance_level = float(np.quantile([best(rng.permutation(labels))[0] for _ in range(N_PERMUTATIONS)], 0.95))
    return auroc, chance_level, best_class


def make_indicators(table: pd.DataFrame) -> np.ndarray:
    """Return the values of the properties as binary columns, shape (n, values)."""
    return pd.get_dummies(table.apply(_discretize)).to_numpy(float)


def _discretize(column: pd.Series) -> pd.Series:
    """Return a category for each value: text and frequent numbers unchanged, other numbers as quantile bins."""
    names = column.astype(str)
    if not pd.api.types.is_numeric_dtype(column) or column.isna().all():
        return names
    frequencies = column.map(column.value_counts(normalize=True))
    edges = np.unique(np.nanquantile(column, np.linspace(0, 1, N_VALUE_BINS + 1)[1:-1]))
    bins = pd.Series(np.searchsorted(edges, column, side="right"), column.index).map("bin {}".format)
    return names.where((frequencies >= MIN_COMMON_FRACTION) | column.isna(), bins)


def describe_typical_values(column: pd.Series, labels: np.ndarray) -> str:
    """Return a sentence with the median or most frequent value of each label."""
    is_number = pd.api.types.is_numeric_dtype(column)
    groups = column.groupby(labels)
    typical = groups.median().map(_format_number) if is_number else groups.agg(lambda values: values.mode().iloc[0])
    parts = ", ".join(f"{label} {value}" for label, value in typical.items())
    return f"{'Median' if is_number else 'Most frequent'} {column.name}: {parts}."


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
