"""What all commands share: the app, the console, the classes of options, and the output folders."""

import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from cyclopts import App, CycloptsError, Group, Parameter, Token, UnusedCliTokensError, convert
from rich.console import Console

from fastcxr.config.fields import GROUPS, list_options
from fastcxr.config.recipe import STRATEGY_ALIASES, Augmentation, Recipe, Strategy, make_data_name
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
# the panels of --help: first the common options, then one for each group of the recipe's options
COMMON_PANEL = Group("Common options", sort_key=0)
PANELS = {name: Group(name, sort_key=number) for number, name in enumerate(GROUPS, start=1)}


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


def make_options_class(
    name: str, *field_names: str, defaults: Recipe | Augmentation | None = None, common_panel: bool = False
) -> type:
    """Return a dataclass of some options of a recipe or an augmentation, for a command that takes no others.

    Args:
        name: name of the class.
        *field_names: names of the options.
        defaults: the recipe or augmentation that gives the default values; without it those of any recipe.
        common_panel: whether `--help` shows common options in a panel of their own, before the groups.
    """
    default_values = defaults or Recipe()
    hints = get_type_hints(type(default_values))
    fields_by_name = {item.name: item for item in fields(default_values)}
    field_specs = [
        (
            part,
            _make_flag_type(fields_by_name[part], hints[part], common_panel),
            _make_field(fields_by_name[part], getattr(default_values, part)),
        )
        for part in field_names
    ]
    options_class = make_dataclass(name, field_specs, frozen=True, kw_only=True)
    options_class.__module__ = __name__  # otherwise cyclopts finds no fields
    return options_class


def _make_field(item: Any, value: Any) -> Any:
    return field(default=value, metadata=item.metadata, kw_only=item.kw_only)


def _make_flag_type(item: Any, hint: Any, common_panel: bool) -> Any:
    """Return the type of an option on the command line; a strategy is given by name, a Stage only in Python."""
    metadata = item.metadata
    if metadata["group"] is None:
        return hint
    panel = COMMON_PANEL if common_panel and metadata["common"] else PANELS[metadata["group"]]
    if item.name == "strategy":
        return Annotated[Strategy, Parameter(group=panel, converter=_convert_strategy)]
    return Annotated[hint, Parameter(group=panel)]


def _convert_strategy(type_: Any, tokens: Sequence[Token]) -> Any:
    return convert(type_, [token.evolve(value=STRATEGY_ALIASES.get(token.value, token.value)) for token in tokens])


TRAIN_FIELDS = list_options(Recipe, *GROUPS)
DATA_FIELDS = list_options(Recipe, "Data")
# describe and audit list unreadable images, and show one split
INSPECT_FIELDS = list_options(
    Recipe, "Data", "Split", without=("skip_bad", "folds", "fold", "leave_one_source_out", "test_source")
)

TrainOptions = make_options_class("TrainOptions", *TRAIN_FIELDS, common_panel=True)
DescribeOptions = make_options_class("DescribeOptions", *INSPECT_FIELDS, "seed")
PackOptions = make_options_class("PackOptions", *list_options(Recipe, "Data", without=["data"]), "seed")
ScoutOptions = make_options_class("ScoutOptions", *DATA_FIELDS, "split", "image_size", "seed", "device", "precision")
EvaluateOptions = make_options_class("EvaluateOptions", *DATA_FIELDS)


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
