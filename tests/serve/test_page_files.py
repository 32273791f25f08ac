"""The files of the page agree with the content security policy of the server, and with each other."""

import re
from pathlib import Path

import pytest
from html_page import Page

import fastcxr

PAGE = Path(fastcxr.__file__).parent / "serve/page"
SCRIPTS = sorted(PAGE.glob("*.js"))
HTML, CSS = (PAGE / "index.html").read_text(encoding="utf-8"), (PAGE / "style.css").read_text(encoding="utf-8")
MIN_CONTRAST = 4.5  # WCAG 2.2, level AA, of text
# of text on its background, by the names of the colours in style.css
TEXT_PAIRS = [
    *(f"{text} {ground}" for text in ("text", "muted", "accent") for ground in ("page", "wash")),
    "amber page", "amber wash", "red page", "red red-wash", "text red-wash", "on-accent accent", "film-text film",
]  # fmt: skip


def test_the_page_has_no_inline_script_style_or_handler():
    assert re.findall(r"<style|<script(?![^>]*\bsrc=)|\sstyle=|\son\w+\s*=", HTML) == []
    assert re.findall(r"<script[^>]*>[^<]", HTML) == []


def test_the_page_names_no_other_address():
    """All addresses are relative, so that a proxy can serve the page below a path."""
    text = HTML + CSS + "".join(file.read_text(encoding="utf-8") for file in SCRIPTS)
    assert re.findall(r"https?:|@import|url\(|\bwss?:", text) == []
    assert [source for source in Page(HTML.replace("<input", "<br")).sources if source.startswith("/")] == []


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_a_script_writes_no_html_and_stores_nothing(file):
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser"
        r"|createContextualFragment|localStorage|sessionStorage|indexedDB|document\.cookie|setAttribute\(\"style\"|javascript:"
    )
    assert re.findall(forbidden, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_each_id_and_module_of_a_script_exists(file):
    text = file.read_text(encoding="utf-8")
    assert set(re.findall(r'\bfind\("([^"]+)"\)', text)) <= set(re.findall(r'\sid="([^"]+)"', HTML))
    assert all((PAGE / name).is_file() for name in re.findall(r'from "\./([^"]+)"', text))


def test_references_between_elements_exist():
    ids = re.findall(r'\sid="([^"]+)"', HTML)
    named = re.findall(r'\s(?:for|aria-labelledby|aria-describedby)="([^"]+)"', HTML)
    assert len(set(ids)) == len(ids)
    assert {name for names in named for name in names.split()} <= set(ids)


def test_each_class_that_the_page_uses_has_a_style():
    text = HTML + "".join(file.read_text(encoding="utf-8") for file in SCRIPTS)
    used = {name for names in re.findall(r'class(?:="|: ")([a-z0-9 -]+)"', text) for name in names.split()}
    styled = set(re.findall(r"\.([a-z][a-z0-9-]*)", CSS))
    assert used - styled - WITHOUT_STYLE == set()


WITHOUT_STYLE = {"map"}  # of the image with a saliency map: it has the style of each image of a card


@pytest.mark.parametrize("pair", TEXT_PAIRS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(scheme, pair):
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", part)) for part in CSS.split("@media", 2)[:2])
    colours = {"light": light, "dark": light | dark}[scheme]
    first, second = sorted((find_luminance(colours[name]) for name in pair.split()), reverse=True)
    assert (first + 0.05) / (second + 0.05) >= MIN_CONTRAST


def find_luminance(colour: str) -> float:
    """Return the relative luminance of #rgb or #rrggbb, as WCAG defines it."""
    digits = "".join(2 * digit for digit in colour[1:]) if len(colour) == 4 else colour[1:]
    parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
