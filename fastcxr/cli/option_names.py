"""Messages with options in the place of Python arguments."""

import re
import shlex
from ast import literal_eval
from dataclasses import fields

from fastcxr.config.recipe import Recipe

# a Python argument in a message: `skip_bad`, `folds=5`, `strategy='full'`
ARGUMENT_PATTERN = re.compile(r"`([a-z_]+)(?:=([^`]+))?`")
OPTION_BY_ARGUMENT = {item.name: item.name for item in fields(Recipe)} | {
    "folder": "out", "earlier": "reuse_split", "unit": "split", "method": "method",
    "keep_overlap": "keep_overlap",
}  # fmt: skip


def name_options(text: str) -> str:
    """Return a message with options instead of Python arguments: `skip_bad=True` in backticks becomes --skip-bad."""
    return ARGUMENT_PATTERN.sub(_name_option, text)


def _name_option(match: re.Match) -> str:
    name, value_text = match.groups()
    if name not in OPTION_BY_ARGUMENT:
        return match[0]
    option = "--" + OPTION_BY_ARGUMENT[name].replace("_", "-")
    try:
        value = literal_eval(value_text or "None")
    except (SyntaxError, ValueError):  # a placeholder, such as FILE
        return f"{option} {value_text}"
    if value is None or value is True:
        return option
    if value is False:
        return option.replace("--", "--no-", 1)
    values = value if isinstance(value, list) else [value]
    return " ".join(f"{option} {shlex.quote(str(one))}" for one in values)
