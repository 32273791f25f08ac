"""Helpers for tests of the image cache."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np

from fastcxr.data.cache import image_file
from fastcxr.data.cache.quota import find_store_dir
from fastcxr.data.imaging.read import fit_square, read_image

SIZE = 32
COUNT = 6  # of the files in the fixture `files`


def assert_images_match_files(image_cache, files, size=SIZE):
    images = image_cache.read(range(len(files)))
    assert images.dtype == np.uint8 and images.shape == (len(files), size, size)
    for image, file in zip(images, files, strict=True):
        assert np.array_equal(image, fit_square(read_image(file), size)), file


def query_index(folder: Path, query: str) -> list:
    with closing(sqlite3.connect(folder / "index.sqlite")) as connection:
        return connection.execute(query).fetchall()


def count_stored_images(size=SIZE) -> int:
    return query_index(find_store_dir(size), "SELECT count(*) FROM images")[0][0]


def flip_byte(slot: int, size=SIZE) -> None:
    number, place = divmod(slot, image_file.count_file_slots(size))
    with (find_store_dir(size) / image_file.name_image_file(number)).open("r+b") as file:
        file.seek(place * size**2 + 100)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
