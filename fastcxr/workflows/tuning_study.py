"""Optuna study of a tuning in study.jsonl: proposal of options, early end of trials, and the table of finished trials.

Each proposal depends only on the seed of the recipe and on the finished trials in their order. A trial that was
interrupted counts as if it had never started: a resumed study has the same trials as an uninterrupted one.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from fastcxr.errors import OutputError
from fastcxr.io.files import atomic_write
from fastcxr.workflows.tuning_space import Dimension

if TYPE_CHECKING:
    import optuna

STUDY_FILE = "study.jsonl"  # a journal of Optuna, to which each write appends lines
STUDY_NAME = "fastcxr"
N_RANDOM_TRIALS = 6  # the recipe itself and random options, before the sampler uses results
N_UNPRUNED_TRIALS = 4  # complete trials before one is ended early
WARMUP_SHARE = 1 / 3  # of the epochs of a trial, after which it can be ended
COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
INTERRUPTED = "interrupted"  # attribute of the study: numbers of trials that do not count
SECONDS, REASON = "seconds", "reason"  # attributes of a trial
N_DIGITS = 3  # significant digits of a number in the recipe of a trial


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A finished trial.

    Attributes:
        number: from 1, in the order of the finished trials.
        state: complete, pruned or failed.
        options: value of each searched option that the trial used.
        objective: validation metric; NaN of a failed trial, of a pruned one that of its last epoch.
        seconds: time of the trial.
        reason: why it was pruned or failed, or the trial with the same options.
    """

    number: int
    state: str
    options: Mapping[str, Any]
    objective: float
    seconds: float
    reason: str = ""


class _NoLock:
    """A lock that does nothing, for the journal of Optuna."""

    def acquire(self) -> bool:
        """Return that the lock is free."""
        return True

    def release(self) -> None:
        """Do nothing."""


NO_LOCK: Any = _NoLock()


class TrialEnded(Exception):
    """The early end of a trial. `reason`: in words; `value`: the metric of the last epoch."""

    def __init__(self, reason: str, value: float):
        # with an argument: the callbacks of fastai, which it passes, fail with an exception that has none
        super().__init__(reason)
        self.reason, self.value = reason, value


class Study:
    """The trials of a tuning and the proposal of the next one. The folder must be locked by this process."""

    def __init__(self, folder: Path, space: Sequence[Dimension], seed: int, *, is_maximized: bool):
        """Open or create study.jsonl in `folder`. Raises OutputError if the file is damaged."""
        self.space, self.seed, self.is_maximized = tuple(space), seed, is_maximized
        path = folder / STUDY_FILE
        _cut_incomplete_line(path)
        try:
            self._study = _open_study(path, "maximize" if is_maximized else "minimize")
            self._discard_interrupted()
        except (ValueError, KeyError, TypeError) as error:
            problem, fix = f"the study cannot be read ({type(error).__name__})", "Restore the file, or choose another"
            raise OutputError(problem, f"{fix} `folder`", path=path, code="E743") from error

    def _discard_interrupted(self) -> None:
        from optuna.trial import TrialState

        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if numbers := [trial.number for trial in running]:
            self._study.set_user_attr(INTERRUPTED, sorted({*self._list_interrupted(), *numbers}))
        for number in numbers:  # after they are listed: a failed trial that is not listed counts
            self._study.tell(number, state=TrialState.FAIL)

    def _list_interrupted(self) -> list[int]:
        return self._study.user_attrs.get(INTERRUPTED, [])

    @property
    def trials(self) -> list[Trial]:
        """The finished trials, in their order."""
        interrupted, found = self._list_interrupted(), self._study.get_trials(deepcopy=False)
        finished = [one for one in found if one.state.is_finished() and one.number not in interrupted]
        return [_read_trial(one, number) for number, one in enumerate(finished, 1)]

    def find_best(self) -> Trial | None:
        """Return the complete trial with the best objective, the first of equal ones, or None."""
        complete = [trial for trial in self.trials if trial.state == COMPLETE]
        sign = 1 if self.is_maximized else -1
        return max(complete, key=lambda trial: sign * trial.objective, default=None)

    def propose(self, first_options: Mapping[str, Any], n_epochs: int | None) -> "ProposedTrial":
        """Return the next trial, which the caller must finish.

        Args:
            first_options: values of the first trial; those that are missing are random.
            n_epochs: number of epochs of a trial; None: trials have none and are not ended early.
        """
        from optuna.trial import TrialState

        n_finished = len(self.trials)
        self._study.sampler, self._study.pruner = _make_sampler(self.seed, n_finished), _make_pruner(n_epochs)
        if n_finished == 0 and not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self._study.enqueue_trial(dict(first_options))
        return ProposedTrial(self._study, self._study.ask(), self.space, n_epochs)


