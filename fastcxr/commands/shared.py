"""What every command has at hand: the app it belongs to, the console, the choices of data, a folder for its files."""

import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

from cyclopts import App, Parameter
from rich.console import Console

from fastcxr.commands.flags import choose_fields
from fastcxr.recipe import Recipe, name_data
from fastcxr.terminal import TerminalProgress
from fastcxr.version import VERSION

PARTIAL, DAMAGED = 2, 65  # sysexits

app = App(
    name="fastcxr",
    default_parameter=Parameter(negative_iterable=()),
    version=f"fastcxr {VERSION}",
    help="From a folder of chest X-rays to a classifier you can defend. For research, not for diagnosis.",
)
console = Console(stderr=True)
OF_DATA = (
    "layout", "relabel", "classes", "where", "keep_columns", "drop_copies", "patients", "patient_regex", "patient_tag",
    "seed",
)  # fmt: skip
Choices = choose_fields("Choices", *(item.name for item in fields(Recipe)))
# the flags of train that say which images, whose they are and where they stand, in train's own words
DescribeChoices = choose_fields("DescribeChoices", "data", *OF_DATA, "split", "given_splits", "split_from")
PackChoices = choose_fields("PackChoices", *OF_DATA, "skip_bad")
ScoutChoices = choose_fields("ScoutChoices", "data", *OF_DATA, "split", "skip_bad", "image_size", "device", "precision")
EvaluateChoices = choose_fields("EvaluateChoices", "data", *OF_DATA, "skip_bad")


def look_at_data(look: Callable, word: str, choices: DescribeChoices, out: Path | None) -> Path:
    """Describe or audit the data that the choices name, into a new folder; returns the page."""
    recipe = with_data(Recipe(**asdict(choices)))
    folder = out or next_folder(f"{word}-{name_data(recipe.data)}")
    console.print(f"folder: {folder}", highlight=False)
    return look(recipe, folder, TerminalProgress(console), command=shlex.join(["fastcxr", *sys.argv[1:]]))


def with_data(recipe: Recipe) -> Recipe:
    """The recipe, on the class folders here or the sample where it names no data."""
    return recipe.but(data=find_data()) if recipe.data is None else recipe


def find_data() -> str:
    """The folder data/ here if it holds class folders, else the bundled sample cohort; says which."""
    from fastcxr.data.cohort.layouts import holds_class_folders
    from fastcxr.data.sample import sample_folder

    if holds_class_folders("data"):
        console.print("no --data given: using the class folders in data/", highlight=False)
        return "data"
    console.print("no --data given and no class folders in data/: using the bundled synthetic sample", highlight=False)
    console.print("drawing it on first use takes about twenty seconds", highlight=False)
    return str(sample_folder())


def next_folder(name: str) -> Path:
    """runs/<name>-<n> with the first free n."""
    taken = [int(place.name.rpartition("-")[2]) for place in same_stem(name)]
    return Path("runs") / f"{_stem(name)}-{max(taken, default=0) + 1}"


def same_stem(name: str) -> list[Path]:
    """Every runs/<name>-<n> that is there."""
    return [p for p in Path("runs").glob(f"{_stem(name)}-*") if re.fullmatch(rf"{re.escape(_stem(name))}-\d+", p.name)]


def _stem(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
