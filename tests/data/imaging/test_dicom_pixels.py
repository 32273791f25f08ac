"""Tests for dicom.py: position of the stored bits, and gray that is stored as colour."""

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless
from sample_images import compress_as, make_dicom, make_reference, save_dicom, save_image

from fastcxr.data.imaging import sniff
from fastcxr.data.imaging.read import read_image
from fastcxr.errors import ImageError

IMAGE = make_reference()
TWELVE = np.rint(IMAGE / 255 * 4095).astype(np.uint16)
FULL_WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12}


@pytest.fixture(autouse=True)
def no_warnings_logged_yet(monkeypatch):
    monkeypatch.setattr(sniff, "_warned_codes", set())


def read_error(path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        read_image(path)
    return caught.value


@pytest.mark.parametrize("signed", [False, True])
def test_stored_bits_are_read_at_the_high_bit(signed, tmp_path):
    dtype = np.int16 if signed else np.uint16
    stored = TWELVE.astype(np.int16) - 2048 if signed else TWELVE
    window = {"WindowCenter": 0 if signed else 2048, "WindowWidth": 4096, "BitsStored": 12}
    for name, shift in (("low", 0), ("middle", 2), ("high", 4)):
        dataset = make_dicom(stored, **window, HighBit=11 + shift)
        noise = np.random.default_rng(0).integers(0, 1 << shift, stored.shape).astype(np.uint16)
        dataset.PixelData = ((stored.view(np.uint16) << np.uint16(shift)) | noise).view(dtype).tobytes()
        assert np.array_equal(read_image(save_dicom(tmp_path / name, dataset)), IMAGE)
        dataset.compress(RLELossless, generate_instance_uid=False)
        assert np.array_equal(read_image(save_dicom(tmp_path / f"{name}-rle", dataset)), IMAGE)


def test_a_missing_high_bit_is_bits_stored_minus_one(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", make_dicom(TWELVE, **FULL_WINDOW, HighBit=None))
    assert np.array_equal(read_image(path), IMAGE)


@pytest.mark.parametrize("high", [0, 10, 16])
def test_an_impossible_high_bit_is_refused(high, tmp_path):
    error = read_error(save_dicom(tmp_path / "a.dcm", make_dicom(TWELVE, **FULL_WINDOW, HighBit=high)))
    assert error.code == "E122"
    assert f"HighBit is {high}, which contradicts 12 of 16 bits stored. Export it again" in str(error)


def test_a_codestream_has_no_unused_low_bits(tmp_path):
    frame = save_image(TWELVE, tmp_path / "frame", format="JPEG2000", no_jp2=True).read_bytes()
    dataset = compress_as(make_dicom(TWELVE, **FULL_WINDOW, HighBit=15), JPEG2000Lossless, frame)
    assert "12 of 16 compressed bits stored" in str(read_error(save_dicom(tmp_path / "a.dcm", dataset)))


def make_colour(channels: np.ndarray, photometric: str = "RGB", bits: int = 8) -> Dataset:
    dataset = make_dicom(IMAGE)
    dataset.set_pixel_data(channels, photometric, bits, generate_instance_uid=False)
    return dataset


def test_gray_stored_as_colour_is_read_exactly(tmp_path, caplog):
    gray = np.dstack([IMAGE] * 3)
    neutral = np.dstack([IMAGE, np.full_like(IMAGE, 128), np.full_like(IMAGE, 128)])
    planes = make_colour(gray)
    planes.PixelData, planes.PlanarConfiguration = np.moveaxis(gray, -1, 0).tobytes(), 1
    halved = make_colour(neutral, "YBR_FULL")
    halved.PhotometricInterpretation = "YBR_FULL_422"  # two Y, then one of each colour
    halved.PixelData = np.dstack([IMAGE[:, ::2], IMAGE[:, 1::2], neutral[:, ::2, 1:]]).tobytes()
    datasets = [make_colour(gray), planes, make_colour(neutral, "YBR_FULL"), halved]
    for name, dataset in enumerate(datasets):
        assert np.array_equal(read_image(save_dicom(tmp_path / f"{name}.dcm", dataset)), IMAGE)
    deep = make_colour(np.dstack([np.rint(IMAGE / 255 * 65535).astype(np.uint16)] * 3), bits=16)
    assert np.abs(read_image(save_dicom(tmp_path / "deep.dcm", deep)).astype(int) - IMAGE).max() <= 1
    frame = save_image(gray, tmp_path / "frame", format="JPEG", quality=95).read_bytes()
    baseline = compress_as(make_colour(gray, "RGB"), JPEGBaseline8Bit, frame)
    baseline.PhotometricInterpretation = "YBR_FULL_422"
    shown = read_image(save_dicom(tmp_path / "jpeg.dcm", baseline))
    assert np.corrcoef(shown.ravel(), IMAGE.ravel())[0, 1] > 0.999
    assert not caplog.records


def test_colour_is_read_with_a_warning_like_a_png(tmp_path, caplog):
    colours = np.dstack([IMAGE, IMAGE[::-1], IMAGE[:, ::-1]])
    shown = read_image(save_dicom(tmp_path / "a.dcm", make_colour(colours)))
    assert "FCX-W203 'a.dcm'" in caplog.text
    assert np.array_equal(shown, read_image(save_image(colours, tmp_path / "a.png")))
