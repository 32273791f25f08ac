"""How things look in a terminal: one live bar and a line an epoch, in a pipe plain lines; and the tables at the end."""

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from pandas import DataFrame


def show_headline(console: Console, folder: Path) -> None:
    """Print the report's headline as a table, and below it the report's stamps, comparisons and warnings."""
    from fastcxr.io.html import replace_unprintable
    from fastcxr.report.headline import make_terminal_table
    from fastcxr.report.notices import read_terminal_notices

    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    table = Table(box=None, pad_edge=False)
    headings, rows = make_terminal_table(metrics)
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    styles, prefixes = {"stamp": "bold red", "warning": "bold yellow"}, {"warning": "warning: "}
    for notice in read_terminal_notices(folder):
        line = prefixes.get(notice.level, "") + replace_unprintable(f"{notice.title}. {notice.text}").strip()
        console.print(line, style=styles.get(notice.level), markup=False, highlight=False, soft_wrap=True)


def show_findings(console: Console, folder: Path) -> bool:
    """Each finding of an audit as a line; whether one of them is a failure."""
    findings = json.loads((folder / "audit.json").read_text(encoding="utf-8"))["findings"]
    styles = {"FAIL": "bold red", "WARN": "bold yellow"}
    for finding in findings:
        line = f"{finding['verdict']}  {finding['title']}: {finding['message']}"
        console.print(line, style=styles.get(finding["verdict"]), markup=False, highlight=False, soft_wrap=True)
    return any(finding["verdict"] == "FAIL" for finding in findings)


def show_comparison(console: Console, folder: Path) -> None:
    """The leaderboard of a comparison as a table."""
    from fastcxr.report.tables import format_leaderboard

    comparison = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("AUROC, macro", "p", "accuracy", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in format_leaderboard(comparison["rows"]):
        cells = [(f"{part['value']} ({part['interval']})", _format_p_value(part)) for part in row["metrics"]]
        table.add_row(row["name"], *cells[0], *cells[1])
    console.print(table)
    caption = (
        f"on {comparison['shared']:,} images that all were scored on"
        if comparison["n_shared_images"]
        else "no image shared: not tested"
    )
    console.print(caption, highlight=False)


def _format_p_value(cell: dict[str, Any]) -> str:
    return f"{cell['p']} tie" if cell["tie"] else cell["p"]


def show_cache(console: Console, entries: list, feature_files: list[Path]) -> None:
    """The stores of decoded pictures as a table, the one used last first, and all banks of features in its last row."""
    if not entries and not feature_files:
        console.print("no pictures are kept", highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("size", "images", "MB", "last used"):
        table.add_column(heading, justify="right")
    for entry in entries:
        images = "unreadable" if entry.n_images is None else f"{entry.n_images:,}"
        table.add_row(f"{entry.size} px", images, f"{entry.n_bytes / 1e6:,.1f}", format_minute(entry.last_used))
    if feature_files:
        size = sum(bank.stat().st_size for bank in feature_files)
        table.add_row(
            "features",
            f"{len(feature_files):,} banks",
            f"{size / 1e6:,.1f}",
            format_minute(feature_files[0].stat().st_mtime),
        )
    console.print(table, highlight=False)


def format_minute(timestamp: float) -> str:
    """A time since 1970 as people read it."""
    return datetime.fromtimestamp(timestamp).strftime("%Y-%m-%d %H:%M")


def show_dataset(console: Console, folder: Path) -> int:
    """Images of each class in each split as a table, and every file that is not readable; returns how many are not."""
    from fastcxr.io.html import replace_unprintable
    from fastcxr.report.data_tables import make_split_table
    from fastcxr.report.run_reader import read_dataset_record

    record = read_dataset_record(folder)
    split_table = make_split_table(record)
    table = Table(box=None, pad_edge=False)
    for heading in ("", *split_table["splits"], "all"):
        table.add_column(escape(replace_unprintable(heading)), justify="right" if heading else "left")
    for row in [*split_table["rows"], {"label": "all", "cells": split_table["total"]}]:
        table.add_row(escape(replace_unprintable(row["label"])), *(f"{cell['images']:,}" for cell in row["cells"]))
    console.print(table, highlight=False)
    for row in record.skipped.to_dict("records"):
        line = replace_unprintable(f"FCX-{row['code']} {row['path']}: {row['reason']}")
        console.print(line, style="bold yellow", markup=False, highlight=False, soft_wrap=True)
    if len(record.skipped):
        console.print(f"{len(record.skipped):,} images not readable, and left out", highlight=False)
    return len(record.skipped)


def show_scout_table(console: Console, table: "DataFrame") -> None:
    """The rows of scout.csv; a backbone that was not ranked says why."""
    rich_table = Table(box=None, pad_edge=False)
    for heading in ("backbone", "AUROC", "accuracy", "images/s", "parameters"):
        rich_table.add_column(heading, justify="left" if heading == "backbone" else "right")
    rich_table.add_column("")
    for row in table.itertuples():
        is_ranked, is_timed = (number == number for number in (row.auroc, row.images_per_second))  # nan is not itself
        metric_cells = (f"{row.auroc:.3f} ± {row.auroc_sd:.3f}", f"{row.accuracy:.1%}") if is_ranked else ("-", "-")
        cost_cells = (f"{row.images_per_second:,.0f}", f"{row.parameters / 1e6:.1f} M") if is_timed else ("-", "-")
        rich_table.add_row(escape(row.backbone), *metric_cells, *cost_cells, escape(row.note))
    console.print(rich_table)
