"""The ONNX file agrees with the classifier, describes itself, and holds nothing of the machine that wrote it."""

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_classifiers import HIDDEN, LABELS, MULTI_SCALE, make_random_classifier, make_random_images
from tiny_encoders import TINY_ENCODERS
from tiny_network import NAME

from fastcxr.errors import ModelError, PackageError
from fastcxr.export import onnx as module
from fastcxr.export.check import compare_scorers
from fastcxr.export.export_json import ONNX_FILE
from fastcxr.export.exported_model import ExportedModel
from fastcxr.export.onnx import write_onnx
from fastcxr.inference.torch_scorer import TorchScorer
from fastcxr.models.bundle import Ensemble

pytestmark = pytest.mark.needs("onnx", "onnxscript", "onnxruntime")


def load(folder: Path, model, entries) -> ExportedModel:
    import onnxruntime

    description = {
        "labels": model.labels, "task": model.task, "image_size": model.input_spec.image_size,
        "calibration": dict(model.thresholds), "bit_depths": {}, "has_ood_detector": entries["has_ood_detector"],
    }  # fmt: skip
    session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
    return ExportedModel(folder, description, session)


def check_export(model, folder):
    """Export a model and compare it; also one image, which an exporter could have made a constant."""
    exported = load(folder, model, write_onnx(model, folder))
    images = make_random_images(9, model.input_spec.image_size)
    check = compare_scorers(TorchScorer(model), exported, images)
    np.testing.assert_allclose(
        exported.score(images[:1]).probability, exported.score(images).probability[:1], atol=1e-6
    )
    return check


@pytest.fixture(scope="module")
def classifier():
    return make_random_classifier(NAME, 64, MULTI_SCALE, hflip_tta=True)


@pytest.fixture(scope="module")
def exported(classifier, tmp_path_factory):
    """The folder of an export, and what the function returned."""
    folder = tmp_path_factory.mktemp("exported")
    return folder, write_onnx(classifier, folder)


def test_a_linear_probe_agrees_with_its_file(classifier, exported):
    folder, entries = exported
    images = make_random_images(9, 64)
    check = compare_scorers(TorchScorer(classifier), load(folder, classifier, entries), images)
    assert check["max_difference"] < 1e-5
    assert check["max_ood_difference"] < 1e-3
    assert check["same_class"] == check["images"] == 9


@pytest.mark.slow
def test_a_network_without_stages_agrees_with_its_file(tmp_path):
    classifier = make_random_classifier("torchvision:squeezenet1_0", 64, HIDDEN, has_lines=True)
    assert check_export(classifier, tmp_path)["max_difference"] < 1e-5


@pytest.mark.slow
def test_a_transformer_agrees_with_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr("fastcxr.models.backbones.ENCODERS", TINY_ENCODERS)
    classifier = make_random_classifier("chest:chexfound", 64, MULTI_SCALE)  # class token and patch mean
    check = check_export(classifier, tmp_path)
    assert check["max_difference"] < 1e-5
    assert check["max_ood_difference"] is not None


def test_a_large_ensemble_agrees_with_its_file_and_has_its_weights_in_a_second_one(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    members = tuple(make_random_classifier("baseline_cnn", 64, seed=seed) for seed in range(2))
    ensemble = Ensemble(members=members)
    entries = write_onnx(ensemble, tmp_path)
    assert entries["files"].keys() == {ONNX_FILE, f"{ONNX_FILE}.data"} == {path.name for path in tmp_path.iterdir()}
    check = compare_scorers(TorchScorer(ensemble), load(tmp_path, ensemble, entries), make_random_images(9, 64))
    assert check["max_difference"] < 1e-5
    assert capfd.readouterr() == ("", ""), "the exporter prints nothing"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "convnext_tiny", "vit_small_patch16_224", "torchvision:mobilenet_v3_small"]
)
def test_a_network_of_usual_size_agrees_with_its_file(name, tmp_path):
    classifier = make_random_classifier(name, 224, MULTI_SCALE)
    check = check_export(classifier, tmp_path)
    assert check["max_difference"] < 1e-5
    assert (check["max_ood_difference"] is None) == (classifier.ood_detector is None)


def test_the_file_describes_itself(exported, classifier):
    import onnx

    folder, entries = exported
    model = onnx.load(folder / ONNX_FILE)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(properties["labels"]) == list(LABELS)
    assert properties["warning"] == "For research, not for diagnosis"
    assert properties["task"] == "single_label"
    assert entries["files"].keys() == {ONNX_FILE} == {path.name for path in folder.iterdir()}
    assert model.opset_import[0].version == entries["opset"]
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "n", "any number of images"
    assert not [
        dim for value in model.graph.value_info for dim in value.type.tensor_type.shape.dim if "s" in dim.dim_param
    ]


def test_the_file_holds_no_folder_of_this_machine(exported):
    content = (exported[0] / ONNX_FILE).read_bytes()
    for part in (str(Path(module.__file__).parents[2]), str(Path(torch.__file__).parent), "site-packages", ".py"):
        assert part.encode() not in content


def test_no_tensor_of_the_file_is_float64(exported):
    import onnx

    graph = onnx.load(exported[0] / ONNX_FILE).graph
    types = {tensor.data_type for tensor in graph.initializer} | {
        value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]
    }
    assert onnx.TensorProto.FLOAT in types
    assert onnx.TensorProto.DOUBLE not in types


def test_an_ood_score_that_cannot_be_converted_is_left_out_with_a_warning(classifier, tmp_path, caplog):
    model = make_random_classifier("baseline_cnn", 64)  # without the stages of this detector
    with caplog.at_level(logging.WARNING, "fastcxr"):
        entries = write_onnx(replace(model, ood_detector=classifier.ood_detector), tmp_path)
    assert "the export has no OOD score (the network cannot be converted to ONNX (" in caplog.text
    assert not entries["has_ood_detector"]
    assert entries["files"].keys() == {ONNX_FILE}
    check = compare_scorers(TorchScorer(model), load(tmp_path, model, entries), make_random_images(9, 64))
    assert check["max_difference"] < 1e-5 and check["max_ood_difference"] is None
    assert list(entries["outputs"]) == ["probabilities"]
    assert [notice["level"] for notice in entries["notices"]] == ["warning"]


def test_a_network_that_cannot_be_converted_is_an_error_of_one_line(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ModelError, match=r"FCX-E307: .*ONNX \(no such operator\)\. Train with another") as info:
        write_onnx(make_random_classifier("baseline_cnn", 64), tmp_path)
    assert "\n" not in str(info.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_an_error_with_the_command_that_installs_it(package, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PackageError, match=f"FCX-E203: an export to ONNX needs {package}, .*pip install {package}"):
        write_onnx(make_random_classifier("baseline_cnn", 64), tmp_path)
