"""Folder of a tuning: tuning.json with recipe and search space, the images, tuning.csv, figures, and the winner."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import pandas as pd

from fastcxr.config.recipe import Recipe
from fastcxr.config.recipe_paths import redact_paths
from fastcxr.data.cache.images import ImageCache
from fastcxr.data.manifest_file import read_written_manifest, write_manifest
from fastcxr.errors import OutputError
from fastcxr.io.files import CHECKSUMS_FILE, atomic_write, read_json, write_checksums, write_json
from fastcxr.io.formats import FORMAT_KEY, TUNING_FORMAT, is_format
from fastcxr.io.lock import reject_locked
from fastcxr.io.optional_outputs import skip_on_error
from fastcxr.io.run_folders import TUNING_BEST_DIR, TUNING_FILE, TUNING_TABLE_FILE
from fastcxr.progress.base import Progress
from fastcxr.report.style import to_svg
from fastcxr.report.tuning_figures import plot_options, plot_trials
from fastcxr.workflows.run_dir import OutputDir, acquire_directory, write_table
from fastcxr.workflows.run_state import IMAGE_HASH_COLUMN, validate_unchanged_images
from fastcxr.workflows.tuning_space import Dimension
from fastcxr.workflows.tuning_study import STUDY_FILE, Trial, make_table

log = logging.getLogger("fastcxr")
MANIFEST_FILE = "manifest.csv"
TRIALS_FIGURE, OPTIONS_FIGURE = "trials.svg", "options.svg"
WINNER_KEY = "winner"  # of tuning.json


class TuneDir(OutputDir):
    """Output folder of a tuning; a folder with the same recipe and search space is used again."""

    def __init__(
        self, folder: str | Path, recipe: Recipe, space: Sequence[Dimension], metric: str, command: str | None = None
    ):
        super().__init__(folder, command)
        self.space, self.metric = tuple(space), metric
        self.description = describe_tuning(recipe, space, metric)

    @contextmanager
    def open(self, progress: Progress) -> Iterator[Self]:
        """Acquire the folder for the length of the block, then write run.json and the checksums of its files."""
        with super().open(progress):
            yield self
        write_checksums(self.folder)

    def acquire(self) -> None:
        """Create the folder, or accept one of the same tuning. Raise OutputError for any other folder."""
        if (self.folder / TUNING_FILE).is_file():
            reject_other_tuning(self.folder, self.description)
        else:
            acquire_directory(self.folder)

    def setup(self) -> None:
        """Write tuning.json of a new tuning; an earlier one has no checksums until its files are written again."""
        (self.folder / CHECKSUMS_FILE).unlink(missing_ok=True)
        if not (self.folder / TUNING_FILE).exists():
            write_json(self.folder / TUNING_FILE, {FORMAT_KEY: TUNING_FORMAT} | self.description)

    def announce(self) -> None:
        """Show the folder, and whether it holds trials."""
        is_resumed = (self.folder / TUNING_TABLE_FILE).exists()
        self.progress.output_folder(f"tuning folder: {self.folder}" + " (started earlier)" * is_resumed)

    def keep_on_error(self) -> bool:
        """Return whether a trial is finished."""
        return (self.folder / TUNING_TABLE_FILE).exists()

    def cleanup(self) -> None:
        """Remove the files written so far."""
        super().cleanup()
        for name in (TUNING_FILE, STUDY_FILE):
            (self.folder / name).unlink(missing_ok=True)

    @property
    def best_folder(self) -> Path:
        """Run folder of the best trial."""
        return self.folder / TUNING_BEST_DIR

    def validate_images(self, manifest: pd.DataFrame, image_cache: ImageCache) -> None:
        """Raise DataError if the images differ from those of the earlier trials; a new tuning stores its images."""
        current = manifest.assign(**{IMAGE_HASH_COLUMN: image_cache.hash_images()})
        path = self.folder / MANIFEST_FILE
        if path.exists():
            validate_unchanged_images(read_written_manifest(path), current, self.folder)
        else:
            write_manifest(current, path)

    def write_trials(self, trials: Sequence[Trial]) -> None:
        """Write tuning.csv."""
        write_table(self.folder / TUNING_TABLE_FILE, make_table(trials, self.space))

    def write_figures(self, trials: Sequence[Trial], metric_name: str, *, is_maximized: bool) -> None:
        """Write trials.svg and options.svg; without a complete trial there is none."""
        table = make_table(trials, self.space)
        options = {one.name: one.choices or ("log" if one.is_log else "linear") for one in self.space}
        if not table["objective"].notna().any():
            return
        with skip_on_error("figures of the trials"):
            figure = plot_trials(table, metric_name, is_maximized=is_maximized)
            description = f"validation {metric_name} of each trial, and the best so far"
            atomic_write(self.folder / TRIALS_FIGURE, to_svg(figure, "trials", description))
            figure = plot_options(table, options, metric_name)
            description = f"validation {metric_name} of the trials by each searched option"
            atomic_write(self.folder / OPTIONS_FIGURE, to_svg(figure, "options", description))

    def write_winner(self, summary: Mapping[str, Any]) -> None:
        """Add the selection to tuning.json, before the test images are used."""
        write_json(self.folder / TUNING_FILE, read_tuning(self.folder) | {WINNER_KEY: dict(summary)})

    def read_winner(self) -> dict[str, Any] | None:
        """Return the selection of tuning.json, or None."""
        return read_tuning(self.folder).get(WINNER_KEY)


def describe_tuning(recipe: Recipe, space: Sequence[Dimension], metric: str) -> dict[str, Any]:
    """Return what identifies a tuning: its recipe without folders, its search space and its metric."""
    search = {dimension.name: dimension.describe() for dimension in space}
    return {"recipe": asdict(redact_paths(recipe)), "search": search, "metric": metric}


def read_tuning(folder: Path) -> dict[str, Any]:
    """Return the content of tuning.json. Raise OutputError for a damaged file, or one of another format."""
    path = folder / TUNING_FILE
    try:
        content = read_json(path)
        if not is_format(content[FORMAT_KEY], TUNING_FORMAT):
            raise ValueError("another format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "Restore the file, or choose another `folder`"
        raise OutputError("the tuning cannot be read", fix, path=path, code="E743") from error
    return content


def is_same_tuning(folder: Path, description: Mapping[str, Any]) -> bool:
    """Return whether a folder holds the tuning of this description."""
    try:
        return not list_differences(read_tuning(folder), description)
    except OutputError:
        return False


def reject_other_tuning(folder: Path, description: Mapping[str, Any]) -> None:
    """Raise OutputError if the folder holds the tuning of another recipe or search space."""
    if differences := list_differences(read_tuning(folder), description):
        reject_locked(folder)
        problem = f"the folder contains a tuning with different options ({'; '.join(differences)})"
        fix = "Pass the original options, or choose another `folder`"
        raise OutputError(problem, fix, path=folder, code="E742")


def list_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return a text for each option, search range or metric that differs."""
    texts = []
    for part, word in (("recipe", ""), ("search", "search of ")):
        # asdict has tuples, JSON has lists
        old, new = ({name: _to_lists(v) for name, v in dict(one.get(part, {})).items()} for one in (saved, current))
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                texts.append(f"{word}{name} was {old.get(name)!r}, is {new.get(name)!r}")
    if saved.get("metric") != current["metric"]:
        texts.append(f"metric was {saved.get('metric')!r}, is {current['metric']!r}")
    return texts


def _to_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _to_lists(item) for name, item in value.items()}
    return [_to_lists(item) for item in value] if isinstance(value, list | tuple) else value
