"""Tests of damaged images: each yields an image or a one-line ImageError, within a memory limit."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mutated_files import read_mutants
from PIL import Image
from sample_images import make_dicom, save_dicom, save_image

from fastcxr.data.imaging.read import read_image
from fastcxr.errors import ImageError

MAX_MEGABYTES = 300  # in addition to the memory before the first file
IMAGES = arrays(np.uint8, (64, 64), elements=st.integers(0, 255)).filter(lambda image: image.std() > 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


def test_500_mutated_files_yield_an_image_or_an_image_error():
    # a new process: its peak memory includes no other test
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        found = process.submit(read_mutants, 500, 11).result()
    assert found["escaped"] == {}
    assert found["megabytes"] < MAX_MEGABYTES
    assert found["outcomes"]["read"] > 50
    assert {"E103", "E104", "E102"} <= set(found["outcomes"])


@given(IMAGES)
@settings(max_examples=25, deadline=None)
def test_monochrome1_is_the_inverse_of_monochrome2(folder, image):
    two = save_dicom(folder / "two.dcm", make_dicom(image))
    one = save_dicom(folder / "one.dcm", make_dicom(image, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(read_image(one), 255 - read_image(two))


@given(IMAGES, st.sampled_from(["png", "tif"]))
@settings(max_examples=40, deadline=None)
def test_a_16_bit_image_equals_the_same_8_bit_image(folder, image, suffix):
    image[0, 0] = 255  # a blank image is an error
    deep = Image.fromarray(image.astype(np.uint16) * 257)
    expected = read_image(save_image(image, folder / f"eight.{suffix}"))
    np.testing.assert_array_equal(read_image(save_image(deep, folder / f"sixteen.{suffix}"), depth=16), expected)


@given(IMAGES, st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_exif_rotation_keeps_the_histogram(folder, image, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    rotated = read_image(save_image(image, folder / "rotated.png", exif=exif))
    np.testing.assert_array_equal(
        np.bincount(rotated.ravel(), minlength=256), np.bincount(image.ravel(), minlength=256)
    )


def test_a_read_error_of_the_disk_is_an_image_error(tmp_path):
    path = tmp_path / "a.png"
    path.symlink_to("/proc/self/mem")  # a regular file whose first byte cannot be read
    with pytest.raises(ImageError, match=r"cannot be read \(Input/output error\).*Check the disk"):
        read_image(path)
