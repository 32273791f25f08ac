"""Declaration of the fields of a recipe (default, help text, group, valid range) and validation of their values.

Every list of options (panels of `--help`, options of datasets, options that hold paths) is derived from these fields.
"""

import types
from collections.abc import Iterable
from dataclasses import MISSING, Field, field, fields
from difflib import get_close_matches
from functools import wraps
from inspect import cleandoc
from textwrap import fill
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fastcxr.config.synonyms import RECIPE_SYNONYMS, suggest_option_name
from fastcxr.errors import RecipeError
from fastcxr.io.formatting import pluralize

# of a finished model; "trained": the precision in its model.json
InferencePrecision = Literal["trained", "auto", "fp32", "fp16", "bf16"]

T = TypeVar("T", bound=Any)
MAX_LISTED = 20  # names that one message lists
DOCSTRING_WIDTH = 100  # characters

GroupName = Literal["Data", "Split", "Model", "Augmentation", "Training", "Evaluation", "Compute"]
GROUPS: tuple[GroupName, ...] = get_args(GroupName)  # in the order of the panels of --help


def option(
    default: Any = MISSING,
    *,
    help: str,
    group: GroupName | None = None,
    common: bool = False,
    is_path: bool = False,
    minimum: float | None = None,
    below: float | None = None,
    alias: str | None = None,
    **field_options: Any,
) -> Any:
    """Declare a dataclass field with its properties for the command line and for validation.

    Args:
        default: default value; leave it out to pass `default_factory`.
        help: phrase in lower case without a verb, with the unit in brackets.
        group: panel of `--help` that shows the option.
        common: whether `fastcxr train --help` shows the option in its first panel.
        is_path: whether the value may be a path, whose folders are removed in recipe.json.
        minimum: smallest valid number.
        below: exclusive upper bound.
        alias: second name of the option on the command line.
        **field_options: further arguments of `dataclasses.field`.
    """
    metadata = {
        "help": help, "group": group, "common": common, "is_path": is_path, "minimum": minimum, "below": below,
        "alias": alias,
    }  # fmt: skip
    return field(default=default, metadata=metadata, **field_options)


def document_options(options_class: type[T]) -> type[T]:
    """Add help text and default of each field to the docstring of a dataclass, for help() and the documentation."""
    entries = [f"{item.name}: {item.metadata['help']}{_describe_default(item)}" for item in fields(options_class)]
    indent, hanging = "    ", "        "
    lines = [fill(entry, DOCSTRING_WIDTH, initial_indent=indent, subsequent_indent=hanging) for entry in entries]
    options_class.__doc__ = "\n".join([cleandoc(options_class.__doc__ or ""), "", "Attributes:", *lines])
    return options_class


def reject_unknown_options(options_class: type[T]) -> type[T]:
    """Make a dataclass raise RecipeError, with a suggestion, for a name that is not a field, or a second value."""
    set_fields, names = options_class.__init__, [item.name for item in fields(options_class)]
    n_positional = sum(not item.kw_only for item in fields(options_class))

    @wraps(set_fields)  # inspect.signature and editors show the fields
    def init(self, *values, **options):
        for name in options:
            if name not in names:
                raise unknown_option_error(name, names, options_class.__name__)
        if len(values) > n_positional:
            expected = pluralize(n_positional, "value")
            problem = f"{options_class.__name__} takes {expected} without a name, got {len(values)}"
            raise RecipeError(problem, f"Name each option, as {names[n_positional]}={values[n_positional]!r}")
        set_fields(self, *values, **options)

    options_class.__init__ = init
    return options_class


def _describe_default(item: Field) -> str:
    return "" if item.default in (MISSING, None, ()) else f" [default: {item.default}]"


