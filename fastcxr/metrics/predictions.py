"""Predictions of a model with the true labels, and predictions.csv, which stores them in full precision.

There is one schema for one class per image and for several findings per image: a probability per label. Findings have
in addition a column per finding with the label that is evaluated (truth_Edema: 1, 0, or blank for an unknown label).

Cells that a spreadsheet would read as a formula are escaped in the file, and read back unchanged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from fastcxr.data.findings import FINDING_DTYPE, LABEL_SEPARATOR
from fastcxr.data.label_policy import compute_truth
from fastcxr.errors import DataError, InputMissingError, require_type
from fastcxr.io.files import atomic_write
from fastcxr.io.formulas import unescape_formulas
from fastcxr.io.run_folders import require_run_file
from fastcxr.io.tables import format_csv
from fastcxr.metrics.scored_images import DEFAULT_THRESHOLD, ScoredImages, list_thresholds

PREDICTIONS_FILE = "predictions.csv"
BASE_COLUMNS = ("source", "path", "patient", "label", "split", "predicted", "error")
SPLITS = ("train", "valid", "test")
OUT_OF_FOLD = "oof"  # out-of-fold predictions: each image is scored by a model that was not trained on it
PROBABILITY_PREFIX, TRUTH_PREFIX, DECISION_PREFIX = "prob_", "truth_", "decision_"
WARNINGS_COLUMN = "warnings"  # code and short text of each warning on the image, joined by "; "
OOD_SCORE_COLUMN, IN_DISTRIBUTION_COLUMN = "ood_score", "in_distribution"  # columns of a model with an OOD detector


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of n images for k classes, or for k findings of which an image may have several.

    table: the columns of predictions.csv, one row per image; a missing label, split or error is the empty string.
    labels: the k classes or findings, in the order of the probabilities.
    Raises DataError for a missing column, a label that is not a class, or probabilities that do not sum to one; those
    of findings are each between 0 and 1.
    """

    table: pd.DataFrame
    labels: tuple[str, ...]

    def __post_init__(self):
        require_type("table", self.table, pd.DataFrame, fix="Pass the table of other predictions, or call predict")
        _validate_columns(self.table, self.labels)
        _validate_rows(self)

    @property
    def is_multi_label(self) -> bool:
        """Whether the labels are findings of which an image may have several."""
        return bool(self.labels) and TRUTH_PREFIX + self.labels[0] in self.table

    @property
    def class_index(self) -> np.ndarray:
        """Position of each image's class in `labels`, shape (n,); -1 for an image without a label."""
        return pd.Index(self.labels).get_indexer(pd.Index(self.table["label"]))

    @property
    def truth(self) -> np.ndarray:
        """Label of each image and class or finding, shape (n, k): 1 present, 0 absent, NaN unknown."""
        if self.is_multi_label:
            return self.table[[TRUTH_PREFIX + label for label in self.labels]].to_numpy(float, na_value=np.nan)
        class_index = self.class_index[:, None]
        return np.where(class_index < 0, np.nan, (class_index == np.arange(len(self.labels))).astype(float))

    @property
    def probability(self) -> np.ndarray:
        """Probabilities, shape (n, k); NaN for an unreadable image."""
        # by column: selecting several takes longer than all else for the single image of a request
        return np.array([self.table[PROBABILITY_PREFIX + label].to_numpy(float) for label in self.labels]).T

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have rows: train, valid, test, then others by name."""
        present = set(self.table["split"].unique()) - {""}
        return (*(s for s in SPLITS if s in present), *sorted(present - set(SPLITS)))

    @property
    def primary_split(self) -> str | None:
        """Split of the main metrics: test, else out-of-fold, else valid, else the first; None without splits."""
        present = self.splits
        return next((s for s in ("test", OUT_OF_FOLD, "valid") if s in present), present[0] if present else None)

    def for_split(self, split: str | None) -> "Predictions":
        """Return the rows of one split, unreadable images included; no rows for None."""
        return self._select_rows(self.table["split"] == split)

    @property
    def folds(self) -> tuple[str, ...]:
        """Names of the pooled folds; empty for a single run."""
        return tuple(dict.fromkeys(self.table["fold"].astype(str))) if "fold" in self.table else ()

    def for_fold(self, name: str) -> "Predictions":
        """Return the rows of one of the pooled folds."""
        return self._select_rows(self.table["fold"].astype(str) == name)

    def scorable(self) -> "Predictions":
        """Return the rows with a label, or a known label of any finding, and a readable image."""
        is_read = self.table["error"] == ""
        if self.is_multi_label:
            return self._select_rows(is_read & self._has_known_label())
        return self._select_rows(is_read & (self.table["label"] != ""))

    def select_readable(self, n_images: int) -> "Predictions":
        """Return the first rows with a readable image."""
        return Predictions(self.table[self.table["error"] == ""].head(n_images).reset_index(drop=True), self.labels)

    def to_arrays(self, thresholds: Mapping[str, Any] | None = None) -> ScoredImages:
        """Return the arrays of these rows, which must all be scorable.

        `thresholds`: of the findings, as in the calibration of model.json. Without them, the decisions of the table
        count, which in pooled folds are those of several models, and DEFAULT_THRESHOLD where there is none.
        """
        patients = self.table["patient"].to_numpy()
        if not self.is_multi_label:
            return ScoredImages(self.class_index, self.probability, self.labels, patients)
        is_present = self.probability >= list_thresholds(thresholds or {}, self.labels)
        columns = [DECISION_PREFIX + label for label in self.labels]
        if not thresholds and set(columns) <= set(self.table):
            decisions = self.table[columns].to_numpy()
            is_present = np.where(decisions == "", is_present, decisions == "yes")
        return ScoredImages(self.truth, self.probability, self.labels, patients, is_present)

    def metrics(self) -> pd.DataFrame:
        """Return the metrics of every split with their 95 % confidence intervals, clustered by patient.

        Returns:
            Columns split, class ("all classes" or a label), metric, value, low, high and n_images (all images of the
            split, or those with the label of the row). A metric that is undefined is NaN, as are the bounds of a metric
            without an interval. Each class is compared with the others; auroc and average_precision of all classes are
            macro averages. Findings have the class "all findings" instead.
        """
        # scikit-learn takes a second to import, and reading predictions.csv does not need it
        from fastcxr.metrics.metrics_table import make_split_metrics_table

        return make_split_metrics_table({split: self.for_split(split).scorable().to_arrays() for split in self.splits})

    def _repr_html_(self) -> str:
        # scikit-learn takes a second to import, and reading predictions.csv does not need it
        from fastcxr.metrics.display import make_predictions_html
        from fastcxr.metrics.findings import compute_image_metrics

        splits = []
        for split in self.splits:
            part = self.for_split(split).scorable()
            metrics = compute_image_metrics(part.to_arrays())
            second = metrics["average_precision"]["macro"] if self.is_multi_label else metrics["accuracy"]
            splits.append((split, len(part.table), part.table["patient"].nunique(), second, metrics["auroc"]["macro"]))
        return make_predictions_html(splits, self.table, self.probability, is_multi_label=self.is_multi_label)

    def _has_known_label(self) -> pd.Series:
        columns = [TRUTH_PREFIX + label for label in self.labels]
        return self.table[columns].notna().any(axis=1)

    def _select_rows(self, is_selected: pd.Series) -> "Predictions":
        return Predictions(self.table[is_selected].reset_index(drop=True), self.labels)


def make_predictions(
    manifest: pd.DataFrame,
    probability: np.ndarray,
    labels: Sequence[str],
    errors: Sequence[str] | None = None,
    *,
    findings: bool = False,
) -> Predictions:
    """Combine a manifest of n rows with the probabilities of its images.

    A further column of the manifest with a name used by predictions.csv is renamed to `manifest_<name>`. The column
    `file`, an absolute path, is dropped.

    Args:
        manifest: manifest of n rows.
        probability: shape (n, k), rows sum to one unless `findings`; ignored for rows with an error.
        labels: names of the k classes or findings.
        errors: why an image could not be read, n in all, empty or None for a readable image.
        findings: whether the labels are findings of which an image may have several.
    """
    error_cells = np.array([error or "" for error in errors] if errors is not None else [""] * len(manifest), str)
    is_read = error_cells == ""
    probability = np.asarray(probability, dtype=float).reshape(len(manifest), len(labels))
    probability = np.where(is_read[:, None], probability, np.nan)
    base_columns = {name: _to_text(manifest[name]) if name in manifest else "" for name in BASE_COLUMNS[:5]}
    predicted = name_predicted(probability, labels, findings=findings)
    base_columns |= {"predicted": predicted, "error": error_cells}
    columns = base_columns | {PROBABILITY_PREFIX + label: probability[:, k] for k, label in enumerate(labels)}
    if findings:
        truth = compute_truth(manifest, labels)
        columns |= {TRUTH_PREFIX + label: _to_truth_cells(truth[:, k]) for k, label in enumerate(labels)}
    for name in manifest.columns:
        if name not in (*BASE_COLUMNS[:5], "file"):
            is_reserved = name in _OWN_COLUMNS or name.startswith(_OWN_PREFIXES)
            columns[f"manifest_{name}" if is_reserved else name] = manifest[name].to_numpy()
    return Predictions(pd.DataFrame(columns, index=range(len(manifest))), tuple(labels))


def name_findings(is_present: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Return the names of the present findings of each image, joined by "|"; `is_present`: booleans, shape (n, k)."""
    names = np.array(labels, dtype=object)
    return np.array([LABEL_SEPARATOR.join(names[row]) for row in is_present], dtype=object)


