"""From a folder that describes a cohort to figures/*.svg and describe.html: one page, drawn from the folder alone."""

from collections import Counter
from pathlib import Path
from typing import Any

from fastcxr.io.formatting import count
from fastcxr.report.data_figure_set import draw_cohort_plates
from fastcxr.report.data_notices import Notice, cohort_notices
from fastcxr.report.data_tables import cohort_part, cohort_tiles
from fastcxr.report.html import Page, render, write_page
from fastcxr.report.run_reader import CohortRecord, read_description, read_findings
from fastcxr.report.style import Plate

HEADS = {"FAIL": "Failed", "WARN": "Look again", "PASS": "Passed"}


def draw_description(folder: str | Path) -> Path:
    """Redraws figures/*.svg and describe.html of a described cohort; the page's path comes back.

    Reads nothing but the folder. The same files give the same page, byte for byte.
    """
    record = read_description(folder)
    plates = draw_cohort_plates(record)
    return write_page(record.folder / "describe.html", render_description(record, plates), plates)


def render_description(record: CohortRecord, plates: dict[str, Plate]) -> str:
    """The page as HTML text."""
    found = cohort_notices(record)
    context = {
        "record": record,
        "sources": list(record.table["source"].value_counts().index),
        "tiles": cohort_tiles(record),
        "cohort": cohort_part(record),
        "stamps": [n for n in found if n.level == "stamp"],
        "notices": [n for n in found if n.level != "stamp"],
    }
    return render("describe.html.jinja", context, plates)


def draw_audit(folder: str | Path) -> Page:
    """Redraws audit.html; the page's path comes back. Reads nothing but the folder."""
    record = read_description(folder)
    findings = read_findings(record.folder)
    counts = Counter(finding["verdict"] for finding in findings)
    context = {
        "record": record,
        "sources": list(record.table["source"].value_counts().index),
        "tiles": [(head, counts[verdict]) for verdict, head in HEADS.items()],
        "findings": [finding | {"shown": _show(record, finding)} for finding in findings],
        "stamps": [],
        "notices": _left_out(record),
    }
    return write_page(record.folder / "audit.html", render("audit.html.jinja", context, {}), {})


def _left_out(record: CohortRecord) -> list[Notice]:
    if not len(record.skipped):
        return []
    title = f"{count(len(record.skipped), 'image')} left out"
    return [
        Notice("warning", title, "They cannot be read, and nothing was checked of them; skipped.csv has each reason.")
    ]


def _show(record: CohortRecord, finding: dict[str, Any]) -> list[list[dict[str, str]]]:
    """The images of each group, with their label, split and thumbnail."""
    known = {(row.source, row.path): row for row in record.table.itertuples()}
    uris = {(row.source, row.path): row.uri for row in record.images.itertuples()}
    shown = []
    for group in finding["groups"]:
        rows = [known[tuple(place)] for place in group if tuple(place) in known]
        shown.append([
            {"path": row.path, "label": row.label, "split": row.split, "uri": uris.get((row.source, row.path), "")}
            for row in rows
        ])  # fmt: skip
    return shown
