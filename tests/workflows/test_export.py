"""An export is kept if it agrees with the model; it states what it was checked with."""

import json
import logging
import shutil
import sys

import numpy as np
import pytest
from toy_findings import FINDINGS
from toy_images import write_toys

from fastcxr.errors import InputMissingError, ModelError, OutputError, PackageError, RecipeError
from fastcxr.export.export_json import read_export_json
from fastcxr.export.exported_model import load_export
from fastcxr.inference.predict import predict
from fastcxr.io.files import compute_sha256
from fastcxr.metrics.decisions import apply_thresholds
from fastcxr.models.bundle import load_model
from fastcxr.workflows import export as module
from fastcxr.workflows.export import export_model

pytestmark = pytest.mark.needs("onnx", "onnxscript", "onnxruntime")


@pytest.fixture(scope="module")
def exported(finding_run, tmp_path_factory):
    """The export of a run that was trained on findings."""
    return export_model(finding_run[0], tmp_path_factory.mktemp("exports") / "export", data=finding_run[1])


@pytest.fixture
def reuse_export(exported, monkeypatch):
    """Copy the exported file in place of a conversion, which takes seconds; `change` edits its weights."""

    def reuse(change=lambda arrays: arrays):
        def write(model, folder):
            import onnx
            from onnx import numpy_helper

            content = onnx.load(exported / "model.onnx")
            tensors = {tensor.name: tensor for tensor in content.graph.initializer}
            arrays = {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}
            for name, values in change(arrays).items():
                tensors[name].CopyFrom(numpy_helper.from_array(values, name))
            onnx.save(content, folder / "model.onnx")
            entries = json.loads((exported / "export.json").read_text())
            names = ("target", "has_ood_detector", "input", "outputs", "opset")
            files = {"model.onnx": compute_sha256(folder / "model.onnx")}
            return {name: entries[name] for name in names} | {"files": files}

        monkeypatch.setattr(module, "write_onnx", write)

    return reuse


def test_an_export_has_the_probabilities_and_decisions_of_the_run(exported, finding_run):
    run, data = finding_run
    files = sorted((data.parent / "images").glob("*.png"))[:12]
    expected = predict(load_model(run, precision="fp32"), files)
    found = predict(load_export(exported), files)
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-5)
    thresholds = load_model(run).thresholds
    decided = [apply_thresholds(one, thresholds).table["predicted"].tolist() for one in (expected, found)]
    assert decided[0] == decided[1]


def test_export_json_states_the_model_and_the_check(exported, finding_run):
    description = read_export_json(exported)
    assert description["labels"] == list(FINDINGS)
    assert description["task"] == "multi_label"
    check = description["check"]
    assert (check["data"], check["precision"]) == ("test images of the run", "fp32")
    assert 1 < check["images"] - 2 <= check["same_class"], "rounding may decide the class of an image"
    assert 0 <= check["max_difference"] < 1e-5
    assert description["run"] == {
        "name": "run", "backbone": "timm:test_byobnet", "hflip_tta": False, "n_models": 1,
    }  # fmt: skip
    assert description["calibration"] == json.loads((finding_run[0] / "model.json").read_text())["calibration"]
    assert description["versions"].keys() == {"fastcxr", "torch", "onnx", "onnxscript", "onnxruntime"}
    assert "files" not in description["model"]
    assert str(finding_run[1].parent) not in (exported / "export.json").read_text(), "no folder of this machine"


def test_the_folder_has_no_other_files_and_nothing_is_left_beside_it(exported, finding_run):
    files = {"model.onnx"} | ({"MODEL_CARD.md"} & {path.name for path in finding_run[0].iterdir()})
    assert {path.name for path in exported.iterdir()} == {"export.json"} | files
    assert json.loads((exported / "export.json").read_text())["files"].keys() == files
    assert [path.name for path in exported.parent.iterdir()] == ["export"]


