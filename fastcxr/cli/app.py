"""What every command has at hand: the app it belongs to, the console, the choices of data, a folder for its files."""

import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError
from rich.console import Console

from fastcxr.config.recipe import Augmentation, Recipe, name_data
from fastcxr.errors import FastcxrError
from fastcxr.progress.base import heard_by
from fastcxr.progress.terminal import ConsoleMessages, TerminalProgress
from fastcxr.version import VERSION

USAGE, INTERRUPTED = 64, 130  # sysexits, and 128 + SIGINT
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
ALIASES = {"relabel": ["--relabel", "--map"]}  # two habits of saying theirs=ours


def answer_with(work: Callable[[], int | None]) -> int:
    """Do the work with what the library says aloud; every mistake becomes one line. Returns the exit code."""
    warnings.filterwarnings("ignore", module=r"(?!fastcxr)")  # those of the libraries are not for our users
    try:
        with heard_by(ConsoleMessages(console)):
            return work() or 0
    except UnusedCliTokensError as error:
        return fail(name_unused(error.unused_tokens or []), USAGE)
    except CycloptsError as error:
        return fail(str(error), USAGE)
    except FastcxrError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output, such as head, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def name_unused(words: list[str]) -> str:
    """What is said of words that belong to no flag, most often the second value of one."""
    named = ", ".join(map(repr, words))
    return f"no flag takes {named}. Write the flag before each value, as --classes Normal --classes Virus"


def fail(message: str, code: int) -> int:
    """One line of error; returns the exit code that goes with it."""
    console.print(f"fastcxr: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    return code


def choose_fields(name: str, *chosen: str, defaults: Recipe | Augmentation | None = None) -> type:
    """A dataclass of some of a recipe's choices, or of an augmentation's, words and all, for a command of no more.

    `defaults`: the recipe whose choices stand where a person makes none; without it those of any recipe.
    """
    values = defaults or Recipe()
    hints = get_type_hints(type(values))
    items = {item.name: item for item in fields(values)}
    parts = [(part, _as_flag(part, hints[part]), _as_field(items[part], getattr(values, part))) for part in chosen]
    made = make_dataclass(name, parts, frozen=True, kw_only=True)
    made.__module__ = __name__  # without it Python calls it a type of its own, which has no fields for cyclopts
    return made


def _as_field(item: Any, value: Any) -> Any:
    return field(default=value, metadata=item.metadata, kw_only=item.kw_only)


def _as_flag(name: str, hint: Any) -> Any:
    """What a command line takes for this choice: of strategies the names alone, for any word would name a Stage."""
    if name == "strategy":
        hint = next(kind for kind in get_args(hint) if get_origin(kind) is Literal)
    return Annotated[hint, Parameter(name=ALIASES[name])] if name in ALIASES else hint


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
    from fastcxr.data.readers.detect import holds_class_folders
    from fastcxr.data.synthetic.sample import sample_folder

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
