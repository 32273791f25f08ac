"""Tests of the comparison of two images."""

import numpy as np
import pytest
from PIL import Image
from public_datasets import write_image

from fastcxr.data.same_image import is_same_image


@pytest.fixture
def image(tmp_path) -> Image.Image:
    """A synthetic radiograph."""
    return Image.open(write_image(tmp_path / "1.png", 1))


def test_a_resized_image_is_the_same_image(image):
    assert is_same_image(np.asarray(image), np.asarray(image.resize((240, 200))))


def test_a_crop_is_the_same_image_only_with_cropped(image):
    whole, crop = np.asarray(image), np.asarray(image.crop((6, 4, 84, 70)).resize((120, 100)))
    assert not is_same_image(whole, crop)
    assert is_same_image(whole, crop, cropped=True)
    assert is_same_image(crop, whole, cropped=True)


def test_different_and_blank_images_are_not_the_same(image, tmp_path):
    other, blank = np.asarray(Image.open(write_image(tmp_path / "2.png", 2))), np.zeros((80, 96), np.uint8)
    for one in (other, blank):
        assert not is_same_image(np.asarray(image), one, cropped=True)
    assert not is_same_image(blank, blank, cropped=True)


def test_an_image_of_one_row_can_be_compared():
    line, square = np.arange(4000, dtype=np.uint8)[None], np.eye(64, dtype=np.uint8) * 255
    assert not is_same_image(line, square, cropped=True)
