"""Paths in a recipe: the name of its data, and a recipe without the folders of the machine."""

from pathlib import Path, PurePath

from fastcxr.config.fields import list_path_options
from fastcxr.config.recipe import Recipe


def make_data_name(data: str | tuple[str, ...] | None) -> str:
    """Return the name of the folder or file of a dataset; several are joined by a plus."""
    paths = (data,) if isinstance(data, str) else data or ()
    return "+".join(_make_path_name(PurePath(path)) for path in paths)


def _make_path_name(path: PurePath) -> str:
    return Path(path).resolve().name if path.name in ("", "..") else path.stem


def redact_paths(recipe: Recipe) -> Recipe:
    """Return the recipe for recipe.json: the folders of absolute paths are removed, relative paths are kept."""
    values = {name: getattr(recipe, name) for name in list_path_options(Recipe)}
    redacted = {
        name: tuple(map(_redact_path, value)) if isinstance(value, tuple) else _redact_path(value)
        for name, value in values.items()
    }
    return recipe.replace(**redacted)


def _redact_path(path: str | None) -> str | None:
    split, separator, file = (path or "").partition("=")
    if separator and PurePath(file).is_absolute() and not PurePath(split).is_absolute():  # SPLIT=FILE of split_file
        return f"{split}={PurePath(file).name}"
    return PurePath(path).name if path and PurePath(path).is_absolute() else path
