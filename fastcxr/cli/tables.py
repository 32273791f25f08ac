"""Results as tables and lines in the terminal."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastcxr.io.formatting import MISSING, pluralize
from fastcxr.progress.terminal import print_alert, print_plain, print_table

if TYPE_CHECKING:
    from pandas import DataFrame

    from fastcxr.metrics.predictions import Predictions
    from fastcxr.report.run_reader import DatasetRecord


MAX_WIDTH = 10_000  # characters, more than any table has
LEFT_OUT_FIRST = ("absent", "unknown", "blank", "uncertain")  # states without a column in a narrow terminal
SCOUT_OUT_OF_REACH = "out of reach: pass --weights NAME=FILE, or name an open one to download it"
TRIAL_COLUMNS, N_BEST_TRIALS, LOSS = ("trial", "state", "objective", "seconds", "reason"), 5, "loss"  # of `tune`
N_TOP_FINDINGS, MAX_PREDICTED_ROWS = 3, 20  # of `predict`


def show_headline(console: Console, folder: Path) -> None:
    """Print the headline of a report as a table, and its critical notices, comparisons and warnings."""
    from fastcxr.io.html import replace_unprintable
    from fastcxr.report.headline import describe_averaged_findings, make_terminal_table
    from fastcxr.report.notices import read_terminal_notices

    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    headings, rows = make_terminal_table(metrics)
    print_table(console, _fill_table(headings, rows))
    if averaged := describe_averaged_findings(metrics):
        print_plain(console, averaged)
    styles = {"critical": "bold red", "warning": "bold yellow"}
    for notice in read_terminal_notices(folder):
        prefix = "warning: " if notice.level == "warning" else ""
        line = prefix + replace_unprintable(f"{notice.title}. {notice.text}").strip()
        (print_plain if notice.level == "note" else print_alert)(console, line, styles.get(notice.level))


def _fill_table(headings: Sequence[str], rows: Iterable[Sequence[str]], n_text_columns: int = 1) -> Table:
    """Return a table with these rows of plain text, without the columns that have no text at all."""
    rows = list(rows)
    used = [k for k in range(len(headings)) if k == 0 or any(row[k] not in ("", MISSING) for row in rows)]
    table = _make_table([headings[k] for k in used], n_text_columns)
    for row in rows:
        table.add_row(*(escape(row[k]) for k in used))
    return table


def _make_table(headings: Iterable[str], n_text_columns: int = 1) -> Table:
    """Return an empty table without borders: text columns are left-aligned, the others right-aligned.

    A text that is too long is continued in the next line: an ellipsis could make two names the same.
    """
    table = Table(box=None, pad_edge=False)
    for k, heading in enumerate(headings):
        is_text = k < n_text_columns
        table.add_column(escape(heading), justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    return table


def show_findings(console: Console, folder: Path) -> list[dict[str, Any]]:
    """Print each finding of an audit as a line, and return the findings."""
    findings = json.loads((folder / "audit.json").read_text(encoding="utf-8"))["findings"]
    styles = {"FAIL": "bold red", "WARN": "bold yellow"}
    for finding in findings:
        line = f"{finding['verdict']}  {finding['title']}: {finding['message']}"
        (print_plain if finding["verdict"] == "PASS" else print_alert)(console, line, styles.get(finding["verdict"]))
    return findings


def show_comparison(console: Console, folder: Path) -> dict[str, Any]:
    """Print the leaderboard of a comparison as a table, and return compare.json.

    In a narrow terminal an interval is below its value, which leaves more space for the names.
    """
    comparison = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    table = _make_leaderboard(comparison["rows"], " ")
    if _is_too_wide(console, table):
        table = _make_leaderboard(comparison["rows"], "\n")
    print_table(console, table)
    if n_images := comparison["n_shared_images"]:
        print_plain(console, f"tested on the {pluralize(n_images, 'image')} shared by all models")
    else:
        print_plain(console, "no shared images: not tested")
    return comparison


def _make_leaderboard(rows: Sequence[dict[str, Any]], separator: str) -> Table:
    from fastcxr.report.tables import format_leaderboard

    models, cells = format_leaderboard(rows), []
    n_text_columns = 1 + any(row["label_policy"] for row in models)  # an empty column is left out
    for row in models:
        cells.append([row["name"], row["label_policy"]])
        for metric in row["metrics"]:
            p_value = f"{metric['p']} tie" if metric["tie"] else metric["p"]
            cells[-1] += [f"{metric['value']}{separator}({metric['interval']})", p_value]
    second = "average precision, macro" if "findings" in rows[0] else "accuracy"
    return _fill_table(
        ("", "labels in training", "AUROC, macro", "p", second, "p"), cells, n_text_columns=n_text_columns
    )


def show_top_findings(console: Console, predictions: "Predictions", n_images: int, counts: Mapping[str, int]) -> None:
    """Print the most probable findings of images with their decisions, and the number of images with each finding.

    In a narrow terminal a probability is below the name of its finding.

    Args:
        console: the console.
        predictions: the first images, with the columns of apply_thresholds; at most MAX_PREDICTED_ROWS are printed. An
            image without decisions is out-of-distribution.
        n_images: number of all readable images.
        counts: number of all images with each finding.
    """
    table = _make_top_findings(predictions, " ")
    if _is_too_wide(console, table):
        table = _make_top_findings(predictions, "\n")
    print_table(console, table)
    if (n_more := n_images - MAX_PREDICTED_ROWS) > 0:
        print_plain(console, f"and {pluralize(n_more, 'more image')}")
    decided = [f"{label} {n:,}" for label, n in sorted(counts.items(), key=lambda item: -item[1]) if n]
    print_plain(console, f"images that reach the threshold: {', '.join(decided) or 'none'}")


def _make_top_findings(predictions: "Predictions", separator: str) -> Table:
    from fastcxr.io.html import replace_unprintable
    from fastcxr.metrics.predictions import DECISION_PREFIX

    table, labels, rows = predictions.table, predictions.labels, []
    no_decision = "no decision" if separator == "\n" else "out-of-distribution"  # which is wider than the column
    for row in (table["error"] == "").to_numpy().nonzero()[0][:MAX_PREDICTED_ROWS]:
        probability = predictions.probability[row]
        rows.append([replace_unprintable(table["path"].iloc[row])])
        for k in (-probability).argsort(kind="stable")[:N_TOP_FINDINGS]:
            decision = table[DECISION_PREFIX + labels[k]].iloc[row] or no_decision
            rows[-1].append(f"{replace_unprintable(labels[k])}{separator}{probability[k]:.3f} {decision}")
    headings = ("image", "highest", "second", "third")[: 1 + len(labels)]
    return _fill_table(headings, rows, len(headings))


def show_cache(console: Console, entries: list, feature_files: list[Path], unfinished_files: list[Path]) -> None:
    """Print the image caches as a table, the most recent first, then the totals of the features.

    Args:
        console: the console.
        entries: image caches.
        feature_files: files of complete features, the most recently used first.
        unfinished_files: files of features of interrupted or running computations.
    """
    if not (entries or feature_files or unfinished_files):
        print_plain(console, "the cache is empty")
        return
    table = _make_table(("size", "images", "MB", "last used"), n_text_columns=0)
    for entry in entries:
        images = "unreadable" if entry.n_images is None else f"{entry.n_images:,}"
        table.add_row(f"{entry.size} px", images, f"{entry.n_bytes / 1e6:,.1f}", _format_time(entry.last_used))
    for name, files in (("features", feature_files), ("unfinished features", unfinished_files)):
        if files:
            n_bytes, last_used = sum(file.stat().st_size for file in files), max(file.stat().st_mtime for file in files)
            table.add_row(name, pluralize(len(files), "file"), f"{n_bytes / 1e6:,.1f}", _format_time(last_used))
    print_table(console, table)


def _format_time(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp).strftime("%Y-%m-%d %H:%M")


def show_dataset(console: Console, folder: Path) -> dict[str, Any]:
    """Print the images of each class or finding and split, and all unreadable files; return both for --json.

    `training_classes`: two labels for training one label per image, only if there are several labels per image.
    """
    from fastcxr.io.html import replace_unprintable
    from fastcxr.report.data_tables import describe_decoded
    from fastcxr.report.finding_tables import make_finding_table
    from fastcxr.report.run_reader import read_dataset_record

    record = read_dataset_record(folder)
    finding_table, unreadable = make_finding_table(record), record.skipped.to_dict("records")
    document = _show_finding_counts(console, finding_table) if finding_table else _show_class_counts(console, record)
    for row in unreadable:
        print_alert(console, replace_unprintable(f"FCX-{row['code']} {row['path']}: {row['reason']}"))
    if unreadable:
        print_alert(console, f"{pluralize(len(unreadable), 'unreadable image')} skipped", None)
    if decoded := describe_decoded(record):
        print_plain(console, decoded)
        document["decoded"] = record.run["decoded"]
    return document | {"unreadable": unreadable}


def _show_class_counts(console: Console, record: "DatasetRecord") -> dict[str, Any]:
    from fastcxr.report.data_tables import make_split_table

    split_table = make_split_table(record)
    all_rows = [*split_table["rows"], {"label": "all", "cells": split_table["total"]}]
    cells = [(row["label"], *(f"{cell['images']:,}" for cell in row["cells"])) for row in all_rows]
    headings = ("", *split_table["splits"], "all")
    _print_counts(console, headings, cells)
    return {
        "classes": {row["label"]: dict(zip(headings[1:], row["cells"], strict=True)) for row in split_table["rows"]}
    }


def _show_finding_counts(console: Console, table: dict[str, Any]) -> dict[str, Any]:
    from fastcxr.io.formatting import format_percent
    from fastcxr.report.finding_tables import make_finding_context, select_classes

    context = make_finding_context(table)
    names = ("present", "patients", *table["states"])
    cells = [
        (
            row["label"],
            *(f"{n:,}" for n in row["splits"]),
            *(f"{row[name]:,}" if name in row else "" for name in names),
            format_percent(row["prevalence"]) if "prevalence" in row else "",
        )
        for row in [*context["rows"], context["total"]]
    ]
    left_out_first = [name for name in LEFT_OUT_FIRST if name in table["states"]] + table["splits"][::-1] + ["patients"]
    _print_counts(console, ("", *table["splits"], *names, "prevalence"), cells, left_out_first)
    for line in filter(None, [context["others"], *context["remarks"]]):
        print_plain(console, line)
    counts = {row["label"]: _make_finding_document(row, table) for row in [*table["rows"], table["total"]]}
    return {
        "all_images": counts.pop(table["total"]["label"]),
        "findings": counts,
        "images_by_number_of_findings": table["n_findings"],
        "images_without_known_finding": table["n_unlabelled"],
        "training_classes": select_classes(table),
    }


def _make_finding_document(row: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """Return the counts of a finding; `splits` has the images with the finding, `states` all counts of each split."""
    counts = {name: n for name, n in row.items() if name not in ("label", "splits")}
    document = counts | {"splits": dict(zip(table["splits"], row["splits"], strict=True))}
    if "prevalence" not in row:
        return document
    return document | {"states": {split: rows[row["label"]] for split, rows in table["by_split"].items()}}


def _print_counts(
    console: Console, headings: Sequence[str], rows: Iterable[Sequence[str]], left_out_first: Iterable[str] = ()
) -> None:
    """Print a table of counts; in a narrow terminal without some columns, which a line names.

    The columns of `left_out_first` are left out in this order until the names in the first column are complete.
    """
    from fastcxr.io.html import replace_unprintable

    rows, left_out = [tuple(map(replace_unprintable, row)) for row in rows], []
    headings = tuple(map(replace_unprintable, headings))
    table = _fill_table(headings, rows)
    for heading in left_out_first:
        if not _is_too_wide(console, table):
            break
        shown = [k for k, name in enumerate(headings) if name not in (*left_out, heading)]
        left_out.append(heading)
        table = _fill_table([headings[k] for k in shown], [[row[k] for k in shown] for row in rows])
    print_table(console, table)
    if left_out:
        names = [name for name in headings if name in left_out]
        print_plain(console, f"Not shown in this narrow terminal: {', '.join(names)} (see the page, or --json)")


def _is_too_wide(console: Console, table: Table) -> bool:
    """Return whether the table has lines that are longer than those of the terminal."""
    return console.measure(table, options=console.options.update(width=MAX_WIDTH)).maximum > console.width


def show_scout_table(console: Console, scores: "DataFrame") -> None:
    """Print the rows of scout.csv, then the reason for each backbone without a rank."""
    from fastcxr.workflows.scout import OUT_OF_REACH

    rows, notes = [], {"not ranked": [], SCOUT_OUT_OF_REACH: []}
    for row in scores.to_dict("records"):
        title, is_timed = "not ranked", not math.isnan(row["images_per_second"])
        metrics, costs = ("-", "-" if "accuracy" in row else ""), ("-", "-", "-")
        if not math.isnan(row["auroc"]):
            accuracy = f"{row['accuracy']:.1%}" if "accuracy" in row else ""
            metrics = f"{row['auroc']:.3f} ± {row['auroc_sd']:.3f}", accuracy
        if is_timed:
            seconds = f"{row['seconds_per_1000_images']:,.0f}"
            costs = str(row["image_size"]), seconds, f"{row['parameters'] / 1e6:.1f} M"
        if row["note"].startswith(OUT_OF_REACH):
            title = SCOUT_OUT_OF_REACH
        else:
            rows.append((row["backbone"], *metrics, *costs))
        if row["note"]:
            notes[title].append(f"  {row['backbone']}: " + row["note"].removeprefix(f"{OUT_OF_REACH}: "))
    if rows:
        print_table(console, _fill_table(("backbone", "AUROC", "accuracy", "px", "s/1,000", "params"), rows))
        print_plain(console, "s/1,000: seconds of the network for 1,000 images on this device")
    for title, lines in notes.items():
        for line in [title, *lines] if lines else []:
            print_plain(console, line)


def show_trials(console: Console, trials: "DataFrame", metric: str) -> None:
    """Print the best trials of tuning.csv, best first; `metric`: heading of the objective."""
    complete = trials[trials["state"] == "complete"]
    names = [name for name in trials.columns if name not in TRIAL_COLUMNS]
    best = complete.sort_values("objective", ascending=metric == LOSS, kind="stable").head(N_BEST_TRIALS)
    cells = [
        (
            ", ".join(f"{name} {_format_cell(row[name])}" for name in names if row[name] == row[name]),
            str(row["trial"]),
            f"{row['objective']:.4f}",
            f"{row['seconds']:.1f}",
        )
        for row in best.to_dict("records")
    ]
    print_table(console, _fill_table(("options", "trial", metric, "seconds"), cells))
    if len(trials) > len(best):
        print_plain(console, f"best {len(best)} of {pluralize(len(trials), 'trial')}; tuning.csv has all")


def _format_cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_runs(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of runs and exports."""
    from fastcxr.io.formatting import format_percent, format_score

    cells = [
        (
            row["run"],
            f"{row['state']} ({row['target']})" if row["target"] else row["state"],
            format_score(row["auroc"]),
            format_percent(row["accuracy"]),
            row["split"],
            row["date"].replace("T", " ")[:16],
        )
        for row in rows
    ]
    print_table(console, _fill_table(("run", "state", "AUROC", "accuracy", "split", "date"), cells, n_text_columns=2))
