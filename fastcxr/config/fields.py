"""A field of choices: its default, its words and its range; and the checks that hold a value to them.

A typo ends here, with its remedy, and not an hour into training.
"""

import types
from collections.abc import Iterable
from dataclasses import field, fields
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastcxr.errors import RecipeError

InferencePrecision = Literal[
    "trained", "auto", "fp32", "bf16"
]  # of a finished model; "trained" is what its model.json says


def option(default: Any, help: str, *, at_least: float | None = None, below: float | None = None, **options) -> Any:
    """A field of a recipe: its default, the words that explain it, and the range that makes sense."""
    return field(default=default, metadata={"help": help, "at_least": at_least, "below": below}, **options)


def validate_fields(value: Any) -> None:
    """Every field of a dataclass against its type, its names and its range. Raises RecipeError."""
    hints = get_type_hints(type(value))
    for item in fields(value):
        field_value = getattr(value, item.name)
        _validate_type(item.name, field_value, hints[item.name])
        for element in field_value if isinstance(field_value, tuple) else (field_value,):
            if isinstance(element, str):
                _reject_empty(item.name, element)
            if isinstance(element, int | float) and not isinstance(element, bool):
                _validate_range(item.name, element, item.metadata.get("at_least"), item.metadata.get("below"))


def _reject_empty(name: str, text: str) -> None:
    # an empty text is no choice left open: as a path it would be the current folder, as a flag nothing at all
    if not text.strip():
        fix = "Name a folder, a CSV or a packed cohort" if name == "data" else "Give it a value, or leave it out"
        flag = f"--{name.replace('_', '-')}"
        raise RecipeError(f"{flag} is empty, as a shell variable that is not set would make it", fix)


def _validate_range(name: str, number: float, low: float | None, high: float | None) -> None:
    # a nan fails every comparison, so ask what must hold and not what must not
    if not ((low is None or number >= low) and (high is None or number < high)):
        expected_range = f"at least {low:g}" if high is None else f"from {low:g} to below {high:g}"
        raise RecipeError(f"{name} is {number!r}, it must be {expected_range}", f"Give another {name}")


def _validate_type(name: str, value: Any, type_hint: Any) -> None:
    alternatives = get_args(type_hint) if get_origin(type_hint) in (Union, types.UnionType) else (type_hint,)
    literals = [n for kind in alternatives if get_origin(kind) is Literal for n in get_args(kind)]
    classes = tuple(get_origin(kind) or kind for kind in alternatives if get_origin(kind) is not Literal)
    if value in literals and type(value) is str:
        return
    if isinstance(value, classes) and not (isinstance(value, bool) and bool not in classes):
        if isinstance(value, tuple):
            element_hint = next(get_args(kind)[0] for kind in alternatives if get_origin(kind) is tuple)
            for element in value:
                _validate_type(name, element, element_hint)
        return
    if float in classes and isinstance(value, int) and not isinstance(value, bool):
        return
    if literals and isinstance(value, str):
        raise unknown_name_error(value, literals, f"{name} cannot be")
    expected = " or ".join([*literals, *(getattr(kind, "__name__", str(kind)) for kind in classes)])
    raise RecipeError(f"{name} is {value!r}, it must be {expected}", f"Give another {name}")


def unknown_name_error(name: str, known: Iterable[str], prefix: str) -> RecipeError:
    """The error for a name that is none of the known ones, with the nearest of them."""
    known = list(known)
    close = get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"Choose from {', '.join(known)}"
    return RecipeError(f"{prefix} {name!r}", hint[0].upper() + hint[1:])
