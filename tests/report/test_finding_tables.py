"""Tests for finding_tables.py and the page of a dataset with several labels per image."""

import json
import sys

import pandas as pd
import pytest
from html_page import Page
from rich.console import Console
from synthetic_run import write_histograms, write_thumbnails

from fastcxr.cli.tables import show_dataset
from fastcxr.data.findings import explode_labels, list_shown_labels
from fastcxr.data.manifest_file import write_manifest
from fastcxr.data.statistics import sample_per_class
from fastcxr.errors import DataError
from fastcxr.report.data_tables import make_class_images, make_file_rows
from fastcxr.report.finding_tables import MAX_ROWS, make_finding_context, make_finding_table, select_classes
from fastcxr.report.notices import make_notices
from fastcxr.report.pages import write_dataset_page
from fastcxr.report.run_reader import read_dataset_record

# label, split, values of Edema, Mass and Nodule
IMAGES = [
    ("Edema|Mass", "train", 1, 1, 0),
    ("Edema", "train", 1, 0, None),
    ("Edema", "test", 1, -1, 0),
    ("Mass", "valid", 0, 1, 0),
    ("No Finding", "train", 0, 0, 0),
    ("No Finding", "test", 0, 0, 0),
    ("", "train", -1, None, None),
]


def make_rows(images=IMAGES) -> pd.DataFrame:
    """Return a manifest; the first two images are of one patient."""
    table = pd.DataFrame(images, columns=["label", "split", "finding_Edema", "finding_Mass", "finding_Nodule"])
    findings = table.filter(like="finding_").astype("Int8")
    rows = pd.DataFrame({"source": "s", "path": [f"{n}.png" for n in range(len(table))], "label": table["label"]})
    return rows.assign(
        patient=["p0", *(f"p{n}" for n in range(len(table) - 1))],
        patient_origin="column",
        split=table["split"],
        split_origin="given",
        **findings,
    )


def make_many(n_findings: int) -> pd.DataFrame:
    """Return a manifest with one image of each finding, and two of the first."""
    numbers = [0, *range(n_findings)]
    rows = make_rows([(f"F{n}", "train", 0, 0, 0) for n in numbers])
    findings = {
        f"finding_F{n}": pd.array([int(n == present) for present in numbers], "Int8") for n in range(n_findings)
    }
    return rows.drop(columns=["finding_Edema", "finding_Mass", "finding_Nodule"]).assign(**findings)


def build(folder, rows, run=()):
    folder.mkdir(exist_ok=True)
    write_manifest(rows, folder / "manifest.csv")
    (folder / "run.json").write_text(json.dumps({"messages": []} | dict(run)))
    write_histograms(folder, explode_labels(rows, list_shown_labels(rows)))
    samples = sample_per_class(rows, 6).drop_duplicates(["source", "path"])
    write_thumbnails(folder, samples, rows.iloc[:0])
    return folder


@pytest.fixture
def record(tmp_path):
    return read_dataset_record(build(tmp_path / "described", make_rows()))


def test_each_finding_has_its_images_by_value_and_split(record):
    table = make_finding_table(record)
    assert table["splits"] == ["train", "valid", "test"]
    values = ("present", "patients", "absent", "uncertain", "unknown")
    assert {row["label"]: (row["splits"], *(row.get(name) for name in values)) for row in table["rows"]} == {
        "Edema": ([2, 0, 1], 3, 2, 3, 1, 0),
        "Mass": ([1, 1, 0], 2, 2, 3, 1, 1),
        "Nodule": ([0, 0, 0], 0, 0, 5, 0, 2),
        "No Finding": ([1, 0, 1], 2, 2, None, None, None),
    }
    assert (table["total"]["splits"], table["total"]["present"], table["total"]["patients"]) == ([4, 1, 2], 7, 6)
    assert table["states"] == ["absent", "uncertain", "unknown"]


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (60, "train, valid, test, absent, blank, uncertain, unknown"),
        (80, "absent, blank, uncertain, unknown"),
        (120, ""),
    ],
)
def test_a_narrow_terminal_shows_complete_names_and_fewer_columns(tmp_path, capsys, width, left_out):
    name, images = "Enlarged Cardiomediastinum", [*IMAGES, ("", "train", 0, -2, 0)]
    rows = make_rows(images).rename(columns={"finding_Edema": f"finding_{name}"})
    rows["label"] = rows["label"].str.replace("Edema", name)
    document = show_dataset(Console(width=width, file=sys.stdout), build(tmp_path / "described", rows))
    lines = capsys.readouterr().out.splitlines()
    left_out_line = f"Not shown in this narrow terminal: {left_out} (see the page, or --json)"
    assert (left_out_line in lines) == bool(left_out), lines
    names = ["train", "valid", "test", "present", "patients", "absent", "blank", "uncertain", "unknown", "prevalence"]
    assert lines[0].split() == [heading for heading in names if heading not in left_out.split(", ")]
    assert all(len(line) <= width for line in lines[:5])
    assert next(line for line in lines if line.startswith(name)).endswith("%")
    assert {"absent", "uncertain", "unknown"} <= set(document["findings"][name])


