"""Errors of the command line with a suggestion: by the meaning of a word first, then by its spelling."""

import re
import shlex
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from cyclopts import Argument, CycloptsError, MissingArgumentError, UnknownOptionError, UnusedCliTokensError

from fastcxr.config.synonyms import RECIPE_SYNONYMS, suggest_option_name
from fastcxr.errors import InputMissingError, RecipeError

# options by words that other programs use for them; the first that the command has is suggested
SYNONYMS = {f"--{name.replace('_', '-')}": words for name, words in RECIPE_SYNONYMS.items()} | {
    "BACKBONES": "model models arch architecture network backbone",
    "--folder": "model run run-dir checkpoint weights model-path model-dir",
    "--run": "model folder run-dir checkpoint weights model-path",
    "IMAGES": "data input inputs image files input-dir data-dir",
    "--out": "output output-dir outdir output-path out-dir save-dir dest destination run-dir name run-name",
    "--to": "out output file format target",
    "--csv": "out output output-file save to",
    "--class": "classes labels label",
    "--no-resume": "new restart overwrite from-scratch force",
    "--quiet": "silent q no-progress",
    "--verbose": "debug v",
    "--log-file": "log logfile log-path logs",
}
OUTPUT_OPTIONS = ("--quiet", "--verbose", "--json", "--log-file")  # of all commands
OPTIONAL_PATTERN = re.compile(r"\[.*?\]")  # in the usage of a command
# placeholders in the usage of a command; an example has these values
EXAMPLE_VALUES = {
    "FOLDER": "runs/first", "RUN": "runs/first", "IMAGES...": "image.png", "DATA": "my_xrays", "DATA...": "my_xrays",
    "FILE": "my_xrays.h5", "SCRIPT": "recipes/rachha2020.py", "VARIANT": "resnet101",
    "OWNER/NAME": "my-group/covid-resnet50", "MODEL": "rad-dino", "FEATURES": "features.parquet",
}  # fmt: skip
COMMAND_SYNONYMS = {
    "train": ("fit", "finetune", "fine-tune", "learn"),
    "predict": ("infer", "inference", "classify"),
    "evaluate": ("eval", "test", "validate", "external"),
    "explain": ("gradcam", "grad-cam", "saliency"),
    "serve": ("server", "api", "web", "gui"),
    "describe": ("summary", "info", "stats", "eda"),
    "embed": ("features", "embeddings", "extract", "encode"),
    "export": ("convert", "onnx", "deploy", "save"),
    "push": ("publish", "upload", "share"),
    "pull": ("download", "clone", "fetch"),
    "list": ("ls", "runs", "history"),
    "models": ("backbones", "zoo"),
    "audit": ("check", "leakage"),
}


def describe_usage_error(error: CycloptsError) -> RecipeError:
    """Return the error of an invalid command line with a fix."""
    if isinstance(error, UnknownOptionError):
        option = (error.token.keyword or error.token.value).partition("=")[0]
        names = [name for argument in error.argument_collection if argument.parse for name in argument.names]
        return RecipeError(f"unknown option {option}", suggest_option(option, [*names, *OUTPUT_OPTIONS]))
    if isinstance(error, UnusedCliTokensError):
        return _describe_unused_tokens(error)
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return _describe_missing_argument(error, error.argument)
    problem, _, fix = str(error).partition(". ")
    return RecipeError(problem.rstrip("."), fix or "List the arguments and options with --help")


def _describe_missing_argument(error: MissingArgumentError, argument: Argument) -> RecipeError:
    """Return `no FOLDER given. Example: fastcxr report runs/first`, or `--csv has no value`, each with a fix."""
    if error.keyword or not argument.field_info.is_positional:
        option = error.keyword or argument.name
        return RecipeError(f"{option} has no value", f"Pass {option} VALUE")
    has_options = any(token.startswith("--") for token in error.root_input_tokens or ())
    place = "Place it before the options, which take all values up to the next option. " if has_options else ""
    usage = str(error.app.usage) if error.app else ""
    words = [EXAMPLE_VALUES.get(word, word) for word in OPTIONAL_PATTERN.sub("", usage).split()[1:]]
    return RecipeError(f"no {argument.name.strip('-').upper()} given", f"{place}Example: {' '.join(words)}")


def suggest_option(option: str, names: Iterable[str]) -> str:
    """Return the fix for an unknown option of a command that has these options."""
    name = suggest_option_name(option, names, SYNONYMS)
    if name is None:
        return "List the options with --help"
    return f"Did you mean {name}?" if name.startswith("-") else f"Pass {name} without an option"


def _describe_unused_tokens(error: UnusedCliTokensError) -> RecipeError:
    unused, names = error.unused_tokens or [], _list_option_names(error)
    problem, paths = f"no option takes {', '.join(map(repr, unused))}", list(filter(is_path, unused))
    if "--backbone" in names:
        command, *words = takewhile(lambda token: not token.startswith("-"), error.root_input_tokens or ("",))
        data, others = list(filter(is_path, words)), [word for word in words if not is_path(word)]
        if words and words[0] in data and len(others) == 1:
            fix = f"Did you mean: {command} {others[0]} --data {shlex.join(data)}?"
            return RecipeError(f"{words[0]} is not a backbone", fix)
    if paths and "--data" in names:
        return RecipeError(problem, f"Did you mean --data {shlex.join(paths)}?")
    return RecipeError(problem, "Place a value after its option: --classes Normal Virus")


def _list_option_names(error: CycloptsError) -> set[str]:
    if not error.app:
        return set()
    arguments = error.app.assemble_argument_collection()  # pyright: ignore[reportOptionalMemberAccess]
    return {name for argument in arguments for name in argument.names}


def is_path(text: str) -> bool:
    """Return whether a word is a path and not a name: it exists, or it has a separator of folders."""
    return "/" in text or "\\" in text or Path(text).exists()


def reject_backbone_as_data(data: str | tuple[str, ...] | None) -> None:
    """Raise InputMissingError if the last of several datasets does not exist and may be the name of a backbone."""
    if isinstance(data, tuple) and len(data) > 1 and data[-1].strip() and not is_path(data[-1]):
        problem = f"no file or folder {data[-1]!r}, the last value of --data"
        raise InputMissingError(problem, f"Place the name of a backbone before the options: {data[-1]} --data ...")


def reject_path_as_backbone(name: str) -> None:
    """Raise RecipeError if the name of a backbone is a path, and no network has this name."""
    if not is_path(name):
        return
    from fastcxr.models.backbones import find_backbone

    try:
        find_backbone(name, "none")
    except RecipeError as error:
        raise RecipeError(f"{name} is not a backbone", f"Did you mean --data {shlex.quote(name)}?") from error
