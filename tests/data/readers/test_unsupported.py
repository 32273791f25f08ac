"""Tests for unsupported.py: archives, documents, videos and arrays given as data."""

import gzip
import io
import tarfile
import zipfile

import numpy as np
import pytest
from toy_datasets import check_message, write_file, write_files

from fastcxr.data.manifest import read_manifest
from fastcxr.errors import DataError, FastcxrError, InputMissingError


def get_error(path, kind: type = DataError) -> str:
    with pytest.raises(FastcxrError) as caught:
        read_manifest(path)
    assert isinstance(caught.value, kind)
    return check_message(caught.value)


def make_zip(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return content.getvalue()


def make_tar(mode: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        archive.addfile(tarfile.TarInfo("covid/a.png"))
    return content.getvalue()


def make_array(save) -> bytes:
    content = io.BytesIO()
    save(content, np.zeros((2, 4, 4)))
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "kind", "fix"),
    [
        ("my data.zip", make_zip("covid/a.png"), "a ZIP archive", "Unpack it with `unzip 'my data.zip'`, and pass"),
        ("broken.zip", b"PK\x03\x04", "a ZIP archive", "Unpack it with `unzip broken.zip`"),
        ("images.tar", make_tar("w"), "a tar archive", "Unpack it with `tar -xf images.tar`"),
        ("images.tar.gz", make_tar("w:gz"), "a tar archive", "Unpack it with `tar -xf images.tar.gz`"),
        ("images.tgz", make_tar("w:gz"), "a tar archive", "Unpack it with `tar -xf images.tgz`"),
        ("images.rar", b"Rar!\x1a\x07", "an archive", "Unpack it with `7z x images.rar`"),
        ("images.npy", make_array(np.save), "a NumPy file", "Save each image as PNG in one folder per class"),
        ("images.npz", make_array(np.savez), "a NumPy file", "Save each image as PNG in one folder per class"),
        ("README.pdf", b"%PDF-1.4", "a PDF file", "Save its table as CSV with the columns path and label"),
        ("labels.docx", make_zip("word/document.xml"), "a Word document", "Save its table as CSV"),
        ("labels.doc", b"\xd0\xcf\x11\xe0", "a Word document", "Save its table as CSV"),
        ("scan.mp4", b"\0\0\0\x18ftypmp42", "a video", "Save its frames as PNG in one folder per class"),
        ("scan.avi", b"RIFF\0\0\0\0AVI LIST", "a video", "Save its frames as PNG"),
        ("scan.mkv", b"\x1a\x45\xdf\xa3\x01", "a video", "Save its frames as PNG"),
        ("README.txt", b"Images of 12 hospitals\n", "a text file without columns", "Pass the folder above"),
        ("images.zip", b"<!DOCTYPE html><html>", "an HTML file", "Download it again: the file contains a web page"),
        ("labels.csv", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer", "Run `git lfs pull`"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,  # an archive contains the time
)  # fmt: skip
def test_a_file_is_named_for_what_it_is(tmp_path, name, content, kind, fix):
    text = get_error(write_file(tmp_path / name, content))
    assert f"FCX-E040 {tmp_path / name}: the path is {kind}, expected a folder of images or a table" in text
    assert fix in text


def test_an_excel_workbook_is_to_be_saved_as_csv(tmp_path):
    for name, content in (("a.xlsx", make_zip("xl/workbook.xml")), ("b.xls", b"\xd0\xcf\x11\xe0")):
        assert "an Excel workbook, not a CSV. Save it as 'CSV UTF-8'" in get_error(write_file(tmp_path / name, content))


@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv", "labels.txt", "labels.csv.gz"])
def test_tables_are_still_read(tmp_path, name):
    write_files(tmp_path, "a.png", "b.png")
    text = b"path\tlabel\na.png\tcovid\nb.png\tnormal\n"
    table = write_file(tmp_path / name, gzip.compress(text) if name.endswith(".gz") else text)
    assert read_manifest(table, only_test=True)["label"].tolist() == ["covid", "normal"]


def test_a_folder_that_contains_only_archives_is_an_error(tmp_path):
    write_files(tmp_path, "images_001.tar.gz", "images_002.tar.gz", "README.txt", "LICENSE")
    text = get_error(tmp_path, InputMissingError)
    assert "0 images; the folder contains archives: images_001.tar.gz, images_002.tar.gz" in text
    assert text.endswith("Unpack it with `tar -xf images_001.tar.gz`")


@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("https://example.org/xrays.zip", "Download it first, e.g. with `curl -LO https://example.org/xrays.zip`"),
        ("hf://datasets/someone/xrays", "Download it first, e.g. with `hf download datasets/someone/xrays`"),
        ("s3://bucket/xrays", "Download it first, e.g. with `aws s3 sync s3://bucket/xrays FOLDER`"),
    ],
)
def test_a_url_is_to_be_downloaded_first(url, fix):
    text = get_error(url, InputMissingError)
    assert f"FCX-E040: {url} is a URL, expected a file or folder on this machine. {fix}" in text
