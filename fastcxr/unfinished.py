"""Runs that were begun and not ended: which one a person means who gives the same command again, or `resume`."""

from collections.abc import Iterator
from pathlib import Path

from fastcxr.errors import FastcxrError, InputMissingError
from fastcxr.lock import is_held
from fastcxr.privacy import without_places
from fastcxr.recipe import Recipe, read_recipe
from fastcxr.storage import STATE, write_whole


def find_unfinished(places: Iterator[Path], recipe: Recipe | None = None) -> Path | None:
    """The newest of these folders in which a run (of this recipe) was broken off; None where there is none.

    One that a living process writes into is not broken off.
    """
    begun = [place for place in places if is_unfinished(place) and not is_held(place) and _is_of(place, recipe)]
    return max(begun, key=_last_touched, default=None)


def is_unfinished(folder: Path) -> bool:
    """Whether a run was begun here and has no report yet."""
    return (folder / "recipe.json").is_file() and not (folder / "report.html").is_file()


def list_runs(parent: Path = Path("runs")) -> Iterator[Path]:
    """Every run folder in `parent`, those of a study one folder deeper; not the folds of one."""
    for recipe in [*parent.glob("*/recipe.json"), *parent.glob("*/*/recipe.json")]:
        if not (recipe.parent.parent / "recipe.json").exists():
            yield recipe.parent


def write_begun(folder: Path, recipe: Recipe) -> None:
    """The recipe of a run that begins: as it is while the run lasts, and without its places for good."""
    (folder / STATE).mkdir(exist_ok=True)
    write_whole(folder / "recipe.json", without_places(recipe).to_json())
    write_whole(folder / STATE / "recipe.json", recipe.to_json())


def read_begun(folder: Path) -> Recipe:
    """The recipe that was begun in a folder. Raises InputMissingError where none was."""
    if not (folder / "recipe.json").is_file():
        raise InputMissingError("no run was begun here", "Name a run folder, as runs/first", path=folder)
    whole = folder / STATE / "recipe.json"
    return read_recipe(whole if whole.is_file() else folder / "recipe.json")


def _is_of(folder: Path, recipe: Recipe | None) -> bool:
    try:
        there = read_begun(folder)
    except FastcxrError:  # torn, or of another version: nobody's to go on with
        return False
    return recipe is None or there == recipe


def _last_touched(folder: Path) -> float:
    state = folder / STATE
    return (state if state.exists() else folder / "recipe.json").stat().st_mtime
