"""Labelled rows of one or several sources come in; those that a person wants, under the labels they want, go out.

First labels are renamed, then classes are kept, then rows whose columns hold certain values. What these leave out is
counted aloud, and a name that is not there is an error: it would silently choose nothing.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from fastcxr.data.columns import find_personal
from fastcxr.errors import RecipeError
from fastcxr.io.tables import TEXT, name_some, suggest, texts

log = logging.getLogger("fastcxr")


def select(
    tables: list[pd.DataFrame], *, relabel: Sequence[str] = (), classes: Sequence[str] = (), where: Sequence[str] = ()
) -> list[pd.DataFrame]:
    """Each table with its labels renamed, and only its rows that are wanted.

    `relabel`: "theirs=ours". `classes`: labels to keep, all if none is named. `where`: "column=value,value"; a source
    that says nothing of the column is kept whole. Raises RecipeError for a label, column or value that is not there.
    """
    for step, choices in ((rename_labels, relabel), (keep_classes, classes), (keep_where, where)):
        tables = step(tables, choices) if choices else tables
    return [table.reset_index(drop=True) for table in tables]


def rename_labels(tables: list[pd.DataFrame], choices: Sequence[str]) -> list[pd.DataFrame]:
    """The tables with some labels under other names; all at once, so that two names may be exchanged."""
    known = _labels(tables)
    names: dict[str, str] = {}
    for text in choices:
        theirs, ours = _part(text, "relabel", "theirs=ours", str.rpartition)
        _refuse_unknown(theirs, known, "relabel", "class")
        if names.setdefault(theirs, ours) != ours:
            what = f"relabel gives {theirs!r} two names, {names[theirs]!r} and {ours!r}"
            raise RecipeError(what, "Give each class one name", code="E022")
    counts = pd.concat([table["label"] for table in tables]).value_counts()
    log.info("relabelled: %s", name_some(f"{old} to {new} ({counts[old]:,})" for old, new in names.items()))
    return [table.assign(label=texts(table["label"].replace(names))) for table in tables]


def keep_classes(tables: list[pd.DataFrame], choices: Sequence[str]) -> list[pd.DataFrame]:
    """The rows of these classes."""
    known = _labels(tables)
    for name in choices:
        _refuse_unknown(name, known, "classes", "class")
    counts = pd.concat([table["label"] for table in tables]).value_counts()
    lost = counts.drop(list(choices))
    if len(lost):
        log.info("classes left out: %s (%s images)", name_some(f"{name} ({n:,})" for name, n in lost.items()),
                 f"{lost.sum():,}")  # fmt: skip
    return [table[table["label"].isin(list(choices))] for table in tables]


def keep_where(tables: list[pd.DataFrame], choices: Sequence[str]) -> list[pd.DataFrame]:
    """The rows whose columns hold one of the values; several choices of one column add up."""
    wanted: dict[str, set[str]] = {}
    for text in choices:
        column, values = _part(text, "where", "column=value,value", str.partition)
        columns = dict.fromkeys(name for table in tables for name in table.columns if name != "file")
        _refuse_unknown(column, columns, "where", "column")
        wanted.setdefault(column, set()).update(_split(values, _values(tables, column), column))
    for column, values in wanted.items():
        tables = [_keep(table, column, values) for table in tables]
    return tables


def _keep(table: pd.DataFrame, column: str, values: set[str]) -> pd.DataFrame:
    """An empty value means an empty cell. A source that says nothing at all of the column is not asked."""
    cells = table[column] if column in table else pd.Series(index=table.index, dtype=TEXT)
    silent = ~cells.notna().groupby(table["source"]).transform("any").astype(bool)
    if silent.any():
        sources = name_some(sorted(set(table.loc[silent, "source"])))
        log.info("nothing is said of %s by %s: all %s images stay", column, sources, f"{silent.sum():,}")
    kept = silent | cells.fillna("").isin(list(values))
    lost = cells[~kept].fillna("an empty cell").value_counts()
    if len(lost):
        is_personal = find_personal(column, cells)  # what such cells say belongs into no run.json
        named = "" if is_personal else name_some((f"{name} ({n:,})" for name, n in lost.items()), 8) + " "
        log.info("left out by %s: %s(%s images)", column, named, f"{lost.sum():,}")
    return table[kept]


def _split(text: str, known: Iterable[str], column: str) -> list[str]:
    """The values between commas, unless the whole text is one that the column holds."""
    known = set(known)
    values = [text] if text in known else [value.strip() for value in text.split(",")]
    for value in values:
        if value:
            _refuse_unknown(value, sorted(known), f"where {column}", "value")
    return values


def _part(text: str, choice: str, form: str, cut: Callable) -> tuple[str, str]:
    """What stands before and behind the sign; of several signs relabel takes the last, where the first."""
    left, sign, right = cut(text, "=")
    if not sign or not left.strip() or (choice == "relabel" and not right.strip()):
        too = ", or the same behind --map" if choice == "relabel" else ""
        what = f"{choice} {text!r} is not of the form {form}"
        raise RecipeError(what, f"Write --{choice} '{form}'{too}", code="E022")
    return left.strip(), right.strip()


def _labels(tables: list[pd.DataFrame]) -> list[str]:
    return sorted({label for table in tables for label in table["label"]})


def _values(tables: list[pd.DataFrame], column: str) -> list[str]:
    return sorted({str(value) for table in tables if column in table for value in table[column].dropna()})


def _refuse_unknown(name: str, known: Iterable[str], choice: str, noun: str) -> None:
    known = list(known)
    if name not in known:
        what = f"{choice}: no {noun} is called {name!r}{suggest(name, known)}"
        raise RecipeError(what, f"There are {name_some(known)}", code="E022")
