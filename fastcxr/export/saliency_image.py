"""A saliency map as an image with text in strips above and below, which cover no pixel of the radiograph."""

from bisect import bisect_right
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastcxr.export.image_results import RESEARCH_TEXT, Algorithm, ImageResult
from fastcxr.inference.saliency_maps import SaliencyMap, make_pair_image

MIN_PANEL_PIXELS, MAX_PANEL_PIXELS = 512, 1024  # width of the image and of the map; smaller images are enlarged
FONT_SHARE, MIN_FONT_PIXELS = 0.042, 22  # of the width of a panel
SMALL_FONT_SHARE, LINE_SPACING = 0.75, 1.3  # of the font
MAX_TITLE_LINES, MAX_TITLE_CHARACTERS, MAX_LISTED_LABELS = 3, 300, 20
BACKGROUND, TEXT_COLOR, WARNING_COLOR = "black", "white", "#ffd23c"
UNKNOWN = "?"
FONT_FILE = "mpl-data/fonts/ttf/DejaVuSans.ttf"  # of matplotlib: Latin, Greek, Cyrillic, Arabic and more


def draw_saliency_image(
    saliency_map: SaliencyMap, result: ImageResult, algorithm: Algorithm, *, method: str
) -> np.ndarray:
    """Return the image beside its saliency map, with the decision, the model and its critical notices; RGB bytes.

    Shape (height, width, 3). Without evidence for the class, both panels show the image, and the text states it.

    Args:
        saliency_map: of the most probable class or finding; it is not withheld and has no error.
        result: of the same image.
        algorithm: the model.
        method: name of the attribution method.
    """
    assert saliency_map.image is not None
    image, normalized = saliency_map.image, saliency_map.normalized
    size = min(max(MIN_PANEL_PIXELS, len(image)), MAX_PANEL_PIXELS)
    pair = make_pair_image(image, np.zeros(image.shape) if normalized is None else normalized, size)
    large = load_font(max(MIN_FONT_PIXELS, FONT_SHARE * size))
    small = load_font(SMALL_FONT_SHARE * large.size)
    title_color = WARNING_COLOR if result.is_ood else TEXT_COLOR
    above = [(text, title_color, large) for text in _wrap_decision(result, large, pair.width)]
    for notice in algorithm.notices:
        above += [(text, WARNING_COLOR, large) for text in wrap_text(f"Critical: {notice}", large, pair.width)]
    below = [(text, TEXT_COLOR, large) for text in wrap_text(saliency_map.note, large, pair.width) if text]
    captions = [_make_caption(saliency_map, result, method), f"Model: {algorithm.name}, version {algorithm.version}"]
    below += [(text, TEXT_COLOR, small) for caption in captions for text in wrap_text(caption, small, pair.width)]
    below.append((RESEARCH_TEXT, WARNING_COLOR, large))
    strips = [_draw_strip(above, pair.width), pair, _draw_strip(below, pair.width)]
    return np.concatenate([np.asarray(strip) for strip in strips])


def load_font(size: float) -> ImageFont.FreeTypeFont:
    """Return a font of `size` pixels: that of matplotlib if it is installed, else that of Pillow, which has ASCII."""
    package = find_spec("matplotlib")
    if package is not None and package.origin and (path := Path(package.origin).parent / FONT_FILE).is_file():
        return ImageFont.truetype(path, size)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "the wheels of Pillow have FreeType"
    return font


def _wrap_decision(result: ImageResult, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Return lines with the decision, and as many classes or findings that reach their thresholds as fit."""
    n_listed = min(len(result.reached), MAX_LISTED_LABELS)
    while n_listed > 1 and len(_split_lines(result.describe(n_listed), font, width - font.size)) > MAX_TITLE_LINES:
        n_listed -= 1
    return wrap_text(result.describe(n_listed), font, width)


def _make_caption(saliency_map: SaliencyMap, result: ImageResult, method: str) -> str:
    """Return what the panels show. The class of an out-of-distribution image is named here only."""
    one = next(one for one in result.labels if one.label == saliency_map.class_name)
    text = f"Left: the image. Right: saliency map ({method}) of {one.label}, probability {one.probability:.3f}"
    return text if result.is_ood or one.threshold is None else f"{text}, threshold {one.threshold:.3f}"


def _draw_strip(lines: list[tuple[str, str, ImageFont.FreeTypeFont]], width: int) -> Image.Image:
    """Return an image with lines of text, each with color and font."""
    margin = max(font.size for _, _, font in lines)
    heights = [round(LINE_SPACING * font.size) for _, _, font in lines]
    strip = Image.new("RGB", (width, sum(heights) + round(0.6 * margin)), BACKGROUND)
    draw, y = ImageDraw.Draw(strip), 0.3 * margin
    for (text, color, font), height in zip(lines, heights, strict=True):
        draw.text((0.4 * margin, y), text, fill=color, font=font)
        y += height
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
