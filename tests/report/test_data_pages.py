"""Tests for pages.py: the page of a cohort as a reader gets it."""

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
def drawn(tmp_path_factory):
    """A described cohort with its page."""
    folder = build_description(tmp_path_factory.mktemp("whole") / "described")
    write_dataset_page(folder)
    return folder


def words_of(folder):
    """The page without its figures, which are most of the time."""
    return Page(render_dataset_page(read_dataset_record(folder), {})).text


def test_the_page_stands_alone(drawn):
    text = (drawn / "describe.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and not {"script", "link", "iframe", "object", "base"} & page.tags
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources) and len(page.sources) == 12
    text = re.sub(r'xmlns(:xlink)?="http[^"]*"', "", text)
    assert "http" not in text.replace("http-equiv", "") and "@import" not in text
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references} <= set(page.ids)


def test_the_page_holds_what_is_known_of_the_cohort(drawn):
    text = Page((drawn / "describe.html").read_text(encoding="utf-8")).text
    for words in (
        "made-up",
        "3 classes, 1,000 images, 401 patients from NIH file names",
        "Images 1,000 every file is readable",
        "Smallest class",
        "No split in the data. This page shows the split that fastcxr train draws with seed 42.",
        "mobilenetv2_100 has several pretrained tags",
        "Patients come from NIH file names",
        "the band holds eight of ten images",
        "1,024 × 900",
        "How it was made",
    ):
        assert words in text
    assert text.count(RESEARCH) == 2


def test_the_figures_lie_beside_the_page(drawn):
    names = {path.name for path in (drawn / "figures").glob("*.svg")}
    assert names == {"classes.svg", "histograms.svg", "histogram_1.svg", "histogram_2.svg", "histogram_3.svg"}


def test_the_same_files_give_the_same_bytes_wherever_the_folder_stands(drawn, tmp_path):
    other = shutil.copytree(drawn, tmp_path / "other")
    write_dataset_page(other)
    for name in ("describe.html", "figures/classes.svg", "figures/histogram_2.svg"):
        assert (other / name).read_bytes() == (drawn / name).read_bytes()


def test_a_manifest_alone_makes_a_page(drawn, tmp_path):
    shutil.copy(drawn / "manifest.csv", tmp_path)
    text = Page(write_dataset_page(tmp_path).read_text(encoding="utf-8")).text
    assert "1,000 images." in text and "Images and their gray values" not in text and "How it was made" not in text


def test_left_out_images_are_counted_and_listed_with_their_reasons(drawn, tmp_path):
    folder = shutil.copytree(drawn, tmp_path / "described")
    rows = [("a/1.png", "E101", "empty file (0 bytes)"), ("a/<i>2.png", "E104", "corrupt image data")]
    pd.DataFrame(rows, columns=["path", "code", "reason"]).to_csv(folder / "skipped.csv", index=False)
    text = words_of(folder)
    assert "2 images left out" in text and "FCX-E104" in text and "a/<i>2.png : corrupt image data" in text
    assert "2 more not readable" in text


def test_hostile_names_are_words_and_nothing_else(tmp_path):
    labels = ("<script>alert(1)</script>", 'a"b&$c$', "\u202etxt_under", "中文, NA")
    manifest = make_manifest(labels, 200)
    manifest = manifest.assign(path=[f"{i}<img src=x onerror=y>.png" for i in range(200)], source="<u>x</u>")
    said = [{"level": "warning", "text": "<s>loud</s>"}]
    folder = build_description(tmp_path / "d", manifest, run={"command": "</style><k>", "messages": said})
    page = Page(write_dataset_page(folder).read_text(encoding="utf-8"))
    assert not page.open and not {"script", "u", "s", "k"} & page.tags
    assert "<script>alert(1)</script>" in page.text and "<s>loud</s>" in page.text and "\u202e" not in page.text
    assert all(source.startswith("data:") for source in page.sources)


def test_many_classes_have_their_own_histograms_and_no_web_of_lines(tmp_path):
    labels = tuple(f"class_{i:02d}" for i in range(12))
    folder = build_description(tmp_path / "d", make_manifest(labels, 300), thumbnails=False)
    write_dataset_page(folder)
    assert (folder / "figures" / "histogram_12.svg").is_file()
    assert not (folder / "figures" / "histograms.svg").exists()


def test_an_image_level_split_is_stamped(tmp_path):
    manifest = make_manifest(n=200)
    split = np.random.default_rng(0).choice(["train", "valid", "test"], 200)
    folder = build_description(tmp_path / "d", manifest.assign(split=split, split_origin="image"), thumbnails=False)
    assert "Image-level split Images of one patient may be in several splits" in words_of(folder)


def test_a_folder_without_a_manifest_says_what_to_name(tmp_path):
    for folder, what in ((tmp_path, "no manifest.csv"), (tmp_path / "none", "no such folder")):
        with pytest.raises(InputMissingError, match=f"{what}.*Name a folder that fastcxr describe made"):
            write_dataset_page(folder)


@pytest.mark.parametrize(("name", "content"), [("histograms.csv", "label,bin\na,x\n"), ("file_stats.csv", "")])
def test_a_broken_file_is_named_with_the_way_out(drawn, tmp_path, name, content):
    shutil.copy(drawn / "manifest.csv", tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="Restore the file as the run wrote it") as caught:
        write_dataset_page(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_the_classes_keep_the_colours_that_a_report_gives_them(drawn):
    assert read_dataset_record(drawn).labels == LABELS
