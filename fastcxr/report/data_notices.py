"""From a cohort's record to what a reader must know before a model is made from it, the gravest first."""

from dataclasses import dataclass

import pandas as pd

from fastcxr.io.formatting import join_names, pluralize
from fastcxr.report.run_reader import DatasetRecord

# below this one image moves a class's sensitivity by more than five points
MIN_CLASS_TEST_IMAGES = 20
# so large a part of a class, told by something other than the picture, makes figures worthless
EXCLUSIVE_FRACTION = 0.9


@dataclass(frozen=True)
class Notice:
    """One thing to know. `level`: critical (doubts the figures), warning, or note."""

    level: str
    title: str
    text: str = ""


def make_dataset_notices(record: DatasetRecord) -> list[Notice]:
    """Everything to know about a cohort before a model is made from it."""
    split_notices = []
    if is_image_level(record):
        text = "Images of one patient may stand in several splits; figures of a model will be optimistic."
        split_notices = [Notice("critical", "Image-level split", text)]
    return [
        *split_notices,
        *make_shortcut_notices(record),
        *_make_small_class_notices(record),
        *make_skipped_notices(record),
        *make_warning_notices(record),
        *_make_generated_split_notices(record),
    ]


def is_image_level(record: DatasetRecord) -> bool:
    """Whether patients were ignored when the splits were drawn."""
    split_origins = record.manifest["split_origin"] if "split_origin" in record.manifest else pd.Series(dtype=str)
    return record.recipe.get("split") == "image" or bool((split_origins == "image").any())


def _make_small_class_notices(record: DatasetRecord) -> list[Notice]:
    table = record.manifest
    test = table[table["split"] == "test"]["label"].value_counts()
    small_classes = {
        label: int(test.get(label, 0)) for label in record.labels if test.get(label, 0) < MIN_CLASS_TEST_IMAGES
    }
    if not small_classes or not len(test):
        return []
    sizes = join_names([f"{label} {n}" for label, n in small_classes.items()])
    return [Notice("warning", "Few test images of a class", f"{sizes}. Figures of such a class will say little.")]


def _make_generated_split_notices(record: DatasetRecord) -> list[Notice]:
    split_origins = set(record.manifest["split_origin"]) if "split_origin" in record.manifest else set()
    if not split_origins or not split_origins <= {"patient", "image"}:
        return []
    text = f"Shown is the one that fastcxr train draws with seed {record.run.get('seed', 42)}."
    return [Notice("note", "The data gives no split", text)]


def make_shortcut_notices(record: DatasetRecord) -> list[Notice]:
    """Classes that can be told by where an image comes from, by the kind of its file or by its size."""
    files = record.files
    sizes = [f"{width:g} × {height:g}" for width, height in zip(files["width"], files["height"], strict=True)]
    files, images = files.assign(size=sizes), record.table.assign(images=1)
    return [
        *_make_exclusive_value_notices("source", _count_values(images, "source")),
        *_make_exclusive_value_notices("kind of file", _count_values(files, "kind")),
        # sizes that differ from image to image tell no class: only where one side has a single size do they
        *_make_exclusive_value_notices("size", _count_values(files, "size"), single_value_only=True),
    ]


def _count_values(table: pd.DataFrame, column: str) -> dict[str, dict[str, int]]:
    """How many images each class has in each place."""
    return {label: rows.groupby(column)["images"].sum().astype(int).to_dict() for label, rows in table.groupby("label")}


def _make_exclusive_value_notices(
    attribute: str, counts: dict[str, dict[str, int]], *, single_value_only: bool = False
) -> list[Notice]:
    """A warning of the classes that hardly share a place with any other."""
    exclusive_classes = []
    for label, value_counts in counts.items():
        other_values = {name for other, places in counts.items() if other != label for name in places}
        n_images, n_exclusive = (
            sum(value_counts.values()),
            sum(images for name, images in value_counts.items() if name not in other_values),
        )
        if (
            other_values
            and n_exclusive >= EXCLUSIVE_FRACTION * n_images
            and (not single_value_only or 1 in (len(value_counts), len(other_values)))
        ):
            exclusive_classes.append(f"{label} ({n_exclusive:,} of {pluralize(n_images, 'image')})")
    text = (
        f"No other class has the {attribute} of {join_names(exclusive_classes)}. A model may learn that and not the "
        "disease."
    )
    return [Notice("warning", f"Class and {attribute} are one", text)] if exclusive_classes else []


def make_skipped_notices(record: DatasetRecord) -> list[Notice]:
    """How many images are not among those that count."""
    if not len(record.skipped):
        return []
    text = "They are in none of the figures; the reasons are listed below."
    return [Notice("warning", f"{pluralize(len(record.skipped), 'image')} left out", text)]


def make_warning_notices(record: DatasetRecord) -> list[Notice]:
    """What was said loudly while the folder was made."""
    messages = [line for line in (record.run.get("messages") or []) if isinstance(line, dict)]
    return [
        Notice("warning", "Warning:", str(line.get("text", ""))) for line in messages if line.get("level") == "warning"
    ]
