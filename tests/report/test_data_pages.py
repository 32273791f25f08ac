"""Tests for pages.py: the page of a dataset."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from html_page import Page
from synthetic_run import LABELS, build_description, make_manifest

from fastcxr.errors import DataError, InputMissingError
from fastcxr.report.pages import render_dataset_page, write_dataset_page
from fastcxr.report.run_reader import read_dataset_record

RESEARCH = "For research, not for diagnosis."


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """Return the folder of a described dataset with its page."""
    folder = build_description(tmp_path_factory.mktemp("whole") / "dataset")
    write_dataset_page(folder)
    return folder


def read_text(folder):
    """Return the text of the page without figures, which take most of the time."""
    return Page(render_dataset_page(read_dataset_record(folder), {})).text


def test_the_page_is_self_contained(described):
    text = (described / "describe.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and not {"script", "link", "iframe", "object", "base"} & page.tags
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources) and len(page.sources) == 12
    text = re.sub(r'xmlns(:xlink)?="http[^"]*"', "", text)
    assert "http" not in text.replace("http-equiv", "") and "@import" not in text
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references} <= set(page.ids)


def test_the_page_describes_the_dataset(described):
    text = Page((described / "describe.html").read_text(encoding="utf-8")).text
    for words in (
        "made-up",
        "3 classes, 1,000 images, 401 patients from NIH file names",
        "Images 1,000 all files readable",
        "Smallest class",
        "No split in the data. This page shows the split that fastcxr train draws with seed 42.",
        "mobilenetv2_100 has several pretrained tags",
        "Patient identifiers: NIH file names (1,000 images). Splits: drawn by patient",
        "Band: 80 % of the images.",
        "1,024 × 900",
        "Command and machine",
    ):
        assert words in text
    assert text.count(RESEARCH) == 2


def test_the_figures_are_also_files(described):
    names = {path.name for path in (described / "figures").glob("*.svg")}
    histograms = {"histograms.svg", "histogram_1.svg", "histogram_2.svg", "histogram_3.svg"}
    assert names == {"classes.svg", "patients.svg", *histograms}


@pytest.mark.parametrize("split", ["train", ""])
def test_known_ages_and_sexes_are_figures_with_the_number_of_patients(tmp_path, split):
    manifest = make_manifest(n=60).assign(age="", sex="F", split=split)
    first = manifest["patient"].drop_duplicates().iloc[:2]
    folder = build_description(
        tmp_path, manifest.assign(age=manifest["patient"].isin(first).map({True: "40", False: ""}))
    )
    page = write_dataset_page(folder).read_text()
    n_patients = manifest["patient"].nunique()
    assert f"Age is known for 2 of {n_patients} patients." in page
    assert f"Sex is known for {n_patients} of {n_patients} patients." in page
    assert (folder / "figures" / "age.svg").is_file() and (folder / "figures" / "sex.svg").is_file()


def test_the_output_does_not_depend_on_the_location_of_the_folder(described, tmp_path):
    other = shutil.copytree(described, tmp_path / "other")
    write_dataset_page(other)
    for name in ("describe.html", "figures/classes.svg", "figures/histogram_2.svg"):
        assert (other / name).read_bytes() == (described / name).read_bytes()


def test_a_manifest_is_sufficient_for_a_page(described, tmp_path):
    shutil.copy(described / "manifest.csv", tmp_path)
    text = Page(write_dataset_page(tmp_path).read_text(encoding="utf-8")).text
    assert "1,000 images." in text and "Images and gray values" not in text and "Command and machine" not in text


def test_unreadable_images_are_counted_and_listed_with_their_reasons(described, tmp_path):
    folder = shutil.copytree(described, tmp_path / "dataset")
    rows = [("a/1.png", "E101", "empty file (0 bytes)"), ("a/<i>2.png", "E104", "corrupt image data")]
    pd.DataFrame(rows, columns=["path", "code", "reason"]).to_csv(folder / "skipped.csv", index=False)
    text = read_text(folder)
    assert "2 images left out" in text and "FCX-E104" in text and "a/<i>2.png : corrupt image data" in text
    assert "2 more unreadable" in text


def test_html_in_names_is_escaped(tmp_path):
    labels = ("<script>alert(1)</script>", 'a"b&$c$', "\u202etxt_under", "中文, NA")
    manifest = make_manifest(labels, 200)
    manifest = manifest.assign(path=[f"{i}<img src=x onerror=y>.png" for i in range(200)], source="<u>x</u>")
    messages = [{"level": "warning", "text": "<s>loud</s>"}]
    folder = build_description(tmp_path / "d", manifest, run={"command": "</style><k>", "messages": messages})
    page = Page(write_dataset_page(folder).read_text(encoding="utf-8"))
    assert not page.open and not {"script", "u", "s", "k"} & page.tags
    assert "<script>alert(1)</script>" in page.text and "<s>loud</s>" in page.text and "\u202e" not in page.text
    assert all(source.startswith("data:") for source in page.sources)


def test_many_classes_have_no_combined_histogram(tmp_path):
    labels = tuple(f"class_{i:02d}" for i in range(12))
    folder = build_description(tmp_path / "d", make_manifest(labels, 300), thumbnails=False)
    write_dataset_page(folder)
    assert (folder / "figures" / "histogram_12.svg").is_file()
    assert not (folder / "figures" / "histograms.svg").exists()


def test_an_image_level_split_is_a_critical_warning(tmp_path):
    manifest = make_manifest(n=200)
    split = np.random.default_rng(0).choice(["train", "valid", "test"], 200)
    folder = build_description(tmp_path / "d", manifest.assign(split=split, split_origin="image"), thumbnails=False)
    assert "Image-level split Images of one patient may be in several splits" in read_text(folder)


def test_a_folder_without_a_manifest_is_an_error(tmp_path):
    for folder, what in ((tmp_path, "no manifest.csv"), (tmp_path / "none", "the folder does not exist")):
        with pytest.raises(InputMissingError, match=f"{what}.*Pass an output folder of fastcxr describe"):
            write_dataset_page(folder)


@pytest.mark.parametrize(("name", "content"), [("histograms.csv", "label,bin\na,x\n"), ("file_stats.csv", "")])
def test_an_invalid_file_is_named_with_a_fix(described, tmp_path, name, content):
    shutil.copy(described / "manifest.csv", tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="Restore or delete it") as caught:
        write_dataset_page(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_the_classes_have_the_same_order_as_in_a_report(described):
    assert read_dataset_record(described).labels == LABELS
