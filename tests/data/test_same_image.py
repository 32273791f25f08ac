"""Tests for same_image.py"""

import numpy as np
import pytest
from PIL import Image
from public_datasets import write_image

from fastcxr.data.same_image import is_same_image


@pytest.fixture
def image(tmp_path) -> Image.Image:
    """A drawn radiograph."""
    return Image.open(write_image(tmp_path / "1.png", 1))


def test_an_image_is_the_same_resized(image):
    assert is_same_image(np.asarray(image), np.asarray(image.resize((240, 200))))


def test_a_crop_is_the_same_image_where_crops_are_looked_for(image):
    whole, crop = np.asarray(image), np.asarray(image.crop((6, 4, 84, 70)).resize((120, 100)))
    assert not is_same_image(whole, crop)
    assert is_same_image(whole, crop, cropped=True)
    assert is_same_image(crop, whole, cropped=True)


def test_other_images_and_blank_ones_are_not_the_same(image, tmp_path):
    other, blank = np.asarray(Image.open(write_image(tmp_path / "2.png", 2))), np.zeros((80, 96), np.uint8)
    for one in (other, blank):
        assert not is_same_image(np.asarray(image), one, cropped=True)
    assert not is_same_image(blank, blank, cropped=True)


def test_the_shape_of_an_image_may_be_a_line():
    line, square = np.arange(4000, dtype=np.uint8)[None], np.eye(64, dtype=np.uint8) * 255
    assert not is_same_image(line, square, cropped=True)