def test_an_export_without_its_normalization_is_refused_and_leaves_nothing(finding_run, reuse_export, tmp_path):
    def remove_normalization(arrays):
        mean = next(name for name, values in arrays.items() if values.shape == (1, 3, 1, 1) and values.min() > 0.3)
        return {mean: np.zeros_like(arrays[mean])}

    reuse_export(remove_normalization)
    with pytest.raises(ModelError, match="FCX-E315: .*its probabilities differ by"):
        export_model(finding_run[0], tmp_path / "new" / "export", data=finding_run[1])
    assert list(tmp_path.iterdir()) == []


def test_moved_images_are_replaced_by_the_sample_with_a_message(
    finding_run, reuse_export, tmp_path, monkeypatch, caplog
):
    reuse_export()
    run = shutil.copytree(finding_run[0], tmp_path / "run")
    assert json.loads((run / "recipe.json").read_text())["data"] == "labels.csv", (
        "of an absolute path only the name is kept"
    )
    monkeypatch.setattr(module, "find_or_write_sample", lambda: write_toys(tmp_path / "sample"))
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING, "fastcxr"):
        folder = export_model(run, "export")
    assert "checked with the bundled sample. To check it with the images of the run, pass `data=DATA`" in caplog.text
    check = read_export_json(folder)["check"]
    assert (check["data"], check["images"]) == ("bundled sample", 30)


def test_given_images_are_those_of_the_run_or_others(finding_run, reuse_export, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_CHECK_IMAGES", 10)
    reuse_export()
    run, data = finding_run
    own = export_model(run, tmp_path / "own", data=data)
    assert read_export_json(own)["check"]["data"] == "test images of the run"
    other = export_model(run, tmp_path / "other", data=write_toys(tmp_path / "toys", per_class=6))
    check = read_export_json(other)["check"]
    assert (check["data"], check["images"]) == ("toys given with data", 10)


def test_images_that_cannot_be_read_are_an_error(finding_run, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    with pytest.raises(InputMissingError, match="none of 1 image can be read. Pass other images as `data`"):
        export_model(finding_run[0], tmp_path / "export", data=tmp_path / "images")


def test_a_run_with_folds_is_the_mean_of_its_models(finding_run, reuse_export, tmp_path):
    reuse_export()  # both folds are the same model, whose mean is the model
    for fold in (1, 2):
        shutil.copytree(finding_run[0], tmp_path / "run" / f"fold-{fold}")
    recipe = json.loads((finding_run[0] / "recipe.json").read_text()) | {"folds": 2}
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe))
    manifest = (finding_run[0] / "manifest.csv").read_text().replace(",test,", ",fold 2,")
    (tmp_path / "run" / "manifest.csv").write_text(manifest)
    description = read_export_json(export_model(tmp_path / "run", tmp_path / "export", data=finding_run[1]))
    assert description["run"]["n_models"] == len(description["model"]["members"]) == 2
    assert description["calibration"]["thresholds"].keys() == set(FINDINGS)
    assert description["check"]["data"] == "test images of the run"


def test_a_folder_for_timm_is_checked_with_the_same_images(finding_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # is not needed
    run, data = finding_run
    description = read_export_json(export_model(run, tmp_path / "export", "timm", data=data), "timm")
    assert description["versions"].keys() == {"fastcxr", "timm"}
    assert description["check"]["data"] == "test images of the run"
    assert description["check"]["images"] > 1
    assert {*description["files"], "export.json"} <= {path.name for path in (tmp_path / "export").iterdir()}


def test_errors_are_raised_before_a_conversion(finding_run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "write_onnx", None)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OutputError, match="this folder is not empty. Choose another `folder`"):
        export_model(finding_run[0], tmp_path / "full")
    with pytest.raises(RecipeError, match="unknown value of `to`.*onnx"):
        export_model(finding_run[0], tmp_path / "export", "onx")
    with pytest.raises(InputMissingError, match="the folder does not exist"):
        export_model(tmp_path / "no_run", tmp_path / "export")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(module, "load_model", None)
    with pytest.raises(PackageError, match="FCX-E203: an export to ONNX needs onnxruntime"):
        export_model(finding_run[0], tmp_path / "export")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
