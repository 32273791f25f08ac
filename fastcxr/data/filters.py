"""Rename labels, then keep the chosen classes, then keep rows with the chosen column values.

The log states how many images are left out. An unknown label, column or value is an error, because it would select
nothing without notice.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from fastcxr.data.columns import find_privacy_risk
from fastcxr.data.findings import is_multi_label, keep_single_labels, list_findings, rename_findings, split_labels
from fastcxr.errors import DataError, RecipeError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import TEXT_DTYPE, format_names, suggest_name, to_text

log = logging.getLogger("fastcxr")


def filter_tables(
    tables: list[pd.DataFrame], *, relabel: Sequence[str] = (), classes: Sequence[str] = (), filter: Sequence[str] = ()
) -> list[pd.DataFrame]:
    """Return each table with renamed labels and only the selected rows.

    `relabel`: "theirs=ours". `classes`: labels to keep, all if empty. `filter`: "column=value,value"; a source without
    any value in the column keeps all rows. Raises RecipeError (E022) for an unknown label, column or value. The index
    of each table is kept. Classes of a dataset with several labels per image make it one with one label per image.
    """
    for step, options in ((rename_labels, relabel), (keep_classes, classes), (keep_matching_rows, filter)):
        tables = step(tables, options) if options else tables
    return tables


def rename_labels(tables: list[pd.DataFrame], options: Sequence[str]) -> list[pd.DataFrame]:
    """Return the tables with labels renamed in one step, which allows two names to be swapped."""
    counts = _count_labels(tables)
    new_names: dict[str, str] = {}
    for text in options:
        old_label, new_label = _split_option(text, "relabel", "theirs=ours", str.rpartition)
        _reject_unknown(old_label, sorted(counts.index), "relabel", "class")
        if new_names.setdefault(old_label, new_label) != new_label:
            problem = f"relabel gives {old_label!r} two names, {new_names[old_label]!r} and {new_label!r}"
            raise RecipeError(problem, "Give each class one name", code="E022")
    unit = " present" if any(map(is_multi_label, tables)) else ""
    renamed = format_names(f"{old} to {new} ({counts[old]:,}{unit})" for old, new in new_names.items())
    log.info("relabelled: %s", renamed)
    return [_rename(table, new_names) for table in tables]


def _rename(table: pd.DataFrame, new_names: dict[str, str]) -> pd.DataFrame:
    if is_multi_label(table):
        return rename_findings(table, new_names)
    return table.assign(label=to_text(table["label"].replace(new_names)))


def keep_classes(tables: list[pd.DataFrame], options: Sequence[str]) -> list[pd.DataFrame]:
    """Return the rows with one of these labels; an option may name several, separated by commas."""
    counts = _count_labels(tables)
    classes = [name for text in options for name in ([text] if text in counts.index else text.split(","))]
    classes = [name.strip() for name in classes if name.strip()]
    for name in classes:
        _reject_unknown(name, sorted(counts.index), "classes", "class")
    dropped = counts.drop(list(dict.fromkeys(classes)))
    if len(dropped):
        names = format_names(f"{name} ({n:,})" for name, n in dropped.items())
        log.info("classes left out: %s (%s)", names, pluralize(int(dropped.sum()), "image"))
    kept = [
        keep_single_labels(table, classes) if is_multi_label(table) else table[table["label"].isin(classes)]
        for table in tables
    ]
    labels = {label for table in kept for label in table["label"]}
    if lost := [name for name in classes if name not in labels and counts[name]]:
        names = format_names(f"{name} ({pluralize(int(counts[name]), 'image')})" for name in lost)
        verb = "never occurs" if len(lost) == 1 else "never occur"
        problem = f"{names} {verb} without another of the classes {format_names(classes)}"
        raise DataError(problem, f"Leave {format_names(lost)} out of `classes`, or choose other classes", code="E005")
    return kept


def keep_matching_rows(tables: list[pd.DataFrame], options: Sequence[str]) -> list[pd.DataFrame]:
    """Return the rows whose columns have one of the values; values of several options for one column are combined."""
    values_by_column: dict[str, set[str]] = {}
    for text in options:
        column, values = _split_option(text, "filter", "column=value,value", str.partition)
        columns = dict.fromkeys(name for table in tables for name in table.columns if name != "file")
        _reject_unknown(column, columns, "filter", "column")
        known = sorted({str(cell) for table in tables if column in table for cell in table[column].dropna()})
        # a value may contain commas itself
        chosen = [values] if values in known else [value.strip() for value in values.split(",")]
        _reject_unknown_values(column, [value for value in chosen if value], known)
        values_by_column.setdefault(column, set()).update(chosen)
    for column, chosen in values_by_column.items():
        tables = [_keep_matching(table, column, chosen) for table in tables]
    return tables


def _reject_unknown_values(column: str, values: list[str], known: list[str]) -> None:
    """Raise RecipeError for a value that may be misspelt, or if no value occurs; otherwise log those that do not."""
    absent = [value for value in values if value not in known]
    for value in absent:
        if len(absent) == len(values) or suggest_name(value, known):
            _reject_unknown(value, known, f"filter {column}", "value")
    if absent:
        log.warning("filter %s: no image has the value %s", column, format_names(map(repr, absent)))


def _keep_matching(table: pd.DataFrame, column: str, values: set[str]) -> pd.DataFrame:
    """Return the matching rows, and all rows of sources without any value; an empty value matches empty cells."""
    cells = table[column] if column in table else pd.Series(index=table.index, dtype=TEXT_DTYPE)
    has_no_value = ~cells.notna().groupby(table["source"]).transform("any").astype(bool)
    if has_no_value.any():
        sources = format_names(sorted(set(table.loc[has_no_value, "source"])))
        log.info("no values of %s in %s: all %s images are kept", column, sources, f"{has_no_value.sum():,}")
    is_kept = has_no_value | cells.fillna("").isin(list(values))
    dropped = cells[~is_kept].fillna("an empty cell").value_counts()
    if len(dropped):
        is_private = find_privacy_risk(column, cells)  # run.json contains log messages, but must not contain such cells
        examples = "" if is_private else format_names((f"{name} ({n:,})" for name, n in dropped.items()), 8) + " "
        log.info("left out by %s: %s(%s)", column, examples, pluralize(int(dropped.sum()), "image"))
    return table[is_kept]


def _split_option(text: str, option: str, form: str, partition: Callable) -> tuple[str, str]:
    """Return the parts before and after "="; of several, relabel uses the last and filter the first."""
    left, separator, right = partition(text, "=")
    if not separator or not left.strip() or (option == "relabel" and not right.strip()):
        raise RecipeError(f"{option} {text!r} does not have the form {form}", f"Pass `{option}={[form]}`", code="E022")
    return left.strip(), right.strip()


def _count_labels(tables: list[pd.DataFrame]) -> pd.Series:
    """Return the images of each label, or of each finding that is present and of "No Finding"."""
    labels = [
        table["label"].map(split_labels).explode() if is_multi_label(table) else table["label"] for table in tables
    ]
    counts = pd.concat(labels).value_counts()
    absent = [name for table in tables for name in list_findings(table) if name not in counts.index]
    return counts if not absent else pd.concat([counts, pd.Series(0, index=dict.fromkeys(absent))])


def _reject_unknown(name: str, known: Iterable[str], option: str, role: str) -> None:
    known = list(known)
    if name not in known:
        problem = f"{option}: no {role} is called {name!r}{suggest_name(name, known)}"
        raise RecipeError(problem, f"Choose from {format_names(known)}", code="E022")
