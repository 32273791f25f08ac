"""Tests for raster.py: every kind of PNG, JPEG, TIFF and BMP comes out as the same gray picture."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from sample_images import make_12_bit_tiff, make_chunk, make_png, make_reference, make_tiff, save_image

from fastcxr.data.imaging import sniff
from fastcxr.data.imaging.intensity import integers_to_gray
from fastcxr.data.imaging.read import read_image
from fastcxr.errors import ImageError

PICTURE = make_reference()
DEEP = PICTURE.astype(np.uint16) * 257
GRAY = Image.fromarray(PICTURE)
OPAQUE = np.full_like(PICTURE, 255)


def refuse(path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([PICTURE] * 3 + [alpha]))


LOSSLESS = {
    "png gray": encode(GRAY, "PNG"),
    "png rgb": encode(GRAY.convert("RGB"), "PNG"),
    "png rgba": encode(GRAY.convert("RGBA"), "PNG"),
    "png gray and alpha": encode(GRAY.convert("LA"), "PNG"),
    "png palette": encode(GRAY.convert("P"), "PNG"),
    "png interlaced name of another kind": encode(GRAY, "PNG", optimize=True),
    "png 16 bit": encode(Image.fromarray(DEEP), "PNG"),
    "png 16 bit rgb": make_png(np.dstack([DEEP] * 3), 2),
    "png 16 bit gray and alpha": make_png(np.dstack([DEEP, np.full_like(DEEP, 65535)]), 4),
    "png 16 bit rgba": make_png(np.dstack([DEEP] * 3 + [np.full_like(DEEP, 65535)]), 6),
    "png 8 bit values in 16": make_png(PICTURE.astype(np.uint16), 0),
    "bmp gray": encode(GRAY, "BMP"),
    "bmp rgb": encode(GRAY.convert("RGB"), "BMP"),
    "bmp rgba": encode(GRAY.convert("RGBA"), "BMP"),
    "tiff gray": encode(GRAY, "TIFF"),
    "tiff rgb": encode(GRAY.convert("RGB"), "TIFF"),
    "tiff rgba": encode(GRAY.convert("RGBA"), "TIFF"),
    "tiff gray and alpha": encode(GRAY.convert("LA"), "TIFF"),
    "tiff palette": encode(GRAY.convert("P"), "TIFF"),
    "tiff cmyk": encode(GRAY.convert("RGB").convert("CMYK"), "TIFF"),
    "tiff lzw": encode(GRAY, "TIFF", compression="tiff_lzw"),
    "tiff 16 bit lzw": encode(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"),
    "tiff 16 bit deflate": encode(Image.fromarray(DEEP), "TIFF", compression="tiff_adobe_deflate"),
    "tiff 16 bit": make_tiff(DEEP),
    "tiff 16 bit big endian": make_tiff(DEEP, order=">"),
    "tiff white is zero": make_tiff(255 - PICTURE, photometric=0),
    "tiff white is zero lzw": encode(Image.fromarray(PICTURE), "TIFF", compression="tiff_lzw", tiffinfo={262: 0}),
    "tiff 16 bit white is zero": make_tiff(65535 - DEEP, photometric=0),
    "tiff 16 bit big endian white is zero": make_tiff(65535 - DEEP, photometric=0, order=">"),
    "tiff int8": make_tiff((PICTURE.astype(np.int16) - 128).astype(np.int8)),
    "tiff int16": make_tiff(PICTURE.astype(np.int16) * 100 - 3000),
    "tiff int32": make_tiff(PICTURE.astype(np.int32) * 100_000 - 70),
    "tiff int32 as Pillow writes it": encode(Image.fromarray(PICTURE.astype(np.int32) * 257), "TIFF"),
    "tiff uint32": make_tiff(PICTURE.astype(np.uint32) * 16_843_009),
    "tiff float of 0 to 1": make_tiff((PICTURE / 255).astype(np.float32)),
    "tiff float of 0 to 255": make_tiff(PICTURE.astype(np.float32)),
    "tiff float of anything": make_tiff((PICTURE.astype(np.float32) - 50) * 30),
    "tiff float big endian": make_tiff((PICTURE / 255).astype(np.float32), order=">"),
    "tiff float16": make_tiff(PICTURE.astype(np.float16)),
    "tiff float16 big endian": make_tiff(PICTURE.astype(np.float16), order=">"),
    "tiff int16 white is zero": make_tiff(155 - PICTURE.astype(np.int16), photometric=0),
    "tiff uint32 white is zero": make_tiff((255 - PICTURE.astype(np.uint32)) * 16_843_009, photometric=0),
    "tiff float white is zero": make_tiff((1 - PICTURE / 255).astype(np.float32), photometric=0),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_lossless_kind_gives_the_picture_itself(kind, tmp_path):
    path = tmp_path / "picture.of.no.kind"
    path.write_bytes(LOSSLESS[kind])
    picture = read_image(path)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, PICTURE)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_jpeg_gives_nearly_the_picture(mode, tmp_path):
    image = GRAY.convert("RGB").convert(mode) if mode == "CMYK" else GRAY.convert(mode)
    for number, options in enumerate(({}, {"progressive": True})):
        picture = read_image(save_image(image, tmp_path / f"{number}.jpg", quality=95, **options))
        assert np.corrcoef(picture.ravel(), PICTURE.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_shallower_picture_in_a_16_bit_file_is_not_dark(bits, tmp_path):
    full = 2**bits - 1
    values = np.rint(PICTURE / 255 * full).astype(np.uint16)
    for name, data in {"a.png": make_png(values, 0), "a.tif": make_tiff(values)}.items():
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(read_image(tmp_path / name), PICTURE)


MARKED = [(0, 4096), (slice(2, 10), 65535)]  # rows that hold another value in their first pixels


@pytest.mark.parametrize(("rows", "value"), MARKED)
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_single_pixel_or_a_marker_above_12_bits_leaves_the_image_as_bright_as_it_was(rows, value, name, tmp_path):
    values = PICTURE.astype(np.uint16) * 16
    values[rows, :8] = value
    (tmp_path / name).write_bytes(make_png(values, 0) if name == "a.png" else make_tiff(values))
    picture, expected = read_image(tmp_path / name), PICTURE.astype(int).copy()
    expected[rows, :8] = 255
    assert np.abs(picture - expected).max() <= 1


def test_an_sbit_chunk_is_the_depth_of_values_that_it_holds(tmp_path):
    dark, chunk = PICTURE.astype(np.uint16), make_chunk(b"gAMA", bytes(4)) + make_chunk(b"sBIT", bytes([12]))
    (tmp_path / "a.png").write_bytes(make_png(dark * 2, 0, chunk))
    assert np.array_equal(read_image(tmp_path / "a.png", depth=16), integers_to_gray(dark * 2, 12))
    (tmp_path / "scaled.png").write_bytes(make_png(DEEP, 0, chunk))
    assert np.array_equal(read_image(tmp_path / "scaled.png"), PICTURE), "the standard scales values to all 16 bits"
    (tmp_path / "none.png").write_bytes(make_png(dark * 2, 0, make_chunk(b"sBIT", b"\0")))
    assert np.array_equal(read_image(tmp_path / "none.png", depth=12), integers_to_gray(dark * 2, 12))


def test_bits_per_sample_of_12_is_the_depth_of_a_tiff(tmp_path):
    values = PICTURE.astype(np.uint16) * 2
    (tmp_path / "a.tif").write_bytes(make_12_bit_tiff(values))
    assert np.array_equal(read_image(tmp_path / "a.tif", depth=16), integers_to_gray(values, 12))


# the default, and the largest value of one image, say nothing
@pytest.mark.parametrize(("largest", "depth"), [(4095, 12), (16383, 14), (255, 8), (65535, 10), (3071, 10)])
def test_max_sample_value_is_the_depth_of_a_tiff_where_it_is_a_full_range(largest, depth, tmp_path):
    values = PICTURE.astype(np.uint16)
    values = values if depth == 8 else values * 2
    (tmp_path / "a.tif").write_bytes(make_tiff(values, largest=largest))
    assert np.array_equal(read_image(tmp_path / "a.tif", depth=10), integers_to_gray(values, depth))


def test_a_max_sample_value_that_pixels_exceed_is_not_believed(tmp_path):
    (tmp_path / "a.tif").write_bytes(make_tiff(DEEP, largest=4095))
    assert np.array_equal(read_image(tmp_path / "a.tif"), PICTURE)


def test_an_image_without_a_depth_is_warned_of_with_the_rule(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sniff, "_warned_codes", set())
    (tmp_path / "a.png").write_bytes(make_png(PICTURE.astype(np.uint16) * 16, 0))
    read_image(tmp_path / "a.png", depth=12)
    assert not caplog.records
    read_image(tmp_path / "a.png")
    rule = "read with 12 bits, the smallest of 8, 10, 12, 14 and 16 that holds 98 % of its pixels"
    assert f"FCX-W211 'a.png': the file states no bit depth; {rule}" in caplog.text


def test_colour_becomes_the_luma_of_itu_601(tmp_path):
    colours = np.stack([PICTURE, PICTURE[::-1], PICTURE[:, ::-1]], axis=-1)
    luma = colours @ [0.299, 0.587, 0.114]
    assert np.abs(read_image(save_image(colours, tmp_path / "a.png")) - luma).max() <= 0.51


def test_black_and_white_is_read_and_said_aloud(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sniff, "_warned_codes", set())
    for name in ("a.png", "a.tif", "a.bmp"):
        picture = read_image(save_image(Image.fromarray(PICTURE > 120), tmp_path / name))
        assert np.array_equal(picture, np.where(PICTURE > 120, 255, 0))
    assert caplog.text.count("FCX-W202") == 1


def test_a_colourful_picture_is_read_and_said_aloud(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sniff, "_warned_codes", set())
    read_image(save_image(GRAY.convert("RGB"), tmp_path / "gray.png"))
    assert "W203" not in caplog.text
    read_image(save_image(np.dstack([PICTURE, PICTURE // 2, PICTURE // 4]), tmp_path / "photo.png"))
    assert "FCX-W203" in caplog.text


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "deep.tif"])
def test_a_picture_lies_as_its_orientation_says(orientation, name, tmp_path):
    # the inverse of each turn, so that the turned one must come out as the reference
    stored = {
        1: PICTURE,
        2: PICTURE[:, ::-1],
        3: PICTURE[::-1, ::-1],
        4: PICTURE[::-1],
        5: PICTURE.T,
        6: np.rot90(PICTURE),
        7: PICTURE[::-1, ::-1].T,
        8: np.rot90(PICTURE, -1),
    }[orientation]
    stored = np.ascontiguousarray(stored if name != "deep.tif" else stored.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[274] = orientation
    options = {"quality": 98} if name.endswith("jpg") else {}
    picture = read_image(save_image(stored, tmp_path / name, exif=exif, **options))
    assert picture.shape == PICTURE.shape
    assert np.abs(picture.astype(int) - PICTURE).max() <= (8 if options else 0)


def test_transparency_that_hides_nothing_is_taken(tmp_path):
    alpha = OPAQUE.copy()
    alpha[:5, :5] = 0  # a third of one percent
    assert np.array_equal(read_image(save_image(with_alpha(alpha), tmp_path / "a.png")), PICTURE)


def test_transparency_that_hides_the_picture_is_refused(tmp_path):
    alpha = OPAQUE.copy()
    alpha[:20] = 0
    hidden = {
        "rgba.png": with_alpha(alpha),
        "half.png": with_alpha(OPAQUE // 2),
        "la.png": Image.merge("LA", [GRAY, Image.fromarray(alpha)]),
        "rgba.tif": with_alpha(alpha),
    }
    for name, image in hidden.items():
        error = refuse(save_image(image, tmp_path / name))
        assert error.code == "E107"
        assert "of the picture. Save it without transparency" in str(error)
    assert "hide 21% of the picture" in str(refuse(tmp_path / "la.png"))


def test_a_colour_that_is_declared_transparent_counts_as_hidden(tmp_path):
    flat = np.where(PICTURE < 100, 0, PICTURE)
    keys = {
        "gray.png": make_png(flat, 0, make_chunk(b"tRNS", b"\0\0")),
        "deep.png": make_png(flat.astype(np.uint16) * 257, 0, make_chunk(b"tRNS", b"\0\0")),
        "rgb.png": make_png(np.dstack([flat] * 3), 2, make_chunk(b"tRNS", bytes(6))),
        "palette.png": encode(Image.fromarray(flat).convert("P"), "PNG", transparency=0),
    }
    for name, data in keys.items():
        (tmp_path / name).write_bytes(data)
        assert refuse(tmp_path / name).code == "E107"
    (tmp_path / "unused.png").write_bytes(make_png(PICTURE.clip(2), 0, make_chunk(b"tRNS", b"\0\1")))
    read_image(tmp_path / "unused.png")


def test_dark_16_bit_colour_is_refused_as_its_lower_byte_is_lost(tmp_path):
    marked = DEEP >> 4
    marked[0, 0] = 65535
    for name, values in {"a.png": DEEP >> 4, "marked.png": marked}.items():
        (tmp_path / name).write_bytes(make_png(np.dstack([values] * 3), 2))
        error = refuse(tmp_path / name)
        assert error.code == "E114"
        assert "Save it as 16-bit gray" in str(error)


def test_several_frames_are_refused(tmp_path):
    pages = [Image.fromarray(np.roll(PICTURE, step, axis=0)) for step in range(4)]
    for name in ("a.tif", "a.png"):
        error = refuse(save_image(pages[0], tmp_path / name, save_all=True, append_images=pages[1:]))
        assert error.code == "E108"
        assert "4 frames in one file. Split it" in str(error)


def test_the_second_picture_in_a_phone_jpeg_is_ignored(tmp_path):
    second = Image.fromarray(PICTURE[::2, ::2].copy())
    path = save_image(GRAY, tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], quality=95)
    assert read_image(path).shape == PICTURE.shape


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(bad, tmp_path):
    for dtype in (np.float32, np.float16):
        values = (PICTURE / 255).astype(dtype)
        values[3, 3] = bad
        (tmp_path / "a.tif").write_bytes(make_tiff(values))
        error = refuse(tmp_path / "a.tif")
        assert error.code == "E106"
        assert "Write it again without them" in str(error)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.jpg").touch()
    error = refuse(tmp_path / "a.jpg")
    assert (error.code, error.problem) == ("E101", "empty file (0 bytes)")
    assert "Copy or download it again" in str(error)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.jpg", b"<!DOCTYPE html><html>404", "content is HTML, not an image (the name says .jpg). Download it again"),
        ("a.png", b"not found", "content is text, not an image (the name says .png). Convert it"),
        ("a.bmp", b"BMI,age\n22,40\n", "content is text, not an image (the name says .bmp)"),
        ("scan", b"%PDF-1.4", "content is PDF, not an image (the name has no ending)"),
        ("a.jpeg", b"PK\x03\x04zip", "content is ZIP, not an image (the name says .jpeg). Unpack it"),
        ("a.png", b"\x01\x02\xff\xfe" * 9, "content is of no known kind, not an image (the name says .png)"),
        ("scan", b"\x01\x02\xff\xfe" * 9, "content is of no known kind, not an image (the name has no ending)"),
        ("a.png", encode(GRAY, "GIF"), "content is GIF, not an image (the name says .png). Convert it to PNG"),
    ],
)
def test_foreign_content_is_named_beside_what_the_name_says(name, content, text, tmp_path):
    (tmp_path / name).write_bytes(content)
    error = refuse(tmp_path / name)
    assert error.code == "E102"
    assert text in str(error)


CUT = {
    "half of a.jpg": lambda: encode(GRAY, "JPEG")[:1000],
    "all but two of a.jpg": lambda: encode(GRAY, "JPEG")[:-2],
    "progressive.jpg": lambda: encode(GRAY, "JPEG", progressive=True)[:-200],
    "half of a.png": lambda: encode(GRAY, "PNG")[:3000],
    "start of a.png": lambda: encode(GRAY, "PNG")[:20],
    "half of a.bmp": lambda: encode(GRAY, "BMP")[:5000],
    "half of a.tif": lambda: encode(GRAY, "TIFF")[:5000],
    "lzw.tif": lambda: encode(GRAY, "TIFF", compression="tiff_lzw")[:4000],
    "float16.tif": lambda: make_tiff(PICTURE.astype(np.float16))[:9000],
    "start of a.tif": lambda: encode(GRAY, "TIFF", compression="tiff_lzw")[:40],
}


@pytest.mark.parametrize("name", CUT)
def test_a_truncated_file_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(CUT[name]())
    error = refuse(tmp_path / name)
    assert error.code == "E103"
    assert "truncated: the file ends before its picture does. Copy or download it again" in str(error)


def test_a_corrupt_file_is_refused(tmp_path):
    png = bytearray(encode(GRAY, "PNG"))
    png[len(png) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(png)
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff" + bytes(range(200)) + b"\xff\xd9")
    for name, kind in {"a.png": "PNG", "b.jpg": "JPEG"}.items():
        error = refuse(tmp_path / name)
        assert error.code == "E104"
        assert f"corrupt {kind} data. Copy or download it again" in str(error)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_64_bit_floats_is_refused_with_its_sample_format(order, tmp_path):
    (tmp_path / "a.tif").write_bytes(make_tiff(PICTURE / 255, order=order))
    error = refuse(tmp_path / "a.tif")
    assert error.code == "E105"
    assert "unsupported TIFF with 64-bit floats. Save it as 16-bit gray TIFF or PNG" in str(error)


@pytest.mark.parametrize("side", [9000, 11_000, 20_000])
def test_a_picture_that_claims_too_many_pixels_is_refused_from_its_header(side, tmp_path, recwarn):
    body = zlib.compress(bytes(side // 8 + 1) * 100)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = [make_chunk(b"IHDR", header), make_chunk(b"IDAT", body), make_chunk(b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    tracemalloc.start()
    error = refuse(tmp_path / "a.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code == "E109"
    assert f"{side**2 / 1e6:.0f} MP, over the limit of 64 MP. Save it smaller" in str(error)
    assert peak < 10_000_000
    assert not recwarn.list


def test_a_picture_too_small_or_too_long_is_refused(tmp_path):
    assert refuse(save_image(PICTURE[:40], tmp_path / "small.png")).code == "E110"
    assert "Use the original radiograph" in str(refuse(save_image(PICTURE[:1, :1], tmp_path / "dot.png")))
    assert "Use the whole radiograph" in str(refuse(save_image(make_reference(64, 300), tmp_path / "long.png")))


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_blank_picture_is_refused(level, tmp_path):
    error = refuse(save_image(np.full_like(PICTURE, level), tmp_path / "a.png"))
    assert error.code == "E111"
    assert f"blank image, all about {level} of 255. Export it again, or leave it out" in str(error)


def test_only_a_decoders_own_exceptions_become_image_errors(tmp_path, monkeypatch):
    def stumble(*_, **__):
        raise ZeroDivisionError("a bug of ours")

    path = save_image(PICTURE, tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", stumble)
    with pytest.raises(ZeroDivisionError):
        read_image(path)
