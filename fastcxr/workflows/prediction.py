"""Predictions of many images in a CSV: rows are appended in blocks, and an interrupted prediction is continued.

The rows are in the folder FILE.part until the last image is predicted: rows.csv, and progress.json with the number of
finished rows and with hashes of the model, the options and the list of images. Memory does not depend on the number of
images, except for their paths.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.data.patients import make_salt_id, read_salt
from fastcxr.errors import OutputError, StorageError
from fastcxr.inference.predict import predict_blocks
from fastcxr.inference.scores import Scorer
from fastcxr.io.files import (
    compute_sha256,
    convert_write_errors,
    read_json,
    reject_existing,
    require_free_space,
    sync_folder,
    validate_writable,
    write_json,
)
from fastcxr.io.formatting import pluralize
from fastcxr.io.lock import directory_lock
from fastcxr.io.packages import find_missing
from fastcxr.io.run_folders import EXPORT_JSON_FILE
from fastcxr.io.tables import format_csv
from fastcxr.metrics.decisions import PredictionCounts, apply_thresholds
from fastcxr.metrics.predictions import Predictions, drop_blank_truth
from fastcxr.models.model_json import MODEL_JSON_FILE, list_models_below
from fastcxr.progress.base import Progress
from fastcxr.version import VERSION

log = logging.getLogger("fastcxr")
PART_SUFFIX, ROWS_FILE, PROGRESS_FILE = ".part", "rows.csv", "progress.json"
CELL_BYTES = 24  # of a probability in full precision with its decision; an upper estimate for the free space
ROW_BYTES = 80  # of the further columns, without the path
MAX_LISTED_ERRORS = 100  # unreadable images whose errors are listed; the CSV has all
SeeBlock = Callable[[Predictions, pd.DataFrame], object]  # gets a block and its rows of the table of images


def _ignore_block(block: Predictions, rows: pd.DataFrame) -> None:
    """Do nothing with a block."""


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """Options of write_prediction_csv.

    Attributes:
        rows: the rows to predict; None: all.
        hash_names: see predict.
        restart: do not continue an interrupted prediction.
        overwrite: replace an existing file.
        see_block: is called with each block of this call, before its rows are written.
    """

    rows: range | None = None
    hash_names: bool = False
    restart: bool = False
    overwrite: bool = False
    see_block: SeeBlock = _ignore_block


@dataclass
class PredictionSummary:
    """Numbers of images of a prediction, and path and error of its first unreadable images.

    Attributes:
        counts: numbers of images.
        unreadable: path and error of at most MAX_LISTED_ERRORS images.
    """

    counts: PredictionCounts = field(default_factory=PredictionCounts)
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def add(self, predictions: Predictions) -> None:
        """Add the images of a block."""
        self.counts.add(predictions)
        errors = predictions.table.loc[predictions.table["error"].ne(""), ["path", "error"]]
        n_missing = MAX_LISTED_ERRORS - len(self.unreadable)
        self.unreadable += [(str(path), str(error)) for path, error in errors.head(n_missing).to_numpy()]

    @classmethod
    def join(cls, summaries: Iterable["PredictionSummary"]) -> "PredictionSummary":
        """Return the summary of the images of several summaries, in their order."""
        joined = cls()
        for one in summaries:
            joined.counts.add_counts(one.counts)
            joined.unreadable = (joined.unreadable + one.unreadable)[:MAX_LISTED_ERRORS]
        return joined

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "PredictionSummary":
        """Return the summary with the content that `asdict` returned."""
        unreadable = [(str(path), str(error)) for path, error in value["unreadable"]]
        return cls(PredictionCounts(**value["counts"]), unreadable)


def predict_decided_blocks(
    scorer: Scorer, table: pd.DataFrame, progress: Progress, *, hash_names: bool = False
) -> Generator[Predictions, None, None]:
    """Yield the predictions of the images in order, with the columns of apply_thresholds; see predict_blocks."""
    for block in predict_blocks(scorer, table, progress, hash_names=hash_names):
        yield apply_thresholds(block, scorer.thresholds)


def needs_quotes(table: pd.DataFrame, scorer: Scorer, *, hash_names: bool) -> bool:
    """Return whether all texts are quoted: if a name or a label has a carriage return; see format_csv."""
    names = () if hash_names else (table["source"], table["path"])
    return any("\r" in label for label in scorer.labels) or any(
        bool(column.str.contains("\r", regex=False).any()) for column in names
    )


def format_block(predictions: Predictions, *, header: bool, quote_text: bool) -> str:
    """Return the rows of predictions.csv of a block."""
    return format_csv(drop_blank_truth(predictions), header=header, quote_text=quote_text)


def describe_prediction(folder: str | Path, scorer: Scorer, table: pd.DataFrame, *, hash_names: bool) -> dict[str, Any]:
    """Return what the rows depend on: hashes of the model and of the images, and the options.

    The hash of the images contains names and sizes, not the content and not the folder above. Equal values on two
    machines mean that their rows can be joined.
    """
    options = {
        "version": VERSION,
        "precision_and_device": scorer.dtype_and_device,
        "names": f"hashed with salt {make_salt_id(read_salt())}" if hash_names else "plain",
    }
    return {"model": _hash_model(Path(folder)), "options": options, "images": _hash_images(table), "n": len(table)}


def _hash_model(folder: Path) -> str:
    """Return a hash of model.json or export.json, which contain the checksums of all files of a model."""
    return _hash_json([compute_sha256(file) for file in list_description_files(folder)])


def list_description_files(folder: Path) -> list[Path]:
    """Return the files that describe a model: model.json or export.json, or model.json of each fold."""
    files = [folder / MODEL_JSON_FILE, folder / EXPORT_JSON_FILE]
    files += [fold / MODEL_JSON_FILE for fold in list_models_below(folder, "fold")]
    return [file for file in files if file.is_file()]


def _hash_images(table: pd.DataFrame) -> str:
    hashed = hashlib.sha256()
    for source, path, file in zip(table["source"], table["path"], table["file"], strict=True):
        try:
            size = os.stat(file).st_size
        except OSError:  # a packed image, or a file that is reported when it is read
            size = -1
        hashed.update(f"{source}\0{path}\0{size}\n".encode("utf-8", "surrogateescape"))
    return hashed.hexdigest()


def _hash_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def find_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Return what differs between two results of describe_prediction, as words; empty if they are equal."""
    if found.get("model") != expected["model"]:
        return "another model"
    if found.get("n") != expected["n"]:
        return f"{found.get('n', 0):,} images instead of {expected['n']:,}"
    if found.get("images") != expected["images"]:
        return "other images"
    options = found.get("options", {})
    changed = [name for name, value in expected["options"].items() if options.get(name) != value]
    if changed:
        name = changed[0]
        return f"another {name.replace('_', ' ')} ({options.get(name)}, now {expected['options'][name]})"
    if found.get("dicom") != expected.get("dicom"):
        return "other folders of DICOM results"
    return "other rows" if found.get("rows") != expected.get("rows") else ""


