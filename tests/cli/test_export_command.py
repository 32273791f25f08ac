"""fastcxr export: the folder, the result as JSON, and the next steps."""

import json
import shutil

import pytest

from fastcxr.errors import ModelError
from fastcxr.export.export_json import read_export_json

pytestmark = pytest.mark.needs("onnx", "onnxscript", "onnxruntime")


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run beside its data."""
    shutil.copytree(finished[1], tmp_path / "toys")
    return shutil.copytree(finished[0], tmp_path / "run")


def test_export_states_what_was_written_and_what_to_do_next(run, call):
    done = call("export", "run", "--to", "onnx", "--json", where=run.parent)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["folder"], document["target"]) == ("runs/export-run-1", "onnx")
    assert document["files"].keys() == {"model.onnx", "MODEL_CARD.md"}
    assert document["check"] == read_export_json(run.parent / "runs" / "export-run-1")["check"]
    text = f"checked with {document['check']['images']} images (test images of the run): largest difference"
    assert text in done.stderr
    assert "next: classify images: fastcxr predict runs/export-run-1 image.png" in done.stderr
    assert "fastcxr serve runs/export-run-1" in done.stderr


def test_moved_images_are_a_warning_with_the_command(run, call, monkeypatch):
    moved = (run.parent / "toys").rename(run.parent / "moved")
    monkeypatch.setattr("fastcxr.workflows.export.find_or_write_sample", lambda: moved)
    done = call("export", "run", "--to", "timm", "--out", "exported", where=run.parent)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stderr.split())
    assert "checked with the bundled sample. To check it with the images of the run, pass --data DATA" in text
    assert "next: check with the images of the run: fastcxr export run --to timm --data DATA" in text
    assert "load in Python: timm.create_model('local-dir:exported', pretrained=True)" in text
    (run.parent / "exported" / "MODEL_CARD.md").write_text("another model")
    with pytest.raises(ModelError, match=r"FCX-E301 .*MODEL_CARD.md: sha256 differs from export.json"):
        read_export_json(run.parent / "exported", "timm")


def test_the_errors_of_export_are_one_line_with_options(run, call):
    done = call("export", "run", "--out", "toys", where=run.parent)
    assert done.returncode == 73
    assert done.stderr.strip().endswith("this folder is not empty. Choose another --out, or remove it")
    assert 'Did you mean "onnx"?' in call("export", "run", "--to", "onx", where=run.parent).stderr
