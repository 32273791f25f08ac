"""From explain.csv, explain.json and the pictures beside them to what a page says of heat maps, and to explain.html."""

from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.errors import InputMissingError
from fastcxr.evaluation.cohort_notices import Notice
from fastcxr.evaluation.page import Page, render, write_page
from fastcxr.evaluation.record import Maps, read_maps
from fastcxr.evaluation.words import count, listed, share

EVEN = 1 - 0.7**2  # the area outside the central field: heat that says nothing of any place
OUTSIDE = 0.5  # median share of the heat in the border from which on a class is warned of
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


def map_notices(maps: Maps) -> list[Notice]:
    """Maps that are withheld, attention in the border, and images that could not be read."""
    found = []
    if maps.facts.get("withheld"):
        found += [Notice("warning", "Heat maps withheld", f"{str(maps.facts['withheld']).capitalize()}.")]
    far = [f"{row['label']} {row['share']} of {row['images']}" for row in attention_rows(maps) if row["is_far"]]
    if far:
        words = f"Heat in the outer 15 % of what the model sees, median: {listed(far)}. An even map has {share(EVEN)}."
        found += [Notice("warning", "Attention outside the central field", words)]
    unread = int((maps.table["error"] != "").sum())
    if unread:
        found += [Notice("warning", f"{count(unread, 'image')} not readable", "explain.csv has each reason.")]
    return found


def attention_rows(maps: Maps) -> list[dict[str, Any]]:
    """For each predicted class the median share of heat in the border, of how many images, and if it is too much."""
    return [
        {
            "label": label,
            "share": share(found["median"]),
            "images": count(found["images"], "image"),
            "is_far": found["median"] > OUTSIDE,
        }
        for label, found in (maps.facts.get("outside") or {}).items()
    ]


def check_words(maps: Maps) -> str:
    """What the check found, in a sentence or two; empty where none was made."""
    check = maps.facts.get("check")
    if not check:
        return ""
    steps = listed([f"{value:.2f}" for value in check["correlation"]])
    return (
        f"The weights were drawn anew from the head down, one layer group more at each step, and the maps of "
        f"{count(check['images'], 'image')} drawn again: their rank correlation with the original maps was {steps}."
    )


def map_cards(maps: Maps, role: str = "") -> list[dict[str, Any]]:
    """The maps of one role, each with its picture or the reason why there is none."""
    rows = maps.table[maps.table["role"] == role]
    probability, outside = pd.to_numeric(rows["probability"]), pd.to_numeric(rows["outside"])
    return [
        row | {"probability": given, "outside": share(far)}
        for row, given, far in zip(rows.to_dict("records"), probability, outside, strict=True)
    ]
