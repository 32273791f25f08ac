"""Tests for label_cells.py."""

from pathlib import Path

import pandas as pd
import pytest
from toy_datasets import check_message

from fastcxr.data.readers.label_cells import parse_label_cells
from fastcxr.errors import DataError, RecipeError


def parse(*cells: str, separator: str | None = None) -> pd.DataFrame:
    index = pd.RangeIndex(2, 2 + len(cells), name="line")
    return parse_label_cells(pd.Series(cells, index, dtype="str"), Path("own.csv"), separator)


def get_findings(labels: pd.DataFrame) -> dict[str, list]:
    names = [name for name in labels.columns if name != "label"]
    return {name.removeprefix("finding_"): [None if pd.isna(v) else v for v in labels[name]] for name in names}


def test_one_label_per_cell_stays_as_it_is():
    labels = parse("covid", "", "COVID/ARDS", "n/a")
    assert labels.columns.tolist() == ["label"]
    assert labels["label"].tolist() == ["covid", "", "COVID/ARDS", "n/a"]


@pytest.mark.parametrize(
    "cell",
    ["Edema|Mass", "['Edema', 'Mass']", '["Edema", "Mass"]', "['Edema' 'Mass']", "[Edema, Mass]", "('Edema', 'Mass')"],
)
def test_a_bar_and_lists_separate_labels(cell):
    labels = parse("No Finding", cell, "", "['Mass']")
    assert get_findings(labels) == {"Edema": [0, 1, None, 0], "Mass": [0, 1, None, 1]}
    assert labels["label"].tolist() == ["No Finding", "Edema|Mass", "", "Mass"]


def test_lists_of_one_label_are_one_label_per_image():
    assert parse("['normal']", '["covid"]', "[]")["label"].tolist() == ["normal", "covid", ""]


def test_lists_with_unusual_elements():
    assert parse(r"['C:\xyz']", '["it\'s"]', "[1]")["label"].tolist() == [r"C:\xyz", "it's", "1"]
    with pytest.raises(DataError, match="E015 .*has two readings"):
        parse("['Edema', nan]")


def test_normal_is_no_finding_beside_several_labels():
    labels = parse("['normal']", "['infiltrates', 'pneumonia']")
    assert get_findings(labels) == {"infiltrates": [0, 1], "pneumonia": [0, 1]}
    assert labels["label"].tolist() == ["No Finding", "infiltrates|pneumonia"]


@pytest.mark.parametrize("mark", [",", ";", "/", "+", "&"])
def test_other_marks_separate_if_each_part_is_the_label_of_another_cell(mark):
    labels = parse("Edema", f"Edema {mark} Mass", "Mass")
    assert get_findings(labels) == {"Edema": [1, 1, 0], "Mass": [0, 1, 1]}


@pytest.mark.parametrize("mark", [",", ";"])
def test_a_comma_with_two_readings_is_an_error_that_shows_both(mark):
    with pytest.raises(DataError) as caught:
        parse("No Finding", f"Infiltration{mark} Pneumonia", "Pneumonia")
    text = check_message(caught.value)
    assert text.startswith("FCX-E015 own.csv: a label has two readings: ")
    assert (
        f'one class called "Infiltration{mark} Pneumonia" or the findings Infiltration and Pneumonia (line 3)' in text
    )
    assert f"Pass `label_separator='{mark}'` for findings, or `label_separator='none'` for one class per cell" in text


def test_the_error_joins_more_than_two_parts():
    with pytest.raises(DataError, match="or the findings A, B and C "):
        parse("A, B, C")


def test_a_comma_beside_a_bar_has_two_readings_too():
    with pytest.raises(DataError, match='one class called "Pneumonia, viral"'):
        parse("Edema|Mass", "Pneumonia, viral|Edema")
    labels = parse("['Edema', 'Mass']", "['Pneumonia, viral']")  # quotes end each name
    assert list(get_findings(labels)) == ["Edema", "Mass", "Pneumonia, viral"]


def test_the_user_decides_by_the_separator():
    cells = ("No Finding", "Infiltration, Pneumonia", "")
    labels = parse(*cells, separator=",")
    assert get_findings(labels) == {"Infiltration": [0, 1, None], "Pneumonia": [0, 1, None]}
    assert parse(*cells, separator="none")["label"].tolist() == list(cells)
    assert parse("Pneumonia, viral", "Edema; Mass", separator=";")["label"].tolist() == [
        "Pneumonia, viral",
        "Edema|Mass",
    ]
    assert parse("A|B", "['C']", separator="none")["label"].tolist() == ["A|B", "['C']"]


def test_a_repeated_label_and_a_last_separator_are_one_label():
    assert parse("Edema|Edema", "Mass;", "Mass")["label"].tolist() == ["Edema", "Mass;", "Mass"]


def test_an_empty_separator_is_an_error():
    with pytest.raises(RecipeError, match="E022: label_separator is empty. Pass a character"):
        parse("a", separator="")


def test_whole_numbers_are_one_class_however_they_are_written():
    assert parse("0", "0.0", "1", "1.0", "1.", "")["label"].tolist() == ["0", "0", "1", "1", "1", ""]
    assert get_findings(parse("1.0|2", "1", "normal")) == {"1": [1, 1, 0], "2": [1, 0, 0]}
    assert parse("1.0", "1.5")["label"].tolist() == ["1.0", "1.5"]


@pytest.mark.parametrize(
    "cells", [("[1, 0]", "[0, 0]"), ("[1. 0.]", "[0. 1.]"), ("(0, 1)", ""), ("1|0", "0|1"), ("1 0", "0 1")]
)
def test_vectors_of_0_and_1_have_no_names(cells):
    with pytest.raises(DataError) as caught:
        parse(*cells)
    text = check_message(caught.value)
    assert f"FCX-E015 own.csv: the labels are vectors of 0 and 1 without names: {cells[0]!r} (line" in text
    assert "Write one column of 0 and 1 per finding, with its name" in text
    assert "finding_3" in parse("[0, 3]", "[1]")


def test_a_finding_with_normal_is_a_warning_with_its_lines(caplog):
    labels = parse("Edema", "Edema|Normal", "No Finding|Support Devices", "healthy")
    assert labels["label"].tolist() == ["Edema", "No Finding|Edema", "No Finding|Support Devices", "No Finding"]
    text = "own.csv: 1 row with a finding and a label such as No Finding or Normal (line 3)"
    assert [record.message for record in caplog.records] == [text]
