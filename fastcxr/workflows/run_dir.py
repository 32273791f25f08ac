"""Base class of output folders: exclusive ownership, dataset tables and captured log messages.

This module does not import torch: fastcxr describe takes only as long as reading the data.
"""

import logging
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import pandas as pd

from fastcxr.data.bit_depth import read_depths
from fastcxr.data.imaging.read import encode_thumbnail_jpeg, read_image
from fastcxr.data.manifest_file import write_manifest
from fastcxr.data.statistics import measure_images, sample_per_class
from fastcxr.errors import ImageError, OutputError
from fastcxr.io.cpus import count_cpus
from fastcxr.io.files import STATE_DIR, atomic_write, write_json
from fastcxr.io.formulas import escape_formulas
from fastcxr.io.lock import LOCK_FILE_NAME, directory_lock, reject_locked
from fastcxr.io.redact import hide_in_text, redact_command
from fastcxr.metrics.predictions import Predictions, select_most_wrong
from fastcxr.progress.base import Bar, Progress, log_to
from fastcxr.report.finding_rows import N_WRONG_PER_FINDING
from fastcxr.tracking.base import TENSORBOARD_DIR, TRACKING_FILE

Guard = Callable[[str], AbstractContextManager]  # takes the name of an output; decides about errors in its block
SAMPLES_PER_CLASS, THUMBNAIL_PIXELS = 6, 192
N_MISCLASSIFIED = 12  # misclassified images shown
REPORTED_PACKAGES = (
    "fastcxr", "torch", "torchvision", "timm", "fastai", "onnxruntime", "scikit-learn", "numpy", "pandas", "pillow",
    "pydicom",
)  # fmt: skip


class OutputDir(Progress):
    """An output folder. While it is open, it records log messages and forwards progress to another display."""

    guard: Guard = nullcontext  # for optional outputs; errors pass

    def __init__(self, folder: str | Path, command: str | None = None):
        self.folder, self.command = Path(folder), command
        self.messages: list[dict[str, str]] = []
        self.skipped: list[dict[str, str]] = []
        self.extra_metadata: dict[str, Any] = {}  # further content of run.json
        self.progress = Progress()

    @contextmanager
    def open(self, progress: Progress) -> Iterator[Self]:
        """Acquire the folder for the length of the block, then write run.json.

        After an error the folder is removed, unless keep_on_error.
        """
        self.progress, self.started = progress, time.time()
        created = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self.acquire()
        try:
            with directory_lock(self.folder):
                try:
                    self.setup()
                    with self.record_messages():
                        yield self
                except BaseException:
                    if self.keep_on_error():
                        write_json(self.folder / "run.json", self.metadata())
                    else:  # the same command can use the folder again
                        self.cleanup()
                    raise
                write_json(self.folder / "run.json", self.metadata())
        finally:
            with suppress(OSError):  # a folder that is not empty stays
                for directory in created:  # including runs/, which can be in the data folder
                    directory.rmdir()

    def announce(self) -> None:
        """Show the folder on the other display: data and options are valid, so that the folder will have files."""
        self.progress.output_folder(f"folder: {self.folder}")

    def record_messages(self) -> AbstractContextManager[None]:
        """Record all messages of the package for the length of the block."""
        return log_to(_MessageHandler(self.messages))

    def acquire(self) -> None:
        """Create the folder. Raise OutputError if it cannot be used."""
        acquire_directory(self.folder)

    def setup(self) -> None:
        """Write the first files."""

    def keep_on_error(self) -> bool:
        """Return whether the files are useful after an error."""
        return False

    def cleanup(self) -> None:
        """Remove the files written so far."""
        files = ("recipe.json", "skipped.csv", "manifest.csv", "histograms.csv", "file_stats.csv", "audit.json")
        for name in (*files, TRACKING_FILE):
            (self.folder / name).unlink(missing_ok=True)
        for name in ("figures", STATE_DIR, TENSORBOARD_DIR):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def metadata(self) -> dict[str, Any]:
        """Return the content of run.json: command, time, versions, machine and messages."""
        return {
            "command": redact_command(self.command),
            "started": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self.started, 1),
            "versions": {"python": platform.python_version()} | find_versions(REPORTED_PACKAGES),
            "machine": describe_machine(),
            "messages": self.messages,
        } | self.extra_metadata

    def bar(self, total: int, text: str) -> AbstractContextManager[Bar]:
        """Show a bar on the other display."""
        return self.progress.bar(total, text)

    def write_dataset_tables(self, manifest: pd.DataFrame, decoded: pd.DataFrame | None = None) -> None:
        """Write manifest.csv, histograms.csv and file_stats.csv (file types and sizes of the images).

        `decoded`: rows of the manifest whose images are readable; default: all.
        """
        write_manifest(manifest, self.folder / "manifest.csv")
        with self.guard("gray values, file types and sizes of the images"):
            histograms, files = measure_images(manifest if decoded is None else decoded, progress=self)
            write_table(self.folder / "histograms.csv", histograms)
            write_table(self.folder / "file_stats.csv", files)

    def write_skipped(self, errors: list[ImageError], manifest: pd.DataFrame) -> None:
        """Add images that are left out to skipped.csv, by their path in the manifest, with the reason."""
        path_by_file = dict(zip(manifest["file"], manifest["path"], strict=True))
        self.skipped += [
            {"path": path_by_file.get(e.path, ""), "code": e.code, "reason": f"{e.problem}. {e.fix}"} for e in errors
        ]
        write_table(self.folder / "skipped.csv", pd.DataFrame(self.skipped, columns=["path", "code", "reason"]))


