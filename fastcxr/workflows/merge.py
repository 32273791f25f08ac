"""What is missing before the folds or sources of separate commands can be pooled by cross_validate."""

import re
import shlex
from pathlib import Path

from fastcxr.config.recipe import Recipe
from fastcxr.errors import InputMissingError
from fastcxr.io.files import STATE_DIR
from fastcxr.io.formats import find_unfinished_state
from fastcxr.io.formatting import join_names
from fastcxr.workflows.fold_plan import find_held_out_unit, plan_folds
from fastcxr.workflows.load import Dataset
from fastcxr.workflows.run_state import COMMAND_FILE

PIECE_OPTION = re.compile(r"(?P<option>--(fold|test-source))(?P<gap>[= ])(?P<value>'[^']*'|\S+)")
MAX_COMMANDS = 3  # in an error message


def find_unfinished_pieces(folder: Path, recipe: Recipe) -> dict[str, Path]:
    """Return name and folder of each fold or source of this run that has no report."""
    folds = plan_folds(recipe, folder, Dataset(recipe))
    return {name: fold_dir for name, (_, fold_dir) in folds.items() if not (fold_dir / "report.html").is_file()}


def reject_unfinished_pieces(folder: Path, recipe: Recipe) -> None:
    """Raise InputMissingError with the unfinished folds or sources of a run, and the commands that run them."""
    unfinished = find_unfinished_pieces(folder, recipe)
    if not unfinished:
        return
    unit = find_held_out_unit(recipe)
    states = {name: find_unfinished_state(fold_dir) for name, fold_dir in unfinished.items()}
    names = [f"{name} ({state})" if state else name for name, state in states.items()]
    commands = [
        _make_command(folder, name, fold_dir) for name, fold_dir in unfinished.items() if states[name] != "running"
    ]
    shown = "; ".join(dict.fromkeys(commands[:MAX_COMMANDS])) + "; ..." * (len(commands) > MAX_COMMANDS)
    verb = f"{unit} {names[0]} is" if len(names) == 1 else f"{unit}s {join_names(names)} are"
    problem = f"{verb} not finished"
    raise InputMissingError(problem, f"Run: {shown}" if commands else "Wait until they end", path=folder, code="E616")


def _make_command(folder: Path, name: str, fold_dir: Path) -> str:
    """Return the command that runs one piece: resume, or that of the first piece with another number."""
    if (fold_dir / "recipe.json").is_file():
        return shlex.join(["fastcxr", "resume", str(fold_dir)])
    command = (folder / STATE_DIR / COMMAND_FILE).read_text(encoding="utf-8", errors="surrogateescape")
    changed, n_changes = PIECE_OPTION.subn(rf"\g<option>\g<gap>{shlex.quote(name)}", command)
    options = changed.partition(" ")[2]  # the first word can be the path of the program
    return f"fastcxr {options}" if n_changes == 1 else shlex.join(["fastcxr", "resume", str(folder)])
