"""From a folder that describes a cohort to figures/*.svg and describe.html: one page, drawn from the folder alone."""

from collections import Counter
from pathlib import Path
from typing import Any

from fastcxr.report.data_figure_set import make_dataset_figures
from fastcxr.report.data_tables import make_dataset_context, make_tiles
from fastcxr.report.html import Page, render, write_page
from fastcxr.report.notices import make_notices
from fastcxr.report.run_reader import DatasetRecord, read_dataset_record, read_findings
from fastcxr.report.style import SvgFigure

VERDICT_HEADINGS = {"FAIL": "Failed", "WARN": "Look again", "PASS": "Passed"}


def write_dataset_page(folder: str | Path) -> Path:
    """Redraws figures/*.svg and describe.html of a described cohort; the page's path comes back.

    Reads nothing but the folder. The same files give the same page, byte for byte.
    """
    record = read_dataset_record(folder)
    svg_figures = make_dataset_figures(record)
    return write_page(record.folder / "describe.html", render_dataset_page(record, svg_figures), svg_figures)


def render_dataset_page(record: DatasetRecord, svg_figures: dict[str, SvgFigure]) -> str:
    """The page as HTML text."""
    all_notices = make_notices(record, page="describe")
    context = {
        "record": record,
        "sources": list(record.table["source"].value_counts().index),
        "tiles": make_tiles(record),
        "cohort": make_dataset_context(record),
        "critical_notices": [n for n in all_notices if n.level == "critical"],
        "notices": [n for n in all_notices if n.level != "critical"],
    }
    return render("describe.html.jinja", context, svg_figures)


def write_audit_page(folder: str | Path) -> Page:
    """Redraws audit.html; the page's path comes back. Reads nothing but the folder."""
    record = read_dataset_record(folder)
    findings = read_findings(record.folder)
    counts = Counter(finding["verdict"] for finding in findings)
    context = {
        "record": record,
        "sources": list(record.table["source"].value_counts().index),
        "tiles": [(head, counts[verdict]) for verdict, head in VERDICT_HEADINGS.items()],
        "findings": [finding | {"images": _find_group_images(record, finding)} for finding in findings],
        "critical_notices": [],
        "notices": make_notices(record, page="audit"),
    }
    return write_page(record.folder / "audit.html", render("audit.html.jinja", context, {}), {})


def _find_group_images(record: DatasetRecord, finding: dict[str, Any]) -> list[list[dict[str, str]]]:
    """The images of each group, with their label, split and thumbnail."""
    row_by_key = {(row.source, row.path): row for row in record.table.itertuples()}
    thumbnail_uris = {(row.source, row.path): row.uri for row in record.thumbnails.itertuples()}
    groups = [[row_by_key[tuple(key)] for key in group if tuple(key) in row_by_key] for group in finding["groups"]]
    return [
        [
            {
                "path": row.path,
                "label": row.label,
                "split": row.split,
                "uri": thumbnail_uris.get((row.source, row.path), ""),
            }
            for row in rows
        ]
        for rows in groups
    ]
