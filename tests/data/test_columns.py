"""Tests for columns.py: which columns of the data reach a manifest"""

import logging

import pandas as pd
import pytest
from toy_datasets import check_message, write_file, write_two_classes

from fastcxr.config.recipe import Recipe
from fastcxr.data.columns import find_privacy_risk
from fastcxr.data.manifest import MANIFEST_COLUMNS, read_manifest
from fastcxr.errors import RecipeError

HEADER = "path,label,Patient ID,Patient_Gender,age,view position,scanner,clinical_notes,Birth Date,accession"
NOTE = "a man of 61 who coughed for nine days after a journey"


@pytest.fixture
def table(tmp_path):
    """A table with columns of every kind."""
    write_two_classes(tmp_path)
    paths = ("covid/a.png", "covid/b.png", "normal/c.png", "normal/d.png")
    lines = [f"{path},{path[0]},{k},F,6{k},PA,s{k % 2},{NOTE},1961-03-0{k},A{k}" for k, path in enumerate(paths, 1)]
    return write_file(tmp_path / "mine.csv", "\n".join([HEADER, *lines]) + "\n")


def refuse(data, *names: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read_manifest(data, keep_columns=names)
    return check_message(caught.value)


def test_a_manifest_holds_the_columns_that_reports_use_and_no_others(table):
    assert read_manifest(table).columns.tolist() == [
        *MANIFEST_COLUMNS,
        "Patient_Gender",
        "age",
        "view position",
        "file",
    ]


def test_a_column_is_kept_by_its_name_whatever_its_case_and_blanks(table):
    manifest = read_manifest(table, keep_columns=["Scan ner", "age"])
    assert manifest.columns.tolist() == [*MANIFEST_COLUMNS, "Patient_Gender", "age", "view position", "scanner", "file"]
    assert manifest["scanner"].tolist() == ["s1", "s0", "s1", "s0"]


def test_rows_are_chosen_by_columns_that_are_not_kept_and_no_message_quotes_their_text(table, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    write_file(table, table.read_text().replace(NOTE, "", 1))
    assert len(read_manifest(table, filter=["scanner=s1,s0", "clinical_notes="], only_test=True)) == 1
    assert "left out by clinical_notes: (3 images)" in caplog.text
    assert "coughed" not in caplog.text


def test_a_column_that_is_not_there_is_refused_with_the_nearest(table):
    text = refuse(table, "scaner")
    assert "keep_columns: no column is called 'scaner' (did you mean 'scanner'?). There are path, label" in text


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("clinical notes", "the column 'clinical_notes' looks like free text by its name. Leave it out"),
        ("birthdate", "the column 'Birth Date' looks like a birth date by its name"),
        ("accession", "the column 'accession' looks like an identifier of a person by its name"),
    ],
)
def test_a_column_about_a_person_is_refused_with_the_reason(table, name, why):
    assert why in refuse(table, name)


@pytest.mark.parametrize(
    "name",
    ["notes", "Clinical Notes", "other_notes", "Comment", "report", "finding_text", "Free Text", "PatientName", "name",
     "date of birth", "DOB", "Address", "e-mail", "subject id", "patient_id", "MRN", "Referring Physician"],
)  # fmt: skip
def test_names_of_columns_about_people_are_known(name):
    assert find_privacy_risk(name, pd.Series(["x", "x"]))


@pytest.mark.parametrize("name", ["scanner", "modality", "kVp", "texture", "survival", "model name", "bit_depth"])
def test_other_names_are_no_reason(name):
    assert find_privacy_risk(name, pd.Series(["x", "x"])) is None


def test_cells_show_what_a_name_hides():
    many = range(20)
    assert find_privacy_risk("extra", pd.Series([NOTE, "", "", ""])) == (
        "looks like free text: it has cells of more than 40 characters"
    )
    for cells in ([f"Doe, J{k}" for k in many], [f"{k + 10**6}" for k in many], [f"1961-03-{k:02d}" for k in many]):
        why = find_privacy_risk("extra", pd.Series(cells))
        assert why == "looks like an identifier: almost every row has another value"
    for cells in ([f"{k / 7:.4f}" for k in many], [str(k) for k in many], ["AP", "PA"] * 10, [None] * 20):
        assert find_privacy_risk("extra", pd.Series(cells, dtype="object")) is None


def test_commas_part_the_columns_of_a_recipe():
    assert Recipe(keep_columns=("a, b", "c")).keep_columns == ("a", "b", "c")
    with pytest.raises(RecipeError, match="keep_columns is 'scanner', it must be tuple"):
        Recipe(keep_columns="scanner")
