"""Results as tables and lines in the terminal."""

import json
import math
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastcxr.progress.terminal import print_plain

if TYPE_CHECKING:
    from pandas import DataFrame


def show_headline(console: Console, folder: Path) -> None:
    """Print the headline of a report as a table, and its critical notices, comparisons and warnings."""
    from fastcxr.io.html import replace_unprintable
    from fastcxr.report.headline import make_terminal_table
    from fastcxr.report.notices import read_terminal_notices

    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    headings, rows = make_terminal_table(metrics)
    table = _make_table(headings)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    styles = {"critical": "bold red", "warning": "bold yellow"}
    for notice in read_terminal_notices(folder):
        prefix = "warning: " if notice.level == "warning" else ""
        line = prefix + replace_unprintable(f"{notice.title}. {notice.text}").strip()
        print_plain(console, line, styles.get(notice.level))


def _make_table(headings: Iterable[str], n_text_columns: int = 1) -> Table:
    """Return an empty table without borders: text columns are left-aligned, the others right-aligned."""
    table = Table(box=None, pad_edge=False)
    for k, heading in enumerate(headings):
        table.add_column(escape(heading), justify="left" if k < n_text_columns else "right")
    return table


def show_findings(console: Console, folder: Path) -> bool:
    """Print each finding of an audit as a line; return whether a check failed."""
    findings = json.loads((folder / "audit.json").read_text(encoding="utf-8"))["findings"]
    styles = {"FAIL": "bold red", "WARN": "bold yellow"}
    for finding in findings:
        line = f"{finding['verdict']}  {finding['title']}: {finding['message']}"
        print_plain(console, line, styles.get(finding["verdict"]))
    return any(finding["verdict"] == "FAIL" for finding in findings)


def show_comparison(console: Console, folder: Path) -> None:
    """Print the leaderboard of a comparison as a table."""
    from fastcxr.report.tables import format_leaderboard

    comparison = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("AUROC, macro", "p", "accuracy", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in format_leaderboard(comparison["rows"]):
        cells = []
        for metric in row["metrics"]:
            p_value = f"{metric['p']} tie" if metric["tie"] else metric["p"]
            cells += [f"{metric['value']} ({metric['interval']})", p_value]
        table.add_row(escape(row["name"]), *cells)
    console.print(table)
    if comparison["n_shared_images"]:
        print_plain(console, f"tested on the {comparison['n_shared_images']:,} images shared by all models")
    else:
        print_plain(console, "no shared images: not tested")


def show_cache(console: Console, entries: list, feature_files: list[Path]) -> None:
    """Print the image caches as a table, the most recent first, and the total of the feature caches in the last row."""
    if not entries and not feature_files:
        print_plain(console, "the cache is empty")
        return
    table = _make_table(("size", "images", "MB", "last used"), n_text_columns=0)
    for entry in entries:
        images = "unreadable" if entry.n_images is None else f"{entry.n_images:,}"
        table.add_row(f"{entry.size} px", images, f"{entry.n_bytes / 1e6:,.1f}", _format_time(entry.last_used))
    if feature_files:
        n_files, last_used = f"{len(feature_files):,} files", _format_time(feature_files[0].stat().st_mtime)
        n_bytes = sum(file.stat().st_size for file in feature_files)
        table.add_row("features", n_files, f"{n_bytes / 1e6:,.1f}", last_used)
    console.print(table, highlight=False)


def _format_time(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp).strftime("%Y-%m-%d %H:%M")


def show_dataset(console: Console, folder: Path) -> int:
    """Print the number of images of each class and split, and all unreadable files; return the number of those."""
    from fastcxr.io.html import replace_unprintable
    from fastcxr.report.data_tables import make_split_table
    from fastcxr.report.run_reader import read_dataset_record

    record = read_dataset_record(folder)
    split_table = make_split_table(record)
    table = _make_table(map(replace_unprintable, ("", *split_table["splits"], "all")))
    for row in [*split_table["rows"], {"label": "all", "cells": split_table["total"]}]:
        table.add_row(escape(replace_unprintable(row["label"])), *(f"{cell['images']:,}" for cell in row["cells"]))
    console.print(table, highlight=False)
    for row in record.skipped.to_dict("records"):
        line = replace_unprintable(f"FCX-{row['code']} {row['path']}: {row['reason']}")
        print_plain(console, line, "bold yellow")
    if len(record.skipped):
        print_plain(console, f"{len(record.skipped):,} unreadable images skipped")
    return len(record.skipped)


def show_scout_table(console: Console, table: "DataFrame") -> None:
    """Print the rows of scout.csv, with the reason for each backbone without a rank."""
    rich_table = _make_table(("backbone", "AUROC", "accuracy", "images/s", "parameters"))
    rich_table.add_column("")
    for row in table.to_dict("records"):
        metrics = costs = ("-", "-")
        if not math.isnan(row["auroc"]):
            metrics = f"{row['auroc']:.3f} ± {row['auroc_sd']:.3f}", f"{row['accuracy']:.1%}"
        if not math.isnan(row["images_per_second"]):
            costs = f"{row['images_per_second']:,.0f}", f"{row['parameters'] / 1e6:.1f} M"
        rich_table.add_row(escape(row["backbone"]), *metrics, *costs, escape(row["note"]))
    console.print(rich_table)
