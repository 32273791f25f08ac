"""Errors: one line with code, path, problem and fix, and exit codes."""

import pickle

import pytest

from fastcxr.errors import (
    BadImagesError,
    DataError,
    ImageError,
    InputMissingError,
    OutputError,
    RecipeError,
    StorageError,
)


def test_an_error_has_code_path_problem_and_fix():
    error = ImageError("empty file (0 bytes)", "Copy it again", path="a/b.png", code="E101")
    assert str(error) == "FCX-E101 a/b.png: empty file (0 bytes). Copy it again"
    assert str(DataError("one class only", "Give two")) == "one class only. Give two"


def test_control_characters_in_a_path_are_escaped_and_letters_are_kept():
    error = ImageError("bad", "Repair it", path="a\n\x1b[2Jb/Ünïcode \\ 🫁.png")
    assert str(error) == "a\\n\\x1b[2Jb/Ünïcode \\ 🫁.png: bad. Repair it"


@pytest.mark.parametrize(
    ("error_class", "code"),
    [(RecipeError, 64), (DataError, 65), (InputMissingError, 66), (OutputError, 73), (StorageError, 74)],
)
def test_exit_codes_are_those_of_sysexits(error_class, code):
    assert error_class.exit_code == code


@pytest.mark.parametrize("error_class", [ImageError, InputMissingError, OutputError])
def test_errors_can_be_pickled(error_class):
    error = error_class("bad", "Repair it", path="a.png", code="E101")
    loaded = pickle.loads(pickle.dumps(error))  # noqa: S301  bytes from this test
    assert (type(loaded), str(loaded), loaded.path, loaded.code) == (error_class, str(error), "a.png", "E101")


def test_all_unreadable_images_are_listed_with_a_fix():
    error = BadImagesError([ImageError("bad", "Repair it", path=name) for name in ("a.png", "b.png")])
    assert str(error).splitlines()[:2] == ["a.png: bad. Repair it", "b.png: bad. Repair it"]
    assert "leave them out with `skip_bad=True`" in str(error)
