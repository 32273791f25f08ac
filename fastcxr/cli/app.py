"""Parts shared by all commands: the app, classes of options, and names of run folders."""

import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import Field, asdict, field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from cyclopts import App, Group, Parameter, Token, convert

from fastcxr.cli.output import console, print_line
from fastcxr.config.fields import GROUPS, InferencePrecision, list_options
from fastcxr.config.recipe import EMBED_OPTIONS, STRATEGY_ALIASES, Augmentation, Recipe, Strategy
from fastcxr.config.recipe_paths import make_data_name
from fastcxr.progress.terminal import TerminalProgress
from fastcxr.version import VERSION


def format_default(value: Any) -> str | None:
    """Return the default that `--help` shows, None for no default."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or None
    return None if value is None else str(value)


app = App(
    name="fastcxr",
    default_parameter=Parameter(negative_iterable=(), show_default=format_default, consume_multiple=1),
    version=f"fastcxr {VERSION}",
    help="Train, evaluate and compare classifiers of chest X-rays. For research, not for diagnosis.",
    suppress_keyboard_interrupt=False,
)
app.meta.suppress_keyboard_interrupt = False  # output.run_to_exit_code prints what is done and how to continue
# panels of `fastcxr --help`
DATASETS, TRAINING, RUNS, MODELS = (
    Group(name, sort_key=number) for number, name in enumerate(("Datasets", "Training", "Runs", "Models and cache"))
)
app["--help"].group = app["--version"].group = Group("Options", sort_key=4)
# panels of `fastcxr COMMAND --help`: common options, then the groups of the recipe's options
COMMON_PANEL = Group("Common options", sort_key=0)
PANELS = {name: Group(name, sort_key=number) for number, name in enumerate(GROUPS, start=1)}


Device = Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1, mps; auto: a GPU if there is one")]
Precision = Annotated[
    InferencePrecision,
    Parameter(
        help="floating point format; trained: as in training if the hardware supports it natively; auto: bf16 if the "
        "hardware supports it natively, else fp16 on CUDA and fp32 on other devices"
    ),
]


def make_options_class(
    name: str,
    *field_names: str,
    defaults: Recipe | Augmentation | None = None,
    common_panel: bool = False,
    unset: Collection[str] = (),
    hidden: Collection[str] = (),
) -> type:
    """Return a dataclass of some options of a recipe or an augmentation, for one command.

    Args:
        name: name of the class.
        *field_names: names of the options.
        defaults: recipe or augmentation with the default values; default: Recipe().
        common_panel: whether `--help` shows the common options in a separate panel, before the groups.
        unset: names of options that are None unless they are given.
        hidden: names of options that `--help` does not show: the command refuses them with the reason.
    """
    default_values = defaults or Recipe()
    hints = get_type_hints(type(default_values))
    items = {item.name: item for item in fields(default_values)}
    field_specs = [
        (
            part,
            _make_option_type(
                items[part],
                hints[part] | None if part in unset else hints[part],
                common_panel=common_panel,
                is_shown=part not in hidden,
            ),
            field(
                default=None if part in unset else getattr(default_values, part),
                metadata=items[part].metadata,
                kw_only=items[part].kw_only,
            ),
        )
        for part in field_names
    ]
    options_class = make_dataclass(name, field_specs, frozen=True, kw_only=True)
    options_class.__module__ = __name__  # otherwise cyclopts finds no fields
    return options_class


def _make_option_type(item: Field, hint: Any, *, common_panel: bool, is_shown: bool) -> Any:
    """Return the type of an option on the command line, where a strategy is a name and never a list of stages."""
    metadata = item.metadata
    if metadata["group"] is None:
        return hint
    panel = COMMON_PANEL if common_panel and metadata["common"] else PANELS[metadata["group"]]
    if item.name == "strategy":
        return Annotated[Strategy, Parameter(group=panel, converter=_convert_strategy), _AnyValue()]
    if item.name in ("data", "split_file"):  # of a union with str an option would take one value only
        hint = tuple[str, ...] | None
    alias = metadata["alias"]
    return Annotated[hint, Parameter(group=panel, alias=alias and f"--{alias}", show=is_shown)]


class _AnyValue:
    """Annotation of an option that pydantic does not check: the default in a recipe script can be a list of stages.

    cyclopts checks every value, and checks it again with pydantic where another package has imported that.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable) -> dict[str, str]:
        return {"type": "any"}


def _convert_strategy(type_: type, tokens: Sequence[Token]) -> Any:
    return convert(type_, [token.evolve(value=STRATEGY_ALIASES.get(token.value, token.value)) for token in tokens])


TRAIN_FIELDS = list_options(Recipe, *GROUPS)
DATA_FIELDS = list_options(Recipe, "Data")
# describe and audit list unreadable images, and show a single split
DESCRIBE_FIELDS = (
    *list_options(
        Recipe, "Data", "Split", without=("skip_bad", "folds", "fold", "leave_one_source_out", "test_source")
    ),
    "seed",
)

if TYPE_CHECKING:  # each class has some of the fields of Recipe
    TrainOptions = Recipe
    DescribeOptions = Recipe
    PackOptions = Recipe
    ScoutOptions = Recipe
    EvaluateOptions = Recipe
    EmbedOptions = Recipe
else:
    TrainOptions = make_options_class("TrainOptions", *TRAIN_FIELDS, common_panel=True)
    DescribeOptions = make_options_class("DescribeOptions", *DESCRIBE_FIELDS)
    PackOptions = make_options_class("PackOptions", *list_options(Recipe, "Data", without=["data"]), "seed")
    ScoutOptions = make_options_class(
        "ScoutOptions", *DATA_FIELDS, "split", "image_size", "seed", "device", "precision"
    )
    EvaluateOptions = make_options_class("EvaluateOptions", *DATA_FIELDS)
    EmbedOptions = make_options_class("EmbedOptions", *EMBED_OPTIONS)


def inspect_data(inspect: Callable[..., Path], command: str, options: DescribeOptions, out: Path | None) -> Path:
    """Describe or audit a dataset in a new folder and return the path of the page."""
    recipe = set_default_data(Recipe(**asdict(options)))
    folder = out or find_next_run_dir(f"{command}-{make_data_name(recipe.data)}")
    return inspect(recipe, folder, TerminalProgress(console), command=shlex.join(["fastcxr", *sys.argv[1:]]))


def set_default_data(recipe: Recipe) -> Recipe:
    """Return the recipe; without data, with the class folders in data/ or the bundled sample, and print which."""
    if recipe.data is not None:
        return recipe
    from fastcxr.data.readers.detect import has_class_folders
    from fastcxr.data.synthetic.sample import find_or_write_sample

    if has_class_folders("data"):
        print_line("no --data given: using the class folders in data/")
        return recipe.replace(data="data")
    print_line("no --data given and no class folders in data/: using the bundled synthetic sample")
    print_line("creating the sample on first use takes about 20 s")
    return recipe.replace(data=str(find_or_write_sample()))


def find_next_run_dir(name: str) -> Path:
    """Return runs/NAME-NUMBER with the next free number."""
    used_numbers = (int(folder.name.rpartition("-")[2]) for folder in list_numbered_run_dirs(name))
    return Path("runs") / f"{_sanitize_name(name)}-{max(used_numbers, default=0) + 1}"


def list_numbered_run_dirs(name: str) -> Iterator[Path]:
    """Return the existing folders runs/NAME-NUMBER."""
    pattern = re.compile(rf"{re.escape(_sanitize_name(name))}-\d+")
    return (folder for folder in Path("runs").glob("*") if pattern.fullmatch(folder.name))


def _sanitize_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
