"""Recognise the columns of a user's table by their names: path, label, patient, sex, age, view, split and source."""

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from fastcxr.data.demographics import DEMOGRAPHIC_COLUMNS
from fastcxr.data.patients import FILE_COLUMN_NAMES, PATIENT_COLUMN_NAMES
from fastcxr.errors import DataError, RecipeError
from fastcxr.io.tables import find_column, format_names, normalize_name, suggest_name

log = logging.getLogger("fastcxr")
# names of each role in lower case, letters and digits only; the first is also the name in the manifest
ROLE_NAMES = {
    "path": (*FILE_COLUMN_NAMES, "imagepath", "imagefile", "fname", "img", "imgpath", "imgname", "imgid"),
    "label": ("label", "labels", "class", "classname", "finding", "findings", "findinglabel", "findinglabels",
              "diagnosis", "target", "category"),
    "patient": PATIENT_COLUMN_NAMES,
    "split": ("split", "datasplit"),
    **DEMOGRAPHIC_COLUMNS,
}  # fmt: skip
NEXT_ROLE = re.compile(rf",(?=\s*(?:{'|'.join(ROLE_NAMES)})\s*=)")  # the comma between two roles in one option
OPTIONAL_ROLES = ("patient", "source", "split")  # a similar name of these columns may be a misspelling


def has_role(columns: Iterable[str], *roles: str) -> bool:
    """Return whether one of the columns has a name of one of the roles."""
    return any(_find_candidates(columns, role) for role in roles)


def find_role_columns(columns: Iterable[str], path: Path, options: Sequence[str] = ()) -> dict[str, str]:
    """Return the column of each role that the table has, and log those that have another name.

    Args:
        columns: columns of the table.
        path: name of the table in messages.
        options: choices of the user, such as "path=image", which take precedence over the names.

    Raises:
        DataError: several columns may have a role (E029).
        RecipeError: an option is malformed, or names an unknown role or column (E022).
    """
    columns = list(columns)
    chosen = _parse_options(options, columns)
    for role in ROLE_NAMES:
        candidates = [name for name in _find_candidates(columns, role) if name not in chosen.values()]
        if role not in chosen and candidates:
            chosen[role] = _choose_column(candidates, role, path)
    renamed = [f"{role} from {name}" for role in ROLE_NAMES if normalize_name(name := chosen.get(role, role)) != role]
    if renamed:
        log.info("%s: %s", path.name, format_names(renamed))
    _warn_similar_columns(columns, chosen, path)
    return chosen


def list_chosen_findings(columns: Iterable[str], options: Sequence[str]) -> list[str]:
    """Return the columns of findings in an option such as "label=Edema,Mass"; empty if there is none."""
    columns = list(columns)
    chosen = [_find_parts(name, columns) for role, _, name in _split_options(options) if role == "label"]
    return chosen[0] if chosen else []


def _find_parts(name: str, columns: list[str]) -> list[str]:
    """Return the columns in a text such as "Edema,Mass", or an empty list if it is one column or not all exist."""
    found = [find_column(columns, [part]) for part in name.split(",")]
    parts = [column for column in found if column]
    return parts if name not in columns and len(parts) == len(found) > 1 else []


def _split_options(options: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return role, separator and name of each part of the options."""
    texts = [part.partition("=") for option in options for part in NEXT_ROLE.split(option)]
    return [(role.strip(), separator, name.strip()) for role, separator, name in texts]


def _find_candidates(columns: Iterable[str], role: str) -> list[str]:
    return [name for name in columns if normalize_name(name) in ROLE_NAMES[role]]


def _choose_column(candidates: list[str], role: str, path: Path) -> str:
    exact = [name for name in candidates if normalize_name(name) == role]
    if len(exact or candidates) == 1:
        return (exact or candidates)[0]
    problem = f"several columns may contain the {role}: {format_names(map(repr, candidates))}"
    fix = f"Rename the correct one to {role}, or pass `columns={[f'{role}={candidates[0]}']}`"
    raise DataError(problem, fix, path=path, code="E029")


def _parse_options(options: Sequence[str], columns: list[str]) -> dict[str, str]:
    """Return the column of each role in options such as "path=image" and "path=image,label=class"."""
    chosen: dict[str, str] = {}
    for role, separator, name in _split_options(options):
        if not separator or not role or not name:
            text = role + separator + name
            raise RecipeError(
                f"columns {text!r} does not have the form role=column", "Pass `columns=['path=image']`", code="E022"
            )
        if role not in ROLE_NAMES:
            problem = f"columns: no role is called {role!r}{suggest_name(role, ROLE_NAMES)}"
            raise RecipeError(problem, f"Choose from {format_names(ROLE_NAMES)}", code="E022")
        if role == "label" and _find_parts(name, columns):
            continue  # see list_chosen_findings
        column = name if name in columns else find_column(columns, [name])
        if column is None:
            problem = f"columns: no column is called {name!r}{suggest_name(name, columns)}"
            raise RecipeError(problem, f"Choose from {format_names(columns)}", code="E022")
        if role in chosen or column in chosen.values():
            problem = f"columns: {role if role in chosen else repr(column)} is given twice"
            raise RecipeError(problem, "Give each role one column, and each column one role", code="E022")
        chosen[role] = column
    return chosen


def _warn_similar_columns(columns: list[str], chosen: dict[str, str], path: Path) -> None:
    unused = [name for name in columns if name not in chosen.values()]
    for role in OPTIONAL_ROLES:
        if role not in chosen and (suggestion := suggest_name(role, unused)):
            log.warning("%s: no column called %s%s; the similar column is ignored", path.name, role, suggestion)