def list_options(options_class: type, *groups: GroupName, without: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names of the fields that belong to these groups, in the order of their declaration."""
    excluded = set(without)
    return tuple(
        item.name
        for item in fields(options_class)
        if item.metadata.get("group") in groups and item.name not in excluded
    )


def list_path_options(options_class: type) -> tuple[str, ...]:
    """Return the names of the fields that may hold paths."""
    return tuple(item.name for item in fields(options_class) if item.metadata.get("is_path"))


def validate_fields(value: Any) -> None:
    """Check every field of a dataclass against its type, valid names and range. Raises RecipeError."""
    hints = get_type_hints(type(value))
    for item in fields(value):
        field_value = getattr(value, item.name)
        _validate_type(item.name, field_value, hints[item.name])
        for element in field_value if isinstance(field_value, tuple) else (field_value,):
            if isinstance(element, str):
                _reject_empty(item.name, element)
            if isinstance(element, int | float) and not isinstance(element, bool):
                _validate_range(item.name, element, item.metadata.get("minimum"), item.metadata.get("below"))


def _reject_empty(name: str, text: str) -> None:
    # as a path, an empty text would be the current folder
    if not text.strip():
        fix = "Pass a folder, a CSV or a packed file" if name == "data" else "Pass a value, or leave it out"
        raise RecipeError(f"`{name}` is empty, perhaps because a shell variable is not set", fix)


def _validate_range(name: str, number: float, low: float | None, high: float | None) -> None:
    # NaN fails every comparison, therefore test for the valid range
    if not ((low is None or number >= low) and (high is None or number < high)):
        expected_range = f"at least {low:g}" if high is None else f"from {low:g} to below {high:g}"
        raise RecipeError(f"{name} is {number!r}, it must be {expected_range}", f"Change {name}")


def _validate_type(name: str, value: Any, type_hint: Any) -> None:
    alternatives = get_args(type_hint) if get_origin(type_hint) in (Union, types.UnionType) else (type_hint,)
    literals = [n for hint in alternatives if get_origin(hint) is Literal for n in get_args(hint)]
    classes = tuple(get_origin(hint) or hint for hint in alternatives if get_origin(hint) is not Literal)
    if value in literals and type(value) is str:
        return
    if isinstance(value, classes) and not (isinstance(value, bool) and bool not in classes):
        if isinstance(value, tuple):
            element_hint = next(get_args(hint)[0] for hint in alternatives if get_origin(hint) is tuple)
            for element in value:
                _validate_type(name, element, element_hint)
        return
    if float in classes and isinstance(value, int) and not isinstance(value, bool):
        return
    if literals and isinstance(value, str):
        raise unknown_name_error(value, literals, f"{name} cannot be")
    expected = " or ".join([*literals, *(getattr(cls, "__name__", str(cls)) for cls in classes)])
    if type(value) in [get_args(hint)[0] for hint in alternatives if get_origin(hint) is tuple]:
        expected = f"a tuple, as {(value,)!r}"
    fix = f"Pass `{name}='none'`" if value is None and "none" in literals else f"Change {name}"
    raise RecipeError(f"{name} is {value!r}, it must be {expected}", fix)


def unknown_option_error(name: str, known: Iterable[str], owner: str) -> RecipeError:
    """Return the error for an option that `owner` does not have, with the option of this meaning or spelling."""
    known_names = list(known)
    suggestion = suggest_option_name(name, known_names, RECIPE_SYNONYMS)
    choice = f"Choose from {', '.join(known_names)}" if len(known_names) <= MAX_LISTED else "help(Recipe) lists them"
    fix = f"Did you mean {suggestion!r}?" if suggestion else choice
    return RecipeError(f"{owner} has no option called {name!r}", fix)


def unknown_name_error(name: str, known: Iterable[str], prefix: str) -> RecipeError:
    """Return the error for an unknown name, with the most similar known name in the fix."""
    known_names = list(known)
    close = find_similar_name(name, known_names)
    fix = f"Did you mean {close!r}?" if close else f"Choose from {', '.join(known_names)}"
    return RecipeError(f"{prefix} {name!r}", fix)


def find_similar_name(name: str, known: Iterable[str]) -> str | None:
    """Return the most similar known name, without regard to upper and lower case, or None."""
    known_names = {text.lower(): text for text in known}
    close = get_close_matches(name.lower(), known_names, n=1)
    return known_names[close[0]] if close else None