def name_predicted(probability: np.ndarray, labels: Sequence[str], *, findings: bool) -> np.ndarray:
    """Return the most probable class, or the findings that reach DEFAULT_THRESHOLD; empty for unreadable images."""
    if findings:
        return name_findings(np.nan_to_num(probability) >= DEFAULT_THRESHOLD, labels)
    is_read = ~np.isnan(probability).all(axis=1)
    predicted_index = np.where(is_read, np.nan_to_num(probability, nan=-1.0).argmax(axis=1), len(labels))
    return np.array([*labels, ""], dtype=object)[predicted_index]


def _to_truth_cells(truth: np.ndarray) -> pd.Series:
    return pd.Series(truth).astype(FINDING_DTYPE)


def mark_ood(predictions: Predictions, ood_scores: np.ndarray) -> Predictions:
    """Return the predictions with the columns `ood_score` and `in_distribution` (yes or no).

    An out-of-distribution image has no predicted class, but keeps its probabilities for the metrics. Both cells of an
    unreadable image are empty. `ood_scores`: shape (n,), above 1 for an out-of-distribution image.
    """
    is_read = (predictions.table["error"] == "").to_numpy()
    is_in_distribution = ood_scores <= 1  # False for NaN
    extra_columns = {
        OOD_SCORE_COLUMN: np.where(is_read, ood_scores, np.nan),
        IN_DISTRIBUTION_COLUMN: np.where(is_read, np.where(is_in_distribution, "yes", "no"), ""),
        "predicted": predictions.table["predicted"].where(is_in_distribution, ""),
    }
    return Predictions(predictions.table.assign(**extra_columns), predictions.labels)


