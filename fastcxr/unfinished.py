"""Runs that were begun and not ended: which one a person means, and whether it is still the same run."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from fastcxr.errors import DataError, FastcxrError, InputMissingError, OutputError
from fastcxr.folder import claim
from fastcxr.lock import is_held
from fastcxr.privacy import without_places
from fastcxr.recipe import Recipe, read_recipe
from fastcxr.storage import STATE, write_whole

CONTENT = "picture_sha256"  # column of manifest.csv that tells a picture of this run in other data
COMMAND = "command.txt"  # in the folder of states


def find_unfinished(places: Iterator[Path], recipe: Recipe | None = None) -> Path | None:
    """The newest of these folders in which a run (of this recipe) was broken off; None where there is none.

    One that a living process writes into is not broken off.
    """
    begun = [place for place in places if is_unfinished(place) and not is_held(place) and _is_of(place, recipe)]
    return max(begun, key=_last_touched, default=None)


def is_unfinished(folder: Path) -> bool:
    """Whether a run was begun here and has no report yet."""
    return (folder / "recipe.json").is_file() and not (folder / "report.html").is_file()


def is_finished(folder: Path) -> bool:
    """Whether a run has its report here, and each of its folds its own: nothing is left to go on with."""
    if not (folder / "report.html").is_file() or (folder / STATE).exists():
        return False
    table = folder / "folds.csv"
    parts = [page for word in ("fold", "source") for page in folder.glob(f"{word}-*/report.html")]
    return len(parts) >= (len(pd.read_csv(table)) if table.is_file() else 0)


def list_runs(parent: Path = Path("runs")) -> Iterator[Path]:
    """Every run folder in `parent`, those of a study one folder deeper; not the folds of one."""
    for recipe in [*parent.glob("*/recipe.json"), *parent.glob("*/*/recipe.json")]:
        if not (recipe.parent.parent / "recipe.json").exists():
            yield recipe.parent


def write_begun(folder: Path, recipe: Recipe, command: str | None) -> str | None:
    """The recipe of a run that begins: as it is while the run lasts, and without its places for good.

    Returns the command that the run was begun with, which is another one where it is gone on with.
    """
    (folder / STATE).mkdir(exist_ok=True)
    write_whole(folder / "recipe.json", without_places(recipe).to_json())
    write_whole(folder / STATE / "recipe.json", recipe.to_json())
    begun_with = folder / STATE / COMMAND
    if not begun_with.exists():
        write_whole(begun_with, command or "")
    return begun_with.read_text(encoding="utf-8", errors="surrogateescape") or None


def read_begun(folder: Path) -> Recipe:
    """The recipe that was begun in a folder. Raises InputMissingError where none was."""
    if not (folder / "recipe.json").is_file():
        raise InputMissingError("no run was begun here", "Name a run folder, as runs/first", path=folder)
    whole = folder / STATE / "recipe.json"
    return read_recipe(whole if whole.is_file() else folder / "recipe.json")


def claim_or_continue(folder: Path, recipe: Recipe) -> None:
    """Claim an empty folder for this recipe, or take up one that the same recipe has begun.

    Raises OutputError for a folder that holds anything else, with the difference where it is another recipe.
    """
    begun = folder / "recipe.json"
    if not begun.is_file():
        claim(folder)
        return
    there, now = vars(without_places(read_recipe(begun))), vars(without_places(recipe))
    differing = [name for name in now if there[name] != now[name]]
    if differing:
        shown = "; ".join(f"{name} was {there[name]!r}, is {now[name]!r}" for name in differing)
        fix = "Give the flags that it was begun with, or choose another --out"
        raise OutputError(f"a run of another recipe is here ({shown})", fix, path=folder)


def compare_cohorts(before: pd.DataFrame, now: pd.DataFrame, place: Path) -> None:
    """Raises DataError where the images, their labels, splits or pictures are not those that they were."""
    both = before.merge(now.astype({"source": str, "path": str}), on=["source", "path"], how="outer", indicator=True)
    here = both["_merge"].eq("both")
    changed = both[here & (both[["label_x", "split_x", f"{CONTENT}_x"]].ne(
        both[["label_y", "split_y", f"{CONTENT}_y"]].to_numpy()).any(axis=1))]  # fmt: skip
    counts = {
        "new": both[both["_merge"].eq("right_only")],
        "gone": both[both["_merge"].eq("left_only")],
        "changed": changed,
    }
    shown = [f"{len(rows):,} {word} (as {rows['path'].iloc[0]})" for word, rows in counts.items() if len(rows)]
    if shown:
        what = f"images are not those that this run began with: {', '.join(shown)}"
        raise DataError(what, "Restore them, or start anew with --new", path=place.parent.parent)


def _is_of(folder: Path, recipe: Recipe | None) -> bool:
    try:
        there = read_begun(folder)
    except FastcxrError:  # torn, or of another version: nobody's to go on with
        return False
    return recipe is None or there == recipe


def _last_touched(folder: Path) -> float:
    state = folder / STATE
    return (state if state.exists() else folder / "recipe.json").stat().st_mtime
