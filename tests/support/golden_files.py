"""Comparison with stored outputs in tests/golden: text of a page, shapes of a figure.

With FASTCXR_UPDATE_GOLDEN=1 (`FASTCXR_UPDATE_GOLDEN=1 make test-fast`) each such test stores its output and passes;
`git diff tests/golden` then shows what changed.
"""

import difflib
import html
import os
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

BLOCKS = "p|h[1-6]|li|ul|ol|tr|table|div|section|article|figure|pre|dt|dd|dl|details|br"
UPDATE = "FASTCXR_UPDATE_GOLDEN"
GOLDEN = Path(__file__).parents[1] / "golden"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
SHAPES = ("path", "rect", "circle", "polyline", "polygon", "line", "use", "image")
SHAPE_KEYS = ("d", "x", "y", "width", "height", "cx", "cy", "r", "points", "transform", "x1", "x2", "y1", "y2")


def check_text(found: str, name: str) -> None:
    """Fail with the differing lines if `found` is not the content of tests/golden/NAME."""
    stored = store_or_read(found, name)
    lines = difflib.unified_diff(stored.splitlines(), found.splitlines(), f"tests/golden/{name}", "now", lineterm="")
    difference = "\n".join(lines)
    assert not difference, f"{difference}\n\nIf this is intended: {UPDATE}=1 make test-fast, and commit tests/golden"


def is_updating() -> bool:
    """Return whether stored outputs are to be rewritten."""
    return bool(os.environ.get(UPDATE))


def update_shapes(shapes: dict[str, str]) -> None:
    """Write the shapes of all figures, and remove those of deleted figures."""
    folder = GOLDEN / "drawn" / "shapes"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, text in shapes.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def store_or_read(found: str, name: str) -> str:
    """Return the content of tests/golden/NAME, which is rewritten first if that is requested."""
    path = GOLDEN / name
    if is_updating():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found, encoding="utf-8")
    assert path.is_file(), f"tests/golden/{name} does not exist. Write it: {UPDATE}=1 make test-fast"
    return path.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """Return the text of an HTML page, one block a line, without styles, figures and images."""
    page = re.sub(r"<(style|svg|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    page = re.sub(rf"<(?=/?(?:{BLOCKS})\b)", "\n<", page)
    page = re.sub(r"</(?:th|td|span)>", " ", page)
    lines = (" ".join(html.unescape(re.sub(r"<[^>]*>", "", line)).split()) for line in page.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def shapes_of(drawing: str) -> str:
    """Return the shapes of an SVG figure without its text: one element a line, numbers to a tenth of a point."""
    lines = []
    for element in ElementTree.fromstring(drawing).iter():
        tag = element.tag.rpartition("}")[2]
        if tag in SHAPES:
            values = [f"{key}={_rounded(element.get(key))}" for key in SHAPE_KEYS if element.get(key)]
            lines.append(" ".join([tag, *values]))
    return "\n".join(lines) + "\n"


def _rounded(text: str) -> str:
    return NUMBER.sub(lambda number: f"{float(number[0]):.1f}", " ".join(text.split()))


def differing_shapes(stored: str, found: str, tolerance: float) -> list[str]:
    """Return the lines of `shapes_of` with other commands, or with numbers that differ by more than `tolerance`."""
    ours, theirs = stored.splitlines(), found.splitlines()
    if len(ours) != len(theirs):
        return [f"{len(ours)} shapes are stored, {len(theirs)} are drawn"]
    return [f"{one} | {other}" for one, other in zip(ours, theirs, strict=True) if not _is_alike(one, other, tolerance)]


def _is_alike(one: str, other: str, tolerance: float) -> bool:
    if NUMBER.sub("", one) != NUMBER.sub("", other):
        return False
    pairs = zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    return all(abs(float(mine) - float(theirs)) <= tolerance for mine, theirs in pairs)
