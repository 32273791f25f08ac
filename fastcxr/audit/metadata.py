"""What tells the classes apart before any pixel is looked at: facts of the file, the device and the person."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from fastcxr.audit.findings import Finding
from fastcxr.audit.probe_models import SEED, score_traits
from fastcxr.data.demographics import find_trait, is_stated, read_sex, read_years

SHUFFLES = 40
FEWEST = 10  # images of a class, below which it is not compared
BINS, COMMON = 8, 0.02  # of numbers; those that so large a share of the images have stand by themselves
FILE = {
    "size": ("Width and height", ["width", "height"]),
    "aspect": ("Width by height", ["aspect"]),
    "bytes": ("Bytes of the file", ["bytes", "density"]),
    "kind": ("Kind of file", ["kind"]),
    "mode": ("Colour mode", ["mode"]),
    "coarseness": ("How coarse its JPEG is", ["coarseness"]),
}
PERSON = {
    "maker": ("Maker of the device", ["maker"]),
    "view": ("View", ["view"]),
    "age": ("Age in years", ["age"]),
    "sex": ("Sex", ["sex"]),
}
REMEDIES = {
    "file": "Bring all classes into one form from their originals, or collect them in one way.",
    "person": "Collect the classes from people and devices that are alike, or leave out those that are not.",
}


def check_facts(manifest: pd.DataFrame, facts: pd.DataFrame, folds: np.ndarray) -> list[Finding]:
    """All facts of the file together, then each fact by itself that differs between images of two classes.

    `facts`: a row an image, as Looks have them; `folds`: the fold of each image. A fact is judged among the images of
    which it is known.
    """
    table = list_facts(manifest, facts)
    labels = manifest["label"].to_numpy()
    alone = [
        finding
        for about, kinds in (("file", FILE), ("person", PERSON))
        for name, (title, columns) in kinds.items()
        if (finding := _judge_alone(name, title, table[columns], labels, folds, REMEDIES[about]))
    ]
    return [_judge_together(table, labels, folds), *alone]


def list_facts(manifest: pd.DataFrame, facts: pd.DataFrame) -> pd.DataFrame:
    """Every fact as a column, blank where it is not known: numbers, and words where no number would do."""
    pixels = facts["width"] * facts["height"]
    traits = {"age": read_years, "sex": read_sex, "view": lambda cell: cell.strip().upper()}
    said = {name: _read_trait(manifest, name, read) for name, read in traits.items()}
    return facts.assign(aspect=facts["width"] / facts["height"], density=facts["bytes"] / pixels, **said)


def _read_trait(manifest: pd.DataFrame, name: str, read: Callable[[str], object]) -> list[object]:
    column = find_trait(manifest.columns, name)
    if column is None:
        return [None] * len(manifest)
    return [read(cell) if is_stated(cell) else None for cell in manifest[column].astype(str)]


def _judge_together(table: pd.DataFrame, labels: np.ndarray, folds: np.ndarray) -> Finding:
    columns = [column for _, columns in FILE.values() for column in columns]
    figure, null, told = _compare(table[columns], labels, folds)
    words = f"Size, kind, colour mode and bytes of a file tell {told} from the rest with an AUROC of {figure:.3f}."
    verdict = _judge(figure, null)
    if verdict == "PASS" and figure > null:
        verdict = "WARN"
    return Finding(
        check="files", title="Files against class", verdict=verdict, words=words,
        remedy="" if verdict == "PASS" else REMEDIES["file"], figure=figure, null=null,
    )  # fmt: skip


def _judge_alone(
    name: str, title: str, table: pd.DataFrame, labels: np.ndarray, folds: np.ndarray, remedy: str
) -> Finding | None:
    """What a fact alone says of the class; None where it is known of too few images, or one for all of them."""
    known = table.notna().all(axis=1).to_numpy()
    counts = pd.Series(labels[known]).value_counts()
    known = known & np.isin(labels, counts.index[counts >= FEWEST])
    table, labels, folds = table[known], labels[known], folds[known]
    if len(np.unique(labels)) < 2 or len(np.unique(folds)) < 2 or table.nunique().max() < 2:
        return None
    figure, null, told = _compare(table, labels, folds)
    verdict = _judge(figure, null)
    words = f"Alone it tells {told} from the rest with an AUROC of {figure:.3f}. {_say_usual(table, labels)}"
    remedy = "" if verdict == "PASS" else remedy
    return Finding(check=name, title=title, verdict=verdict, words=words, remedy=remedy, figure=figure, null=null)


def _judge(figure: float, null: float) -> str:
    if figure <= null:
        return "PASS"
    return "FAIL" if figure >= 0.9 else "WARN" if figure >= 0.8 else "PASS"


def _compare(table: pd.DataFrame, labels: np.ndarray, folds: np.ndarray) -> tuple[float, float, str]:
    """The AUROC of the class that is told best, what shuffled labels reach once in twenty times, and that class."""
    traits = pd.get_dummies(table.apply(_name_values)).to_numpy(float)

    def best(classes: np.ndarray) -> tuple[float, str]:
        return max((value, name) for name, value in score_traits(traits, classes, folds).items())

    (figure, told), rng = best(labels), np.random.default_rng(SEED)
    null = float(np.quantile([best(rng.permutation(labels))[0] for _ in range(SHUFFLES)], 0.95))
    return figure, null, told


def _name_values(column: pd.Series) -> pd.Series:
    """A word for each value: numbers that many images have and words stand for themselves, other numbers for a bin."""
    names = column.astype(str)
    if not pd.api.types.is_numeric_dtype(column) or column.isna().all():
        return names
    shares = column.map(column.value_counts(normalize=True))
    edges = np.unique(np.nanquantile(column, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = pd.Series(np.searchsorted(edges, column, side="right"), column.index).map("bin {}".format)
    return names.where((shares >= COMMON) | column.isna(), bins)


def _say_usual(table: pd.DataFrame, labels: np.ndarray) -> str:
    """The median or commonest value of each class."""
    column = table.iloc[:, 0]
    is_number = pd.api.types.is_numeric_dtype(column)
    groups = column.groupby(labels)
    usual = groups.median().map(_say_number) if is_number else groups.agg(lambda values: values.mode().iloc[0])
    parts = ", ".join(f"{label} {value}" for label, value in usual.items())
    return f"{'Median' if is_number else 'Commonest'} {column.name}: {parts}."


def _say_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
