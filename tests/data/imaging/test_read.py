"""Tests for read.py."""

import io
import os
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import RLELossless
from recording_progress import Counted
from sample_images import make_dicom, make_reference, make_tiff, save_dicom, save_image

from fastcxr.data.imaging import read
from fastcxr.data.imaging.read import check_images, encode_thumbnail_jpeg, fit_square, read_image

IMAGE = make_reference()


def write_all_formats(folder: Path) -> list[Path]:
    deep = IMAGE.astype(np.uint16) * 257
    (folder / "half.tif").write_bytes(make_tiff(IMAGE.astype(np.float16)))
    (folder / "float.tif").write_bytes(make_tiff((IMAGE / 255).astype(np.float32)))
    rle = make_dicom(IMAGE, WindowCenter=128, WindowWidth=256)
    rle.compress(RLELossless, generate_instance_uid=False)
    return [
        save_image(IMAGE, folder / "gray.png"),
        save_image(deep, folder / "deep.png"),
        save_image(Image.fromarray(IMAGE).convert("P"), folder / "palette.png"),
        save_image(IMAGE, folder / "gray.jpg", quality=98),
        save_image(Image.fromarray(IMAGE).convert("CMYK"), folder / "cmyk.jpg", quality=98),
        save_image(IMAGE, folder / "gray.bmp"),
        save_image(IMAGE, folder / "lzw.tif", compression="tiff_lzw"),
        save_image(deep, folder / "deep.tif"),
        folder / "float.tif",
        folder / "half.tif",
        save_dicom(folder / "plain.dcm", make_dicom(IMAGE, WindowCenter=128, WindowWidth=256)),
        save_dicom(folder / "rle.dcm", rle),
    ]


def test_every_format_is_read_as_a_writable_image(tmp_path):
    for path in write_all_formats(tmp_path):
        image = read_image(str(path))
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        assert np.corrcoef(image.ravel(), IMAGE.ravel())[0, 1] > 0.999, path.name


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(random.integers(1, 6)):
        # half of the changes in the header
        changed[random.integers(0, len(data) if random.random() < 0.5 else min(500, len(data)))] ^= random.integers(
            1, 256
        )
    return bytes(changed[: random.integers(1, len(data))] if random.random() < 0.25 else changed)


def test_a_mutated_file_is_read_or_raises_an_image_error_without_other_output(tmp_path, capsys, caplog):
    random = np.random.default_rng(7)
    originals = [(path.suffix, path.read_bytes()) for path in write_all_formats(tmp_path)]
    outcomes = {"read": 0, "refused": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(550):
            suffix, data = originals[number % len(originals)]
            path = tmp_path / f"mutant{suffix}"
            path.write_bytes(mutate(data, random))
            errors = check_images([path])
            assert all(error.code and "ZZTEST" not in str(error) for error in errors)
            outcomes["refused" if errors else "read"] += 1
    assert min(outcomes.values()) > 100
    assert capsys.readouterr() == ("", "")  # libtiff may print one line to the process
    assert {record.name for record in caplog.records} <= {"fastcxr"}


def test_check_images_returns_the_errors_of_all_bad_files_in_order(tmp_path):
    good = write_all_formats(tmp_path)
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    os.mkfifo(tmp_path / "fifo.png")
    bad = [tmp_path / name for name in ("page.jpg", "empty.png", "fifo.png", "gone.png")]
    errors = check_images([bad[0], *good, *bad[1:]])
    assert [error.code for error in errors] == ["E102", "E101", "E112", "E113"]
    assert [error.path for error in errors] == [str(path) for path in bad]
    assert all(error.__traceback__ is None for error in errors)


def test_check_images_reports_progress_for_any_number_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "BATCH_FILES", 4)
    progress = Counted()
    path = save_image(IMAGE, tmp_path / "a.png")
    assert check_images([path] * 11, progress) == []
    assert progress.seen == [(11, "checking images")] + [1] * 11
    assert check_images([]) == []


def test_check_images_decodes_in_several_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "count_cpus", lambda: 3)
    threads = set()

    def read_slowly(*_):
        threads.add(threading.get_ident())
        time.sleep(0.01)

    monkeypatch.setattr(read, "read_image", read_slowly)
    check_images(range(30))
    assert len(threads) > 1


def test_a_bug_is_not_reported_as_a_bad_file(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(read, "read_image", fail)
    with pytest.raises(ZeroDivisionError):
        check_images(["a.png"])


@pytest.mark.parametrize(("height", "width"), [(96, 80), (80, 96), (64, 64), (1000, 400), (192, 64)])
@pytest.mark.parametrize("size", [32, 64, 225])
def test_fit_square_centres_the_whole_image_on_black(height, width, size):
    square = fit_square(np.full((height, width), 200, np.uint8), size)
    assert square.shape == (size, size)
    filled = square > 0
    rows, columns = filled.any(axis=1), filled.any(axis=0)
    assert max(rows.sum(), columns.sum()) == size
    assert rows.sum() / columns.sum() == pytest.approx(
        height / width, abs=2 * height / width / min(rows.sum(), columns.sum())
    )
    assert abs(int(rows[::-1].argmax()) - int(rows.argmax())) <= 1  # centred
    assert abs(int(columns[::-1].argmax()) - int(columns.argmax())) <= 1
    assert np.all(square[filled] == 200)


def test_fit_square_returns_a_square_of_the_same_size_unchanged():
    square = make_reference(64, 64)
    assert np.array_equal(fit_square(square, 64), square)


def test_shrinking_averages_all_pixels():
    stripes = np.zeros((512, 512), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(fit_square(stripes, 64)[1:-1, 1:-1].astype(int) - 127.5).max() < 2


def test_edges_get_no_halo():
    edge = np.full((300, 300), 60, np.uint8)
    edge[:, 150:] = 180
    for size in (100, 700):
        square = fit_square(edge, size)
        assert (square.min(), square.max()) == (60, 180)


def test_a_thumbnail_keeps_the_aspect_ratio_and_has_no_metadata():
    data = encode_thumbnail_jpeg(make_reference(300, 200), 96)
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode, image.size) == ("JPEG", "L", (64, 96))
    assert not image.getexif()
    assert not {"exif", "comment", "icc_profile", "xmp"} & set(image.info)
    assert len(data) < 6000
    assert Image.open(io.BytesIO(encode_thumbnail_jpeg(IMAGE, 500))).size == (80, 96)


@pytest.mark.parametrize("collection", ["originals", "cohen/images"])
def test_every_real_radiograph_is_read(real_data, collection):
    files = [path for path in (real_data / collection).rglob("*") if path.is_file()]
    assert files
    assert check_images(files) == []
