"""From a cohort's record to what a reader must know before a model is made from it, the gravest first."""

from dataclasses import dataclass

import pandas as pd

from fastcxr.evaluation.record import CohortRecord
from fastcxr.evaluation.words import count, listed

# below this one image moves a class's sensitivity by more than five points
FEW = 20


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
    """Classes that can be told by where an image comes from, or by the kind of its file."""
    found = []
    for table, column, words in ((record.table, "source", "sources"), (record.files, "kind", "kinds of file")):
        places = table.groupby("label")[column].agg(set)
        if apart := [label for label in places.index if not any(places[label] & p for p in places.drop(label))]:
            where = [f"{label} ({listed(sorted(places[label]))})" for label in apart]
            text = f"No other class has the {words} of {listed(where)}: a model may learn those and not the disease."
            found += [Notice("warning", f"Class and {column} are one", text)] if len(places) > 1 else []
    return found


def find_skipped(record: CohortRecord) -> list[Notice]:
    """How many images are not in the cohort because they cannot be read."""
    if not len(record.skipped):
        return []
    words = "They are in none of the figures; the reasons are listed below."
    return [Notice("warning", f"{count(len(record.skipped), 'image')} left out", words)]


def find_warnings(record: CohortRecord) -> list[Notice]:
    """What was said loudly while the folder was made."""
    said = [line for line in (record.run.get("said") or []) if isinstance(line, dict)]
    return [Notice("warning", "Warning", str(line.get("text", ""))) for line in said if line.get("level") == "warning"]
