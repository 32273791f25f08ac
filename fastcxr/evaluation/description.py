"""From a folder that describes a cohort to figures/*.svg and describe.html: one page, drawn from the folder alone."""

from pathlib import Path

from fastcxr.evaluation.cohort_notices import cohort_notices
from fastcxr.evaluation.cohort_plates import draw_cohort_plates
from fastcxr.evaluation.cohort_rows import cohort_part, cohort_tiles
from fastcxr.evaluation.drawing import Plate
from fastcxr.evaluation.page import render, write_page
from fastcxr.evaluation.record import CohortRecord, read_description


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
