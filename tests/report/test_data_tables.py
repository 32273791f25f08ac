"""Tests for data_tables.py and data_notices.py."""

import pandas as pd
import pytest
from synthetic_run import build_description, make_manifest

from fastcxr.report.data_tables import (
    describe_measured_images,
    make_file_rows,
    make_patient_table,
    make_split_table,
    make_tiles,
)
from fastcxr.report.notices import make_notices
from fastcxr.report.run_reader import read_dataset_record


def describe(folder, manifest, files=None):
    build_description(folder, manifest, thumbnails=False, run={"messages": []})
    if files is not None:
        columns = ["label", "kind", "width", "height", "images"]
        pd.DataFrame(files, columns=columns).to_csv(folder / "file_stats.csv", index=False)
    return read_dataset_record(folder)


def make_small_manifest(labels="aab", split="train", **columns):
    rows = {"source": "s", "path": [f"{i}.png" for i in range(len(labels))], "label": list(labels)}
    rows |= {"patient": [f"p{i}" for i in range(len(labels))], "patient_origin": "image"}
    return pd.DataFrame(rows).assign(**({"split": split, "split_origin": "given"} | columns))


def titles(record):
    return [notice.title for notice in make_notices(record, page="describe")]


def test_split_table_agrees_with_pandas_crosstab(tmp_path):
    manifest = make_manifest(n=300)
    table = make_split_table(describe(tmp_path, manifest))
    counts = pd.crosstab(manifest["label"], manifest["split"])
    for row in table["rows"]:
        images = dict(zip(table["splits"], (cell["images"] for cell in row["cells"]), strict=False))
        assert images == counts.loc[row["label"]].to_dict()
        assert row["cells"][-1]["patients"] == manifest.query("label == @row['label']")["patient"].nunique()
    assert table["total"][-1]["images"] == 300


def test_file_rows_have_formats_median_size_and_range(tmp_path):
    files = [("a", "JPEG", 300, 200, 2), ("a", "PNG", 100, 90, 1), ("a", "PNG", 900, 800, 1), ("b", "PNG", 10, 10, 9)]
    first, second = make_file_rows(describe(tmp_path, make_small_manifest(), files))
    assert (first["kinds"], first["size"], first["range"]) == ("JPEG 2, PNG 2", "300 × 200", "100 × 90 to 900 × 800")
    assert (second["kinds"], second["size"], second["range"]) == ("PNG", "10 × 10", "")
    assert first["sources"] == "", "a single source is not listed"


def test_the_number_of_measured_images_is_describe(tmp_path):
    assert describe_measured_images(describe(tmp_path / "1", make_small_manifest("aabb"))) == "2 of each class"
    assert describe_measured_images(describe(tmp_path / "2", make_small_manifest("aab"))) == "a 2 and b 1"


def test_classes_of_equal_size_have_no_smallest_class(tmp_path):
    assert ("Each class", "50.0 %", "2 images") in make_tiles(describe(tmp_path / "1", make_small_manifest("aabb")))
    assert ("Smallest class", "33.3 %", "b, 1 image") in make_tiles(
        describe(tmp_path / "2", make_small_manifest("aab"))
    )


def test_a_class_that_is_its_kind_of_file_is_critical(tmp_path):
    record = describe(tmp_path, make_small_manifest("aabb"), [("a", "JPEG", 9, 9, 2), ("b", "PNG", 9, 9, 2)])
    found = {
        notice.title: notice.text for notice in make_notices(record, page="describe") if notice.level == "critical"
    }
    assert list(found) == ["Shortcut: the file type predicts the class"]
    assert "of a (2 of 2 images) and b (2 of 2 images)." in found["Shortcut: the file type predicts the class"]


@pytest.mark.parametrize(("sources", "apart"), [("xxyyyy", "a"), ("xyxyzz", "c"), ("xxyzzz", "a")])
def test_only_classes_that_share_no_source_are_named(tmp_path, sources, apart):
    record = describe(tmp_path, make_small_manifest("aabbcc", source=list(sources)))
    text = next(
        notice.text
        for notice in make_notices(record, page="describe")
        if notice.title == "Shortcut: the source predicts the class"
    )
    assert f"of {apart} (2 of 2 images). A model may learn" in text


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([("a", 300, 200), ("a", 310, 200), ("b", 256, 256)], "a (2 of 2 images) and b (1 of 1 image)"),
        ([("a", 300, 200), ("a", 256, 256), ("b", 256, 256)], None),
        ([("a", 9, k) for k in range(40)] + [("a", 256, 256), ("b", 256, 256)], "a (40 of 41 images)"),
        ([("a", 300, 200), ("a", 310, 200), ("b", 256, 250), ("b", 250, 250)], None),
    ],
)
def test_a_size_that_only_one_class_has_is_reported(tmp_path, sizes, expected):
    files = [(label, "PNG", width, height, 1) for label, width, height in sizes]
    found = {
        notice.title: notice.text
        for notice in make_notices(describe(tmp_path, make_small_manifest("aabb"), files), page="describe")
    }
    assert expected is None or f"the image size of {expected}." in found["Shortcut: the image size predicts the class"]
    assert ("Shortcut: the image size predicts the class" in found) == (expected is not None)


def test_one_source_for_all_is_no_news(tmp_path):
    assert titles(describe(tmp_path, make_small_manifest("aabb"))) == []


def test_few_test_images_are_a_warning(tmp_path):
    manifest = make_small_manifest(
        "a" * 30 + "b" * 30, split=["test"] * 25 + ["train"] * 5 + ["test"] * 3 + ["train"] * 27
    )
    found = {notice.title: notice.text for notice in make_notices(describe(tmp_path, manifest), page="describe")}
    assert found["Few images of a class"].startswith("In the test split: b 3.")


def test_given_splits_are_not_called_drawn(tmp_path):
    given, drawn = (
        describe(tmp_path / "1", make_small_manifest()),
        describe(tmp_path / "2", make_small_manifest(split_origin="patient")),
    )
    assert "No split in the data" not in titles(given) and "No split in the data" in titles(drawn)


def test_the_patient_table_has_one_row_per_patient_class_and_split_with_the_first_known_age_and_sex():
    rows = [("p", "a", "train", "", "F"), ("p", "a", "train", "058Y", "F"), ("q", "b", "test", "400", "other")]
    table = pd.DataFrame(rows, columns=["patient", "label", "split", "Patient Age", "gender"])
    found = make_patient_table(table)
    assert found[["patient", "label", "split"]].to_numpy().tolist() == [["p", "a", "train"], ["q", "b", "test"]]
    assert found["age"].iloc[0] == 58 and found["sex"].iloc[0] == "female"
    assert found.loc[1, ["age", "sex"]].isna().all()
