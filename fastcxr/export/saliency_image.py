"""A saliency map as an image with text in strips above and below, which cover no pixel of the radiograph."""

from bisect import bisect_right
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastcxr.export.image_results import RESEARCH_TEXT, ImageResult
from fastcxr.inference.saliency_maps import SaliencyMap, make_pair_image

MIN_PANEL_PIXELS, MAX_PANEL_PIXELS = 512, 1024  # width of the image and of the map; smaller images are enlarged
FONT_SHARE, MIN_FONT_PIXELS = 0.042, 22  # of the width of a panel
MAX_TITLE_LINES, MAX_TITLE_CHARACTERS = 3, 300
BACKGROUND, TEXT_COLOR, WARNING_COLOR = "black", "white", "#ffd23c"
UNKNOWN = "?"
FONT_FILE = "mpl-data/fonts/ttf/DejaVuSans.ttf"  # of matplotlib: Latin, Greek, Cyrillic, Arabic and more


def draw_saliency_image(saliency_map: SaliencyMap, result: ImageResult) -> np.ndarray:
    """Return the image beside its saliency map with the explained class, its probability and decision; RGB bytes.

    Shape (height, width, 3). Without evidence for the class, both panels show the image, and the text states it.

    Args:
        saliency_map: of the most probable class or finding; it is not withheld and has no error.
        result: of the same image.
    """
    assert saliency_map.image is not None
    image, normalized = saliency_map.image, saliency_map.normalized
    size = min(max(MIN_PANEL_PIXELS, len(image)), MAX_PANEL_PIXELS)
    pair = make_pair_image(image, np.zeros(image.shape) if normalized is None else normalized, size)
    font = load_font(max(MIN_FONT_PIXELS, FONT_SHARE * size))
    title = wrap_text(_make_title(saliency_map, result), font, pair.width)
    notes = wrap_text(saliency_map.note, font, pair.width) if saliency_map.note else []
    strips = [
        _draw_strip([(line, TEXT_COLOR) for line in title], font, pair.width),
        pair,
        _draw_strip([*((line, TEXT_COLOR) for line in notes), (RESEARCH_TEXT, WARNING_COLOR)], font, pair.width),
    ]
    return np.concatenate([np.asarray(strip) for strip in strips])


def load_font(size: float) -> ImageFont.FreeTypeFont:
    """Return a font of `size` pixels: that of matplotlib if it is installed, else that of Pillow, which has ASCII."""
    package = find_spec("matplotlib")
    if package is not None and package.origin and (path := Path(package.origin).parent / FONT_FILE).is_file():
        return ImageFont.truetype(path, size)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "the wheels of Pillow have FreeType"
    return font


def _make_title(saliency_map: SaliencyMap, result: ImageResult) -> str:
    one = next(one for one in result.labels if one.label == saliency_map.class_name)
    text = f"{one.label}: probability {one.probability:.3f}"
    if result.is_ood:
        return f"{text}; out-of-distribution image, no decision"
    if one.threshold is not None:
        text += f", threshold {one.threshold:.3f} {'reached' if one.is_reached else 'not reached'}"
    return text + ("; uncertain" if result.is_uncertain else "")


def _draw_strip(lines: list[tuple[str, str]], font: ImageFont.FreeTypeFont, width: int) -> Image.Image:
    line_height = round(1.3 * font.size)
    strip = Image.new("RGB", (width, line_height * len(lines) + round(0.6 * font.size)), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for number, (text, color) in enumerate(lines):
        draw.text((0.4 * font.size, 0.3 * font.size + number * line_height), text, fill=color, font=font)
    return strip


def wrap_text(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Return at most MAX_TITLE_LINES lines that fit into a width; what does not fit is cut in the middle.

    The end of the text, which has the numbers, is always kept.
    """
    max_width = width - 0.8 * font.size
    n_kept = min(len(text), MAX_TITLE_CHARACTERS)
    lines = _split_lines(replace_missing_glyphs(_cut_middle(text, n_kept), font), font, max_width)
    while len(lines) > MAX_TITLE_LINES:
        n_kept -= 8
        lines = _split_lines(replace_missing_glyphs(_cut_middle(text, n_kept), font), font, max_width)
    return lines


def _cut_middle(text: str, n_kept: int) -> str:
    n_end = n_kept // 2
    return text if n_kept == len(text) else f"{text[: n_kept - n_end]} ... {text[len(text) - n_end :]}"


def _split_lines(text: str, font: ImageFont.FreeTypeFont, max_width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        while word:
            joined = f"{lines[-1]} {word}".strip()
            if font.getlength(joined) <= max_width:
                lines[-1], word = joined, ""
            elif lines[-1]:
                lines.append("")
            else:  # a word that is longer than a line
                n_too_long = bisect_right(range(len(word) + 1), max_width, key=lambda n: font.getlength(word[:n]))
                lines[-1], word = word[: n_too_long - 1], word[n_too_long - 1 :]
    return lines


def replace_missing_glyphs(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Return the text with a question mark for each character that the font cannot draw."""
    missing = _draw_glyph(font, "\U0010ffff")
    return "".join(c if c == " " or _draw_glyph(font, c) != missing else UNKNOWN for c in text)


@cache
def _draw_glyph(font: ImageFont.FreeTypeFont, character: str) -> bytes:
    glyph = Image.new("L", (2 * round(font.size), 2 * round(font.size)))
    ImageDraw.Draw(glyph).text((0, 0), character, fill=255, font=font)
    return glyph.tobytes()
