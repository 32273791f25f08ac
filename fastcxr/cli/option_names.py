"""Options as text: in the place of Python arguments in messages, and in the commands of the next steps."""

import re
import shlex
from ast import literal_eval
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fastcxr.config.fields import list_path_options
from fastcxr.config.recipe import Recipe

# a Python argument in a message: `skip_bad`, `folds=5`, `strategy='full'`
ARGUMENT_PATTERN = re.compile(r"`([a-z_]+)(?:=([^`]+))?`")
OPTION_BY_ARGUMENT = {item.name: item.name for item in fields(Recipe)} | {
    "folder": "out", "earlier": "reuse_split", "unit": "split", "method": "method",
    "keep_overlap": "keep_overlap", "decode_all": "all", "to": "to", "engine": "engine", "port": "port",
    "max_waiting": "max_waiting", "shard": "shard", "jobs": "jobs",
    "dicom_sr": "dicom_sr", "dicom_sc": "dicom_sc",
    "trials": "trials", "search": "search", "track": "track",
    "public": "public", "replace_card": "replace_card", "with_images": "with_images", "licence": "licence",
    "yes": "yes", "revision": "revision",
}  # fmt: skip
DATA_PLACEHOLDER = "--data DATA ..."  # for the data options of a run
MAX_OPTIONS_CHARACTERS = 200  # of the options in a next step


def name_options(text: str) -> str:
    """Return a message with options instead of Python arguments: `skip_bad=True` in backticks becomes --skip-bad."""
    return ARGUMENT_PATTERN.sub(_name_option, text)


def _name_option(match: re.Match) -> str:
    name, value_text = match.groups()
    if name not in OPTION_BY_ARGUMENT:
        return match[0]
    name = OPTION_BY_ARGUMENT[name]
    try:
        return _format_option(name, literal_eval(value_text or "None"))
    except (SyntaxError, ValueError):  # a placeholder, such as FILE
        return f"{_format_option(name, None)} {value_text}"


def format_options(values: Mapping[str, Any] | None) -> str:
    """Return the options of train with these values, quoted for a shell; options with their default are left out.

    A placeholder is returned for unknown values (None), for a text that is too long to be read in a line, and for
    absolute paths outside the current folder: outputs contain none of them.
    """
    if values is None:
        return DATA_PLACEHOLDER
    defaults = vars(Recipe())
    changed = {name: value for name, value in values.items() if value not in (defaults[name], None)}
    for name in set(changed) & set(list_path_options(Recipe)):
        changed[name] = [_shorten_path(str(path)) for path in _to_list(changed[name])]
        if None in changed[name]:
            return DATA_PLACEHOLDER
    text = " ".join(_format_option(name, value) for name, value in changed.items())
    return text if len(text) <= MAX_OPTIONS_CHARACTERS else DATA_PLACEHOLDER


def _to_list(value: Any) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _shorten_path(path: str) -> str | None:
    """Return the path, an absolute one relative to the current folder, or None if it is outside."""
    if not Path(path).is_absolute():
        return path
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else None


def _format_option(name: str, value: Any) -> str:
    """Return the option with its value; None: the option alone."""
    option = "--" + name.replace("_", "-")
    if value is None or value is True:
        return option
    if value is False:
        return option.replace("--", "--no-", 1)
    values = [str(one) for one in _to_list(value)]
    # after a space, a value that starts with a dash would be another option
    return " ".join(f"{option}{'=' if one.startswith('-') else ' '}{shlex.quote(one)}" for one in values)
