"""What a run leaves behind: it writes recipe.json first and history.csv as it goes, so that a crash loses little."""

import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.learner import Learner

from fastcxr.data.images import read_image, thumbnail_jpeg
from fastcxr.data.manifest import write_manifest
from fastcxr.errors import ImageError, OutputError
from fastcxr.evaluation.predictions import Predictions, most_wrong, samples_of_each_class, write_predictions
from fastcxr.evaluation.report import draw_report
from fastcxr.inference.bundle import save_model
from fastcxr.progress import Bar, Progress, heard_by
from fastcxr.recipe import Recipe
from fastcxr.storage import write_json, write_whole
from fastcxr.training.strategies import Training

SAMPLES_OF_A_CLASS, MOST_WRONG, THUMBNAIL_SIZE = 6, 12, 192
PACKAGES = ("fastcxr", "torch", "torchvision", "timm", "fastai", "scikit-learn", "numpy", "pandas", "pillow", "pydicom")


class RunFolder(Progress):
    """An open run folder: everything that is said and every epoch goes into it, and on to the one who watches."""

    def __init__(self, folder: str | Path, recipe: Recipe, command: str | None = None):
        self.folder, self.recipe, self.command = Path(folder), recipe, command
        self.said: list[dict[str, str]] = []
        self.rows: list[dict[str, Any]] = []
        self.watcher = Progress()

    @contextmanager
    def open(self, watcher: Progress) -> Iterator["RunFolder"]:
        """Claim the folder; after the block, well or not, run.json says what happened.

        A run that ends before its first epoch leaves no folder.
        """
        self.watcher, self.started = watcher, time.time()
        is_new = not self.folder.exists()
        claim(self.folder)
        write_whole(self.folder / "recipe.json", self.recipe.to_json())
        try:
            with heard_by(_Listener(self.said)):
                yield self
        except BaseException:
            if not self.rows:  # nothing was trained: the same command may be given again once the trouble is mended
                self.withdraw(is_new)
            raise
        finally:
            if (self.folder / "recipe.json").exists():
                write_json(self.folder / "run.json", make_account(self.command, self.started, self.said))

    def withdraw(self, is_new: bool) -> None:
        """Take back what this run wrote, and the folder if it made it."""
        for name in ("recipe.json", "skipped.csv"):
            (self.folder / name).unlink(missing_ok=True)
        if is_new and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def bar(self, total: int, text: str) -> AbstractContextManager[Bar]:
        """Shown by the watcher."""
        return self.watcher.bar(total, text)

    def epoch(self, row: dict[str, Any]) -> None:
        """One row more in history.csv, and shown by the watcher."""
        self.rows.append(row)
        write_whole(self.folder / "history.csv", pd.DataFrame(self.rows).to_csv(index=False))
        self.watcher.epoch(row)

    def write(self, learner: Learner, training: Training, predictions: Predictions) -> None:
        """All files that a report is drawn from."""
        folder, manifest = self.folder, learner.dls.manifest
        write_whole(folder / "history.csv", training.history.to_csv(index=False))
        if len(training.curves):
            write_whole(folder / "learning_rate.csv", training.curves.to_csv(index=False))
        write_manifest(manifest, folder / "manifest.csv")
        save_model(folder, learner, self.recipe, make_choices(learner, self.recipe, training))
        write_predictions(predictions, folder / "predictions.csv")
        write_thumbnails(folder, manifest, predictions)

    def write_skipped(self, errors: list[ImageError], manifest: pd.DataFrame) -> None:
        """skipped.csv: the images that were left out, by the path that people know, and why."""
        shown = dict(zip(manifest["file"], manifest["path"], strict=True))
        rows = [{"path": shown.get(e.path, ""), "code": e.code, "reason": f"{e.what}. {e.fix}"} for e in errors]
        write_whole(
            self.folder / "skipped.csv", pd.DataFrame(rows, columns=["path", "code", "reason"]).to_csv(index=False)
        )


class _Listener(logging.Handler):
    """Keeps what the library says, for the report."""

    def __init__(self, said: list[dict[str, str]]):
        super().__init__(logging.INFO)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        level = "warning" if record.levelno >= logging.WARNING else "info"
        self.said.append({"level": level, "text": record.getMessage()})


def write_report(
    folder: str | Path, recipe: Recipe, learner: Learner, training: Training, predictions: Predictions
) -> Path:
    """Write the files of a run into a new folder and draw its report; returns the path of report.html."""
    with RunFolder(folder, recipe).open(Progress()) as record:
        record.write(learner, training, predictions)
    return draw_report(folder)


def claim(folder: Path) -> None:
    """Make an empty folder, and see that it can be written to. Raises OutputError for one that holds anything."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise OutputError(
            f"no folder can be made here ({error.strerror})", "Choose another --out", path=folder
        ) from error
    if taken:
        raise OutputError("this folder is not empty", "Choose another --out, or remove it", path=folder)


def make_choices(learner: Learner, recipe: Recipe, training: Training) -> dict[str, Any]:
    """What the run decided for itself, for model.json."""
    return {
        "device": str(learner.dls.device),
        "precision": recipe.precision,
        "threads": torch.get_num_threads(),
        "batch_size": learner.dls.train.bs,
        "learning_rates": training.rates,
        **training.best,
    }


def make_account(command: str | None, started: float, said: list[dict[str, str]]) -> dict[str, Any]:
    """The content of run.json: command, time, versions, machine, and all that was said."""
    return {
        "command": command,
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "machine": describe_machine(),
        "said": said,
    }


def describe_machine() -> str:
    """System, processor count, and the GPU if there is one."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors{gpu}"


def write_thumbnails(folder: Path, manifest: pd.DataFrame, predictions: Predictions) -> None:
    """figures/images.csv and small JPEGs: samples of each class, and the images that the model got most wrong."""
    (folder / "figures" / "images").mkdir(parents=True, exist_ok=True)
    wrong = most_wrong(predictions, MOST_WRONG).merge(manifest[["source", "path", "file"]], on=["source", "path"])
    chosen = [("sample", row) for row in samples_of_each_class(manifest, SAMPLES_OF_A_CLASS).to_dict("records")]
    chosen += [("wrong", row) for row in wrong.to_dict("records")]
    rows = []
    for number, (role, row) in enumerate(chosen):
        file = f"figures/images/{number:04d}.jpg"
        write_whole(folder / file, thumbnail_jpeg(read_image(row["file"]), THUMBNAIL_SIZE))
        rows.append({"role": role, "source": row["source"], "path": row["path"], "file": file})
    table = pd.DataFrame(rows, columns=["role", "source", "path", "file"])
    write_whole(folder / "figures" / "images.csv", table.to_csv(index=False))
