"""Tests for voi_lut.py: stored values of a DICOM become what a viewer shows."""

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from sample_images import make_dicom, make_reference

from fastcxr.data.imaging.voi_lut import find_clipped_end, stored_to_gray

PICTURE = make_reference()
TWELVE = np.rint(PICTURE / 255 * 4095).astype(np.uint16)


def show(stored: np.ndarray, **tags) -> np.ndarray:
    return stored_to_gray(stored, make_dicom(stored, **tags))


def make_table(first: int, entries: np.ndarray, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return item


def test_8_bit_values_without_a_window_stay_as_they_are():
    dark = PICTURE // 2
    assert np.array_equal(show(dark), dark)
    assert np.array_equal(show(dark, RescaleSlope=1, RescaleIntercept=0), dark)


def test_two_exposures_of_one_detector_without_a_window_keep_their_ratio():
    for tags in ({}, {"RescaleSlope": 0.5}, {"RescaleSlope": 3}):
        full, half = (show(stored, BitsStored=12, **tags).astype(int) for stored in (TWELVE, TWELVE // 2))
        assert np.abs(full - PICTURE).max() <= 1
        assert np.abs(full - 2 * half).max() <= 2


def test_one_bright_pixel_leaves_the_others_as_bright_as_they_were():
    dark = TWELVE // 4
    marked = dark.copy()
    marked[3, 3] = 4095
    for tags in ({}, {"RescaleSlope": 2, "RescaleIntercept": -100}, {"PhotometricInterpretation": "MONOCHROME1"}):
        plain, shown = show(dark, BitsStored=12, **tags), show(marked, BitsStored=12, **tags)
        assert shown[3, 3] == (0 if "PhotometricInterpretation" in tags else 255)
        shown[3, 3] = plain[3, 3]
        assert np.array_equal(shown, plain)


def test_a_modality_table_gives_the_range_of_values_without_a_window():
    table = make_table(0, np.arange(4096) * 4, 14)
    assert np.array_equal(show(TWELVE, BitsStored=12, ModalityLUTSequence=[table]), PICTURE)
    assert show(TWELVE // 2, BitsStored=12, ModalityLUTSequence=[table]).max() <= 128


def test_8_bit_values_that_a_rescale_takes_out_of_8_bits_are_shown_in_their_range():
    assert np.array_equal(show(PICTURE, RescaleSlope=16), PICTURE)
    assert np.array_equal(show(PICTURE // 2, RescaleSlope=16), PICTURE // 2)


def test_monochrome1_is_turned_positive_whatever_else_applies():
    for tags in ({}, {"WindowCenter": 2000, "WindowWidth": 3000}, {"RescaleSlope": 2, "RescaleIntercept": -5}):
        positive = show(TWELVE, **tags)
        assert np.array_equal(show(TWELVE, PhotometricInterpretation="MONOCHROME1", **tags), 255 - positive)
    assert np.array_equal(show(255 - PICTURE, PhotometricInterpretation="MONOCHROME1"), PICTURE)


def test_a_window_of_the_whole_range_of_12_bits_becomes_0_to_255():
    shown = show(TWELVE, WindowCenter=2048, WindowWidth=4096, BitsStored=12)
    assert np.array_equal(shown, PICTURE)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom_up_to_the_scale(function):
    tags = {"WindowCenter": 1500, "WindowWidth": 900, "BitsStored": 12} | (
        {"VOILUTFunction": function} if function else {}
    )
    theirs = apply_voi_lut(TWELVE, make_dicom(TWELVE, **tags)) / 4095 * 255
    assert np.abs(show(TWELVE, **tags) - theirs).max() <= 0.51


def test_the_first_of_several_windows_counts():
    one = show(TWELVE, WindowCenter=1500, WindowWidth=900)
    assert np.array_equal(show(TWELVE, WindowCenter=[1500, 40], WindowWidth=[900, 80]), one)


def test_a_window_of_width_one_is_a_step_and_one_without_width_is_none():
    assert np.array_equal(show(TWELVE, WindowCenter=2000, WindowWidth=1), np.where(TWELVE >= 2000, 255, 0))
    assert np.array_equal(show(TWELVE, WindowCenter=2000, WindowWidth=0), show(TWELVE))


def test_a_window_counts_in_rescaled_units():
    tags = {"RescaleSlope": "2.5", "RescaleIntercept": "-1000"}
    dataset = make_dicom(TWELVE, WindowCenter=2000, WindowWidth=5000, **tags)
    rescaled = apply_modality_lut(TWELVE, dataset)
    theirs = ((rescaled - 1999.5) / 4999 + 0.5).clip(0, 1) * 255
    assert np.abs(stored_to_gray(TWELVE, dataset) - theirs).max() <= 0.51


def test_a_negative_slope_turns_the_picture():
    assert np.array_equal(show(TWELVE, RescaleSlope=-1, RescaleIntercept=4095), 255 - show(TWELVE))


def test_signed_values_are_shown():
    signed = TWELVE.astype(np.int16) - 2048
    assert np.array_equal(show(signed, BitsStored=12), show(TWELVE, BitsStored=12))
    assert np.array_equal(show(signed, WindowCenter=0, WindowWidth=4096), PICTURE)


def test_a_table_of_interest_comes_before_a_window():
    entries = np.rint(4095 * (np.arange(4096) / 4095) ** 2)
    shown = show(TWELVE, VOILUTSequence=[make_table(0, entries, 12)], WindowCenter=9, WindowWidth=9)
    assert np.abs(shown - entries[TWELVE] / 4095 * 255).max() <= 0.51


def test_a_table_that_uses_fewer_bits_than_it_says_is_not_dark():
    entries = np.arange(4096)
    shown = show(TWELVE, VOILUTSequence=[make_table(0, entries, 16)])
    assert np.array_equal(shown, PICTURE)


def test_a_table_continues_beyond_its_ends():
    shown = show(TWELVE, VOILUTSequence=[make_table(1000, np.arange(0, 1000), 10)])
    assert shown[TWELVE <= 1000].max() == 0
    assert np.all(shown[TWELVE >= 2000] == 249)  # 999 of 1023


def test_a_table_as_raw_bytes_is_read():
    item = make_table(0, np.arange(4096), 12)
    item.add_new("LUTData", "OW", np.arange(4096, dtype="<u2").tobytes())
    dataset = make_dicom(TWELVE, VOILUTSequence=[item])
    dataset.set_original_encoding(False, True)
    assert np.array_equal(stored_to_gray(TWELVE, dataset), PICTURE)


def test_a_modality_table_comes_first():
    table = make_table(0, 4095 - np.arange(4096), 12)
    shown = show(TWELVE, ModalityLUTSequence=[table], WindowCenter=2048, WindowWidth=4096)
    assert np.array_equal(shown, 255 - PICTURE)


def test_padding_is_black_and_does_not_stretch_the_picture():
    padded = TWELVE.copy()
    padded[:, :9] = 65535
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        shown = show(padded, PixelPaddingValue=65535, PhotometricInterpretation=photometric)
        assert not shown[:, :9].any()
        bare = show(np.ascontiguousarray(TWELVE[:, 9:]), PhotometricInterpretation=photometric)
        assert np.array_equal(shown[:, 9:], bare)


def test_a_range_of_padding_is_left_out():
    padded = TWELVE.copy() + 100
    padded[:5] = np.arange(80) % 50
    shown = show(padded, PixelPaddingValue=0, PixelPaddingRangeLimit=60)
    assert not shown[:5].any()
    assert np.array_equal(shown[5:], show(np.ascontiguousarray(TWELVE[5:] + 100)))


def test_nothing_but_padding_is_black():
    assert not show(np.full((70, 70), 5, np.uint16), PixelPaddingValue=5).any()


def test_32_bit_values_are_stretched():
    wide = PICTURE.astype(np.uint32) * 16_000_000
    header = make_dicom(TWELVE)
    header.BitsStored = 32
    assert np.array_equal(stored_to_gray(wide, header), PICTURE)


def find_end(stored: np.ndarray, **tags) -> str | None:
    dataset = make_dicom(stored, BitsStored=12, **tags)
    return find_clipped_end(stored_to_gray(stored, dataset), stored, dataset)


def test_a_window_that_clips_most_pixels_is_found_at_either_end():
    low, high = {"WindowCenter": 100, "WindowWidth": 200}, {"WindowCenter": 3900, "WindowWidth": 200}
    assert (find_end(TWELVE, **low), find_end(TWELVE, **high)) == ("white", "black")
    assert find_end(TWELVE, **low, PhotometricInterpretation="MONOCHROME1") == "black"
    steep = make_table(0, np.minimum(np.arange(4096) * 40, 4095), 12)
    assert find_end(TWELVE, VOILUTSequence=[steep]) == "white"


def test_a_window_of_the_range_clips_nothing_whatever_the_border():
    bordered = np.pad(TWELVE, 100)  # most pixels are black in the file
    for tags in ({}, {"WindowCenter": 2048, "WindowWidth": 4096}, {"WindowCenter": 2048, "WindowWidth": 3000}):
        assert find_end(bordered, **tags) is None
    assert find_end(bordered // 2 + 5, WindowCenter=1900, WindowWidth=200, PixelPaddingValue=5) == "black"


def test_a_window_around_zero_is_a_window():
    signed = TWELVE.astype(np.int16) - 2048
    shown = show(signed, BitsStored=12, WindowCenter=0, WindowWidth=1000)
    assert not shown[signed < -501].any() and np.all(shown[signed > 500] == 255)
