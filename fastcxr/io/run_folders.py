"""Find run folders, and the errors for a path that is not the folder of a finished run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from fastcxr.errors import InputMissingError
from fastcxr.io.files import CHECKSUMS_FILE
from fastcxr.io.formats import reject_unfinished
from fastcxr.io.formatting import join_names
from fastcxr.io.hub_names import HubName, is_hub_name, is_published, parse_hub_name

RUNS_DIR = Path("runs")
MAX_SUGGESTED_RUNS = 3
MODEL_CARD_FILE = "MODEL_CARD.md"  # of a run and of an export
EXPORT_JSON_FILE = "export.json"  # of an exported model, which is not a run
TUNING_FILE, TUNING_TABLE_FILE = "tuning.json", "tuning.csv"  # of a tuning, which is not a run
PART_DIR_NAME = re.compile(r"(fold|source)-\d+")  # of the folds and held-out sources in the folder of the whole run
TUNING_BEST_DIR = "best"  # of a tuning: the run of its best trial
EXPORT_FIX = (
    "Pass the run folder that was exported. An export is used by `fastcxr predict`, `fastcxr evaluate`, "
    "`fastcxr serve` and load_export"
)

PUBLISHED_FIX = (
    "Pass the run folder of its training. A published model is used by `fastcxr predict`, `fastcxr evaluate`, "
    "`fastcxr explain`, `fastcxr serve`, `fastcxr embed`, `fastcxr export`, load_model, and a training with "
    "`weights='hf://owner/name'`"
)


def list_runs(parent: Path = RUNS_DIR) -> Iterator[Path]:
    """Yield every run folder in `parent` and, for studies, one level below; folds are omitted."""
    for recipe in [*parent.glob("*/recipe.json"), *parent.glob("*/*/recipe.json")]:
        if not (recipe.parent.parent / "recipe.json").exists():
            yield recipe.parent


def list_exports(parent: Path = RUNS_DIR) -> Iterator[Path]:
    """Yield every exported model in `parent` and one level below."""
    yield from (
        path.parent for path in [*parent.glob(f"*/{EXPORT_JSON_FILE}"), *parent.glob(f"*/*/{EXPORT_JSON_FILE}")]
    )


def list_tunings(parent: Path = RUNS_DIR) -> Iterator[Path]:
    """Yield every tuning in `parent` and one level below; the run of its best trial is a run."""
    yield from (path.parent for path in [*parent.glob(f"*/{TUNING_FILE}"), *parent.glob(f"*/*/{TUNING_FILE}")])


def is_part(folder: Path) -> bool:
    """Return whether the folder is that of a fold or held-out source inside the folder of the whole run."""
    return bool(PART_DIR_NAME.fullmatch(folder.name)) and (folder.parent / "recipe.json").is_file()


def is_best_of_tuning(folder: Path) -> bool:
    """Return whether the folder is that of the best trial of a tuning."""
    return folder.name == TUNING_BEST_DIR and (folder.parent / TUNING_FILE).is_file()


def name_run(folder: Path) -> str:
    """Return the name of the folder; of a fold, a held-out source or the best trial of a tuning as PARENT/NAME."""
    folder = folder.resolve()
    has_parent = is_part(folder) or is_best_of_tuning(folder)
    return f"{folder.parent.name}/{folder.name}" if has_parent else folder.name


def find_model_card(folder: Path) -> Path | None:
    """Return the model card of a run or an export, of a published model its README.md, or None."""
    names = (MODEL_CARD_FILE, "README.md") if is_published(folder) else (MODEL_CARD_FILE,)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def is_export(folder: str | Path) -> bool:
    """Return whether a folder is an exported model."""
    return (Path(folder) / EXPORT_JSON_FILE).is_file()


def require_run_file(
    folder: str | Path, name: str, fix: str | None = None, *, expected: str = "a finished run"
) -> None:
    """Raise InputMissingError unless the run folder has the file `name`; by default the fix names other runs.

    `expected`: what the folder of the default fix is of.
    """
    folder = Path(folder)
    if (folder / name).is_file():
        return
    if is_hub_name(folder):
        raise _make_hub_error(parse_hub_name(folder), name)
    if is_export(folder):
        raise InputMissingError(f"an exported model, which has no {name}", EXPORT_FIX, path=folder, code="E304")
    if is_published(folder):
        raise InputMissingError(f"a published model, which has no {name}", PUBLISHED_FIX, path=folder, code="E304")
    if (folder / TUNING_FILE).is_file():
        best = folder / TUNING_BEST_DIR
        fix = f"Pass the run of its best trial, {best}" if (best / "recipe.json").is_file() else ""
        fix = fix or "Its best trial is not trained yet: repeat its command `fastcxr tune`"
        raise InputMissingError(f"a tuning, which has no {name}", fix, path=folder, code="E304")
    reject_unfinished(folder / name)
    if folder.is_dir():
        is_run = (folder / "recipe.json").is_file()
        problem = f"no {name} in this folder" if is_run else f"not a run: no {name} in this folder"
    else:
        problem = "a file, expected a run folder" if folder.exists() else "the folder does not exist"
        if len(folder.parts) == 2 and not folder.parent.exists():
            fix = fix or f"{_suggest_runs(folder, name, expected)}; a model on the hub is hf://{folder.as_posix()}"
    raise InputMissingError(problem, fix or _suggest_runs(folder, name, expected), path=folder, code="E304")


def _make_hub_error(hub_name: HubName, name: str) -> InputMissingError:
    """Return the error for a model on the hub: what only a run has is not in the folder of pull either."""
    if name == CHECKSUMS_FILE:
        fix = f"Run `fastcxr pull {str(hub_name).removeprefix('hf://')}`, and pass the folder that it writes"
        return InputMissingError("a model on the hub, expected a folder", fix, path=str(hub_name), code="E304")
    problem = "a published model on the hub, which has no data of its training"
    return InputMissingError(problem, PUBLISHED_FIX, path=str(hub_name), code="E304")


def _suggest_runs(folder: Path, name: str, expected: str) -> str:
    """Return a fix with the newest runs that have the file: in the folder itself, beside it, or in runs/."""
    parents = (folder.parent, RUNS_DIR) if folder.parent != Path() else (RUNS_DIR, folder.parent)
    for parent in (folder, *parents):
        runs = [run for run in list_runs(parent) if (run / name).is_file()]
        if runs:
            newest = sorted(runs, key=lambda run: (run / name).stat().st_mtime, reverse=True)[:MAX_SUGGESTED_RUNS]
            command = "fastcxr list" if parent == RUNS_DIR else shlex.join(["fastcxr", "list", str(parent)])
            names = join_names(list(map(str, newest)), "or")
            return f"Pass the folder of {expected}, such as {names}. `{command}` lists all runs"
    return f"Pass the folder of {expected}. `fastcxr list` lists the runs in runs/"
