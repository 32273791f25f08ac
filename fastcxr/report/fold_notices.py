"""What pooled figures hide of a single fold, and how images of a split are spoken of."""

from fastcxr.io.formatting import count, listed
from fastcxr.metrics.predictions import OUT_OF_FOLD
from fastcxr.report.data_notices import Notice
from fastcxr.report.run_reader import RunRecord


def images_of(split: str | None) -> str:
    """`images of the test split`; of pooled folds, whose split has no name that people know, `held-out images`."""
    return "held-out images" if split == OUT_OF_FOLD else f"images of the {split} split"


def images_in(split: str | None) -> str:
    """The same as the beginning of a sentence."""
    return "Held-out images" if split == OUT_OF_FOLD else f"Images in the {split} split"


def one_answer_in_a_fold(record: RunRecord) -> list[Notice]:
    """Folds whose model names one class for everything: among those of the others it hardly shows."""
    answers = _find_only_answers(record)
    if len(answers) == len(record.predictions.folds) and len(set(answers.values())) == 1:
        return []  # said of all images already
    word = "source" if record.recipe.get("leave_one_source_out") else "fold"
    found = []
    for label in dict.fromkeys(answers.values()):
        names = [name for name, answer in answers.items() if answer == label]
        title = f"Every image of {word}{'s' * (len(names) > 1)} {listed(names)} is called {label}"
        words = (
            f"{count(len(names), 'model')} of {len(record.predictions.folds)} learned to give one answer, which the "
            f"pooled figures hide: look at each {word} by itself."
        )
        found.append(Notice("stamp", title, words))
    return found


def _find_only_answers(record: RunRecord) -> dict[str, str]:
    """By the name of a fold the one class that its model names, where the images have several."""
    predictions = record.predictions
    if predictions.headline_split != OUT_OF_FOLD:
        return {}
    answers = {}
    for name in predictions.folds:
        rows = predictions.part(OUT_OF_FOLD).of_fold(name).scored()
        named = set(rows.probability.argmax(axis=1))
        if len(named) == 1 and rows.table["label"].nunique() > 1:
            answers[name] = predictions.labels[named.pop()]
    return answers
