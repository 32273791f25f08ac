"""An error is one line: code, place, what is wrong, what to do."""

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


def test_an_error_names_code_place_trouble_and_remedy():
    error = ImageError("empty file (0 bytes)", "Copy it again", path="a/b.png", code="E101")
    assert str(error) == "FCX-E101 a/b.png: empty file (0 bytes). Copy it again"
    assert str(DataError("one class only", "Give two")) == "one class only. Give two"


def test_control_characters_of_a_name_reach_no_terminal_and_letters_stay():
    error = ImageError("bad", "Mend it", path="a\n\x1b[2Jb/Ünïcode \\ 🫁.png")
    assert str(error) == "a\\n\\x1b[2Jb/Ünïcode \\ 🫁.png: bad. Mend it"


@pytest.mark.parametrize(
    ("kind", "code"),
    [(RecipeError, 64), (DataError, 65), (InputMissingError, 66), (OutputError, 73), (StorageError, 74)],
)
def test_exit_codes_are_those_of_sysexits(kind, code):
    assert kind.exit_code == code


@pytest.mark.parametrize("kind", [ImageError, InputMissingError, OutputError])
def test_errors_cross_process_borders(kind):
    error = kind("bad", "Mend it", path="a.png", code="E101")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
    assert (type(again), str(again), again.path, again.code) == (kind, str(error), "a.png", "E101")


def test_all_bad_images_are_listed_with_the_way_out():
    error = BadImagesError([ImageError("bad", "Mend it", path=name) for name in ("a.png", "b.png")])
    assert str(error).splitlines()[:2] == ["a.png: bad. Mend it", "b.png: bad. Mend it"]
    assert "leave them out with --skip-bad" in str(error)
