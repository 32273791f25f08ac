"""Tests for table_columns.py."""

import logging
from pathlib import Path

import pytest
from toy_datasets import check_message

from fastcxr.data.readers.table_columns import find_role_columns, has_role
from fastcxr.errors import DataError, RecipeError

PATH = Path("own.csv")


def get_error(columns, options=(), kind=DataError) -> str:
    with pytest.raises(kind) as caught:
        find_role_columns(columns, PATH, options)
    return check_message(caught.value)


def test_columns_with_other_names_are_reported_in_one_line(caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    columns = ["Image Index", "Finding Labels", "PatientID", "Patient Gender", "Patient Age", "View Position", "x"]
    assert find_role_columns(columns, PATH) == {
        "path": "Image Index",
        "label": "Finding Labels",
        "patient": "PatientID",
        "sex": "Patient Gender",
        "age": "Patient Age",
        "view": "View Position",
    }
    assert [record.message for record in caplog.records] == [
        "own.csv: path from Image Index, label from Finding Labels, patient from PatientID, sex from Patient Gender, "
        "age from Patient Age, view from View Position"
    ]


@pytest.mark.parametrize(
    "name", ["path", "image", "image_id", "file_name", "filename", "Image Index", "image_path", "img"]
)
def test_the_usual_names_of_the_path_are_known(name):
    assert find_role_columns([name, "class"], PATH)["path"] == name
    assert has_role([name], "path")
    assert not has_role(["class"], "path")


def test_columns_with_the_names_of_the_manifest_are_not_reported(caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    assert find_role_columns(["Path", "label", "split"], PATH) == {"path": "Path", "label": "label", "split": "split"}
    assert caplog.records == []


def test_the_exact_name_takes_precedence():
    assert find_role_columns(["image", "path", "target", "label"], PATH) == {"path": "path", "label": "label"}


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (
            ["image", "img", "label"],
            "several columns may contain the path: 'image', 'img'. Rename the correct one to path",
        ),
        (["path", "class", "target"], "or pass `columns=['label=class']`"),
        (
            ["path", "label", "patient_id", "subject"],
            "several columns may contain the patient: 'patient_id', 'subject'",
        ),
    ],
)
def test_several_columns_for_one_role_are_an_error_that_names_the_option(columns, text):
    message = get_error(columns)
    assert message.startswith("FCX-E029 own.csv: ")
    assert text in message


def test_options_take_precedence_over_names():
    columns = ["image", "img", "label", "grade", "split"]
    chosen = find_role_columns(columns, PATH, ["path=img", "label = Grade"])
    assert chosen == {"path": "img", "label": "grade", "split": "split"}


def test_one_option_may_have_several_roles_separated_by_commas():
    columns = ["img", "a,b", "grade"]
    assert find_role_columns(columns, PATH, ["path=img,label=grade"]) == {"path": "img", "label": "grade"}
    assert find_role_columns(columns, PATH, ["path=img, label=a,b"]) == {"path": "img", "label": "a,b"}


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (["path"], "columns 'path' does not have the form role=column. Pass `columns=['path=image']`"),
        (["pathx=image"], "columns: no role is called 'pathx' (did you mean 'path'?). Choose from path, label"),
        (["path=imag"], "columns: no column is called 'imag' (did you mean 'image'?). Choose from image, x"),
        (["path=image", "path=x"], "columns: path is given twice. Give each role one column"),
        (["path=image", "label=image"], "columns: 'image' is given twice"),
    ],
)
def test_a_wrong_option_is_an_error(option, text):
    message = get_error(["image", "x"], option, RecipeError)
    assert message.startswith("FCX-E022: ")
    assert text in message