def test_blank_labels_read_as_absent_are_counted_apart_and_in_the_prevalence(tmp_path):
    images = [
        ("A", "train", 1, 0, 0),
        *[("", "train", -2, 0, 0)] * 2,
        ("", "test", -1, 0, None),
        ("", "test", 0, 0, -2),
    ]
    record = read_dataset_record(build(tmp_path / "described", make_rows(images)))
    table = make_finding_table(record)
    edema = next(row for row in table["rows"] if row["label"] == "Edema")
    assert [edema[name] for name in ("present", "absent", "blank", "uncertain", "unknown")] == [1, 1, 2, 1, 0]
    assert edema["prevalence"] == 0.25, "the uncertain label is left out"
    assert table["states"] == ["absent", "blank", "uncertain", "unknown"]
    assert [table["by_split"][split]["Edema"]["prevalence"] for split in ("train", "test")] == [1 / 3, 0]
    text = Page(write_dataset_page(record.folder).read_text(encoding="utf-8")).text
    assert "Present Absent Blank, read as absent Uncertain Unknown Prevalence" in text
    assert "Edema train 1 0 2 0 0 33.3 % Edema test 0 1 0 1 0 0.0 %" in text


def test_the_prevalence_of_a_finding_without_known_labels_is_missing(tmp_path):
    record = read_dataset_record(build(tmp_path / "described", make_rows([("No Finding", "train", None, 0, -1)] * 2)))
    prevalence = {row["label"]: row.get("prevalence") for row in make_finding_table(record)["rows"]}
    assert prevalence == {"Edema": None, "Mass": 0, "Nodule": None, "No Finding": None}


def test_images_are_counted_by_their_number_of_findings(record):
    table = make_finding_table(record)
    assert (table["n_findings"], table["n_unlabelled"]) == ({0: 3, 1: 3, 2: 1}, 1)
    assert make_finding_context(table)["remarks"][:2] == [
        "Images by number of findings: 3 with 0, 3 with 1 and 1 with 2",
        "Images without any known finding, not labelled No Finding: 1 (14.3 %)",
    ]


def test_a_dataset_with_one_label_per_image_has_no_table_of_findings(tmp_path):
    rows = make_rows().drop(columns=["finding_Edema", "finding_Mass", "finding_Nodule"]).assign(label="a")
    assert make_finding_table(read_dataset_record(build(tmp_path / "described", rows))) is None


@pytest.mark.slow
def test_the_rarest_of_many_findings_are_counted_in_a_line(tmp_path):
    record = read_dataset_record(build(tmp_path / "described", make_many(180)))
    context = make_finding_context(make_finding_table(record))
    assert len(context["rows"]) == MAX_ROWS
    assert (context["rows"][0]["label"], context["rows"][0]["present"]) == ("F0", 2)
    assert context["others"] == "140 more findings, each present in at most 1 image"
    text = Page(write_dataset_page(record.folder).read_text(encoding="utf-8")).text
    assert "And 140 more findings, each present in at most 1 image: manifest.csv has a column for each" in text
    assert len(record.labels) == 8, "groups of images"


def test_an_image_is_shown_with_each_of_its_findings(record):
    assert record.labels == ("No Finding", "Edema", "Mass")
    shown = {row["label"]: sorted(image["path"] for image in row["images"]) for row in make_class_images(record)}
    # of images in train, if there are any
    assert shown == {"No Finding": ["4.png"], "Edema": ["0.png", "1.png"], "Mass": ["0.png"]}
    assert {row["label"]: row["measured"] for row in make_file_rows(record)} == {"No Finding": 2, "Edema": 3, "Mass": 2}


def test_the_page_names_findings_and_not_classes(record):
    text = Page(write_dataset_page(record.folder).read_text(encoding="utf-8")).text
    for words in (
        "Findings and splits",
        "Findings 3 most frequent: Edema, 42.9 %",
        "Several findings 14.3 % 1 image",
        "Finding Train Validation Test Present Absent Uncertain Unknown Prevalence",
        "Edema 2 0 1 3 2 patients 3 1 0 50.0 %",
        "Prevalence: present of present and absent; uncertain and unknown labels are left out.",
        "Finding Split Present Absent Uncertain Unknown Prevalence Edema train 2 1 1 0 66.7 %",
        "All images 4 1 2 7 6 patients",
        "An image with several findings belongs to each of them.",
    ):
        assert words in text
    assert "Edema|Mass" not in text and "Smallest class" not in text
    assert not (record.folder / "figures" / "classes.svg").exists()


def test_notices_are_about_findings_and_not_about_combinations_of_them(record):
    notices = {notice.title: notice.text for notice in make_notices(record, page="describe")}
    assert "No test image of Mass" in notices
    assert "Edema 1" in notices["Few images of a finding"] and "|" not in notices["Few images of a finding"]


def test_the_classes_for_training_are_no_finding_and_a_frequent_finding(record):
    table = make_finding_table(record)
    assert select_classes(table) == ["No Finding", "Edema"]
    assert select_classes(table | {"rows": table["rows"][:-1]}) == ["Edema", "Mass"], "no image states No Finding"
    rows = [{"label": "A", "patients": 19}, {"label": "B", "patients": 20}]
    assert select_classes({"rows": rows}) == ["B"]


def test_a_sample_is_stated_with_its_unreadable_images(tmp_path):
    folder = build(tmp_path / "described", make_rows(), {"decoded": {"images": 2000, "all_images": 112_120}})
    pd.DataFrame([("x.png", "E101", "empty")], columns=["path", "code", "reason"]).to_csv(folder / "skipped.csv")
    text = Page(write_dataset_page(folder).read_text(encoding="utf-8")).text
    assert "2,000 of 112,120 images were decoded (random sample); unreadable images: 1 of 2,000." in text
    assert "1 unreadable in a sample of 2,000" in text and "1 more unreadable" not in text


def test_a_finding_that_is_no_known_value_is_named(tmp_path):
    folder = build(tmp_path / "described", make_rows())
    text = (folder / "manifest.csv").read_text().replace(",1,1,0", ",7,1,0")
    (folder / "manifest.csv").write_text(text)
    with pytest.raises(DataError, match="finding_Edema are not 1, 0, -1 or blank: '7'"):
        read_dataset_record(folder)
