"""A field of choices: its default, its words and its range; and the checks that hold a value to them.

A typo ends here, with its remedy, and not an hour into training.
"""

import types
from collections.abc import Iterable
from dataclasses import field, fields
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastcxr.errors import RecipeError

Arithmetic = Literal["trained", "auto", "fp32", "bf16"]  # of a finished model; "trained" is what its model.json says


def choice(default: Any, words: str, *, at_least: float | None = None, below: float | None = None, **options) -> Any:
    """A field of a recipe: its default, the words that explain it, and the range that makes sense."""
    return field(default=default, metadata={"help": words, "at_least": at_least, "below": below}, **options)


def check_fields(value: Any) -> None:
    """Every field of a dataclass against its type, its names and its range. Raises RecipeError."""
    hints = get_type_hints(type(value))
    for item in fields(value):
        given = getattr(value, item.name)
        _check_kind(item.name, given, hints[item.name])
        for part in given if isinstance(given, tuple) else (given,):
            if isinstance(part, str):
                _refuse_empty(item.name, part)
            if isinstance(part, int | float) and not isinstance(part, bool):
                _check_range(item.name, part, item.metadata.get("at_least"), item.metadata.get("below"))


def _refuse_empty(name: str, given: str) -> None:
    # an empty text is no choice left open: as a path it would be the current folder, as a flag nothing at all
    if not given.strip():
        wanted = "Name a folder, a CSV or a packed cohort" if name == "data" else "Give it a value, or leave it out"
        flag = f"--{name.replace('_', '-')}"
        raise RecipeError(f"{flag} is empty, as a shell variable that is not set would make it", wanted)


def _check_range(name: str, given: float, low: float | None, high: float | None) -> None:
    # a nan fails every comparison, so ask what must hold and not what must not
    if not ((low is None or given >= low) and (high is None or given < high)):
        reach = f"at least {low:g}" if high is None else f"from {low:g} to below {high:g}"
        raise RecipeError(f"{name} is {given!r}, it must be {reach}", f"Give another {name}")


def _check_kind(name: str, given: Any, hint: Any) -> None:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    names = [n for kind in kinds if get_origin(kind) is Literal for n in get_args(kind)]
    plain = tuple(get_origin(kind) or kind for kind in kinds if get_origin(kind) is not Literal)
    if given in names and type(given) is str:
        return
    if isinstance(given, plain) and not (isinstance(given, bool) and bool not in plain):
        if isinstance(given, tuple):
            inside = next(get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple)
            for part in given:
                _check_kind(name, part, inside)
        return
    if float in plain and isinstance(given, int) and not isinstance(given, bool):
        return
    if names and isinstance(given, str):
        raise not_known(given, names, f"{name} cannot be")
    wanted = " or ".join([*names, *(getattr(kind, "__name__", str(kind)) for kind in plain)])
    raise RecipeError(f"{name} is {given!r}, it must be {wanted}", f"Give another {name}")


def not_known(given: str, known: Iterable[str], words: str) -> RecipeError:
    """The error for a name that is none of the known ones, with the nearest of them."""
    known = list(known)
    close = get_close_matches(given.lower(), known, n=1)
    meant = f"did you mean {close[0]!r}?" if close else f"Choose from {', '.join(known)}"
    return RecipeError(f"{words} {given!r}", meant[0].upper() + meant[1:])
