"""A table of labelled images comes in; nothing, or the error that says why none could learn from it, goes out."""

import unicodedata
from pathlib import Path

import pandas as pd

from fastcxr.data.cohort.tables import name_some
from fastcxr.errors import DataError, InputMissingError

TOO_FEW = "E004"  # a class that cannot be split


def check_classes(table: pd.DataFrame, path: str | Path | None = None, *, only_test: bool = False) -> None:
    """Raise unless there are images (E002) of two classes (E003), two of each (E004), with names that differ (E006).

    `only_test`: nothing is to learn from the images, so that one of one class will do.
    """
    if table.empty:
        fix = "Give PNG, JPEG, TIFF, BMP or DICOM files in one folder a class, or a CSV"
        raise InputMissingError("0 images", fix, path=path, code="E002")
    labels = sorted(table["label"].unique())
    _refuse_twins(labels, path)
    if only_test:
        return
    if len(labels) == 1:
        what = f"one class only, {labels[0]!r}"
        raise DataError(what, "Give images of two classes at least", path=path, code="E003")
    refuse_lonely(table, "image", path)


def refuse_lonely(table: pd.DataFrame, unit: str = "patient", path: str | Path | None = None) -> None:
    """Raise for classes that are no more than one patient, or image: none could be both trained and tested (E004).

    Where splits are given, a class that is in train may be as small as it likes.
    """
    given = set(table.loc[table["split"] == "train", "label"]) if table["split"].notna().all() else set()
    sizes = table.groupby("label").agg(images=("path", "size"), patients=("patient", "nunique"))
    lonely = sizes[(sizes["patients" if unit == "patient" else "images"] < 2) & ~sizes.index.isin(given)]
    if len(lonely):
        named = name_some(f"{row.Index!r} ({_count(row.images, 'image')} of 1 patient)" for row in lonely.itertuples())
        fix = f"One {unit} cannot be both trained and tested: give 2 at least, better 20, or leave it out"
        fix += " (--classes names those to keep)"
        raise DataError(f"too few {unit}s in class {named}", fix, path=path, code=TOO_FEW)


def _refuse_twins(labels: list[str], path: str | Path | None) -> None:
    """Refuse names that look alike: C1 and c1, a space more, an accent in one code point or two."""
    twins: dict[str, list[str]] = {}
    for label in labels:
        folded = unicodedata.normalize("NFKC", label).casefold()
        twins.setdefault("".join(unicodedata.normalize("NFKC", folded).split()), []).append(label)
    groups = [group for group in twins.values() if len(group) > 1]
    if groups:
        named = name_some(" and ".join(map(ascii, group)) for group in groups)
        what = f"class names differ only in case, space or normalisation: {named}"
        hint = name_some([f"--relabel '{groups[0][0]}={groups[0][1]}'"])
        fix = f"Give each class one name, written in one way, or say {hint}"
        raise DataError(what, fix, path=path, code="E006")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
