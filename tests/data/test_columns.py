"""Tests of the columns that a manifest contains."""

import logging

import pandas as pd
import pytest
from toy_datasets import check_message, write_file, write_two_classes

from fastcxr.config.recipe import Recipe
from fastcxr.data.columns import find_privacy_risk
from fastcxr.data.manifest import MANIFEST_COLUMNS, read_manifest
from fastcxr.errors import RecipeError

HEADER = "path,label,Patient ID,Patient_Gender,age,view position,scanner,clinical_notes,Birth Date,accession"
NOTE = "61 year old man with cough for nine days after travel"


@pytest.fixture
def table(tmp_path):
    """A table with demographics, notes, a birth date and identifiers."""
    write_two_classes(tmp_path)
    paths = ("covid/a.png", "covid/b.png", "normal/c.png", "normal/d.png")
    lines = [f"{path},{path[0]},{k},F,6{k},PA,s{k % 2},{NOTE},1961-03-0{k},A{k}" for k, path in enumerate(paths, 1)]
    return write_file(tmp_path / "mine.csv", "\n".join([HEADER, *lines]) + "\n")


def catch_error(data, *names: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read_manifest(data, keep_columns=names)
    return check_message(caught.value)


def test_a_manifest_contains_only_the_schema_and_demographic_columns(table):
    assert read_manifest(table).columns.tolist() == [
        *MANIFEST_COLUMNS,
        "sex",
        "age",
        "view",
        "file",
    ]


def test_a_column_to_keep_is_found_regardless_of_case_and_blanks(table):
    manifest = read_manifest(table, keep_columns=["Scan ner", "age"])
    assert manifest.columns.tolist() == [*MANIFEST_COLUMNS, "sex", "age", "view", "scanner", "file"]
    assert manifest["scanner"].tolist() == ["s1", "s0", "s1", "s0"]


def test_filters_use_columns_that_are_not_kept_and_messages_do_not_quote_free_text(table, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    write_file(table, table.read_text().replace(NOTE, "", 1))
    assert len(read_manifest(table, filter=["scanner=s1,s0", "clinical_notes="], only_test=True)) == 1
    assert "left out by clinical_notes: (3 images)" in caplog.text
    assert "cough" not in caplog.text


def test_an_unknown_column_to_keep_is_rejected_with_a_suggestion(table):
    text = catch_error(table, "scaner")
    assert (
        "keep_columns: no column is called 'scaner' (did you mean 'scanner'?). Choose from path, label, patient, sex"
        in text
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("clinical notes", "the column 'clinical_notes' may contain free text, judging by its name. Leave out"),
        ("birthdate", "the column 'Birth Date' may contain a birth date, judging by its name"),
        ("accession", "the column 'accession' may contain an identifier of a person, judging by its name"),
    ],
)
def test_a_column_that_may_identify_a_person_is_rejected_with_the_reason(table, name, why):
    assert why in catch_error(table, name)


@pytest.mark.parametrize(
    "name",
    ["notes", "Clinical Notes", "other_notes", "Comment", "report", "finding_text", "Free Text", "PatientName", "name",
     "date of birth", "DOB", "Address", "e-mail", "subject id", "patient_id", "MRN", "Referring Physician"],
)  # fmt: skip
def test_column_names_that_suggest_personal_data_are_recognized(name):
    assert find_privacy_risk(name, pd.Series(["x", "x"]))


@pytest.mark.parametrize("name", ["scanner", "modality", "kVp", "texture", "survival", "model name", "bit_depth"])
def test_other_column_names_are_accepted(name):
    assert find_privacy_risk(name, pd.Series(["x", "x"])) is None


def test_free_text_and_identifiers_are_recognized_by_the_cells():
    rows = range(20)
    assert find_privacy_risk("extra", pd.Series([NOTE, "", "", ""])) == (
        "may contain free text: it has cells of more than 40 characters"
    )
    for cells in ([f"Doe, J{k}" for k in rows], [f"{k + 10**6}" for k in rows], [f"1961-03-{k:02d}" for k in rows]):
        why = find_privacy_risk("extra", pd.Series(cells))
        assert why == "may contain an identifier: almost every row has a different value"
    for cells in ([f"{k / 7:.4f}" for k in rows], [str(k) for k in rows], ["AP", "PA"] * 10, [None] * 20):
        assert find_privacy_risk("extra", pd.Series(cells, dtype="object")) is None


def test_a_recipe_splits_columns_to_keep_at_commas():
    assert Recipe(keep_columns=("a, b", "c")).keep_columns == ("a", "b", "c")
    with pytest.raises(RecipeError, match="keep_columns is 'scanner', it must be a tuple, as \\('scanner',\\)"):
        Recipe(keep_columns="scanner")
