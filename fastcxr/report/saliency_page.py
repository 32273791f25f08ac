"""From explain.csv, explain.json and the pictures beside them to what a page says of heat maps, and to explain.html."""

from pathlib import Path

from fastcxr.errors import InputMissingError
from fastcxr.report.html import Page, render, write_page
from fastcxr.report.notices import map_notices
from fastcxr.report.run_reader import read_maps
from fastcxr.report.tables import attention_rows, check_words, map_cards

SHOWN = 60  # cards on a page: with thousands it would not open
METHODS = {"grad_cam": "Grad-CAM", "integrated_gradients": "Integrated gradients", "occlusion": "Occlusion"}


def draw_explanation(folder: str | Path) -> Page:
    """Redraws explain.html of a folder that explain made; the page's path comes back. Reads nothing but the folder."""
    folder = Path(folder)
    if not (folder / "explain.csv").is_file():
        raise InputMissingError("no explain.csv in this folder", "Name one that fastcxr explain made", path=folder)
    maps = read_maps(folder)
    context = {
        "maps": maps,
        "cards": map_cards(maps)[:SHOWN],
        "method": METHODS.get(str(maps.facts.get("method")), "Heat maps"),
        "check": check_words(maps),
        "attention": attention_rows(maps),
        "stamps": [],
        "notices": map_notices(maps),
    }
    return write_page(folder / "explain.html", render("explain.html.jinja", context, {}), {})
