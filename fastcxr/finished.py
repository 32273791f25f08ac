"""A finished run and the data of today come in; its report, or the word that it was made of other images, goes out."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from fastcxr.cells import unguard
from fastcxr.cohort import find_manifest, split_cohort
from fastcxr.data.cohort.tables import read_table
from fastcxr.data.manifest import read_written_manifest
from fastcxr.errors import DataError, OutputError
from fastcxr.progress import unheard
from fastcxr.recipe import Recipe
from fastcxr.unfinished import claim_or_continue

log = logging.getLogger("fastcxr")
IMAGE = ["source", "path"]
KEY = [*IMAGE, "label"]  # of an image, in a finished run and in the data
OWN = ("train", "valid", "internal")  # splits of the sources that are not held out


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
