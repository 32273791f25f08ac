"""Tests for findings.py."""

import logging

import pandas as pd
import pytest

from fastcxr.data.filters import filter_tables
from fastcxr.data.findings import (
    MAX_SHOWN_LABELS,
    count_findings,
    expand_label_lists,
    explode_labels,
    keep_single_labels,
    list_findings,
    list_shown_labels,
    make_finding_labels,
    parse_finding_columns,
    rename_findings,
    require_single_label,
    split_labels,
)
from fastcxr.errors import DataError

INDEX = pd.RangeIndex(2, 6, name="line")


@pytest.fixture
def rows() -> pd.DataFrame:
    """Rows with present, absent, uncertain and unknown findings, and one row that states that there is none."""
    cells = pd.DataFrame(
        {"Edema": ["1.0", "0", "-1.0", ""], "Mass": ["1", "", "0.0", ""], "Fracture": ["", "", "1", ""]}, INDEX
    )
    findings = parse_finding_columns(cells, cells.columns, "x.csv")
    no_finding = pd.Series([False, True, None, False], INDEX)
    labels = make_finding_labels(findings, no_finding)
    return findings.assign(label=labels, patient=["a", "a", "b", "c"])


def test_cells_of_a_finding_are_present_absent_uncertain_or_unknown(rows):
    assert rows["finding_Edema"].tolist() == [1, 0, -1, pd.NA]
    assert list_findings(rows) == ["Edema", "Mass", "Fracture"]
    assert rows["label"].tolist() == ["Edema|Mass", "No Finding", "Fracture", ""]


def test_another_value_is_an_error_with_its_line():
    table = pd.DataFrame({"Edema": ["1", "7"]}, pd.RangeIndex(2, 4, name="line"))
    with pytest.raises(DataError, match=r"1 cells of Edema are not 1, 0, -1 or blank: '7' \(line 3\)"):
        parse_finding_columns(table, ["Edema"], "x.csv")


def test_lists_of_labels_become_a_column_per_label():
    columns = expand_label_lists([["b", "a"], ["No Finding"], None, []], INDEX)
    assert columns.columns.tolist() == ["finding_a", "finding_b"]
    assert columns["finding_a"].tolist() == [1, 0, pd.NA, 0]


def test_the_columns_of_known_findings_are_kept_in_their_order():
    assert list_findings(expand_label_lists([["a"]], pd.RangeIndex(1), ["z", "a"])) == ["z", "a"]


def test_counts_state_the_four_values_and_the_patients(rows):
    assert count_findings(rows).loc["Edema"].tolist() == [1, 1, 0, 1, 1, 1]
    assert count_findings(rows).loc["Mass"].tolist() == [1, 1, 0, 0, 2, 1]


def test_a_renamed_finding_is_renamed_in_its_column_and_in_the_label(rows):
    renamed = rename_findings(rows, {"Mass": "Lump", "No Finding": "normal"})
    assert list_findings(renamed) == ["Edema", "Lump", "Fracture"]
    assert renamed["label"].tolist() == ["Edema|Lump", "normal", "Fracture", ""]


def test_findings_with_one_name_are_present_if_one_is_and_unknown_unless_both_are_known(rows):
    merged = rename_findings(rows, {"Mass": "Edema"})
    assert list_findings(merged) == ["Edema", "Fracture"]
    assert merged["finding_Edema"].tolist() == [1, pd.NA, -1, pd.NA]
    assert merged["label"].tolist()[0] == "Edema"


def test_chosen_classes_keep_the_images_with_exactly_one_of_them(rows, caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        kept = keep_single_labels(rows, ["Edema", "Mass", "No Finding", "Fracture"])
    assert kept["label"].tolist() == ["No Finding", "Fracture"]
    assert not list_findings(kept)
    assert kept.index.tolist() == [3, 4]
    assert "2 of 4 (1 have several of them, the others none)" in caplog.text
    assert keep_single_labels(rows, ["Edema", "No Finding"])["label"].tolist() == ["Edema", "No Finding"]


def test_a_renamed_finding_is_logged_with_its_present_images_and_a_lost_class_is_named(rows, caplog):
    rows = rows.assign(source="a")
    with caplog.at_level(logging.INFO, "fastcxr"):
        filter_tables([rows], relabel=("Mass=Lump",))
    assert "relabelled: Mass to Lump (1 present)" in caplog.text
    expected = r"Edema \(1 image\), Mass \(1 image\) never occur without another of the classes Edema, Mass, Fracture"
    with pytest.raises(DataError, match=expected) as caught:
        filter_tables([rows], classes=("Edema", "Mass", "Fracture"))
    assert caught.value.code == "E005"


def test_several_labels_stop_training_with_the_classes_to_choose(rows):
    with pytest.raises(DataError, match=r"3 findings: Edema \(1\).*`classes=\['No Finding', 'Edema'\]`") as caught:
        require_single_label(rows)
    assert caught.value.code == "E015"
    require_single_label(keep_single_labels(rows, ["Edema", "No Finding"]))


@pytest.mark.parametrize(("label", "names"), [("a|b", ["a", "b"]), ("", []), (None, []), (float("nan"), [])])
def test_a_label_is_split_into_its_findings(label, names):
    assert split_labels(label) == names


def test_an_image_has_a_row_for_each_of_its_labels(rows):
    exploded = explode_labels(rows)
    assert list(zip(exploded.index, exploded["label"], strict=True)) == [
        (2, "Edema"), (2, "Mass"), (3, "No Finding"), (4, "Fracture"),
    ]  # fmt: skip
    assert explode_labels(rows, ["Mass"])["label"].tolist() == ["Mass"]
    single = pd.DataFrame({"label": ["a|b", ""]})
    assert explode_labels(single) is single, "a class may contain the separator"


def test_no_finding_and_the_most_frequent_findings_are_shown(rows):
    assert list_shown_labels(rows) == ["No Finding", "Edema", "Fracture", "Mass"]
    many = pd.DataFrame({"label": [f"F{n:02d}|F{n % 3:02d}" for n in range(20)] + ["No Finding"], "finding_F00": 1})
    shown = list_shown_labels(many)
    assert len(shown) == MAX_SHOWN_LABELS and shown[:4] == ["No Finding", "F00", "F01", "F02"]
    assert list_shown_labels(pd.DataFrame({"label": [*"cab", ""]})) == ["a", "b", "c"]
