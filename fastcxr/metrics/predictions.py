"""From what a model said about each image, beside the truth, to predictions.csv and back, without losing a digit.

Paths and labels are written exactly as they are, even one that a spreadsheet would take for a formula: the file is
data, and a changed path would point to no image.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd

from fastcxr.errors import DataError, InputMissingError
from fastcxr.io.files import atomic_write
from fastcxr.io.tables import escape_formulas, unescape_formulas

BASE_COLUMNS = ("source", "path", "patient", "label", "split", "predicted", "error")
SPLITS = ("train", "valid", "test")
OUT_OF_FOLD = "oof"  # the split of pooled folds: every image, scored by the model that never saw it
PROBABILITY_PREFIX = "prob_"
OOD_SCORE_COLUMN, IN_DISTRIBUTION_COLUMN = "ood_score", "in_distribution"  # columns of a model with an OOD detector


@dataclass(frozen=True, eq=False)
class Predictions:
    """One row an image: the columns of predictions.csv. A missing label, split or error is the empty string."""

    table: pd.DataFrame
    labels: tuple[str, ...]

    def __post_init__(self):
        _validate_columns(self.table, self.labels)
        _validate_rows(self)

    @property
    def truth(self) -> np.ndarray:
        """Position of each image's label among `labels`; -1 for an image without a label."""
        return pd.Index(self.labels).get_indexer(self.table["label"])

    @property
    def probability(self) -> np.ndarray:
        """One row per image, one column per label; nan for an image that could not be read."""
        return self.table[[PROBABILITY_PREFIX + label for label in self.labels]].to_numpy(float)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have rows: train, valid, test, then any other by name."""
        present = set(self.table["split"]) - {""}
        return (*(s for s in SPLITS if s in present), *sorted(present - set(SPLITS)))

    @property
    def primary_split(self) -> str | None:
        """The split that the headline speaks of: test, pooled folds, else valid, else whatever is there."""
        present = self.splits
        return next((s for s in ("test", OUT_OF_FOLD, "valid") if s in present), present[0] if present else None)

    def for_split(self, split: str) -> "Predictions":
        """The rows of one split, unreadable images among them."""
        return self._select_rows(self.table["split"] == split)

    @property
    def folds(self) -> tuple[str, ...]:
        """What each of several pooled runs held out; nothing in a single run."""
        return tuple(dict.fromkeys(self.table["fold"].astype(str))) if "fold" in self.table else ()

    def for_fold(self, name: str) -> "Predictions":
        """The rows of one of the pooled runs."""
        return self._select_rows(self.table["fold"].astype(str) == name)

    def scorable(self) -> "Predictions":
        """The rows that can be measured: the image was read and its label is known."""
        return self._select_rows((self.table["error"] == "") & (self.table["label"] != ""))

    def _repr_html_(self) -> str:
        # scikit-learn takes a second to load, and who reads predictions.csv needs none of it
        from fastcxr.metrics.classification import compute_metrics
        from fastcxr.metrics.display import make_predictions_html

        splits = []
        for split in self.splits:
            part = self.for_split(split).scorable()
            metrics = compute_metrics(part.truth, part.probability, part.labels)
            counts = len(part.table), part.table["patient"].nunique()
            splits.append((split, *counts, metrics["accuracy"], metrics["auroc"]["macro"]))
        return make_predictions_html(splits, self.table, self.probability)

    def _select_rows(self, is_selected: pd.Series) -> "Predictions":
        return Predictions(self.table[is_selected].reset_index(drop=True), self.labels)


def make_predictions(
    manifest: pd.DataFrame, probability: np.ndarray, labels: Sequence[str], errors: Sequence[str] | None = None
) -> Predictions:
    """A manifest and what the model said about each of its rows.

    `probability`: shape (n, k), rows sum to one; ignored where `errors` gives a reason. A further column of the
    manifest that would be taken for one of ours is kept as `manifest_<name>`; `file`, the machine's own, is dropped.
    """
    errors = np.array(["" if e is None else str(e) for e in (errors if errors is not None else [""] * len(manifest))])
    is_read = errors == ""
    probability = np.where(is_read[:, None], np.asarray(probability, dtype=float).reshape(len(manifest), -1), np.nan)
    predicted_index = np.where(is_read, np.nan_to_num(probability, nan=-1.0).argmax(axis=1), len(labels))
    base_columns = {name: _to_text(manifest[name]) if name in manifest else "" for name in BASE_COLUMNS[:5]}
    base_columns |= {"predicted": np.array([*labels, ""], dtype=object)[predicted_index], "error": errors}
    probability_columns = {PROBABILITY_PREFIX + label: probability[:, k] for k, label in enumerate(labels)}
    extra_columns = {
        f"manifest_{name}" if name in _OWN_COLUMNS or name.startswith(PROBABILITY_PREFIX) else name: manifest[
            name
        ].to_numpy()
        for name in manifest.columns
        if name not in BASE_COLUMNS[:5] and name != "file"
    }
    return Predictions(
        pd.DataFrame({**base_columns, **probability_columns, **extra_columns}, index=range(len(manifest))),
        tuple(labels),
    )


def mark_ood(predictions: Predictions, ood_scores: np.ndarray) -> Predictions:
    """The predictions with their `ood_score`, and `in_distribution`, yes or no; where it is no, none is `predicted`.

    `ood_score`: shape (n,), beyond 1 for a picture unlike the training images. The probabilities stay, so that every
    figure can be measured on all images. Both cells of an unreadable image are empty.
    """
    is_read = (predictions.table["error"] == "").to_numpy()
    is_in_distribution = ood_scores <= 1  # a nan is like nothing
    extra_columns = {
        OOD_SCORE_COLUMN: np.where(is_read, ood_scores, np.nan),
        IN_DISTRIBUTION_COLUMN: np.where(is_read, np.where(is_in_distribution, "yes", "no"), ""),
        "predicted": predictions.table["predicted"].where(is_in_distribution, ""),
    }
    return Predictions(predictions.table.assign(**extra_columns), predictions.labels)


def write_predictions(predictions: Predictions, target: str | Path | TextIO) -> None:
    """predictions.csv in full precision, as a file or into an open stream: each probability reads back the same."""
    table = escape_formulas(predictions.table)
    text = table.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # pandas leaves a lone carriage return unquoted, and would read it back as the end of a row
        text = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    if isinstance(target, str | Path):
        atomic_write(target, text)
    else:
        target.write(text)


def read_predictions(path: str | Path) -> Predictions:
    """The predictions of a predictions.csv; every further column comes back as text."""
    if not Path(path).is_file():
        raise InputMissingError("no such file", "Name a predictions.csv that fastcxr wrote", path=path)
    try:
        # no value means "missing" here: a class may be called NA, a patient None
        table = unescape_formulas(
            pd.read_csv(path, dtype=str, keep_default_na=False, encoding_errors="surrogateescape")
        )
        labels = _find_labels(table)
        probability_columns = {
            PROBABILITY_PREFIX + label: table[PROBABILITY_PREFIX + label].replace("", "nan").astype(float)
            for label in labels
        }
        return Predictions(table.assign(**probability_columns), labels)
    except (ValueError, TypeError) as error:  # TypeError: numbers of letters that are not UTF-8, says pandas
        if isinstance(error, DataError):
            raise DataError(error.problem, error.fix, path=path, code=error.code) from error
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"not a predictions.csv ({reason})", _WRONG_FILE_FIX, path=path) from error


def select_most_wrong(predictions: Predictions, n_images: int) -> pd.DataFrame:
    """The misclassified rows of the headline split, the lowest probability of the truth first, `count` at most."""
    if predictions.primary_split is None:
        return predictions.table.iloc[:0]
    scorable = predictions.for_split(predictions.primary_split).scorable()
    row_numbers, truth, probability = np.arange(len(scorable.table)), scorable.truth, scorable.probability
    wrong = row_numbers[probability.argmax(axis=1) != truth]
    # ties: the surer of the two mistakes, then the file name, so that the choice never wavers
    order = np.lexsort(
        (scorable.table["path"].iloc[wrong], -probability.max(axis=1)[wrong], probability[wrong, truth[wrong]])
    )
    return scorable.table.iloc[wrong[order][:n_images]].reset_index(drop=True)


_WRONG_FILE_FIX = "Name a predictions.csv that fastcxr wrote"
_OWN_COLUMNS = (*BASE_COLUMNS, OOD_SCORE_COLUMN, IN_DISTRIBUTION_COLUMN)


def _to_text(column: pd.Series) -> np.ndarray:
    return np.array(
        ["" if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)], object
    )


def _find_labels(table: pd.DataFrame) -> tuple[str, ...]:
    # the probabilities stand side by side after `error`: a further column called prob_... would come later
    names = list(table.columns)
    start = names.index("error") + 1 if "error" in names else len(names)
    stop = next((i for i in range(start, len(names)) if not names[i].startswith(PROBABILITY_PREFIX)), len(names))
    return tuple(name.removeprefix(PROBABILITY_PREFIX) for name in names[start:stop])


def _validate_columns(table: pd.DataFrame, labels: tuple[str, ...]) -> None:
    missing = [
        name for name in (*BASE_COLUMNS, *(PROBABILITY_PREFIX + label for label in labels)) if name not in table.columns
    ]
    if missing:
        raise DataError(f"no column called {', '.join(missing)}", _WRONG_FILE_FIX)
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise DataError(f"predictions need two or more different classes, got {list(labels)}", _WRONG_FILE_FIX)


def _validate_rows(predictions: Predictions) -> None:
    table, labels = predictions.table, predictions.labels
    unknown = sorted(set(table["label"]) - {"", *labels})
    if unknown:
        raise DataError(
            f"labels {unknown} are none of the model's classes {list(labels)}",
            "Rename the labels to the model's own, or leave these images out",
            code="E302",
        )
    is_read = (table["error"] == "").to_numpy()
    sums = predictions.probability[is_read].sum(axis=1)
    # the tolerance is scikit-learn's own for a multi-class AUROC; a nan fails it too
    is_invalid = ~np.isclose(1.0, sums, rtol=1e-5)
    if is_invalid.any():
        first_path = table["path"][is_read].iloc[int(is_invalid.argmax())]
        raise DataError(
            f"{is_invalid.sum()} rows have probabilities that do not sum to one, the first is {first_path}",
            "Predict again, or give these rows a reason in the column error",
        )