def write_prediction_csv(
    scorer: Scorer,
    table: pd.DataFrame,
    csv: Path,
    description: Mapping[str, Any],
    progress: Progress,
    options: PredictionOptions = PredictionOptions(),  # noqa: B008  it is frozen
) -> PredictionSummary:
    """Predict images block by block, and write them to a CSV, which appears when all are predicted.

    An interrupted prediction is continued after its last complete block: the file has the same bytes.

    Args:
        scorer: the model.
        table: the images; see make_image_table.
        csv: the file to write.
        description: of describe_prediction.
        progress: progress display.
        options: see PredictionOptions.

    Raises:
        OutputError: the file exists (without `overwrite`) or cannot be written; or the interrupted prediction had
            another model, options or images.
        StorageError: the free disk space is too small, or the disk is full; the finished rows are kept.
        BusyError: another process writes the same file.
    """
    rows = range(len(table)) if options.rows is None else options.rows
    validate_new_csv(csv, overwrite=options.overwrite)
    quote_text = needs_quotes(table, scorer, hash_names=options.hash_names)
    description = {**description, "rows": [rows.start, rows.stop]}
    with _open_part(csv, description, restart=options.restart) as part:
        require_free_space(
            part.folder, _estimate_bytes(table, scorer, len(rows) - part.n_rows), "the file", _make_space_fix(part)
        )
        if part.n_rows:
            log.info("continuing after %s of %s", f"{part.n_rows:,}", pluralize(len(rows), "image"))
        if part.n_rows < len(rows) or not part.n_bytes:
            open_rows = table.iloc[rows.start + part.n_rows : rows.stop].reset_index(drop=True)
            with closing(predict_decided_blocks(scorer, open_rows, progress, hash_names=options.hash_names)) as blocks:
                try:
                    for block in blocks:
                        start = rows.start + part.n_rows
                        options.see_block(block, table.iloc[start : start + len(block.table)])
                        part.append(block, quote_text=quote_text)
                except KeyboardInterrupt as interrupt:
                    interrupt.add_note(f"{part.n_rows:,} of {pluralize(len(rows), 'image')} predicted")
                    raise
        part.finish(csv, overwrite=options.overwrite)
        return part.summary


