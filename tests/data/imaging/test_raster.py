"""Tests for raster.py: all variants of PNG, JPEG, TIFF and BMP are read as the same gray image."""

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

IMAGE = make_reference()
DEEP = IMAGE.astype(np.uint16) * 257
GRAY = Image.fromarray(IMAGE)
OPAQUE = np.full_like(IMAGE, 255)


def read_error(path) -> ImageError:
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
    return Image.fromarray(np.dstack([IMAGE] * 3 + [alpha]))


LOSSLESS = {
    "png gray": encode(GRAY, "PNG"),
    "png rgb": encode(GRAY.convert("RGB"), "PNG"),
    "png rgba": encode(GRAY.convert("RGBA"), "PNG"),
    "png gray and alpha": encode(GRAY.convert("LA"), "PNG"),
    "png palette": encode(GRAY.convert("P"), "PNG"),
    "png optimized": encode(GRAY, "PNG", optimize=True),
    "png 16 bit": encode(Image.fromarray(DEEP), "PNG"),
    "png 16 bit rgb": make_png(np.dstack([DEEP] * 3), 2),
    "png 16 bit gray and alpha": make_png(np.dstack([DEEP, np.full_like(DEEP, 65535)]), 4),
    "png 16 bit rgba": make_png(np.dstack([DEEP] * 3 + [np.full_like(DEEP, 65535)]), 6),
    "png 8 bit values in 16": make_png(IMAGE.astype(np.uint16), 0),
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
    "tiff white is zero": make_tiff(255 - IMAGE, photometric=0),
    "tiff white is zero lzw": encode(Image.fromarray(IMAGE), "TIFF", compression="tiff_lzw", tiffinfo={262: 0}),
    "tiff 16 bit white is zero": make_tiff(65535 - DEEP, photometric=0),
    "tiff 16 bit big endian white is zero": make_tiff(65535 - DEEP, photometric=0, order=">"),
    "tiff int8": make_tiff((IMAGE.astype(np.int16) - 128).astype(np.int8)),
    "tiff int16": make_tiff(IMAGE.astype(np.int16) * 100 - 3000),
    "tiff int32": make_tiff(IMAGE.astype(np.int32) * 100_000 - 70),
    "tiff int32 as Pillow writes it": encode(Image.fromarray(IMAGE.astype(np.int32) * 257), "TIFF"),
    "tiff uint32": make_tiff(IMAGE.astype(np.uint32) * 16_843_009),
    "tiff float of 0 to 1": make_tiff((IMAGE / 255).astype(np.float32)),
    "tiff float of 0 to 255": make_tiff(IMAGE.astype(np.float32)),
    "tiff float of another range": make_tiff((IMAGE.astype(np.float32) - 50) * 30),
    "tiff float big endian": make_tiff((IMAGE / 255).astype(np.float32), order=">"),
    "tiff float16": make_tiff(IMAGE.astype(np.float16)),
    "tiff float16 big endian": make_tiff(IMAGE.astype(np.float16), order=">"),
    "tiff int16 white is zero": make_tiff(155 - IMAGE.astype(np.int16), photometric=0),
    "tiff uint32 white is zero": make_tiff((255 - IMAGE.astype(np.uint32)) * 16_843_009, photometric=0),
    "tiff float white is zero": make_tiff((1 - IMAGE / 255).astype(np.float32), photometric=0),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_lossless_variant_is_read_exactly(kind, tmp_path):
    path = tmp_path / "image.with.unknown.suffix"
    path.write_bytes(LOSSLESS[kind])
    image = read_image(path)
    assert image.dtype == np.uint8
    assert np.array_equal(image, IMAGE)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_jpeg_variant_is_read_approximately(mode, tmp_path):
    image = GRAY.convert("RGB").convert(mode) if mode == "CMYK" else GRAY.convert(mode)
    for number, options in enumerate(({}, {"progressive": True})):
        image = read_image(save_image(image, tmp_path / f"{number}.jpg", quality=95, **options))
        assert np.corrcoef(image.ravel(), IMAGE.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_in_a_16_bit_file_are_scaled_to_their_own_range(bits, tmp_path):
    full = 2**bits - 1
    values = np.rint(IMAGE / 255 * full).astype(np.uint16)
    for name, data in {"a.png": make_png(values, 0), "a.tif": make_tiff(values)}.items():
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(read_image(tmp_path / name), IMAGE)


MARKED = [(0, 4096), (slice(2, 10), 65535)]  # rows with another value in their first pixels


@pytest.mark.parametrize(("rows", "value"), MARKED)
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_pixel_or_a_marker_above_12_bits_does_not_change_the_brightness(rows, value, name, tmp_path):
    values = IMAGE.astype(np.uint16) * 16
    values[rows, :8] = value
    (tmp_path / name).write_bytes(make_png(values, 0) if name == "a.png" else make_tiff(values))
    image, expected = read_image(tmp_path / name), IMAGE.astype(int).copy()
    expected[rows, :8] = 255
    assert np.abs(image - expected).max() <= 1


def test_an_sbit_chunk_states_the_depth(tmp_path):
    dark, chunk = IMAGE.astype(np.uint16), make_chunk(b"gAMA", bytes(4)) + make_chunk(b"sBIT", bytes([12]))
    (tmp_path / "a.png").write_bytes(make_png(dark * 2, 0, chunk))
    assert np.array_equal(read_image(tmp_path / "a.png", depth=16), integers_to_gray(dark * 2, 12))
    (tmp_path / "scaled.png").write_bytes(make_png(DEEP, 0, chunk))
    assert np.array_equal(read_image(tmp_path / "scaled.png"), IMAGE), "the writer has scaled values to 16 bits"
    (tmp_path / "none.png").write_bytes(make_png(dark * 2, 0, make_chunk(b"sBIT", b"\0")))
    assert np.array_equal(read_image(tmp_path / "none.png", depth=12), integers_to_gray(dark * 2, 12))


def test_bits_per_sample_of_12_states_the_depth_of_a_tiff(tmp_path):
    values = IMAGE.astype(np.uint16) * 2
    (tmp_path / "a.tif").write_bytes(make_12_bit_tiff(values))
    assert np.array_equal(read_image(tmp_path / "a.tif", depth=16), integers_to_gray(values, 12))


# neither the default nor the largest value of one image states a depth
@pytest.mark.parametrize(("largest", "depth"), [(4095, 12), (16383, 14), (255, 8), (65535, 10), (3071, 10)])
def test_max_sample_value_states_the_depth_of_a_tiff_if_it_is_a_full_range(largest, depth, tmp_path):
    values = IMAGE.astype(np.uint16)
    values = values if depth == 8 else values * 2
    (tmp_path / "a.tif").write_bytes(make_tiff(values, largest=largest))
    assert np.array_equal(read_image(tmp_path / "a.tif", depth=10), integers_to_gray(values, depth))


def test_a_max_sample_value_that_pixels_exceed_is_ignored(tmp_path):
    (tmp_path / "a.tif").write_bytes(make_tiff(DEEP, largest=4095))
    assert np.array_equal(read_image(tmp_path / "a.tif"), IMAGE)


def test_the_warning_for_an_image_without_depth_states_the_rule(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sniff, "_warned_codes", set())
    (tmp_path / "a.png").write_bytes(make_png(IMAGE.astype(np.uint16) * 16, 0))
    read_image(tmp_path / "a.png", depth=12)
    assert not caplog.records
    read_image(tmp_path / "a.png")
    rule = "read with 12 bits, the smallest of 8, 10, 12, 14 and 16 that holds 98 % of its pixels"
    assert f"FCX-W211 'a.png': the file states no bit depth; {rule}" in caplog.text


def test_colour_becomes_the_luma_of_itu_601(tmp_path):
    colours = np.stack([IMAGE, IMAGE[::-1], IMAGE[:, ::-1]], axis=-1)
    luma = colours @ [0.299, 0.587, 0.114]
    assert np.abs(read_image(save_image(colours, tmp_path / "a.png")) - luma).max() <= 0.51


def test_black_and_white_is_read_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sniff, "_warned_codes", set())
    for name in ("a.png", "a.tif", "a.bmp"):
        image = read_image(save_image(Image.fromarray(IMAGE > 120), tmp_path / name))
        assert np.array_equal(image, np.where(IMAGE > 120, 255, 0))
    assert caplog.text.count("FCX-W202") == 1


def test_colour_is_read_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sniff, "_warned_codes", set())
    read_image(save_image(GRAY.convert("RGB"), tmp_path / "gray.png"))
    assert "W203" not in caplog.text
    read_image(save_image(np.dstack([IMAGE, IMAGE // 2, IMAGE // 4]), tmp_path / "photo.png"))
    assert "FCX-W203" in caplog.text


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "deep.tif"])
def test_the_exif_orientation_is_applied(orientation, name, tmp_path):
    # the inverse of each orientation, which must restore the reference
    stored = {
        1: IMAGE,
        2: IMAGE[:, ::-1],
        3: IMAGE[::-1, ::-1],
        4: IMAGE[::-1],
        5: IMAGE.T,
        6: np.rot90(IMAGE),
        7: IMAGE[::-1, ::-1].T,
        8: np.rot90(IMAGE, -1),
    }[orientation]
    stored = np.ascontiguousarray(stored if name != "deep.tif" else stored.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[274] = orientation
    options = {"quality": 98} if name.endswith("jpg") else {}
    image = read_image(save_image(stored, tmp_path / name, exif=exif, **options))
    assert image.shape == IMAGE.shape
    assert np.abs(image.astype(int) - IMAGE).max() <= (8 if options else 0)


def test_transparency_that_hides_nothing_is_accepted(tmp_path):
    alpha = OPAQUE.copy()
    alpha[:5, :5] = 0  # 0.3 % of the pixels
    assert np.array_equal(read_image(save_image(with_alpha(alpha), tmp_path / "a.png")), IMAGE)


def test_transparency_that_hides_the_image_is_refused(tmp_path):
    alpha = OPAQUE.copy()
    alpha[:20] = 0
    transparent = {
        "rgba.png": with_alpha(alpha),
        "half.png": with_alpha(OPAQUE // 2),
        "la.png": Image.merge("LA", [GRAY, Image.fromarray(alpha)]),
        "rgba.tif": with_alpha(alpha),
    }
    for name, image in transparent.items():
        error = read_error(save_image(image, tmp_path / name))
        assert error.code == "E107"
        assert "of the image. Save it without transparency" in str(error)
    assert "hide 21% of the image" in str(read_error(tmp_path / "la.png"))


def test_pixels_of_the_transparent_colour_count_as_hidden(tmp_path):
    flat = np.where(IMAGE < 100, 0, IMAGE)
    keys = {
        "gray.png": make_png(flat, 0, make_chunk(b"tRNS", b"\0\0")),
        "deep.png": make_png(flat.astype(np.uint16) * 257, 0, make_chunk(b"tRNS", b"\0\0")),
        "rgb.png": make_png(np.dstack([flat] * 3), 2, make_chunk(b"tRNS", bytes(6))),
        "palette.png": encode(Image.fromarray(flat).convert("P"), "PNG", transparency=0),
    }
    for name, data in keys.items():
        (tmp_path / name).write_bytes(data)
        assert read_error(tmp_path / name).code == "E107"
    (tmp_path / "unused.png").write_bytes(make_png(IMAGE.clip(2), 0, make_chunk(b"tRNS", b"\0\1")))
    read_image(tmp_path / "unused.png")


def test_dark_16_bit_colour_is_refused_because_its_lower_byte_is_lost(tmp_path):
    marked = DEEP >> 4
    marked[0, 0] = 65535
    for name, values in {"a.png": DEEP >> 4, "marked.png": marked}.items():
        (tmp_path / name).write_bytes(make_png(np.dstack([values] * 3), 2))
        error = read_error(tmp_path / name)
        assert error.code == "E114"
        assert "Save it as 16-bit gray" in str(error)


def test_several_frames_are_refused(tmp_path):
    pages = [Image.fromarray(np.roll(IMAGE, step, axis=0)) for step in range(4)]
    for name in ("a.tif", "a.png"):
        error = read_error(save_image(pages[0], tmp_path / name, save_all=True, append_images=pages[1:]))
        assert error.code == "E108"
        assert "4 frames in one file. Save one radiograph per file" in str(error)


def test_the_second_image_in_a_phone_jpeg_is_ignored(tmp_path):
    second = Image.fromarray(IMAGE[::2, ::2].copy())
    path = save_image(GRAY, tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second], quality=95)
    assert read_image(path).shape == IMAGE.shape


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_values_are_refused(bad, tmp_path):
    for dtype in (np.float32, np.float16):
        values = (IMAGE / 255).astype(dtype)
        values[3, 3] = bad
        (tmp_path / "a.tif").write_bytes(make_tiff(values))
        error = read_error(tmp_path / "a.tif")
        assert error.code == "E106"
        assert "Write it again without them" in str(error)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.jpg").touch()
    error = read_error(tmp_path / "a.jpg")
    assert (error.code, error.problem) == ("E101", "empty file (0 bytes)")
    assert "Copy or download it again" in str(error)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        (
            "a.jpg",
            b"<!DOCTYPE html><html>404",
            "content is HTML, not an image (the file name ends in .jpg). Download it again",
        ),
        ("a.png", b"not found", "content is text, not an image (the file name ends in .png). Convert it"),
        ("a.bmp", b"BMI,age\n22,40\n", "content is text, not an image (the file name ends in .bmp)"),
        ("scan", b"%PDF-1.4", "content is PDF, not an image (the file name has no suffix)"),
        ("a.jpeg", b"PK\x03\x04zip", "content is ZIP, not an image (the file name ends in .jpeg). Unpack it"),
        ("a.png", b"\x01\x02\xff\xfe" * 9, "content is of unknown format, not an image (the file name ends in .png)"),
        ("scan", b"\x01\x02\xff\xfe" * 9, "content is of unknown format, not an image (the file name has no suffix)"),
        ("a.png", encode(GRAY, "GIF"), "content is GIF, not an image (the file name ends in .png). Convert it to PNG"),
    ],
)
def test_the_error_for_foreign_content_names_the_content_and_the_suffix(name, content, text, tmp_path):
    (tmp_path / name).write_bytes(content)
    error = read_error(tmp_path / name)
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
    "float16.tif": lambda: make_tiff(IMAGE.astype(np.float16))[:9000],
    "start of a.tif": lambda: encode(GRAY, "TIFF", compression="tiff_lzw")[:40],
}


