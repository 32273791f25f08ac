"""Files, folders, and images and files in memory become one table, and read_image reads each of its rows."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mutated_files import draw_mutants, write_kinds
from PIL import Image
from toy_images import draw_toy

from fastcxr.data.image_table import make_image_table
from fastcxr.data.imaging.memory import FileInMemory
from fastcxr.data.imaging.read import read_image, read_with_remarks
from fastcxr.errors import ArgumentTypeError, DataError, ImageError, InputMissingError

GRAY = draw_toy("haze", 0)


def read_one(image, depth: int | None = None) -> np.ndarray:
    return read_image(make_image_table(image)["file"].iloc[0], depth)


def test_a_single_path_is_one_image_and_not_a_sequence_of_letters(toy_manifest):
    file = toy_manifest["file"][0]
    table = make_image_table(file)
    assert table["file"].tolist() == [file]
    assert table["path"].tolist() == [file.rpartition("/")[2]]


def test_a_file_whose_name_is_not_utf8_is_an_error_with_its_fix(tmp_path):
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.png"))
    Image.fromarray(GRAY).save(file)
    with pytest.raises(DataError, match=r"not UTF-8: b'.*/\\xe9\.png'\. Rename the files"):
        make_image_table(file)


def test_a_folder_given_as_text_lists_the_files_below_it(toy_folder, toy_manifest):
    assert sorted(make_image_table(str(toy_folder))["path"]) == sorted(toy_manifest["path"])


def test_arrays_and_pillow_images_have_a_name_and_keep_their_position(toy_manifest):
    file = toy_manifest["file"][0]
    opened, made = Image.open(file), Image.fromarray(GRAY)
    table = make_image_table([GRAY, file, opened, made])
    name = opened.filename.rpartition("/")[2]
    assert table["path"].tolist() == ["array-0", f"clear/{name}", name, "image-3"]
    for row, expected in enumerate([GRAY, read_image(file), read_image(file), GRAY]):
        np.testing.assert_array_equal(read_image(table["file"][row]), expected)


@pytest.mark.parametrize(
    "pixels",
    [GRAY, GRAY.astype(np.uint16) * 257, GRAY.astype(np.float32) / 255, GRAY.astype(float), GRAY.astype(np.int64)],
    ids=["uint8", "uint16", "fraction", "float", "int64"],
)
def test_the_range_of_an_array_is_scaled_to_bytes(pixels):
    np.testing.assert_array_equal(read_one(pixels), GRAY)


def test_an_array_of_twelve_bits_is_read_with_the_depth_of_its_source():
    deep = GRAY.astype(np.uint16) * 4
    assert read_one(deep, 12).max() == round(int(deep.max()) * 255 / 4095)
    np.testing.assert_array_equal(read_one(deep, 10), read_one(deep))


def test_a_pillow_image_is_read_as_its_file_is(tmp_path):
    deep = Image.fromarray(GRAY.astype(np.uint16) * 16)
    colour = Image.merge("RGB", [Image.fromarray(GRAY)] * 3)
    turned = Image.fromarray(GRAY)
    turned.getexif()[274] = 6
    for image, name in ((deep, "deep.png"), (colour, "colour.png"), (turned, "turned.png")):
        image.save(tmp_path / name, exif=image.getexif())
        np.testing.assert_array_equal(read_one(image), read_image(tmp_path / name))
        np.testing.assert_array_equal(read_one(Image.open(tmp_path / name)), read_image(tmp_path / name))


def read_or_describe(image, depth):
    try:
        pixels, remarks = read_with_remarks(image, depth)
        return pixels.tobytes(), pixels.shape, remarks
    except ImageError as error:
        return error.code, error.problem, error.fix


@pytest.mark.parametrize("depth", [None, 12])
def test_a_file_in_memory_is_read_as_the_file_is(tmp_path, depth):
    (tmp_path / "mutants").mkdir()
    (tmp_path / "empty.png").touch()
    Image.fromarray(GRAY).save(tmp_path / "wrong.dcm", "PNG")  # E121: the name of a DICOM file
    others = [tmp_path / "empty.png", tmp_path / "wrong.dcm"]
    outcomes = set()
    for file in [*write_kinds(tmp_path), *others, *draw_mutants(tmp_path / "mutants", 40, seed=1)]:
        in_memory = FileInMemory(file.name, file.read_bytes())
        assert read_or_describe(in_memory, depth) == (found := read_or_describe(file, depth))
        outcomes.add(found[0] if isinstance(found[0], str) else "read")
    assert {"read", "E101", "E121"} < outcomes


def test_files_in_memory_are_rows_with_their_names_also_if_these_are_equal():
    files = [FileInMemory("a.png", b"1"), FileInMemory("a.png", b"1"), FileInMemory("cohort.h5#3", b"2")]
    table = make_image_table(files)
    assert table["path"].tolist() == ["a.png", "a.png", "cohort.h5#3"] and set(table["source"]) == {"memory"}
    assert table["file"].tolist() == files


def test_the_content_of_a_file_in_memory_must_be_bytes():
    with pytest.raises(ArgumentTypeError, match=r"`content` is of type str, expected bytes. Pass the bytes"):
        FileInMemory("a.png", "content")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((64, 64, 3), np.uint8), r"array-0 has the shape \(64, 64, 3\), expected .* PIL.Image.fromarray"),
        ([GRAY, GRAY > 9], "array-1 has the type bool, expected integers or floats. Convert it"),
        (7, "image 0 is 7, expected a path, a gray array, a Pillow image or a FileInMemory. Pass one of them"),
        (pd.DataFrame({"path": ["a.png"]}), r"no column 'source', 'file'. Pass read_manifest\(table\)"),
    ],
)
def test_another_input_is_an_error_with_the_fix(images, message):
    with pytest.raises(DataError, match=message):
        make_image_table(images)


def test_no_image_is_an_error(tmp_path):
    for images in ([], tmp_path):
        with pytest.raises(InputMissingError, match="0 images in .*Pass images, or folders of images"):
            make_image_table(images)


@pytest.mark.parametrize(("fill", "code"), [(np.nan, "E106"), (0.5, "E111")])
def test_an_array_without_an_image_is_an_image_error(fill, code):
    with pytest.raises(ImageError, match=f"FCX-{code} array-0"):
        read_one(np.full((64, 64), fill))


def test_a_truncated_pillow_image_is_an_image_error(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:900])
    with pytest.raises(ImageError, match="FCX-E104 a.png: the data of this Pillow image is corrupt"):
        read_one(Image.open(tmp_path / "a.png"))


def test_paths_that_do_not_exist_are_named_before_an_image_is_read(tmp_path, toy_manifest):
    missing = [tmp_path / name for name in ("b.png", "c.png", "d.png", "e.png", "no.h5#3")]
    with pytest.raises(InputMissingError) as caught:
        make_image_table([toy_manifest["file"][0], *missing])
    names = ", ".join(map(str, missing[:3]))
    assert f"5 of 6 paths do not exist: {names} and 2 more. Correct these paths, or leave them out" in str(caught.value)
    with pytest.raises(InputMissingError, match="5 of 6 paths do not exist: first number 2. Correct"):
        make_image_table([toy_manifest["file"][0], *missing], log_names=False)


def test_one_missing_path_is_named_with_a_similar_name(tmp_path):
    (tmp_path / "image1.png").write_bytes(b"")
    with pytest.raises(InputMissingError, match=r"imag1.png: no such file or folder \(did you mean '.*image1.png'"):
        make_image_table(tmp_path / "imag1.png")


def test_a_link_without_a_target_keeps_its_row(tmp_path):
    (tmp_path / "link.png").symlink_to("gone.png")
    assert make_image_table(tmp_path / "link.png")["path"].tolist() == ["link.png"]
