"""What every folder of ours has in common: claimed empty, the cohort and its looks in it, and all that was said.

Nothing here needs torch, so that a cohort is described in the time that it takes to read it.
"""

import logging
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import pandas as pd

from fastcxr.data.bit_depth import read_depths
from fastcxr.data.imaging.read import encode_thumbnail_jpeg, read_image
from fastcxr.data.manifest import write_manifest
from fastcxr.data.statistics import measure_images, sample_per_class
from fastcxr.errors import ImageError, OutputError
from fastcxr.io.cpus import count_cpus
from fastcxr.io.files import STATE_DIR, atomic_write, write_json
from fastcxr.io.lock import LOCK_FILE_NAME, directory_lock
from fastcxr.io.redact import hide_in_text, redact_command
from fastcxr.io.tables import escape_formulas
from fastcxr.progress.base import Bar, Progress, log_to

Guard = Callable[[str], AbstractContextManager]
strict: Guard = nullcontext  # errors pass
SAMPLES_PER_CLASS, THUMBNAIL_PIXELS = 6, 192
REPORTED_PACKAGES = (
    "fastcxr",
    "torch",
    "torchvision",
    "timm",
    "fastai",
    "scikit-learn",
    "numpy",
    "pandas",
    "pillow",
    "pydicom",
)


class OutputDir(Progress):
    """An open folder: what is said goes into it, and how far things are to the one who watches."""

    def __init__(self, folder: str | Path, command: str | None = None):
        self.folder, self.command = Path(folder), command
        self.messages: list[dict[str, str]] = []
        self.skipped: list[dict[str, str]] = []
        self.extra_metadata: dict[str, Any] = {}  # what else run.json is to hold
        self.progress = Progress()

    @contextmanager
    def open(self, progress: Progress) -> Iterator[Self]:
        """Claim the folder; after the block, well or not, run.json says what happened.

        Trouble leaves no folder, unless there is something in it worth keeping.
        """
        self.progress, self.started = progress, time.time()
        created = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
        self.acquire()
        try:
            with directory_lock(self.folder):
                yield from self.run_block()
        finally:
            with suppress(OSError):  # what is not empty stays
                for directory in created:  # runs/ too: it may stand in a person's data
                    directory.rmdir()

    def run_block(self) -> Iterator[Self]:
        """The block itself, in a folder that is ours alone."""
        try:
            self.setup()
            with self.listening():
                yield self
        except BaseException:
            if self.keep_on_error():
                write_json(self.folder / "run.json", self.metadata())
            else:  # the same command may be given again once the trouble is mended
                self.cleanup()
            raise
        write_json(self.folder / "run.json", self.metadata())

    def listening(self) -> AbstractContextManager[None]:
        """In this block all that the library says is kept in `said`."""
        return log_to(_MessageHandler(self.messages))

    def acquire(self) -> None:
        """See that the folder can be used. Raises OutputError."""
        acquire_directory(self.folder)

    def setup(self) -> None:
        """What is written before anything else."""

    def keep_on_error(self) -> bool:
        """Whether what is in the folder after trouble is of use to anyone."""
        return False

    def cleanup(self) -> None:
        """Take back what was written."""
        for name in ("recipe.json", "skipped.csv", "manifest.csv", "histograms.csv", "file_stats.csv", "audit.json"):
            (self.folder / name).unlink(missing_ok=True)
        for name in ("figures", STATE_DIR):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def metadata(self) -> dict[str, Any]:
        """The content of run.json: command, time, versions, machine, and all that was said."""
        return {
            "command": redact_command(self.command),
            "started": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.time() - self.started, 1),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in REPORTED_PACKAGES},
            "machine": f"{platform.system()} {platform.machine()}, {count_cpus()} processors",
            "messages": self.messages,
        } | self.extra_metadata

    def bar(self, total: int, text: str) -> AbstractContextManager[Bar]:
        """Shown by the watcher."""
        return self.progress.bar(total, text)

    def write_dataset_tables(self, manifest: pd.DataFrame) -> None:
        """manifest.csv, and what was measured of its images."""
        write_manifest(manifest, self.folder / "manifest.csv")
        self.write_measured(manifest)

    def write_measured(self, manifest: pd.DataFrame) -> None:
        """histograms.csv and file_stats.csv: gray values, kinds and sizes of the images."""
        histograms, files = measure_images(manifest, progress=self)
        write_table(self.folder / "histograms.csv", histograms)
        write_table(self.folder / "file_stats.csv", files)

    def write_skipped(self, errors: list[ImageError], manifest: pd.DataFrame) -> None:
        """skipped.csv: the images that were left out so far, by the path that people know, and why."""
        path_by_file = dict(zip(manifest["file"], manifest["path"], strict=True))
        self.skipped += [
            {"path": path_by_file.get(e.path, ""), "code": e.code, "reason": f"{e.problem}. {e.fix}"} for e in errors
        ]
        write_table(self.folder / "skipped.csv", pd.DataFrame(self.skipped, columns=["path", "code", "reason"]))


class _MessageHandler(logging.Handler):
    """Keeps what the library says, for the page."""

    def __init__(self, messages: list[dict[str, str]]):
        super().__init__(logging.INFO)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        level = "warning" if record.levelno >= logging.WARNING else "info"
        self.messages.append({"level": level, "text": hide_in_text(record.getMessage())})


def acquire_directory(folder: Path) -> None:
    """Make an empty folder, and see that it can be written to. Raises OutputError for one that holds anything."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_occupied = any(path.name != LOCK_FILE_NAME for path in folder.iterdir())
    except OSError as error:
        raise OutputError(
            f"no folder can be made here ({error.strerror})", "Choose another --out", path=folder
        ) from error
    if is_occupied:
        raise OutputError("this folder is not empty", "Choose another --out, or remove it", path=folder)


def select_sample_images(manifest: pd.DataFrame) -> pd.DataFrame:
    """The images of each class that a page shows; `role` says what they are there for."""
    return sample_per_class(manifest, SAMPLES_PER_CLASS).assign(role="sample")


def write_thumbnails(folder: Path, images: pd.DataFrame, guard: Guard = strict) -> None:
    """figures/images.csv and a small JPEG a row. `images`: rows of a manifest, `role` says what each is there for.

    `guard`: what becomes of one that cannot be made; `optional` leaves it out, and its row names no file that exists.
    """
    (folder / "figures" / "images").mkdir(parents=True, exist_ok=True)
    names = [f"figures/images/{number:04d}.jpg" for number in range(len(images))]
    depths = read_depths(images) or [None] * len(images)
    for name, file, path, depth in zip(names, images["file"], images["path"], depths, strict=True):
        with guard(f"thumbnail of {path}"):
            atomic_write(folder / name, encode_thumbnail_jpeg(read_image(file, depth), THUMBNAIL_PIXELS))
    write_table(folder / "figures" / "images.csv", images[["role", "source", "path"]].assign(file=names))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A table as CSV, in one step."""
    atomic_write(path, escape_formulas(table).to_csv(index=False))
