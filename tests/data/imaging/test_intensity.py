"""Tests for intensity.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fastcxr.data.imaging.intensity import (
    apply_lookup_table,
    find_full_range,
    floats_to_gray,
    integers_to_gray,
    rescale_to_uint8,
    validate_size,
)
from fastcxr.errors import ImageError

IMAGES = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(IMAGES)
def test_a_16_bit_version_of_an_image_is_equal(image):
    assert np.array_equal(integers_to_gray(image.astype(np.uint16) * 257, 16), image)


@given(IMAGES)
def test_8_bit_values_in_a_16_bit_array_are_unchanged(image):
    assert np.array_equal(integers_to_gray(image.astype(np.uint16)), image)


@given(IMAGES, st.sampled_from(["<u2", ">u2", "<i4"]))
def test_the_order_of_gray_levels_is_preserved_for_all_integer_types(image, dtype):
    gray = integers_to_gray((image.astype(np.int64) * 200).astype(dtype))
    order = np.argsort(image.ravel(), kind="stable")
    assert np.all(np.diff(gray.ravel()[order].astype(int)) >= 0)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_full_range_of_each_usual_depth_becomes_0_to_255(bits):
    full = 2**bits - 1
    assert integers_to_gray(np.array([[0, full // 2, full]], np.uint16)).tolist() == [
        [0, (full // 2 * 255 + full // 2) // full, 255]
    ]
    assert find_full_range(full) == full


def test_negative_and_larger_integers_are_scaled_from_minimum_to_maximum():
    assert integers_to_gray(np.array([[-1000, 0, 1000]], np.int32)).tolist() == [[0, 128, 255]]
    assert integers_to_gray(np.array([[0, 2**31]], np.uint32)).tolist() == [[0, 255]]


def test_floats_are_scaled_by_their_range():
    assert floats_to_gray(np.array([[0, 0.2, 1]], np.float32)).tolist() == [[0, 51, 255]]
    assert floats_to_gray(np.array([[0, 51.2, 255]], np.float32)).tolist() == [[0, 51, 255]]
    assert floats_to_gray(np.array([[-1, 0, 1]], np.float32)).tolist() == [[0, 128, 255]]
    assert floats_to_gray(np.array([[-3e38, 3e38]], np.float32)).tolist() == [[0, 255]]


def test_rescaling_a_constant_image_returns_black():
    assert not rescale_to_uint8(np.full((3, 3), 7.0), 7, 7).any()


def test_a_lookup_table_clips_values_outside():
    table = np.array([10, 20, 30], np.uint8)
    assert apply_lookup_table(np.array([[-300, 4, 5, 6, 999]], np.int16), table, first=4).tolist() == [
        [10, 10, 20, 30, 30]
    ]


@pytest.mark.parametrize(
    ("width", "height", "code", "text"),
    [
        (9000, 9000, "E109", "81 MP, over the limit of 64 MP. Save it smaller"),
        (63, 100, "E110", "too small, expected at least 64 on the shorter side. Use the original radiograph"),
        (1, 5000, "E110", "Use the original radiograph"),
        (64, 257, "E110", "too elongated, expected an aspect ratio of at most 4. Use the whole radiograph"),
    ],
)
def test_sizes_outside_the_limits_are_refused(width, height, code, text):
    with pytest.raises(ImageError) as caught:
        validate_size("a.png", width, height)
    assert caught.value.code == code
    assert text in str(caught.value)


def test_sizes_at_the_limits_are_accepted():
    validate_size("a.png", 64, 256)
    validate_size("a.png", 8000, 8000)
