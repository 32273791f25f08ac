"""The search before a push finds names, paths, patients and images of a run, and nothing else."""

import html
import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save

from fastcxr.export.identifiers import find_leaks, list_identifiers

PATHS = (
    "haze/00001234_001.png",
    "p10/p10000032/s50414267/02aa804e.jpg",
    "haze/12.png",
    "haze/chest.png",
    "haze/müller & co.png",
)
PATIENTS = ("00001234", "p10000032", "12", "P7", "Hans Müller")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identifiers") / "run"
    folder.mkdir()
    table = pd.DataFrame({"path": PATHS, "patient": PATIENTS, "label": "haze", "split": "train", "source": "toys"})
    table.to_csv(folder / "manifest.csv", index=False)
    (folder / "model.json").write_text(json.dumps({"labels": ["haze", "clear"]}))
    return folder


def search(run, folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(leak.file, leak.kind, leak.text) for leak in find_leaks(folder, run)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("image haze/00001234_001.png", "the path of an image"),
        ("see 00001234_001.", "a file name"),
        ("(02aa804e)", "a file name"),
        ("wrong: 12.png", "a file name"),
        ("patient 00001234", "a patient identifier"),
        ("of Hans Müller.", "a patient identifier"),
        ("in p10000032/", "a patient identifier"),
        ("folder s50414267", "a folder of an image"),
        ("haze/chest.png", "the path of an image"),
        ("m&uuml;ller &amp; co", "a file name"),
    ],
)
@pytest.mark.parametrize("name", ["README.md", "metrics.json", "report.html"])
def test_a_name_of_the_run_is_found_as_a_whole_word(run, tmp_path, name, text, kind):
    content = json.dumps({"text": [html.unescape(text)]}) if name == "metrics.json" else text
    assert kind in {leak[1] for leak in search(run, tmp_path, name, content)}


@pytest.mark.parametrize(
    "text",
    [
        "chest radiographs of 12 patients",
        "haze, clear, train and toys",
        "value 0.00001234 and 1,00001234",
        "200001234, 00001234567 and x00001234",
        "P7 of 12",
        "02aa804ef and 102aa804e",
    ],
)
def test_words_numbers_and_parts_of_words_are_not_found(run, tmp_path, text):
    assert search(run, tmp_path, "README.md", text) == []


def test_numbers_of_json_and_of_drawings_are_not_found(run, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"n": 10000032, "value": [0.5, 100001234]}))
    drawing = '<svg viewBox="0 0 00001234 9"><path d="M 00001234 3 L 5,00001234" x="00001234"/></svg>'
    assert search(run, tmp_path, "report.html", drawing) == []
    assert search(run, tmp_path, "report.html", drawing.replace("</svg>", "<text>00001234</text></svg>")) == [
        ("report.html", "a patient identifier", "00001234")
    ]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n1", "a PNG image"),
        (b"text \xff\xd8\xff\xe0", "a JPEG image"),
        (b"<img src='data:image/png;base64,xx'>", "an image"),
        (b"<svg><image href='x'/></svg>", "an image"),
        (b"x iVBORw0KGgoAAA", "a PNG image"),
        (b"\x00" * 128 + b"DICM", "a DICOM file"),
    ],
)
def test_an_image_is_found_in_a_file_with_any_name(run, tmp_path, content, kind):
    assert ("report.html", kind, "") in search(run, tmp_path, "report.html", content)


def test_the_header_of_weights_is_searched_and_a_drawing_is_no_image(run, tmp_path):
    tensors = {"fc.weight": np.zeros(4, np.float32)}
    assert search(run, tmp_path, "model.safetensors", save(tensors)) == []
    found = search(run, tmp_path, "model.safetensors", save(tensors, metadata={"data": "haze/00001234_001.png"}))
    assert {leak[1] for leak in found} == {"the path of an image", "a file name"}
    (tmp_path / "model.safetensors").unlink()
    assert search(run, tmp_path, "report.html", b"url(data:image/svg+xml,x) <svg></svg>") == []


def test_folders_of_the_computer_and_tables_of_folds_are_searched(run, tmp_path):
    fold = run / "fold-1"
    fold.mkdir()
    pd.DataFrame({"path": ["a/inner99.png"], "patient": ["x-ray-17"]}).to_csv(fold / "predictions.csv", index=False)
    try:
        identifiers = list_identifiers(run)
    finally:
        (fold / "predictions.csv").unlink()
        fold.rmdir()
    assert identifiers[str(run.resolve())] == "a folder of this computer"
    assert identifiers["inner99"] == "a file name" and identifiers["x-ray-17"] == "a patient identifier"
    assert not {"12", "P7", "chest", "haze"} & set(identifiers)
