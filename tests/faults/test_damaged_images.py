"""Damaged images: a picture or an ImageError of one line, nothing else, and no memory to speak of."""

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

MOST_MEGABYTES = 300  # beyond what the process holds before the first mutant
PICTURES = arrays(np.uint8, (64, 64), elements=st.integers(0, 255)).filter(lambda picture: picture.std() > 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


def test_five_hundred_mutants_end_in_a_picture_or_an_image_error():
    # in a process of its own, whose peak of memory is theirs alone
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        found = process.submit(read_mutants, 500, 11).result()
    assert found["escaped"] == {}
    assert found["megabytes"] < MOST_MEGABYTES
    assert found["outcomes"]["read"] > 50
    assert {"E103", "E104", "E102"} <= set(found["outcomes"])


@given(PICTURES)
@settings(max_examples=25, deadline=None)
def test_monochrome1_is_the_inverse_of_monochrome2(folder, picture):
    two = save_dicom(folder / "two.dcm", make_dicom(picture))
    one = save_dicom(folder / "one.dcm", make_dicom(picture, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(read_image(one), 255 - read_image(two))


@given(PICTURES, st.sampled_from(["png", "tif"]))
@settings(max_examples=40, deadline=None)
def test_a_16_bit_picture_is_its_8_bit_twin(folder, picture, suffix):
    picture[0, 0] = 255  # no blank image
    deep = Image.fromarray(picture.astype(np.uint16) * 257)
    twin = read_image(save_image(picture, folder / f"eight.{suffix}"))
    np.testing.assert_array_equal(read_image(save_image(deep, folder / f"sixteen.{suffix}"), depth=16), twin)


@given(PICTURES, st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_turning_by_exif_changes_places_and_no_gray_level(folder, picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = read_image(save_image(picture, folder / "turned.png", exif=exif))
    np.testing.assert_array_equal(
        np.bincount(turned.ravel(), minlength=256), np.bincount(picture.ravel(), minlength=256)
    )


def test_a_disk_that_fails_under_a_file_costs_that_file(tmp_path):
    path = tmp_path / "a.png"
    path.symlink_to("/proc/self/mem")  # a regular file whose first byte cannot be read
    with pytest.raises(ImageError, match=r"cannot be read \(Input/output error\).*Check the disk"):
        read_image(path)
