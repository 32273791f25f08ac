"""Labelled rows of one or several sources come in; those that a person wants, under the labels they want, go out.

First labels are renamed, then classes are kept, then rows whose columns hold certain values. What these leave out is
counted aloud, and a name that is not there is an error: it would silently choose nothing.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from fastcxr.data.columns import find_privacy_risk
from fastcxr.errors import RecipeError
from fastcxr.io.tables import TEXT_DTYPE, format_names, suggest_name, to_text

log = logging.getLogger("fastcxr")


def filter_tables(
    tables: list[pd.DataFrame], *, relabel: Sequence[str] = (), classes: Sequence[str] = (), filter: Sequence[str] = ()
) -> list[pd.DataFrame]:
    """Each table with its labels renamed, and only its rows that are wanted.

    `relabel`: "theirs=ours". `classes`: labels to keep, all if none is named. `filter`: "column=value,value"; a source
    that says nothing of the column is kept whole. Raises RecipeError for a label, column or value that is not there.
    """
    for step, options in ((rename_labels, relabel), (keep_classes, classes), (keep_matching_rows, filter)):
        tables = step(tables, options) if options else tables
    return [table.reset_index(drop=True) for table in tables]


def rename_labels(tables: list[pd.DataFrame], options: Sequence[str]) -> list[pd.DataFrame]:
    """The tables with some labels under other names; all at once, so that two names may be exchanged."""
    known = _list_labels(tables)
    new_names: dict[str, str] = {}
    for text in options:
        old_label, new_label = _split_option(text, "relabel", "theirs=ours", str.rpartition)
        _reject_unknown(old_label, known, "relabel", "class")
        if new_names.setdefault(old_label, new_label) != new_label:
            problem = f"relabel gives {old_label!r} two names, {new_names[old_label]!r} and {new_label!r}"
            raise RecipeError(problem, "Give each class one name", code="E022")
    counts = pd.concat([table["label"] for table in tables]).value_counts()
    log.info("relabelled: %s", format_names(f"{old} to {new} ({counts[old]:,})" for old, new in new_names.items()))
    return [table.assign(label=to_text(table["label"].replace(new_names))) for table in tables]


def keep_classes(tables: list[pd.DataFrame], options: Sequence[str]) -> list[pd.DataFrame]:
    """The rows of these classes."""
    known = _list_labels(tables)
    for name in options:
        _reject_unknown(name, known, "classes", "class")
    counts = pd.concat([table["label"] for table in tables]).value_counts()
    dropped = counts.drop(list(options))
    if len(dropped):
        log.info("classes left out: %s (%s images)", format_names(f"{name} ({n:,})" for name, n in dropped.items()),
                 f"{dropped.sum():,}")  # fmt: skip
    return [table[table["label"].isin(list(options))] for table in tables]


def keep_matching_rows(tables: list[pd.DataFrame], options: Sequence[str]) -> list[pd.DataFrame]:
    """The rows whose columns hold one of the values; several choices of one column add up."""
    values_by_column: dict[str, set[str]] = {}
    for text in options:
        column, values = _split_option(text, "filter", "column=value,value", str.partition)
        columns = dict.fromkeys(name for table in tables for name in table.columns if name != "file")
        _reject_unknown(column, columns, "filter", "column")
        values_by_column.setdefault(column, set()).update(_split_values(values, _list_values(tables, column), column))
    for column, values in values_by_column.items():
        tables = [_keep_matching(table, column, values) for table in tables]
    return tables


def _keep_matching(table: pd.DataFrame, column: str, values: set[str]) -> pd.DataFrame:
    """An empty value means an empty cell. A source that says nothing at all of the column is not asked."""
    cells = table[column] if column in table else pd.Series(index=table.index, dtype=TEXT_DTYPE)
    has_no_value = ~cells.notna().groupby(table["source"]).transform("any").astype(bool)
    if has_no_value.any():
        sources = format_names(sorted(set(table.loc[has_no_value, "source"])))
        log.info("nothing is said of %s by %s: all %s images stay", column, sources, f"{has_no_value.sum():,}")
    is_kept = has_no_value | cells.fillna("").isin(list(values))
    dropped = cells[~is_kept].fillna("an empty cell").value_counts()
    if len(dropped):
        is_personal = find_privacy_risk(column, cells)  # what such cells say belongs into no run.json
        examples = "" if is_personal else format_names((f"{name} ({n:,})" for name, n in dropped.items()), 8) + " "
        log.info("left out by %s: %s(%s images)", column, examples, f"{dropped.sum():,}")
    return table[is_kept]


def _split_values(text: str, known: Iterable[str], column: str) -> list[str]:
    """The values between commas, unless the whole text is one that the column holds."""
    known = set(known)
    values = [text] if text in known else [value.strip() for value in text.split(",")]
    for value in values:
        if value:
            _reject_unknown(value, sorted(known), f"filter {column}", "value")
    return values


def _split_option(text: str, option: str, form: str, partition: Callable) -> tuple[str, str]:
    """What stands before and behind the sign; of several signs relabel takes the last, filter the first."""
    left, separator, right = partition(text, "=")
    if not separator or not left.strip() or (option == "relabel" and not right.strip()):
        problem = f"{option} {text!r} is not of the form {form}"
        raise RecipeError(problem, f"Write --{option} '{form}'", code="E022")
    return left.strip(), right.strip()


def _list_labels(tables: list[pd.DataFrame]) -> list[str]:
    return sorted({label for table in tables for label in table["label"]})


def _list_values(tables: list[pd.DataFrame], column: str) -> list[str]:
    return sorted({str(value) for table in tables if column in table for value in table[column].dropna()})


def _reject_unknown(name: str, known: Iterable[str], option: str, kind: str) -> None:
    known = list(known)
    if name not in known:
        problem = f"{option}: no {kind} is called {name!r}{suggest_name(name, known)}"
        raise RecipeError(problem, f"There are {format_names(known)}", code="E022")
