"""Folds and sources as pieces of one run: tasks of an executor, or separate commands that share a run folder."""

import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from fastcxr.config.recipe import Recipe
from fastcxr.errors import BusyError, InputMissingError, OutputError, RecipeError
from fastcxr.executors.run_tasks import count_workers, run_tasks
from fastcxr.executors.shared_folder import SharedFolder
from fastcxr.executors.worker import Task
from fastcxr.io.files import STATE_DIR, read_json
from fastcxr.io.formatting import format_percent, format_score
from fastcxr.io.lock import directory_lock
from fastcxr.progress.base import Progress
from fastcxr.training.interrupt import InterruptibleProgress, interrupt_when
from fastcxr.training.time_budget import Deadline
from fastcxr.workflows.fold_plan import find_held_out_unit, find_shared_batch_size, plan_folds
from fastcxr.workflows.load import Dataset
from fastcxr.workflows.overlap import FEATURES_FILE
from fastcxr.workflows.run_state import Folds, acquire_or_resume, write_run_config
from fastcxr.workflows.train import run
from fastcxr.workflows.train_dir import RunDir

log = logging.getLogger("fastcxr")
CLAIM_SECONDS, PAUSE_SECONDS = 10.0, 0.1  # pieces that start at the same time write recipe.json one after the other


@dataclass(frozen=True)
class FoldOptions:
    """How the folds of a run are computed: see cross_validate."""

    dataset: Dataset
    progress: Progress | None
    mirror: str | Path | None
    executor: Executor | None


@dataclass(frozen=True)
class TimeShare:
    """Equal share of the time that is left, of `n_left` pieces that one worker runs; `ends`: time.time(), or inf."""

    ends: float
    n_left: int

    def make_deadline(self) -> Deadline:
        """Return the deadline of a piece that starts now."""
        return Deadline((self.ends - time.time()) / self.n_left if self.ends < math.inf else math.inf)


def run_pieces(run_dir: RunDir, folds: Folds, options: FoldOptions) -> None:
    """Run all unfinished folds, in this process or by the workers of the executor."""
    recipe, executor = run_dir.recipe, options.executor
    unit, ends = find_held_out_unit(recipe), time.time() + Deadline.parse(recipe.time_limit).seconds_left
    unfinished = []
    for number, (name, (_, fold_dir)) in enumerate(folds.items()):
        if (fold_dir / "report.html").exists():
            log.info("%s %s of %d is already finished", unit, name, len(folds))
        else:
            unfinished.append((number, name))
    tasks = {}
    for number, name in unfinished:
        fold_recipe, fold_dir = folds[name]
        share = TimeShare(ends, math.ceil((len(folds) - number) / count_workers(executor)))
        line = f"{unit} {name} of {len(folds)}"
        fold_mirror = options.mirror and Path(options.mirror) / fold_dir.name
        here = {} if executor is not None else {"progress": options.progress, "dataset": options.dataset}
        if executor is not None:
            fold_dir = fold_dir.resolve()
        args = (fold_recipe, fold_dir, line, share, run_dir.command, fold_mirror, run_dir.tracking.names)
        tasks[f"{unit} {name}"] = Task(run_piece, args, here)
    # the first one chooses the batch size of all
    n_first = 1 if recipe.batch_size == "auto" and len(unfinished) == len(folds) else 0
    with (
        SharedFolder(run_dir.folder / STATE_DIR, interrupt_when)
        if executor is not None and tasks
        else nullcontext() as shared
    ):
        for group in filter(None, (list(tasks)[:n_first], list(tasks)[n_first:])):
            run_tasks(
                {name: tasks[name] for name in group},
                executor,
                options.progress,
                shared=shared,
                on_finished=lambda name, _: describe_metrics(folds[name.removeprefix(f"{unit} ")][1]),
            )


def run_piece(
    recipe: Recipe,
    folder: Path,
    line: str,
    share: TimeShare,
    command: str | None,
    mirror: Path | None = None,
    track: Sequence[str] = (),
    progress: Progress | None = None,
    dataset: Dataset | None = None,
) -> None:
    """Run one fold or source; `line` is logged first. Without `progress` the process is a worker."""
    log.info("%s", line)
    dataset = dataset or Dataset(recipe)
    finished = sorted(folder.parent.glob(f"{folder.name.partition('-')[0]}-*/{FEATURES_FILE}"))
    dataset.features_file = dataset.features_file or next(iter(finished), None)
    run(
        recipe,
        folder,
        progress or InterruptibleProgress(),
        command,
        share.make_deadline(),
        mirror,
        dataset,
        track=track,
    )


def describe_metrics(folder: Path) -> str:
    """Return the main metric of the test images of a finished run."""
    metrics = read_json(folder / "metrics.json").get("test", {})
    auroc = metrics.get("auroc")
    auroc = auroc.get("macro") if isinstance(auroc, dict) else auroc
    return (
        f"AUROC {format_score(auroc)}" if auroc is not None else f"accuracy {format_percent(metrics.get('accuracy'))}"
    )


def claim_piece(recipe: Recipe, name: str, folder: Path, command: str | None) -> tuple[Recipe, Path]:
    """Make a fold or source the next piece of the run in `folder`; return its recipe and run folder.

    Several pieces of a run can be claimed at the same time, on computers with a shared disk.

    Args:
        recipe: the recipe of the whole run.
        name: fold number or held-out source.
        folder: the folder of the whole run, created by the first piece.
        command: the command line of this piece.

    Raises:
        BusyError: another process runs the whole run, or this piece.
        OutputError: the folder has a run of another recipe.
        RecipeError: no such source, or the batch size is chosen by another piece first.
    """
    folds = plan_folds(recipe, folder, Dataset(recipe))
    if name not in folds:
        raise RecipeError(f"no source {name!r} can be held out", f"Choose one of: {', '.join(folds)}")
    piece_recipe, piece_dir = folds[name]
    give_up = time.monotonic() + CLAIM_SECONDS
    while True:
        try:
            acquire_or_resume(folder, recipe)
            with directory_lock(folder):
                if not (folder / "recipe.json").is_file():
                    write_run_config(folder, recipe, command)
            break
        except OutputError as error:  # another piece creates the folder in this moment
            is_claimed = isinstance(error, BusyError) or (folder / STATE_DIR).is_dir()
            if not is_claimed or time.monotonic() > give_up:
                raise
            time.sleep(PAUSE_SECONDS)
    find_shared_batch_size(recipe, piece_dir)
    return piece_recipe, piece_dir


def is_run_of_piece(folder: Path, recipe: Recipe, name: str) -> bool:
    """Return whether the folder itself is the run of this fold, as earlier versions wrote it."""
    try:
        return bool(recipe.folds) and Recipe.from_json(folder).fold == int(name)
    except InputMissingError:
        return False
