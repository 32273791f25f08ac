"""Tests for voi_lut.py."""

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi, apply_voi_lut
from sample_images import make_dicom, make_reference

from fastcxr.data.imaging.intensity import find_full_range, rescale_to_uint8
from fastcxr.data.imaging.voi_lut import find_clipped_end, stored_to_gray

IMAGE = make_reference()
TWELVE = np.rint(IMAGE / 255 * 4095).astype(np.uint16)


def show(stored: np.ndarray, **tags) -> np.ndarray:
    return stored_to_gray(stored, make_dicom(stored, **tags))


def make_lut(first: int, entries: np.ndarray, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return item


def test_8_bit_values_without_a_window_are_unchanged():
    dark = IMAGE // 2
    assert np.array_equal(show(dark), dark)
    assert np.array_equal(show(dark, RescaleSlope=1, RescaleIntercept=0), dark)


def test_two_exposures_of_one_detector_without_a_window_keep_their_ratio():
    for tags in ({}, {"RescaleSlope": 0.5}, {"RescaleSlope": 3}):
        full, half = (show(stored, BitsStored=12, **tags).astype(int) for stored in (TWELVE, TWELVE // 2))
        assert np.abs(full - IMAGE).max() <= 1
        assert np.abs(full - 2 * half).max() <= 2


def test_one_bright_pixel_does_not_change_the_others():
    dark = TWELVE // 4
    marked = dark.copy()
    marked[3, 3] = 4095
    for tags in ({}, {"RescaleSlope": 2, "RescaleIntercept": -100}, {"PhotometricInterpretation": "MONOCHROME1"}):
        plain, shown = show(dark, BitsStored=12, **tags), show(marked, BitsStored=12, **tags)
        assert shown[3, 3] == (0 if "PhotometricInterpretation" in tags else 255)
        shown[3, 3] = plain[3, 3]
        assert np.array_equal(shown, plain)


def test_a_modality_lut_determines_the_range_without_a_window():
    table = make_lut(0, np.arange(4096) * 4, 14)
    assert np.array_equal(show(TWELVE, BitsStored=12, ModalityLUTSequence=[table]), IMAGE)
    assert show(TWELVE // 2, BitsStored=12, ModalityLUTSequence=[table]).max() <= 128


def test_8_bit_values_that_are_rescaled_beyond_8_bits_keep_their_range():
    assert np.array_equal(show(IMAGE, RescaleSlope=16), IMAGE)
    assert np.array_equal(show(IMAGE // 2, RescaleSlope=16), IMAGE // 2)


def test_monochrome1_is_inverted_after_all_other_steps():
    for tags in ({}, {"WindowCenter": 2000, "WindowWidth": 3000}, {"RescaleSlope": 2, "RescaleIntercept": -5}):
        positive = show(TWELVE, **tags)
        assert np.array_equal(show(TWELVE, PhotometricInterpretation="MONOCHROME1", **tags), 255 - positive)
    assert np.array_equal(show(255 - IMAGE, PhotometricInterpretation="MONOCHROME1"), IMAGE)


def test_a_window_of_all_12_bits_becomes_0_to_255():
    shown = show(TWELVE, WindowCenter=2048, WindowWidth=4096, BitsStored=12)
    assert np.array_equal(shown, IMAGE)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom_up_to_the_scale(function):
    tags = {"WindowCenter": 1500, "WindowWidth": 900, "BitsStored": 12} | (
        {"VOILUTFunction": function} if function else {}
    )
    expected = apply_voi_lut(TWELVE, make_dicom(TWELVE, **tags)) / 4095 * 255
    assert np.abs(show(TWELVE, **tags) - expected).max() <= 0.51


def test_the_first_of_several_windows_is_applied():
    one = show(TWELVE, WindowCenter=1500, WindowWidth=900)
    assert np.array_equal(show(TWELVE, WindowCenter=[1500, 40], WindowWidth=[900, 80]), one)


def test_a_window_of_width_1_is_a_step_and_of_width_0_is_ignored():
    assert np.array_equal(show(TWELVE, WindowCenter=2000, WindowWidth=1), np.where(TWELVE >= 2000, 255, 0))
    assert np.array_equal(show(TWELVE, WindowCenter=2000, WindowWidth=0), show(TWELVE))


def test_a_window_applies_to_rescaled_values():
    tags = {"RescaleSlope": "2.5", "RescaleIntercept": "-1000"}
    dataset = make_dicom(TWELVE, WindowCenter=2000, WindowWidth=5000, **tags)
    rescaled = apply_modality_lut(TWELVE, dataset)
    expected = ((rescaled - 1999.5) / 4999 + 0.5).clip(0, 1) * 255
    assert np.abs(stored_to_gray(TWELVE, dataset) - expected).max() <= 0.51


def test_a_negative_slope_inverts_the_image():
    assert np.array_equal(show(TWELVE, RescaleSlope=-1, RescaleIntercept=4095), 255 - show(TWELVE))


def test_signed_values_are_converted():
    signed = TWELVE.astype(np.int16) - 2048
    assert np.array_equal(show(signed, BitsStored=12), show(TWELVE, BitsStored=12))
    assert np.array_equal(show(signed, WindowCenter=0, WindowWidth=4096), IMAGE)


def test_a_voi_lut_takes_precedence_over_a_window():
    entries = np.rint(4095 * (np.arange(4096) / 4095) ** 2)
    shown = show(TWELVE, VOILUTSequence=[make_lut(0, entries, 12)], WindowCenter=9, WindowWidth=9)
    assert np.abs(shown - entries[TWELVE] / 4095 * 255).max() <= 0.51


def test_a_voi_lut_with_fewer_bits_than_stated_is_scaled_to_its_own_range():
    entries = np.arange(4096)
    shown = show(TWELVE, VOILUTSequence=[make_lut(0, entries, 16)])
    assert np.array_equal(shown, IMAGE)


def test_a_voi_lut_clips_values_outside():
    shown = show(TWELVE, VOILUTSequence=[make_lut(1000, np.arange(0, 1000), 10)])
    assert shown[TWELVE <= 1000].max() == 0
    assert np.all(shown[TWELVE >= 2000] == 249)  # 999 of 1023


@pytest.mark.parametrize(("dtype", "bits"), [("<u2", 12), (">u2", 12), ("u1", 8)])
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
def test_a_lut_stored_as_bytes_is_read(sequence, dtype, bits):
    entries = np.arange(4096) >> (12 - bits)
    item = make_lut(0, entries, bits)
    item.add_new("LUTData", "OW", entries.astype(dtype).tobytes())
    dataset = make_dicom(TWELVE, BitsStored=12, **{sequence: [item]})
    dataset.set_original_encoding(False, dtype != ">u2")
    assert np.array_equal(stored_to_gray(TWELVE, dataset), rescale_to_uint8(entries[TWELVE], 0, 2**bits - 1))


@pytest.mark.parametrize(("first", "bits"), [(0, 16), (1000, 12), (-100, 10)])
def test_luts_agree_with_pydicom(first, bits):
    item = make_lut(first, np.arange(2**bits - 1, -1, -1)[:4096], bits)
    dataset = make_dicom(TWELVE, BitsStored=12, VOILUTSequence=[item])
    full = find_full_range(int(max(item.LUTData)))
    assert np.array_equal(
        stored_to_gray(TWELVE, dataset), rescale_to_uint8(apply_voi(TWELVE.astype(int), dataset), 0, full)
    )
    item.LUTDescriptor = [*item.LUTDescriptor[:2], 16]  # apply_modality_lut rejects tables of 9 to 15 bits
    dataset = make_dicom(TWELVE, BitsStored=12, ModalityLUTSequence=[item])
    low, high = min(item.LUTData), max(item.LUTData)
    expected = apply_modality_lut(TWELVE.astype(int), dataset)
    assert np.array_equal(stored_to_gray(TWELVE, dataset), rescale_to_uint8(expected, low, high))


def test_a_modality_lut_is_applied_before_the_window():
    table = make_lut(0, 4095 - np.arange(4096), 12)
    shown = show(TWELVE, ModalityLUTSequence=[table], WindowCenter=2048, WindowWidth=4096)
    assert np.array_equal(shown, 255 - IMAGE)


def test_padding_is_black_and_does_not_change_the_range():
    padded = TWELVE.copy()
    padded[:, :9] = 65535
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        shown = show(padded, PixelPaddingValue=65535, PhotometricInterpretation=photometric)
        assert not shown[:, :9].any()
        unpadded = show(np.ascontiguousarray(TWELVE[:, 9:]), PhotometricInterpretation=photometric)
        assert np.array_equal(shown[:, 9:], unpadded)


def test_a_range_of_padding_values_is_black():
    padded = TWELVE.copy() + 100
    padded[:5] = np.arange(80) % 50
    shown = show(padded, PixelPaddingValue=0, PixelPaddingRangeLimit=60)
    assert not shown[:5].any()
    assert np.array_equal(shown[5:], show(np.ascontiguousarray(TWELVE[5:] + 100)))


def test_an_image_of_padding_is_black():
    assert not show(np.full((70, 70), 5, np.uint16), PixelPaddingValue=5).any()


def test_32_bit_values_are_scaled_from_minimum_to_maximum():
    wide = IMAGE.astype(np.uint32) * 16_000_000
    header = make_dicom(TWELVE)
    header.BitsStored = 32
    assert np.array_equal(stored_to_gray(wide, header), IMAGE)


def find_end(stored: np.ndarray, **tags) -> str | None:
    dataset = make_dicom(stored, BitsStored=12, **tags)
    return find_clipped_end(stored_to_gray(stored, dataset), stored, dataset)


def test_clipping_of_most_pixels_is_found_at_both_ends():
    low, high = {"WindowCenter": 100, "WindowWidth": 200}, {"WindowCenter": 3900, "WindowWidth": 200}
    assert (find_end(TWELVE, **low), find_end(TWELVE, **high)) == ("white", "black")
    assert find_end(TWELVE, **low, PhotometricInterpretation="MONOCHROME1") == "black"
    steep = make_lut(0, np.minimum(np.arange(4096) * 40, 4095), 12)
    assert find_end(TWELVE, VOILUTSequence=[steep]) == "white"


def test_a_window_of_the_full_range_clips_nothing_despite_a_border():
    bordered = np.pad(TWELVE, 100)  # most stored values are 0
    for tags in ({}, {"WindowCenter": 2048, "WindowWidth": 4096}, {"WindowCenter": 2048, "WindowWidth": 3000}):
        assert find_end(bordered, **tags) is None
    assert find_end(bordered // 2 + 5, WindowCenter=1900, WindowWidth=200, PixelPaddingValue=5) == "black"


def test_a_window_with_centre_0_is_applied():
    signed = TWELVE.astype(np.int16) - 2048
    shown = show(signed, BitsStored=12, WindowCenter=0, WindowWidth=1000)
    assert not shown[signed < -501].any() and np.all(shown[signed > 500] == 255)
