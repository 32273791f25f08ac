"""What tests of the store of pictures ask of it."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np

from fastcxr.data.cache.quota import shelf_folder
from fastcxr.data.imaging.read import fit_square, read_image

SIZE = 32
COUNT = 6  # of the files in the fixture `files`


def assert_right(pictures, files, size=SIZE):
    squares = pictures.read(range(len(files)))
    assert squares.dtype == np.uint8 and squares.shape == (len(files), size, size)
    for square, file in zip(squares, files, strict=True):
        assert np.array_equal(square, fit_square(read_image(file), size)), file


def ask(folder: Path, question: str) -> list:
    with closing(sqlite3.connect(folder / "index.sqlite")) as base:
        return base.execute(question).fetchall()


def count_squares(size=SIZE) -> int:
    return ask(shelf_folder(size), "SELECT count(*) FROM squares")[0][0]


def flip(slot: int, size=SIZE) -> None:
    with (shelf_folder(size) / "squares").open("r+b") as file:
        file.seek(slot * size**2 + 100)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
