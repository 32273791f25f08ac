"""Write explain.html from saliency.csv, explain.json and the saved maps."""

from pathlib import Path

from fastcxr.errors import InputMissingError
from fastcxr.report.html import Page, render, write_page
from fastcxr.report.notices import make_notices
from fastcxr.report.run_reader import read_saliency_maps
from fastcxr.report.tables import describe_sanity_check, make_border_share_rows, make_saliency_cards

MAX_CARDS = 60  # browsers fail to open a page with thousands of embedded images
METHOD_TITLES = {"grad_cam": "Grad-CAM", "integrated_gradients": "Integrated gradients", "occlusion": "Occlusion"}


def write_saliency_page(folder: str | Path) -> Page:
    """Write explain.html from the files of an output folder of `fastcxr explain`; return the path of the page."""
    folder = Path(folder)
    if not (folder / "saliency.csv").is_file():
        raise InputMissingError(
            "no saliency.csv in this folder", "Pass an output folder of fastcxr explain", path=folder
        )
    maps = read_saliency_maps(folder)
    context = {
        "maps": maps,
        "cards": make_saliency_cards(maps)[:MAX_CARDS],
        "method": METHOD_TITLES.get(str(maps.metadata.get("method")), "Saliency maps"),
        "sanity_check": describe_sanity_check(maps),
        "border_shares": make_border_share_rows(maps),
        "critical_notices": [],
        "notices": make_notices(maps, page="explain"),
    }
    return write_page(folder / "explain.html", render("explain.html.jinja", context, {}), {})
