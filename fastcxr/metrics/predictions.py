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
from fastcxr.io.files import write_whole
from fastcxr.io.tables import guard, unguard

KNOWN = ("source", "path", "patient", "label", "split", "predicted", "error")
SPLITS = ("train", "valid", "test")
OUT_OF_FOLD = "oof"  # the split of pooled folds: every image, scored by the model that never saw it
INTERNAL = "internal"  # test images of where the model was trained, beside those of elsewhere
PREFIX = "prob_"
STRANGENESS, LIKE_TRAINING = "strangeness", "like_training"  # columns of a model with a gate


@dataclass(frozen=True, eq=False)
class Predictions:
    """One row an image: the columns of predictions.csv. A missing label, split or error is the empty string."""

    table: pd.DataFrame
    labels: tuple[str, ...]

    def __post_init__(self):
        _check_columns(self.table, self.labels)
        _check_rows(self)

    @property
    def truth(self) -> np.ndarray:
        """Position of each image's label among `labels`; -1 for an image without a label."""
        return pd.Index(self.labels).get_indexer(self.table["label"])

    @property
    def probability(self) -> np.ndarray:
        """One row per image, one column per label; nan for an image that could not be read."""
        return self.table[[PREFIX + label for label in self.labels]].to_numpy(float)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have rows: train, valid, test, then any other by name."""
        here = set(self.table["split"]) - {""}
        return (*(s for s in SPLITS if s in here), *sorted(here - set(SPLITS)))

    @property
    def headline_split(self) -> str | None:
        """The split that the headline speaks of: test, pooled folds, else valid, else whatever is there."""
        here = self.splits
        return next((s for s in ("test", OUT_OF_FOLD, "valid") if s in here), here[0] if here else None)

    def part(self, split: str) -> "Predictions":
        """The rows of one split, unreadable images among them."""
        return self._where(self.table["split"] == split)

    @property
    def folds(self) -> tuple[str, ...]:
        """What each of several pooled runs held out; nothing in a single run."""
        return tuple(dict.fromkeys(self.table["fold"].astype(str))) if "fold" in self.table else ()

    def of_fold(self, name: str) -> "Predictions":
        """The rows of one of the pooled runs."""
        return self._where(self.table["fold"].astype(str) == name)

    def scored(self) -> "Predictions":
        """The rows that can be measured: the image was read and its label is known."""
        return self._where((self.table["error"] == "") & (self.table["label"] != ""))

    def _repr_html_(self) -> str:
        # scikit-learn takes a second to load, and who reads predictions.csv needs none of it
        from fastcxr.metrics.classification import measure
        from fastcxr.metrics.display import draw_excerpt

        splits = []
        for split in self.splits:
            part = self.part(split).scored()
            metrics = measure(part.truth, part.probability, part.labels)
            counts = len(part.table), part.table["patient"].nunique()
            splits.append((split, *counts, metrics["accuracy"], metrics["auroc"]["macro"]))
        return draw_excerpt(splits, self.table, self.probability)

    def _where(self, chosen: pd.Series) -> "Predictions":
        return Predictions(self.table[chosen].reset_index(drop=True), self.labels)


def make_predictions(
    manifest: pd.DataFrame, probability: np.ndarray, labels: Sequence[str], errors: Sequence[str] | None = None
) -> Predictions:
    """A manifest and what the model said about each of its rows.

    `probability`: shape (n, k), rows sum to one; ignored where `errors` gives a reason. A further column of the
    manifest that would be taken for one of ours is kept as `manifest_<name>`; `file`, the machine's own, is dropped.
    """
    errors = np.array(["" if e is None else str(e) for e in (errors if errors is not None else [""] * len(manifest))])
    good = errors == ""
    probability = np.where(good[:, None], np.asarray(probability, dtype=float).reshape(len(manifest), -1), np.nan)
    best = np.where(good, np.nan_to_num(probability, nan=-1.0).argmax(axis=1), len(labels))
    base = {name: _text(manifest[name]) if name in manifest else "" for name in KNOWN[:5]}
    base |= {"predicted": np.array([*labels, ""], dtype=object)[best], "error": errors}
    scores = {PREFIX + label: probability[:, k] for k, label in enumerate(labels)}
    further = {
        f"manifest_{name}" if name in _OURS or name.startswith(PREFIX) else name: manifest[name].to_numpy()
        for name in manifest.columns
        if name not in KNOWN[:5] and name != "file"
    }
    return Predictions(pd.DataFrame({**base, **scores, **further}, index=range(len(manifest))), tuple(labels))


def leave_open(predictions: Predictions, strangeness: np.ndarray) -> Predictions:
    """The predictions with their `strangeness`, and `like_training`, yes or no; where it is no, none is `predicted`.

    `strangeness`: shape (n,), beyond 1 for a picture unlike the training images. The probabilities stay, so that every
    figure can be measured on all images. Both cells of an unreadable image are empty.
    """
    read = (predictions.table["error"] == "").to_numpy()
    is_like = strangeness <= 1  # a nan is like nothing
    further = {
        STRANGENESS: np.where(read, strangeness, np.nan),
        LIKE_TRAINING: np.where(read, np.where(is_like, "yes", "no"), ""),
        "predicted": predictions.table["predicted"].where(is_like, ""),
    }
    return Predictions(predictions.table.assign(**further), predictions.labels)


def write_predictions(predictions: Predictions, target: str | Path | TextIO) -> None:
    """predictions.csv in full precision, as a file or into an open stream: each probability reads back the same."""
    table = guard(predictions.table)
    text = table.to_csv(index=False, lineterminator="\n")
    if "\r" in text:  # pandas leaves a lone carriage return unquoted, and would read it back as the end of a row
        text = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    if isinstance(target, str | Path):
        write_whole(target, text)
    else:
        target.write(text)


def read_predictions(path: str | Path) -> Predictions:
    """The predictions of a predictions.csv; every further column comes back as text."""
    if not Path(path).is_file():
        raise InputMissingError("no such file", "Name a predictions.csv that fastcxr wrote", path=path)
    try:
        # no value means "missing" here: a class may be called NA, a patient None
        table = unguard(pd.read_csv(path, dtype=str, keep_default_na=False, encoding_errors="surrogateescape"))
        labels = _labels_of(table)
        scores = {PREFIX + label: table[PREFIX + label].replace("", "nan").astype(float) for label in labels}
        return Predictions(table.assign(**scores), labels)
    except (ValueError, TypeError) as error:  # TypeError: numbers of letters that are not UTF-8, says pandas
        if isinstance(error, DataError):
            raise DataError(error.what, error.fix, path=path, code=error.code) from error
        why = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"not a predictions.csv ({why})", _FIX, path=path) from error


def most_wrong(predictions: Predictions, count: int) -> pd.DataFrame:
    """The misclassified rows of the headline split, the lowest probability of the truth first, `count` at most."""
    if predictions.headline_split is None:
        return predictions.table.iloc[:0]
    part = predictions.part(predictions.headline_split).scored()
    rows, truth, probability = np.arange(len(part.table)), part.truth, part.probability
    wrong = rows[probability.argmax(axis=1) != truth]
    # ties: the surer of the two mistakes, then the file name, so that the choice never wavers
    order = np.lexsort(
        (part.table["path"].iloc[wrong], -probability.max(axis=1)[wrong], probability[wrong, truth[wrong]])
    )
    return part.table.iloc[wrong[order][:count]].reset_index(drop=True)


_FIX = "Name a predictions.csv that fastcxr wrote"
_OURS = (*KNOWN, STRANGENESS, LIKE_TRAINING)


def _text(column: pd.Series) -> np.ndarray:
    return np.array(
        ["" if missing else str(value) for value, missing in zip(column, column.isna(), strict=True)], object
    )


def _labels_of(table: pd.DataFrame) -> tuple[str, ...]:
    # the probabilities stand side by side after `error`: a further column called prob_... would come later
    names = list(table.columns)
    start = names.index("error") + 1 if "error" in names else len(names)
    stop = next((i for i in range(start, len(names)) if not names[i].startswith(PREFIX)), len(names))
    return tuple(name.removeprefix(PREFIX) for name in names[start:stop])


def _check_columns(table: pd.DataFrame, labels: tuple[str, ...]) -> None:
    missing = [name for name in (*KNOWN, *(PREFIX + label for label in labels)) if name not in table.columns]
    if missing:
        raise DataError(f"no column called {', '.join(missing)}", _FIX)
    if len(labels) < 2 or len(set(labels)) < len(labels):
        raise DataError(f"predictions need two or more different classes, got {list(labels)}", _FIX)


def _check_rows(predictions: Predictions) -> None:
    table, labels = predictions.table, predictions.labels
    unknown = sorted(set(table["label"]) - {"", *labels})
    if unknown:
        raise DataError(
            f"labels {unknown} are none of the model's classes {list(labels)}",
            "Rename the labels to the model's own, or leave these images out",
            code="E302",
        )
    good = (table["error"] == "").to_numpy()
    sums = predictions.probability[good].sum(axis=1)
    # the tolerance is scikit-learn's own for a multi-class AUROC; a nan fails it too
    bad = ~np.isclose(1.0, sums, rtol=1e-5)
    if bad.any():
        where = table["path"][good].iloc[int(bad.argmax())]
        raise DataError(
            f"{bad.sum()} rows have probabilities that do not sum to one, the first is {where}",
            "Predict again, or give these rows a reason in the column error",
        )
