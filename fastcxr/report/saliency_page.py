"""Make the saliency section of a report, and explain.html, from saliency.csv, explain.json and the images beside."""

from pathlib import Path

from fastcxr.errors import InputMissingError
from fastcxr.report.html import Page, render, write_page
from fastcxr.report.notices import make_notices
from fastcxr.report.run_reader import read_saliency_maps
from fastcxr.report.tables import describe_sanity_check, make_border_share_rows, make_saliency_cards

MAX_CARDS = 60  # cards on a page: with thousands it would not open
METHOD_TITLES = {"grad_cam": "Grad-CAM", "integrated_gradients": "Integrated gradients", "occlusion": "Occlusion"}


def write_saliency_page(folder: str | Path) -> Page:
    """Redraws explain.html of a folder that explain made; the page's path comes back. Reads nothing but the folder."""
    folder = Path(folder)
    if not (folder / "saliency.csv").is_file():
        raise InputMissingError("no saliency.csv in this folder", "Name one that fastcxr explain made", path=folder)
    maps = read_saliency_maps(folder)
    context = {
        "maps": maps,
        "cards": make_saliency_cards(maps)[:MAX_CARDS],
        "method": METHOD_TITLES.get(str(maps.metadata.get("method")), "Heat maps"),
        "sanity_check": describe_sanity_check(maps),
        "border_shares": make_border_share_rows(maps),
        "critical_notices": [],
        "notices": make_notices(maps, page="explain"),
    }
    return write_page(folder / "explain.html", render("explain.html.jinja", context, {}), {})
