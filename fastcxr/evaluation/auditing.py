"""From a folder with audit.json to audit.html: one page, drawn from the folder alone."""

from collections import Counter
from pathlib import Path
from typing import Any

from fastcxr.evaluation.cohort_notices import Notice
from fastcxr.evaluation.page import Page, render, write_page
from fastcxr.evaluation.record import CohortRecord, read_description, read_findings
from fastcxr.evaluation.words import count

HEADS = {"FAIL": "Failed", "WARN": "Look again", "PASS": "Passed"}


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
