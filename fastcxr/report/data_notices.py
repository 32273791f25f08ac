"""From a cohort's record to what a reader must know before a model is made from it, the gravest first."""

from dataclasses import dataclass

import pandas as pd

from fastcxr.io.formatting import count, listed
from fastcxr.report.run_reader import CohortRecord

# below this one image moves a class's sensitivity by more than five points
FEW = 20
# so large a part of a class, told by something other than the picture, makes figures worthless
TELLING = 0.9


@dataclass(frozen=True)
class Notice:
    """One thing to know. `level`: stamp (doubts the figures), warning, or note."""

    level: str
    title: str
    text: str = ""


def cohort_notices(record: CohortRecord) -> list[Notice]:
    """Everything to know about a cohort before a model is made from it."""
    found = []
    if is_image_level(record):
        words = "Images of one patient may stand in several splits; figures of a model will be optimistic."
        found = [Notice("stamp", "Image-level split", words)]
    return [
        *found,
        *one_with_class(record),
        *_few_in_test(record),
        *find_skipped(record),
        *find_warnings(record),
        *_drawn(record),
    ]


def is_image_level(record: CohortRecord) -> bool:
    """Whether patients were ignored when the splits were drawn."""
    drawn = record.manifest["split_from"] if "split_from" in record.manifest else pd.Series(dtype=str)
    return record.recipe.get("split") == "image" or bool((drawn == "image").any())


def _few_in_test(record: CohortRecord) -> list[Notice]:
    table = record.manifest
    test = table[table["split"] == "test"]["label"].value_counts()
    few = {label: int(test.get(label, 0)) for label in record.labels if test.get(label, 0) < FEW}
    if not few or not len(test):
        return []
    sizes = listed([f"{label} {n}" for label, n in few.items()])
    return [Notice("warning", "Few test images of a class", f"{sizes}. Figures of such a class will say little.")]


def _drawn(record: CohortRecord) -> list[Notice]:
    ways = set(record.manifest["split_from"]) if "split_from" in record.manifest else set()
    if not ways or not ways <= {"patient", "image"}:
        return []
    words = f"Shown is the one that fastcxr train draws with seed {record.run.get('seed', 42)}."
    return [Notice("note", "The data gives no split", words)]


def one_with_class(record: CohortRecord) -> list[Notice]:
    """Classes that can be told by where an image comes from, by the kind of its file or by its size."""
    files = record.files
    sizes = [f"{width:g} × {height:g}" for width, height in zip(files["width"], files["height"], strict=True)]
    files, images = files.assign(size=sizes), record.table.assign(images=1)
    return [
        *_apart("source", _count_places(images, "source")),
        *_apart("kind of file", _count_places(files, "kind")),
        # sizes that differ from image to image tell no class: only where one side has a single size do they
        *_apart("size", _count_places(files, "size"), of_one=True),
    ]


def _count_places(table: pd.DataFrame, column: str) -> dict[str, dict[str, int]]:
    """How many images each class has in each place."""
    return {label: rows.groupby(column)["images"].sum().astype(int).to_dict() for label, rows in table.groupby("label")}


def _apart(place: str, counts: dict[str, dict[str, int]], *, of_one: bool = False) -> list[Notice]:
    """A warning of the classes that hardly share a place with any other."""
    told = []
    for label, own in counts.items():
        others = {name for other, places in counts.items() if other != label for name in places}
        n, alone = sum(own.values()), sum(images for name, images in own.items() if name not in others)
        if others and alone >= TELLING * n and (not of_one or 1 in (len(own), len(others))):
            told.append(f"{label} ({alone:,} of {count(n, 'image')})")
    words = f"No other class has the {place} of {listed(told)}. A model may learn that and not the disease."
    return [Notice("warning", f"Class and {place} are one", words)] if told else []


def find_skipped(record: CohortRecord) -> list[Notice]:
    """How many images are not among those that count."""
    if not len(record.skipped):
        return []
    words = "They are in none of the figures; the reasons are listed below."
    return [Notice("warning", f"{count(len(record.skipped), 'image')} left out", words)]


def find_warnings(record: CohortRecord) -> list[Notice]:
    """What was said loudly while the folder was made."""
    said = [line for line in (record.run.get("said") or []) if isinstance(line, dict)]
    return [Notice("warning", "Warning:", str(line.get("text", ""))) for line in said if line.get("level") == "warning"]
