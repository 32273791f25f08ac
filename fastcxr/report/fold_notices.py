"""What pooled figures hide of a single fold, and how images of a split are spoken of."""

from fastcxr.io.formatting import join_names, pluralize
from fastcxr.metrics.predictions import OUT_OF_FOLD
from fastcxr.report.data_notices import Notice
from fastcxr.report.run_reader import RunRecord


def format_images_of_split(split: str | None) -> str:
    """`images of the test split`; of pooled folds, whose split has no name that people know, `held-out images`."""
    return "held-out images" if split == OUT_OF_FOLD else f"images of the {split} split"


def format_images_in_split(split: str | None) -> str:
    """The same as the beginning of a sentence."""
    return "Held-out images" if split == OUT_OF_FOLD else f"Images in the {split} split"


def make_constant_fold_notices(record: RunRecord) -> list[Notice]:
    """Folds whose model names one class for everything: among those of the others it hardly shows."""
    constant_labels = _find_constant_folds(record)
    if len(constant_labels) == len(record.predictions.folds) and len(set(constant_labels.values())) == 1:
        return []  # said of all images already
    unit = "source" if record.recipe.get("leave_one_source_out") else "fold"
    fold_notices = []
    for label in dict.fromkeys(constant_labels.values()):
        names = [name for name, answer in constant_labels.items() if answer == label]
        title = f"Every image of {unit}{'s' * (len(names) > 1)} {join_names(names)} is called {label}"
        text = (
            f"{pluralize(len(names), 'model')} of {len(record.predictions.folds)} learned to give one answer, which "
            "the "
            f"pooled figures hide: look at each {unit} by itself."
        )
        fold_notices.append(Notice("critical", title, text))
    return fold_notices


def _find_constant_folds(record: RunRecord) -> dict[str, str]:
    """By the name of a fold the one class that its model names, where the images have several."""
    predictions = record.predictions
    if predictions.primary_split != OUT_OF_FOLD:
        return {}
    constant_labels = {}
    for name in predictions.folds:
        rows = predictions.for_split(OUT_OF_FOLD).for_fold(name).scorable()
        predicted_classes = set(rows.probability.argmax(axis=1))
        if len(predicted_classes) == 1 and rows.table["label"].nunique() > 1:
            constant_labels[name] = predictions.labels[predicted_classes.pop()]
    return constant_labels