def drop_blank_truth(predictions: Predictions) -> pd.DataFrame:
    """Return the columns of predictions.csv: without those of the truth if decisions are there and no label is known.

    The columns of the decisions then state that the labels are findings.
    """
    table, labels = predictions.table, predictions.labels
    truth = [TRUTH_PREFIX + label for label in labels]
    has_decisions = predictions.is_multi_label and DECISION_PREFIX + labels[0] in table
    return table.drop(columns=truth) if has_decisions and table[truth].isna().all(axis=None) else table


def find_ood_rows(predictions: Predictions) -> np.ndarray:
    """Return which images are out-of-distribution, booleans of shape (n,); all False without an OOD detector."""
    return (predictions.table.get(IN_DISTRIBUTION_COLUMN, pd.Series("", predictions.table.index)) == "no").to_numpy()


def write_predictions(predictions: Predictions, target: str | Path | TextIO) -> None:
    """Write predictions.csv to a path or an open stream, in full precision; see drop_blank_truth."""
    require_type("predictions", predictions, Predictions)
    text = format_csv(drop_blank_truth(predictions))
    if isinstance(target, str | Path):
        atomic_write(target, text)
    else:
        target.write(text)


def read_predictions(path: str | Path) -> Predictions:
    """Read a predictions.csv, or that of a run folder; further columns are text.

    Raises:
        InputMissingError: the file does not exist.
        DataError: the file is not a predictions.csv.
    """
    require_type("path", path, str, Path)
    path = _find_predictions_file(Path(path))
    try:
        # keep_default_na: a class may be called NA, and a patient None
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding_errors="surrogateescape")
        table = unescape_formulas(table)
        labels = _find_labels(table)
        names = [PROBABILITY_PREFIX + label for label in labels]
        columns = {name: table[name].replace("", "nan").astype(float) for name in names}
        if labels and TRUTH_PREFIX + labels[0] not in table and DECISION_PREFIX + labels[0] in table:
            table = _insert_blank_truth(table, labels)
        names = [TRUTH_PREFIX + label for label in labels if TRUTH_PREFIX + label in table]
        columns |= {name: pd.to_numeric(table[name].replace("", None)).astype(FINDING_DTYPE) for name in names}
        return Predictions(table.assign(**columns), labels)
    except (ValueError, TypeError) as error:  # pandas raises TypeError for numbers that are not UTF-8
        if isinstance(error, DataError):
            raise DataError(error.problem, error.fix, path=path, code=error.code) from error
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"not a predictions.csv ({reason})", _WRONG_FILE_FIX, path=path) from error


