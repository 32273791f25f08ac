"""Write describe.html and audit.html, with their figures, from the files of one folder."""

from collections import Counter
from pathlib import Path
from typing import Any

from fastcxr.data.findings import list_findings
from fastcxr.report.data_figure_set import make_dataset_figures
from fastcxr.report.data_notices import merge_repeated_messages
from fastcxr.report.data_tables import describe_decoded, make_dataset_context, make_image_tiles, make_tiles
from fastcxr.report.finding_tables import make_finding_context, make_finding_table, make_finding_tiles
from fastcxr.report.html import Page, render, write_page
from fastcxr.report.notices import make_notices
from fastcxr.report.run_reader import DatasetRecord, map_uris, read_dataset_record, read_findings
from fastcxr.report.style import SvgFigure

VERDICT_HEADINGS = {"FAIL": "Failed", "WARN": "Warnings", "PASS": "Passed"}


def write_dataset_page(folder: str | Path) -> Path:
    """Write figures/*.svg and describe.html of a described dataset; return the path of the page.

    Only files of the folder are read. The output is identical for identical files.
    """
    record = read_dataset_record(folder)
    svg_figures = make_dataset_figures(record)
    return write_page(record.folder / "describe.html", render_dataset_page(record, svg_figures), svg_figures)


def render_dataset_page(record: DatasetRecord, svg_figures: dict[str, SvgFigure]) -> str:
    """Return the page as HTML text."""
    all_notices = make_notices(record, page="describe")
    findings = make_finding_table(record)
    context = {
        "record": record,
        "sources": list(record.table["source"].value_counts().index),
        "tiles": [*make_image_tiles(record), *make_finding_tiles(findings)] if findings else make_tiles(record),
        "findings": findings and make_finding_context(findings),
        "decoded": describe_decoded(record),
        "messages": merge_repeated_messages(record),
        "cohort": make_dataset_context(record),
        "critical_notices": [n for n in all_notices if n.level == "critical"],
        "notices": [n for n in all_notices if n.level != "critical"],
    }
    return render("describe.html.jinja", context, svg_figures)


def write_audit_page(folder: str | Path) -> Page:
    """Write audit.html from the files of the folder; return the path of the page."""
    record = read_dataset_record(folder)
    findings = read_findings(record.folder)
    counts = Counter(finding["verdict"] for finding in findings)
    context = {
        "record": record,
        "sources": list(record.table["source"].value_counts().index),
        "tiles": [(head, counts[verdict]) for verdict, head in VERDICT_HEADINGS.items()],
        "findings": [
            finding | _find_shown_numbers(record, finding) | {"images": _find_group_images(record, finding)}
            for finding in findings
        ],
        "critical_notices": [],
        "notices": make_notices(record, page="audit"),
    }
    return write_page(record.folder / "audit.html", render("audit.html.jinja", context, {}), {})


def _find_shown_numbers(record: DatasetRecord, finding: dict[str, Any]) -> dict[str, float | None]:
    """Return value and chance level of a check; of several labels per image, None for the zeros of a count."""
    value, chance_level = finding["value"], finding["chance_level"]
    if list_findings(record.table) and chance_level == 0:
        value, chance_level = value or None, None
    return {"value": value, "chance_level": chance_level}


def _find_group_images(record: DatasetRecord, finding: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the images of each group of a finding, with label, split and thumbnail."""
    row_by_key = {(row.source, row.path): row for row in record.table.itertuples()}
    thumbnail_uris = map_uris(record.thumbnails)
    return [
        [
            {"path": row.path, "label": row.label, "split": row.split, "uri": thumbnail_uris.get(tuple(key), "")}
            for key in group
            if (row := row_by_key.get(tuple(key)))
        ]
        for group in finding["groups"]
    ]