def validate_new_csv(csv: Path, *, overwrite: bool = False) -> None:
    """Raise OutputError if the file cannot be written or, without `overwrite`, exists: it may be of other images."""
    validate_writable(csv)
    if not overwrite:
        reject_existing(csv)


def _estimate_bytes(table: pd.DataFrame, scorer: Scorer, n_rows: int) -> int:
    mean_name = table["path"].iloc[:1000].str.len().mean() + table["source"].iloc[:1000].str.len().mean()
    return int(n_rows * (mean_name + ROW_BYTES + CELL_BYTES * len(scorer.labels)))


def _make_space_fix(part: "_Part") -> str:
    kept = f": {pluralize(part.n_rows, 'finished row')} are kept" if part.n_rows else ""
    return f"Free disk space and repeat the command{kept}"


@contextmanager
def _open_part(csv: Path, description: Mapping[str, Any], *, restart: bool) -> Iterator["_Part"]:
    folder = csv.with_name(csv.name + PART_SUFFIX)
    with convert_write_errors(folder):
        folder.mkdir(exist_ok=True)
    with _lock_if_possible(folder):
        part = _Part(folder, description)
        if not restart:
            part.read()
        try:
            yield part
        finally:
            if part.is_finished or not part.n_bytes:
                shutil.rmtree(folder, ignore_errors=True)


def _lock_if_possible(folder: Path) -> AbstractContextManager[None]:
    """Lock the folder, unless filelock is missing, which the prediction of an export does not need."""
    return nullcontext() if find_missing(("filelock",)) else directory_lock(folder)


class _Part:
    """Finished rows of a prediction in a folder, and the file that counts them."""

    def __init__(self, folder: Path, description: Mapping[str, Any]):
        self.folder, self.description, self.is_finished = folder, description, False
        self.n_rows, self.n_bytes, self.summary = 0, 0, PredictionSummary()

    def read(self) -> None:
        """Read the number of finished rows. Raise OutputError for rows of another prediction."""
        path = self.folder / PROGRESS_FILE
        if not (path.is_file() and (self.folder / ROWS_FILE).is_file()):  # nothing is finished, or all was moved
            return
        try:
            progress = read_json(path)
            difference = find_difference(progress["description"], self.description)
            n_rows, n_bytes = int(progress["n_rows"]), int(progress["n_bytes"])
            summary = PredictionSummary.from_json(progress["summary"])
            if (self.folder / ROWS_FILE).stat().st_size < n_bytes:
                raise ValueError("fewer bytes than counted")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            problem = "the rows of an interrupted prediction are damaged"
            raise OutputError(problem, "Remove this folder", path=self.folder, code="E622") from error
        if difference:
            problem = f"holds {pluralize(n_rows, 'row')} of an interrupted prediction with {difference}"
            fix = "Repeat its command to continue it, or remove this folder"
            raise OutputError(problem, fix, path=self.folder, code="E621")
        self.n_rows, self.n_bytes, self.summary = n_rows, n_bytes, summary

    def append(self, block: Predictions, *, quote_text: bool) -> None:
        """Append the rows of a block, and count them: after a crash, rows that are not counted are cut off."""
        content = format_block(block, header=not self.n_bytes, quote_text=quote_text).encode("utf-8", "surrogateescape")
        summary = PredictionSummary.from_json(asdict(self.summary))
        summary.add(block)
        n_rows, n_bytes = self.n_rows + len(block.table), self.n_bytes + len(content)
        try:
            with convert_write_errors(self.folder):
                with open(self.folder / ROWS_FILE, "r+b" if self.n_bytes else "wb") as file:
                    file.truncate(self.n_bytes)
                    file.seek(self.n_bytes)
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                progress = {"description": self.description, "n_rows": n_rows, "n_bytes": n_bytes}
                write_json(self.folder / PROGRESS_FILE, progress | {"summary": asdict(summary)})
        except StorageError as error:
            raise StorageError(error.problem, _make_space_fix(self), path=self.folder) from error
        self.n_rows, self.n_bytes, self.summary = n_rows, n_bytes, summary

    def finish(self, csv: Path, *, overwrite: bool) -> None:
        """Move the rows to the file; without `overwrite` they are kept if it was created in the meantime."""
        validate_new_csv(csv, overwrite=overwrite)
        with convert_write_errors(csv):
            os.truncate(self.folder / ROWS_FILE, self.n_bytes)
            (self.folder / ROWS_FILE).replace(csv)
            sync_folder(csv.parent)
        self.is_finished = True
