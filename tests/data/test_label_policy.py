"""Policies for blank and uncertain labels of findings, and the truth that training and evaluation use."""

import numpy as np
import pandas as pd
import pytest

from fastcxr.data.findings import count_findings, keep_findings, list_findings
from fastcxr.data.label_policy import (
    BLANK_POLICIES,
    UNCERTAIN_POLICIES,
    LabelPolicy,
    apply_blank_policy,
    compute_truth,
    drop_unlearnable_findings,
    make_findings_from_classes,
    parse_policy,
    reject_unknown_findings,
)
from fastcxr.errors import DataError, RecipeError

NAN = np.nan


@pytest.fixture
def rows() -> pd.DataFrame:
    return pd.DataFrame({
        "label": ["Edema", "", "No Finding", ""],
        "split": ["train", "train", "train", "test"],
        "finding_Edema": pd.array([1, -1, None, -1], "Int8"),
        "finding_Mass": pd.array([None, 0, None, None], "Int8"),
        "finding_Support Devices": pd.array([None, None, None, 1], "Int8"),
    })  # fmt: skip


def test_entries_give_a_default_and_exceptions():
    policy = parse_policy(["positive", "Edema=ignore"], UNCERTAIN_POLICIES, "uncertain", "ignore")
    assert [policy.find(name) for name in ("Edema", "Mass")] == ["ignore", "positive"]
    assert parse_policy([], BLANK_POLICIES, "blank", "negative").find("Edema") == "negative"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["sometimes"], "uncertain is 'sometimes'.*ignore or positive or negative"),
        (["=ignore"], "uncertain is '=ignore'"),
        (["Edema=maybe"], "Edema=maybe"),
        (["Edema=ignore", "Edema=positive"], "two policies for Edema: ignore and positive"),
        (["ignore", "positive"], "two policies for all findings"),
    ],
)
def test_an_invalid_policy_is_rejected(entries, message):
    with pytest.raises(RecipeError, match=message):
        parse_policy(entries, UNCERTAIN_POLICIES, "uncertain", "ignore")


def test_a_policy_for_an_unknown_finding_names_a_similar_one():
    with pytest.raises(RecipeError, match="'Oedema', which the data does not have.*Edema"):
        reject_unknown_findings(LabelPolicy("ignore", {"Oedema": "positive"}), ["Edema", "Mass"], "uncertain")


def test_blank_labels_are_read_as_absent_and_stay_visible(rows):
    resolved = apply_blank_policy(rows, LabelPolicy("negative", {"Mass": "unknown"}))
    assert resolved["finding_Edema"].tolist() == [1, -1, -2, -1]
    # of Mass only that of the image without any finding
    assert resolved["finding_Mass"].tolist() == [pd.NA, 0, -2, pd.NA]
    assert count_findings(resolved).loc["Edema"].tolist() == [1, 0, 1, 2, 0, 0]


def test_no_finding_does_not_exclude_a_device(rows):
    resolved = apply_blank_policy(rows, LabelPolicy("unknown"))
    assert resolved["finding_Edema"].tolist() == [1, -1, -2, -1]
    assert resolved["finding_Support Devices"].tolist() == [pd.NA, pd.NA, pd.NA, 1]


@pytest.mark.parametrize(("policy", "expected"), [("ignore", NAN), ("positive", 1), ("negative", 0)])
def test_uncertain_labels_follow_the_policy_in_training_only(rows, policy, expected):
    truth = compute_truth(rows, ["Edema", "Hernia"], LabelPolicy(policy))
    np.testing.assert_array_equal(truth[:, 0], [1, expected, NAN, NAN])
    assert np.isnan(truth[:, 1]).all()
    assert np.isnan(compute_truth(rows.drop(columns="split"), ["Edema"], LabelPolicy(policy))[[1, 3], 0]).all()


def test_classes_become_findings_and_no_finding_their_absence():
    rows = make_findings_from_classes(pd.DataFrame({"label": ["Mass", "No Finding", "Edema"]}))
    assert rows["finding_Mass"].tolist() == [1, 0, 0]
    assert rows["label"].tolist() == ["Mass", "No Finding", "Edema"]
    assert "finding_No Finding" not in rows


def test_labels_that_were_read_with_another_policy_are_read_again(rows):
    absent = apply_blank_policy(rows, LabelPolicy("negative"))
    unknown = apply_blank_policy(absent, LabelPolicy("unknown"))
    pd.testing.assert_frame_equal(unknown, apply_blank_policy(rows, LabelPolicy("unknown")))


def test_findings_that_cannot_be_learned_are_left_out(rows, caplog):
    data = rows.assign(finding_Mass=pd.array([1, 0, None, None], "Int8"))
    assert drop_unlearnable_findings(data).filter(like="finding_").columns.tolist() == ["finding_Mass"]
    assert "findings left out, because no training image has them" in caplog.text
    assert "Edema and Support Devices" in caplog.text or "Edema, Support Devices" in caplog.text
    # the uncertain label of Edema in training counts as absent, and of all rows the device is present once
    kept = drop_unlearnable_findings(data, LabelPolicy("negative"))
    assert kept.filter(like="finding_").columns.tolist() == ["finding_Edema", "finding_Mass"]


def test_data_without_any_finding_to_learn_is_rejected(rows):
    with pytest.raises(DataError, match="no training image has a finding"):
        drop_unlearnable_findings(rows[["label", "split", "finding_Support Devices"]])


def test_chosen_findings_keep_their_columns_and_labels(rows):
    kept = keep_findings(rows, ["Edema"])
    assert list_findings(kept) == ["Edema"] and kept["label"].tolist() == ["Edema", "", "No Finding", ""]
    with pytest.raises(DataError, match="'Oedema'.*Edema"):
        keep_findings(rows, ["Oedema"])