def find_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each package that is installed: an exported model runs without torch."""
    versions = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def describe_machine() -> str:
    """Return the operating system, the processor and the number of processors."""
    return f"{platform.system()} {platform.machine()}, {count_cpus()} processors"


class _MessageHandler(logging.Handler):
    def __init__(self, messages: list[dict[str, str]]):
        super().__init__(logging.INFO)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        level = "warning" if record.levelno >= logging.WARNING else "info"
        self.messages.append({"level": level, "text": hide_in_text(record.getMessage())})


def acquire_directory(folder: Path) -> None:
    """Create an empty folder. Raise OutputError if it cannot be created or is not empty, BusyError if it is in use."""
    with _convert_folder_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    reject_occupied(folder)


def reject_occupied(folder: Path) -> None:
    """Raise OutputError for a folder that is not empty, or a file, BusyError for one in use; nothing is created."""
    with _convert_folder_errors(folder):
        is_occupied = folder.exists() and any(path.name != LOCK_FILE_NAME for path in folder.iterdir())
    if is_occupied:
        reject_locked(folder)
        raise OutputError("this folder is not empty", "Choose another `folder`, or remove it", path=folder)


@contextmanager
def _convert_folder_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"the folder cannot be created ({error.strerror})"
        raise OutputError(problem, "Choose another `folder`", path=folder) from error


def select_sample_images(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return example images of each class or frequent finding, each image once, with `role` "sample"."""
    images = sample_per_class(manifest, SAMPLES_PER_CLASS).drop_duplicates(["source", "path"], ignore_index=True)
    return images.assign(role="sample")


def select_wrong_images(predictions: Predictions) -> pd.DataFrame:
    """Return the rows of the most wrong images that the report shows, with the column `finding` for findings."""
    return select_most_wrong(predictions, N_WRONG_PER_FINDING if predictions.is_multi_label else N_MISCLASSIFIED)


def write_thumbnails(folder: Path, images: pd.DataFrame, guard: Guard = nullcontext) -> None:
    """Write a JPEG thumbnail of each image and figures/images.csv.

    `images`: rows of a manifest, with a column `role`. `guard`: with skip_on_error a thumbnail that fails is left out.
    """
    (folder / "figures" / "images").mkdir(parents=True, exist_ok=True)
    names = [f"figures/images/{number:04d}.jpg" for number in range(len(images))]
    depths = read_depths(images) or [None] * len(images)
    for name, file, path, depth in zip(names, images["file"], images["path"], depths, strict=True):
        with guard(f"thumbnail of {path}"):
            atomic_write(folder / name, encode_thumbnail_jpeg(read_image(file, depth), THUMBNAIL_PIXELS))
    write_table(folder / "figures" / "images.csv", images[["role", "source", "path"]].assign(file=names))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, with cells escaped against formula injection."""
    atomic_write(path, escape_formulas(table).to_csv(index=False))