def _insert_blank_truth(table: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Return the table with the columns that drop_blank_truth leaves out, after the probabilities."""
    start = table.columns.get_loc(PROBABILITY_PREFIX + labels[-1]) + 1  # pyright: ignore[reportOperatorIssue]  a number
    truth = pd.DataFrame("", index=table.index, columns=[TRUTH_PREFIX + label for label in labels])
    return pd.concat([table.iloc[:, :start], truth, table.iloc[:, start:]], axis=1)


def _find_predictions_file(path: Path) -> Path:
    """Return the file itself, or predictions.csv of a run folder. Raises InputMissingError if there is none."""
    if path.is_file():
        return path
    folder = path.parent if path.name == PREDICTIONS_FILE else path
    if folder.suffix and not folder.is_dir():
        raise InputMissingError("no such file", _WRONG_FILE_FIX, path=path)
    require_run_file(folder, PREDICTIONS_FILE)
    return folder / PREDICTIONS_FILE


def select_most_wrong(predictions: Predictions, n_images: int) -> pd.DataFrame:
    """Return the most wrong rows of the primary split.

    These are the misclassified images, lowest probability of the true class first. Of findings they are `n_images` of
    each finding, named in the column `finding`: first those with the finding and the lowest probability, at most half
    of them, then those without it and the highest probability.
    """
    if predictions.primary_split is None:
        return predictions.table.iloc[:0]
    scorable = predictions.for_split(predictions.primary_split).scorable()
    if predictions.is_multi_label:
        return _select_most_wrong_findings(scorable, n_images)
    truth, probability, paths = scorable.class_index, scorable.probability, scorable.table["path"]
    wrong = np.flatnonzero(probability.argmax(axis=1) != truth)
    # ties: higher confidence first, then by path, for a reproducible order
    order = np.lexsort((paths.iloc[wrong], -probability.max(axis=1)[wrong], probability[wrong, truth[wrong]]))
    return scorable.table.iloc[wrong[order][:n_images]].reset_index(drop=True)


def _select_most_wrong_findings(scorable: Predictions, n_images: int) -> pd.DataFrame:
    truth, probability, paths = scorable.truth, scorable.probability, scorable.table["path"].to_numpy()
    rows, findings = [], []
    for k, label in enumerate(scorable.labels):
        missed, false_alarms = np.flatnonzero(truth[:, k] == 1), np.flatnonzero(truth[:, k] == 0)
        missed = missed[np.lexsort((paths[missed], probability[missed, k]))][: (n_images + 1) // 2]
        order = np.lexsort((paths[false_alarms], -probability[false_alarms, k]))
        chosen = [*missed, *false_alarms[order][: n_images - len(missed)]]
        rows, findings = rows + chosen, findings + [label] * len(chosen)
    return scorable.table.iloc[rows].reset_index(drop=True).assign(finding=findings)


_WRONG_FILE_FIX = "Pass a predictions.csv written by fastcxr, or its run folder"
_OWN_PREFIXES = (PROBABILITY_PREFIX, TRUTH_PREFIX, DECISION_PREFIX)
_OWN_COLUMNS = (*BASE_COLUMNS, OOD_SCORE_COLUMN, IN_DISTRIBUTION_COLUMN, WARNINGS_COLUMN)


def _to_text(column: pd.Series) -> np.ndarray:
    is_missing = column.isna()
    return np.array(["" if missing else str(v) for v, missing in zip(column, is_missing, strict=True)], object)


def _find_labels(table: pd.DataFrame) -> tuple[str, ...]:
    # the probability columns follow `error` without a gap: a further column called prob_... is never among them
    names = list(table.columns)
    start = names.index("error") + 1 if "error" in names else len(names)
    stop = next((i for i in range(start, len(names)) if not names[i].startswith(PROBABILITY_PREFIX)), len(names))
    return tuple(name.removeprefix(PROBABILITY_PREFIX) for name in names[start:stop])


def _validate_columns(table: pd.DataFrame, labels: tuple[str, ...]) -> None:
    names = (*BASE_COLUMNS, *(PROBABILITY_PREFIX + label for label in labels))
    missing = [name for name in names if name not in table.columns]
    if missing:
        raise DataError(f"no column called {', '.join(missing)}", _WRONG_FILE_FIX)
    truths = [TRUTH_PREFIX + label in table for label in labels]
    if any(truths) and not all(truths):
        raise DataError("some findings have no column truth_FINDING", _WRONG_FILE_FIX)
    if len(labels) < (1 if any(truths) else 2) or len(set(labels)) < len(labels):
        raise DataError(f"got the classes {list(labels)}, expected two or more different classes", _WRONG_FILE_FIX)


def _validate_rows(predictions: Predictions) -> None:
    if predictions.is_multi_label:
        _validate_finding_rows(predictions)
        return
    table, labels = predictions.table, predictions.labels
    unknown = sorted(set(table["label"]) - {"", *labels})
    if unknown:
        problem = f"the labels {unknown} are not classes of the model, expected {list(labels)}"
        fix = "Rename the labels to classes of the model, or exclude these images"
        raise DataError(problem, fix, code="E302")
    is_read = (table["error"] == "").to_numpy()
    sums = predictions.probability[is_read].sum(axis=1)
    is_invalid = ~np.isclose(1.0, sums, rtol=1e-5)  # the tolerance of scikit-learn's multi-class AUROC; True for NaN
    if is_invalid.any():
        first_path = table["path"][is_read].iloc[int(is_invalid.argmax())]
        problem = f"the probabilities of {is_invalid.sum()} rows do not sum to one, first {first_path}"
        raise DataError(problem, "Predict again, or write a reason into the column error of these rows")


def _validate_finding_rows(predictions: Predictions) -> None:
    is_read = (predictions.table["error"] == "").to_numpy()
    probability, truth = predictions.probability[is_read], predictions.truth
    is_invalid = ~((probability >= 0) & (probability <= 1)).all(axis=1)  # True for NaN
    if is_invalid.any():
        first_path = predictions.table["path"][is_read].iloc[int(is_invalid.argmax())]
        problem = f"the probabilities of {is_invalid.sum()} rows are not between 0 and 1, first {first_path}"
        raise DataError(problem, "Predict again, or write a reason into the column error of these rows")
    if not np.isin(truth[~np.isnan(truth)], (0, 1)).all():
        raise DataError("a column truth_FINDING has other values than 0, 1 and blank", _WRONG_FILE_FIX)
