"""fastcxr export: the folder, the result as JSON, and the next steps."""

import json
import shutil

import pytest
from toy_images import write_toys

from fastcxr.export.export_json import read_export_json

pytestmark = pytest.mark.needs("onnx", "onnxscript", "onnxruntime")


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run beside its data."""
    shutil.copytree(finished[1], tmp_path / "toys")
    return shutil.copytree(finished[0], tmp_path / "run")


def test_export_prints_the_check_and_the_next_steps(run, call):
    done = call("export", "run", "--to", "onnx", where=run.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "runs/export-run-1\n"
    folder = run.parent / "runs" / "export-run-1"
    n_images = read_export_json(folder)["check"]["images"]
    assert f"checked with {n_images} images (test images of the run): largest difference" in done.stderr
    assert "next: classify images: fastcxr predict runs/export-run-1 image.png" in done.stderr
    assert "fastcxr serve runs/export-run-1" in done.stderr


def test_export_with_json_states_what_was_written(run, call):
    write_toys(run.parent / "other", first=50)
    done = call("export", "run", "--data", "other", "--out", "out", "--json", where=run.parent)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["folder"] == "out"
    assert document["target"] == "onnx"
    assert document["check"]["data"] == "other given with data"
    assert document["files"].keys() == {"model.onnx"}


def test_the_errors_of_export_are_one_line_with_options(run, call):
    done = call("export", "run", "--out", "toys", where=run.parent)
    assert done.returncode == 73
    assert done.stderr.strip().endswith("this folder is not empty. Choose another --out, or remove it")
    assert 'Did you mean "onnx"?' in call("export", "run", "--to", "onx", where=run.parent).stderr
