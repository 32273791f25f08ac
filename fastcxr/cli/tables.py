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
    from fastcxr.io.html import plain
    from fastcxr.report.headline import terminal_table
    from fastcxr.report.notices import read_terminal_notices

    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    table = Table(box=None, pad_edge=False)
    headings, rows = terminal_table(metrics)
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    styles, prefixes = {"stamp": "bold red", "warning": "bold yellow"}, {"warning": "warning: "}
    for notice in read_terminal_notices(folder):
        line = prefixes.get(notice.level, "") + plain(f"{notice.title}. {notice.text}").strip()
        console.print(line, style=styles.get(notice.level), markup=False, highlight=False, soft_wrap=True)


def show_findings(console: Console, folder: Path) -> bool:
    """Each finding of an audit as a line; whether one of them is a failure."""
    findings = json.loads((folder / "audit.json").read_text(encoding="utf-8"))["findings"]
    styles = {"FAIL": "bold red", "WARN": "bold yellow"}
    for finding in findings:
        line = f"{finding['verdict']}  {finding['title']}: {finding['words']}"
        console.print(line, style=styles.get(finding["verdict"]), markup=False, highlight=False, soft_wrap=True)
    return any(finding["verdict"] == "FAIL" for finding in findings)


def show_compared(console: Console, folder: Path) -> None:
    """The leaderboard of a comparison as a table."""
    from fastcxr.report.tables import rows_in_words

    facts = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("AUROC, macro", "p", "accuracy", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows_in_words(facts["rows"]):
        cells = [(f"{part['value']} ({part['reach']})", _verdict(part)) for part in row["figures"]]
        table.add_row(row["name"], *cells[0], *cells[1])
    console.print(table)
    words = (
        f"on {facts['shared']:,} images that all were scored on" if facts["shared"] else "no image shared: not tested"
    )
    console.print(words, highlight=False)


def _verdict(part: dict[str, Any]) -> str:
    return f"{part['p']} tie" if part["tie"] else part["p"]


def show_kept(console: Console, shelves: list, banks: list[Path]) -> None:
    """The stores of decoded pictures as a table, the one used last first, and all banks of features in its last row."""
    if not shelves and not banks:
        console.print("no pictures are kept", highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("size", "images", "MB", "last used"):
        table.add_column(heading, justify="right")
    for shelf in shelves:
        images = "unreadable" if shelf.images is None else f"{shelf.images:,}"
        table.add_row(f"{shelf.size} px", images, f"{shelf.bytes / 1e6:,.1f}", minute(shelf.used))
    if banks:
        size = sum(bank.stat().st_size for bank in banks)
        table.add_row("features", f"{len(banks):,} banks", f"{size / 1e6:,.1f}", minute(banks[0].stat().st_mtime))
    console.print(table, highlight=False)


def minute(seconds: float) -> str:
    """A time since 1970 as people read it."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def show_cohort(console: Console, folder: Path) -> int:
    """Images of each class in each split as a table, and every file that is not readable; returns how many are not."""
    from fastcxr.io.html import plain
    from fastcxr.report.data_tables import split_table
    from fastcxr.report.run_reader import read_description

    record = read_description(folder)
    found = split_table(record)
    table = Table(box=None, pad_edge=False)
    for heading in ("", *found["splits"], "all"):
        table.add_column(escape(plain(heading)), justify="right" if heading else "left")
    for row in [*found["rows"], {"label": "all", "cells": found["total"]}]:
        table.add_row(escape(plain(row["label"])), *(f"{cell['images']:,}" for cell in row["cells"]))
    console.print(table, highlight=False)
    for row in record.skipped.to_dict("records"):
        line = plain(f"FCX-{row['code']} {row['path']}: {row['reason']}")
        console.print(line, style="bold yellow", markup=False, highlight=False, soft_wrap=True)
    if len(record.skipped):
        console.print(f"{len(record.skipped):,} images not readable, and left out", highlight=False)
    return len(record.skipped)


def show_scouted(console: Console, table: "DataFrame") -> None:
    """The rows of scout.csv; a backbone that was not ranked says why."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("backbone", "AUROC", "accuracy", "images/s", "parameters"):
        shown.add_column(heading, justify="left" if heading == "backbone" else "right")
    shown.add_column("")
    for row in table.itertuples():
        ranked, timed = (number == number for number in (row.auroc, row.images_per_second))  # nan is not itself
        figures = (f"{row.auroc:.3f} ± {row.spread:.3f}", f"{row.accuracy:.1%}") if ranked else ("-", "-")
        costs = (f"{row.images_per_second:,.0f}", f"{row.parameters / 1e6:.1f} M") if timed else ("-", "-")
        shown.add_row(escape(row.backbone), *figures, *costs, escape(row.note))
    console.print(shown)