class ProposedTrial:
    """A trial that is running."""

    def __init__(self, study: "optuna.Study", trial: "optuna.Trial", space: Sequence[Dimension], n_epochs: int | None):
        self._study, self._trial, self._n_epochs = study, trial, n_epochs
        self.options: dict[str, Any] = {}
        for dimension in space:
            if dimension.loss is None or self.options.get("loss", dimension.loss) == dimension.loss:
                self.options[dimension.name] = _suggest(trial, dimension)

    def report_epoch(self, epoch: int, value: float) -> None:
        """Record the metric of an epoch, from 1. Raise TrialEnded if the trial is worse than earlier ones."""
        if math.isnan(value):
            return
        self._trial.report(value, epoch)
        if self._n_epochs is not None and epoch < self._n_epochs and self._trial.should_prune():
            raise TrialEnded(f"worse than the median after epoch {epoch} of {self._n_epochs}", value)

    def finish(self, state: str, objective: float, seconds: float, reason: str = "") -> None:
        """Store the result; the last write makes the trial count."""
        from optuna.trial import TrialState

        self._trial.set_user_attr(SECONDS, round(seconds, 2))
        self._trial.set_user_attr(REASON, reason)
        states = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}
        self._study.tell(self._trial, objective if state == COMPLETE else None, state=states[state])


def _suggest(trial: "optuna.Trial", dimension: Dimension) -> Any:
    if dimension.choices:
        return trial.suggest_categorical(dimension.name, dimension.choices)
    value = trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.is_log)
    return _round(value)


def _round(value: Any) -> Any:
    return float(f"{value:.{N_DIGITS}g}") if isinstance(value, float) else value


def _read_trial(trial: "optuna.trial.FrozenTrial", number: int) -> Trial:
    state = {"COMPLETE": COMPLETE, "PRUNED": PRUNED, "FAIL": FAILED}[trial.state.name]
    return Trial(
        number=number,
        state=state,
        options={name: _round(value) for name, value in trial.params.items()},
        objective=math.nan if trial.value is None or state == FAILED else trial.value,
        seconds=trial.user_attrs.get(SECONDS, 0.0),
        reason=trial.user_attrs.get(REASON, ""),
    )


def _make_sampler(seed: int, n_finished: int) -> "optuna.samplers.BaseSampler":
    """Return a sampler whose random numbers follow from the seed and the number of finished trials."""
    import optuna

    digest = hashlib.sha256(f"{seed} {n_finished}".encode()).digest()
    return optuna.samplers.TPESampler(seed=int.from_bytes(digest[:4], "big"), n_startup_trials=N_RANDOM_TRIALS)


def _make_pruner(n_epochs: int | None) -> "optuna.pruners.BasePruner":
    import optuna

    if n_epochs is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(N_UNPRUNED_TRIALS, n_warmup_steps=max(1, int(WARMUP_SHARE * n_epochs)) + 1)


def _open_study(path: Path, direction: Literal["maximize", "minimize"]) -> "optuna.Study":
    """Return the study of a journal, without the message of Optuna that it is created or used again."""
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        # without locks of Optuna, which stay behind a killed process: the folder is locked
        storage = JournalStorage(JournalFileBackend(str(path), NO_LOCK))
        return optuna.create_study(storage=storage, direction=direction, study_name=STUDY_NAME, load_if_exists=True)
    finally:
        optuna.logging.set_verbosity(verbosity)


def _cut_incomplete_line(path: Path) -> None:
    """Remove the end of a write that a killed process or a power failure left incomplete."""
    if not path.is_file():
        return
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        atomic_write(path, complete)


def make_table(trials: Sequence[Trial], space: Sequence[Dimension]) -> pd.DataFrame:
    """Return the table of tuning.csv: trial, state, objective, seconds, the searched options, reason."""
    names = [dimension.name for dimension in space]
    rows = [
        {"trial": one.number, "state": one.state, "objective": one.objective, "seconds": one.seconds}
        | {name: one.options.get(name) for name in names}
        | {"reason": one.reason}
        for one in trials
    ]
    return pd.DataFrame(rows, columns=["trial", "state", "objective", "seconds", *names, "reason"])
