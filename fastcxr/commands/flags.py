"""A recipe's choices become flags: those of one command alone, or all of them, words and all."""

from dataclasses import field, fields, make_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import Parameter

from fastcxr.recipe import Augmentation, Recipe

ALIASES = {"relabel": ["--relabel", "--map"]}  # two habits of saying theirs=ours


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
