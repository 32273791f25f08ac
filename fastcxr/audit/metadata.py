"""What tells the classes apart before any pixel is looked at: facts of the file, the device and the person."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from fastcxr.audit.findings import Finding
from fastcxr.audit.probe_models import SEED, score_indicators
from fastcxr.data.demographics import find_demographic_column, has_value, parse_age, parse_sex

N_PERMUTATIONS = 40
MIN_CLASS_IMAGES = 10  # images of a class, below which it is not compared
N_VALUE_BINS, MIN_COMMON_FRACTION = (
    8,
    0.02,
)  # of numbers; those that so large a share of the images have stand by themselves
FILE_ATTRIBUTES = {
    "size": ("Width and height", ["width", "height"]),
    "aspect": ("Width by height", ["aspect"]),
    "bytes": ("Bytes of the file", ["bytes", "density"]),
    "kind": ("Kind of file", ["kind"]),
    "mode": ("Colour mode", ["mode"]),
    "coarseness": ("How coarse its JPEG is", ["coarseness"]),
}
PATIENT_ATTRIBUTES = {
    "maker": ("Maker of the device", ["maker"]),
    "view": ("View", ["view"]),
    "age": ("Age in years", ["age"]),
    "sex": ("Sex", ["sex"]),
}
FIXES = {
    "file": "Bring all classes into one form from their originals, or collect them in one way.",
    "person": "Collect the classes from people and devices that are alike, or leave out those that are not.",
}


def check_metadata(manifest: pd.DataFrame, metadata: pd.DataFrame, folds: np.ndarray) -> list[Finding]:
    """All facts of the file together, then each fact by itself that differs between images of two classes.

    `metadata`: a row an image, see ImageFeatures; `folds`: the fold of each image. A fact is judged among the images of
    which it is known.
    """
    table = make_metadata_table(manifest, metadata)
    labels = manifest["label"].to_numpy()
    single_findings = [
        finding
        for about, kinds in (("file", FILE_ATTRIBUTES), ("person", PATIENT_ATTRIBUTES))
        for name, (title, columns) in kinds.items()
        if (finding := _check_attribute(name, title, table[columns], labels, folds, FIXES[about]))
    ]
    return [_check_file_attributes(table, labels, folds), *single_findings]


def make_metadata_table(manifest: pd.DataFrame, metadata: pd.DataFrame) -> pd.DataFrame:
    """Every fact as a column, blank where it is not known: numbers, and words where no number would do."""
    pixels = metadata["width"] * metadata["height"]
    parsers = {"age": parse_age, "sex": parse_sex, "view": lambda cell: cell.strip().upper()}
    demographics = {name: _read_demographic(manifest, name, read) for name, read in parsers.items()}
    return metadata.assign(
        aspect=metadata["width"] / metadata["height"], density=metadata["bytes"] / pixels, **demographics
    )


def _read_demographic(manifest: pd.DataFrame, name: str, parse: Callable[[str], object]) -> list[object]:
    column = find_demographic_column(manifest.columns, name)
    if column is None:
        return [None] * len(manifest)
    return [parse(cell) if has_value(cell) else None for cell in manifest[column].astype(str)]


def _check_file_attributes(table: pd.DataFrame, labels: np.ndarray, folds: np.ndarray) -> Finding:
    columns = [column for _, columns in FILE_ATTRIBUTES.values() for column in columns]
    auroc, chance_level, best_class = _score_attributes(table[columns], labels, folds)
    message = (
        f"Size, kind, colour mode and bytes of a file tell {best_class} from the rest with an AUROC of {auroc:.3f}."
    )
    verdict = _grade_auroc(auroc, chance_level)
    if verdict == "PASS" and auroc > chance_level:
        verdict = "WARN"
    return Finding(
        check="files", title="Files against class", verdict=verdict, message=message,
        fix="" if verdict == "PASS" else FIXES["file"], value=auroc, chance_level=chance_level,
    )  # fmt: skip


def _check_attribute(
    name: str, title: str, table: pd.DataFrame, labels: np.ndarray, folds: np.ndarray, fix: str
) -> Finding | None:
    """What a fact alone says of the class; None where it is known of too few images, or one for all of them."""
    is_known = table.notna().all(axis=1).to_numpy()
    counts = pd.Series(labels[is_known]).value_counts()
    is_known = is_known & np.isin(labels, counts.index[counts >= MIN_CLASS_IMAGES])
    table, labels, folds = table[is_known], labels[is_known], folds[is_known]
    if len(np.unique(labels)) < 2 or len(np.unique(folds)) < 2 or table.nunique().max() < 2:
        return None
    auroc, chance_level, best_class = _score_attributes(table, labels, folds)
    verdict = _grade_auroc(auroc, chance_level)
    message = (
        f"Alone it tells {best_class} from the rest with an AUROC of {auroc:.3f}. "
        f"{_describe_typical_values(table, labels)}"
    )
    fix = "" if verdict == "PASS" else fix
    return Finding(
        check=name, title=title, verdict=verdict, message=message, fix=fix, value=auroc, chance_level=chance_level
    )


def _grade_auroc(auroc: float, chance_level: float) -> str:
    if auroc <= chance_level:
        return "PASS"
    return "FAIL" if auroc >= 0.9 else "WARN" if auroc >= 0.8 else "PASS"


def _score_attributes(table: pd.DataFrame, labels: np.ndarray, folds: np.ndarray) -> tuple[float, float, str]:
    """The AUROC of the class that is told best, what shuffled labels reach once in twenty times, and that class."""
    indicators = pd.get_dummies(table.apply(_discretize)).to_numpy(float)

    def best(classes: np.ndarray) -> tuple[float, str]:
        return max((value, name) for name, value in score_indicators(indicators, classes, folds).items())

    (auroc, best_class), rng = best(labels), np.random.default_rng(SEED)
    chance_level = float(np.quantile([best(rng.permutation(labels))[0] for _ in range(N_PERMUTATIONS)], 0.95))
    return auroc, chance_level, best_class


def _discretize(column: pd.Series) -> pd.Series:
    """A word for each value: numbers that many images have and words stand for themselves, other numbers for a bin."""
    names = column.astype(str)
    if not pd.api.types.is_numeric_dtype(column) or column.isna().all():
        return names
    frequencies = column.map(column.value_counts(normalize=True))
    edges = np.unique(np.nanquantile(column, np.linspace(0, 1, N_VALUE_BINS + 1)[1:-1]))
    bins = pd.Series(np.searchsorted(edges, column, side="right"), column.index).map("bin {}".format)
    return names.where((frequencies >= MIN_COMMON_FRACTION) | column.isna(), bins)


def _describe_typical_values(table: pd.DataFrame, labels: np.ndarray) -> str:
    """The median or commonest value of each class."""
    column = table.iloc[:, 0]
    is_number = pd.api.types.is_numeric_dtype(column)
    groups = column.groupby(labels)
    typical = groups.median().map(_format_number) if is_number else groups.agg(lambda values: values.mode().iloc[0])
    parts = ", ".join(f"{label} {value}" for label, value in typical.items())
    return f"{'Median' if is_number else 'Commonest'} {column.name}: {parts}."


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
