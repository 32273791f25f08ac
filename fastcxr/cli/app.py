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

from fastcxr.config.recipe import Augmentation, Recipe, make_data_name
from fastcxr.errors import FastcxrError
from fastcxr.progress.base import log_to
from fastcxr.progress.terminal import ConsoleMessages, TerminalProgress
from fastcxr.version import VERSION

USAGE_EXIT_CODE, INTERRUPTED_EXIT_CODE = 64, 130  # sysexits, and 128 + SIGINT
PARTIAL_EXIT_CODE, DATA_ERROR_EXIT_CODE = 2, 65  # sysexits
app = App(
    name="fastcxr",
    default_parameter=Parameter(negative_iterable=()),
    version=f"fastcxr {VERSION}",
    help="From a folder of chest X-rays to a classifier you can defend. For research, not for diagnosis.",
)
console = Console(stderr=True)
DATA_FIELDS = (
    "layout", "relabel", "classes", "where", "keep_columns", "drop_copies", "patients", "patient_regex", "patient_tag",
    "seed",
)  # fmt: skip
FLAG_ALIASES = {"relabel": ["--relabel", "--map"]}  # two habits of saying theirs=ours


def run_to_exit_code(command: Callable[[], int | None]) -> int:
    """Do the work with what the library says aloud; every mistake becomes one line. Returns the exit code."""
    warnings.filterwarnings("ignore", module=r"(?!fastcxr)")  # those of the libraries are not for our users
    try:
        with log_to(ConsoleMessages(console)):
            return command() or 0
    except UnusedCliTokensError as error:
        return print_error(make_unused_tokens_message(error.unused_tokens or []), USAGE_EXIT_CODE)
    except CycloptsError as error:
        return print_error(str(error), USAGE_EXIT_CODE)
    except FastcxrError as error:
        return print_error(str(error), error.exit_code)
    except KeyboardInterrupt:
        return print_error("interrupted", INTERRUPTED_EXIT_CODE)
    except BrokenPipeError:  # the reader of our output, such as head, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def make_unused_tokens_message(tokens: list[str]) -> str:
    """What is said of words that belong to no flag, most often the second value of one."""
    token_list = ", ".join(map(repr, tokens))
    return f"no flag takes {token_list}. Write the flag before each value, as --classes Normal --classes Virus"


def print_error(message: str, exit_code: int) -> int:
    """One line of error; returns the exit code that goes with it."""
    console.print(f"fastcxr: {message}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    return exit_code


def make_options_class(name: str, *field_names: str, defaults: Recipe | Augmentation | None = None) -> type:
    """A dataclass of some of a recipe's choices, or of an augmentation's, words and all, for a command of no more.

    `defaults`: the recipe whose choices stand where a person makes none; without it those of any recipe.
    """
    default_values = defaults or Recipe()
    hints = get_type_hints(type(default_values))
    fields_by_name = {item.name: item for item in fields(default_values)}
    field_specs = [
        (part, _make_flag_type(part, hints[part]), _make_field(fields_by_name[part], getattr(default_values, part)))
        for part in field_names
    ]
    options_class = make_dataclass(name, field_specs, frozen=True, kw_only=True)
    options_class.__module__ = (
        __name__  # without it Python calls it a type of its own, which has no fields for cyclopts
    )
    return options_class


def _make_field(item: Any, value: Any) -> Any:
    return field(default=value, metadata=item.metadata, kw_only=item.kw_only)


def _make_flag_type(field_name: str, hint: Any) -> Any:
    """What a command line takes for this choice: of strategies the names alone, for any word would name a Stage."""
    if field_name == "strategy":
        hint = next(kind for kind in get_args(hint) if get_origin(kind) is Literal)
    return Annotated[hint, Parameter(name=FLAG_ALIASES[field_name])] if field_name in FLAG_ALIASES else hint


TrainOptions = make_options_class("TrainOptions", *(item.name for item in fields(Recipe)))


# the flags of train that say which images, whose they are and where they stand, in train's own words
DescribeOptions = make_options_class("DescribeOptions", "data", *DATA_FIELDS, "split", "given_splits", "split_from")


PackOptions = make_options_class("PackOptions", *DATA_FIELDS, "skip_bad")


ScoutOptions = make_options_class(
    "ScoutOptions", "data", *DATA_FIELDS, "split", "skip_bad", "image_size", "device", "precision"
)


EvaluateOptions = make_options_class("EvaluateOptions", "data", *DATA_FIELDS, "skip_bad")


def inspect_data(inspect: Callable, command: str, options: DescribeOptions, out: Path | None) -> Path:
    """Describe or audit the data that the choices name, into a new folder; returns the page."""
    recipe = set_default_data(Recipe(**asdict(options)))
    folder = out or find_next_run_dir(f"{command}-{make_data_name(recipe.data)}")
    console.print(f"folder: {folder}", highlight=False)
    return inspect(recipe, folder, TerminalProgress(console), command=shlex.join(["fastcxr", *sys.argv[1:]]))


def set_default_data(recipe: Recipe) -> Recipe:
    """The recipe, on the class folders here or the sample where it names no data."""
    return recipe.replace(data=find_default_data()) if recipe.data is None else recipe


def find_default_data() -> str:
    """The folder data/ here if it holds class folders, else the bundled sample cohort; says which."""
    from fastcxr.data.readers.detect import has_class_folders
    from fastcxr.data.synthetic.sample import find_or_write_sample

    if has_class_folders("data"):
        console.print("no --data given: using the class folders in data/", highlight=False)
        return "data"
    console.print("no --data given and no class folders in data/: using the bundled synthetic sample", highlight=False)
    console.print("drawing it on first use takes about twenty seconds", highlight=False)
    return str(find_or_write_sample())


def find_next_run_dir(name: str) -> Path:
    """runs/<name>-<n> with the first free n."""
    used_numbers = [int(place.name.rpartition("-")[2]) for place in list_numbered_run_dirs(name)]
    return Path("runs") / f"{_sanitize_name(name)}-{max(used_numbers, default=0) + 1}"


def list_numbered_run_dirs(name: str) -> list[Path]:
    """Every runs/<name>-<n> that is there."""
    return [
        p
        for p in Path("runs").glob(f"{_sanitize_name(name)}-*")
        if re.fullmatch(rf"{re.escape(_sanitize_name(name))}-\d+", p.name)
    ]


def _sanitize_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