@pytest.mark.parametrize("name", CUT)
def test_a_truncated_file_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(CUT[name]())
    error = read_error(tmp_path / name)
    assert error.code == "E103"
    assert "truncated: the file ends before the image data. Copy or download it again" in str(error)


def test_a_corrupt_file_is_refused(tmp_path):
    png = bytearray(encode(GRAY, "PNG"))
    png[len(png) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(png)
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff" + bytes(range(200)) + b"\xff\xd9")
    for name, kind in {"a.png": "PNG", "b.jpg": "JPEG"}.items():
        error = read_error(tmp_path / name)
        assert error.code == "E104"
        assert f"corrupt {kind} data. Copy, download or export it again" in str(error)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_64_bit_floats_is_refused_with_its_sample_format(order, tmp_path):
    (tmp_path / "a.tif").write_bytes(make_tiff(IMAGE / 255, order=order))
    error = read_error(tmp_path / "a.tif")
    assert error.code == "E105"
    assert "unsupported TIFF with 64-bit floats. Save it as 16-bit gray TIFF or PNG" in str(error)


@pytest.mark.parametrize("side", [9000, 11_000, 20_000])
def test_too_many_pixels_are_refused_by_the_header(side, tmp_path, recwarn):
    body = zlib.compress(bytes(side // 8 + 1) * 100)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = [make_chunk(b"IHDR", header), make_chunk(b"IDAT", body), make_chunk(b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    tracemalloc.start()
    error = read_error(tmp_path / "a.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code == "E109"
    assert f"{side**2 / 1e6:.0f} MP, over the limit of 64 MP. Save it smaller" in str(error)
    assert peak < 10_000_000
    assert not recwarn.list


def test_an_image_that_is_too_small_or_too_elongated_is_refused(tmp_path):
    assert read_error(save_image(IMAGE[:40], tmp_path / "small.png")).code == "E110"
    assert "Use the original radiograph" in str(read_error(save_image(IMAGE[:1, :1], tmp_path / "dot.png")))
    assert "Use the whole radiograph" in str(read_error(save_image(make_reference(64, 300), tmp_path / "long.png")))


@pytest.mark.parametrize("level", [0, 77, 255])
def test_a_blank_image_is_refused(level, tmp_path):
    error = read_error(save_image(np.full_like(IMAGE, level), tmp_path / "a.png"))
    assert error.code == "E111"
    assert f"blank image, all pixels near gray level {level} of 255. Export it again, or leave it out" in str(error)


def test_only_exceptions_of_decoders_become_image_errors(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("a bug")

    path = save_image(IMAGE, tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ZeroDivisionError):
        read_image(path)
