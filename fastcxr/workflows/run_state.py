"""Runs that were begun and not ended: which one a person means, and whether it is still the same run."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from fastcxr.config.recipe import Recipe, read_recipe, without_places
from fastcxr.data.manifest import read_written_manifest
from fastcxr.errors import DataError, FastcxrError, InputMissingError, OutputError
from fastcxr.io.files import STATE, write_whole
from fastcxr.io.lock import is_held
from fastcxr.io.tables import read_table, unguard
from fastcxr.progress.base import unheard
from fastcxr.workflows.load import find_manifest, split_cohort
from fastcxr.workflows.run_dir import claim

CONTENT = "picture_sha256"  # column of manifest.csv that tells a picture of this run in other data
COMMAND = "command.txt"  # in the folder of states
log = logging.getLogger("fastcxr")
IMAGE = ["source", "path"]
KEY = [*IMAGE, "label"]  # of an image, in a finished run and in the data
OWN = ("train", "valid", "internal")  # splits of the sources that are not held out


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


def find_finished(folder: str | Path, recipe: Recipe) -> Path | None:
    """The report of a run of this recipe that is finished in this folder.

    Raises OutputError for a run of another recipe, or of other images than the data holds.
    """
    page = Path(folder) / "report.html"
    if not page.is_file():
        return None
    claim_or_continue(page.parent, recipe)
    # recipe.json keeps of a path only its last part, which two folders may share
    refuse_other_images(page.parent, recipe)
    log.info("this run is finished: %s", page)
    return page


def refuse_other_images(place: Path, recipe: Recipe) -> None:
    """Raises OutputError for a finished run of other images or labels than the data holds; no image is read."""
    then = read_written_manifest(place / "manifest.csv")
    with unheard():
        now = leave_out_skipped(find_manifest(recipe), then, place)
    both = then[KEY].merge(now[KEY], how="outer", indicator=True)
    gone, new = both["_merge"].eq("left_only"), both["_merge"].eq("right_only")
    if recipe.held_out or recipe.leave_one_source_out:  # of the other sources such a run leaves images out
        new &= both["source"].isin(then.loc[~then["split"].isin(OWN), "source"])
    if gone.any() or new.any():
        what = f"a run of other images is here ({new.sum():,} of the data are not among them, {gone.sum():,} are not in"
        fix = "Give the data that it was made of, or choose another --out"
        raise OutputError(f"{what} the data)", fix, path=place)


def refuse_other_parts(parts: Mapping[str, Recipe], places: Mapping[str, Path], word: str) -> None:
    """Raises DataError for a finished fold that is not what it would be of today's data; no image is read.

    Folds of two cohorts would score some images twice and others never. `word`: what each part holds out.
    """
    finished = {name: place for name, place in places.items() if (place / "report.html").is_file()}
    if not finished:
        return
    with unheard():
        manifest = find_manifest(next(iter(parts.values())))
    for name, place in finished.items():
        then = read_written_manifest(place / "manifest.csv")
        with unheard():
            now = split_cohort(leave_out_skipped(manifest, then, place), parts[name])
        new, gone, changed = count_differing(then, now)
        if new or gone or changed:
            what = f"{word} {name} was run on other images: {new:,} of the data are not among them, {gone:,} are not in"
            what += f" the data, {changed:,} have another label, patient or {word}"
            fix = "Give the data that it was run on, or choose another --out"
            raise DataError(what, fix, path=place, code="E302")


def count_differing(then: pd.DataFrame, now: pd.DataFrame) -> tuple[int, int, int]:
    """How many images are new, are gone, or have another label, another patient, or are held out where they were not.

    Which of the others chose the model, and which taught it, follows from these.
    """
    facts = ["label", "patient", "held"]
    before, after = (table.assign(held=table["split"].eq("test"))[[*IMAGE, *facts]] for table in (then, now))
    both = before.merge(after, on=IMAGE, how="outer", indicator=True)
    here = both[both["_merge"].eq("both")]
    differs = pd.concat([here[f"{name}_x"].ne(here[f"{name}_y"]) for name in facts], axis=1).any(axis=1)
    return int(both["_merge"].eq("right_only").sum()), int(both["_merge"].eq("left_only").sum()), int(differs.sum())


def leave_out_skipped(now: pd.DataFrame, then: pd.DataFrame, place: Path) -> pd.DataFrame:
    """The manifest without the images that the run here left out, which it could not read."""
    if not (place / "skipped.csv").is_file():
        return now
    skipped = unguard(read_table(place / "skipped.csv"))["path"]
    # two sources may hold one path, of which one could be read
    read = pd.MultiIndex.from_frame(now[IMAGE]).isin(pd.MultiIndex.from_frame(then[IMAGE]))
    return now[read | ~now["path"].isin(skipped)].reset_index(drop=True)
