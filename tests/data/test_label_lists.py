"""Tests for expand_label_lists in findings.py."""

import pandas as pd

from fastcxr.data.findings import expand_label_lists


def test_listed_labels_are_1_others_0_and_unknown_rows_missing():
    labels = [["Edema", "Mass", "Edema"], [], None, ["No Finding"]]
    expected = pd.DataFrame({"finding_Edema": [1, 0, pd.NA, 0], "finding_Mass": [1, 0, pd.NA, 0]}, dtype="Int8")
    rows = expand_label_lists(labels, pd.Index([3, 5, 7, 9], name="line"))
    pd.testing.assert_frame_equal(rows.reset_index(drop=True), expected)
    assert rows.index.tolist() == [3, 5, 7, 9]


def test_given_findings_are_the_columns_in_their_order():
    rows = expand_label_lists([["Edema"], ["Hernia"]], pd.RangeIndex(2), ["Mass", "Edema"])
    assert rows.to_dict("list") == {"finding_Mass": [0, 0], "finding_Edema": [1, 0]}


def test_columns_do_not_share_their_missing_values():
    rows = expand_label_lists([None, ["Edema"]], pd.RangeIndex(2), ["Mass", "Edema"])
    rows.loc[0, "finding_Mass"] = 1
    assert rows["finding_Edema"].isna().tolist() == [True, False]
