"""A loaded model predicts the same as the trained one; damaged or invalid models are rejected before construction."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from device_results import assert_identical
from safetensors.torch import save_file
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.errors import InputMissingError, ModelError, RecipeError
from fastcxr.inference import torch_scorer as module
from fastcxr.inference.predict import predict
from fastcxr.metrics.calibration import scale_probabilities
from fastcxr.models import backbones, bundle, devices
from fastcxr.models.bundle import load_model, save_model
from fastcxr.training.feature_cache import FeatureCache
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.trainer import train

RECIPE = Recipe(
    "mobilenetv2_035", weights="none", image_size=64, batch_size=6, epochs=1, strategy="full", precision="fp32"
)


@pytest.fixture(scope="module")
def trained(toy_manifest):
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)
    train(learner, RECIPE)
    return learner


def list_device_types(network: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in network.state_dict().values()}


@pytest.fixture
def folder(trained, tmp_path):
    save_model(tmp_path, trained, RECIPE, {"precision": "fp32"})
    return tmp_path


def edit_model_json(folder, **changes) -> None:
    """Change entries of model.json; None removes an entry."""
    model_json = json.loads((folder / "model.json").read_text()) | changes
    model_json = {key: value for key, value in model_json.items() if key not in changes or value is not None}
    (folder / "model.json").write_text(json.dumps(model_json))


def test_a_loaded_model_predicts_the_same_probabilities(trained, folder, toy_manifest):
    before, after = (predict(model, toy_manifest).probability for model in (trained, load_model(folder)))
    assert_identical(before, after)


def test_prediction_in_inference_mode_has_the_same_probabilities(folder, toy_manifest):
    expected = predict(load_model(folder), toy_manifest).probability
    with torch.inference_mode():
        assert_identical(predict(load_model(folder), toy_manifest).probability, expected)


TRAINING_LIBRARIES = {"fastai", "fastcore", "fasttransform", "sklearn", "matplotlib", "jinja2"}
TRAINING_LIBRARIES |= {"scipy.stats", "scipy.optimize", "fastcxr.training.learner", "fastcxr.training.loaders"}


def test_the_predict_command_imports_no_library_of_training_or_reports(folder, toy_manifest):
    code = f"""import sys
from fastcxr.cli.main import main
try:
    main()
finally:
    print("loaded:", *({TRAINING_LIBRARIES!r} & set(sys.modules)), file=sys.stderr)"""
    arguments = ["predict", str(folder), toy_manifest["file"].iloc[0]]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "prob_" in done.stdout
    assert done.stderr.splitlines()[-1] == "loaded:"


def test_loading_configures_malloc_to_keep_freed_memory(folder, monkeypatch):
    kept = []
    monkeypatch.setattr(bundle, "keep_malloc_arenas", lambda: kept.append(True))
    load_model(folder, device="cpu")
    assert kept, "without it prediction spends more than half of its time on page faults"


def test_temperature_and_thresholds_are_saved_with_the_model(trained, tmp_path, toy_manifest):
    calibration = {"temperature": 0.5, "thresholds": {"clear": {"threshold": 0.4}}, "uncertain_below": None}
    save_model(tmp_path, trained, RECIPE, {"precision": "fp32"}, calibration)
    classifier = load_model(tmp_path)
    assert classifier.thresholds["thresholds"]["clear"]["threshold"] == 0.4
    expected = scale_probabilities(predict(trained, toy_manifest).probability, 0.5)
    np.testing.assert_allclose(predict(classifier, toy_manifest).probability, expected, atol=1e-6)


@pytest.mark.parametrize("calibration", [{"temperature": 0}, {"temperature": "1"}, {"thresholds": {"a": 1}}, 7])
def test_invalid_calibration_is_rejected(folder, calibration):
    edit_model_json(folder, calibration=calibration)
    with pytest.raises(ModelError, match="the calibration is invalid"):
        load_model(folder)


def test_entries_that_older_models_do_not_have_are_optional(folder):
    edit_model_json(folder, calibration=None, hflip_tta=None, head=None, fitted_on=None)
    classifier = load_model(folder)
    assert classifier.temperature == 1 and not classifier.hflip_tta
    assert isinstance(classifier.network.classifier, nn.Linear)


@pytest.mark.parametrize("hflip_tta", [True, False])
def test_test_time_augmentation_is_saved_and_does_not_depend_on_the_number_of_views(
    trained, tmp_path, monkeypatch, hflip_tta
):
    n_views = 1 if hflip_tta else 3
    probe = SimpleNamespace(cache=FeatureCache(np.zeros((n_views, 1, 4)), {}, hflip_tta))
    monkeypatch.setattr(trained.fastcxr, "fitted_probe", probe)
    save_model(tmp_path, trained, RECIPE, {"precision": "fp32"})
    assert load_model(tmp_path).hflip_tta is hflip_tta


@pytest.mark.parametrize(
    ("trained_precision", "native", "expected"),
    [
        ("bf16", True, "bf16"),
        ("bf16", False, "fp32"),
        ("fp16", True, "fp32"),  # not native on a CPU, and bfloat16 is less precise
        ("fp32", True, "fp32"),
        (["fp16"], True, "fp32"),
    ],
)
def test_a_loaded_model_uses_the_precision_of_training_if_it_is_native(
    trained, tmp_path, monkeypatch, trained_precision, native, expected
):
    monkeypatch.setattr("fastcxr.models.precision.is_bf16_native", lambda device: native)
    save_model(tmp_path, trained, RECIPE, {"precision": trained_precision})
    assert load_model(tmp_path, device="cpu").precision == expected


def test_a_model_trained_in_float16_is_used_in_float16_where_it_is_native(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcxr.models.bundle.is_native", lambda precision, device: precision == "fp16")
    save_model(tmp_path, trained, RECIPE, {"precision": "fp16"})
    assert load_model(tmp_path).precision == "fp16"


@pytest.mark.parametrize(
    ("requested", "native", "expected"),
    [
        ("fp32", True, "fp32"),
        ("fp16", True, "fp16"),
        ("bf16", False, "bf16"),
        ("auto", True, "bf16"),
        ("auto", False, "fp32"),
    ],
)
@pytest.mark.parametrize("trained_precision", ["fp32", "bf16"])
def test_a_requested_precision_is_used(trained, tmp_path, monkeypatch, trained_precision, requested, native, expected):
    monkeypatch.setattr("fastcxr.models.precision.is_bf16_native", lambda device: native)
    save_model(tmp_path, trained, RECIPE, {"precision": trained_precision})
    assert load_model(tmp_path, precision=requested, device="cpu").precision == expected


def test_an_unknown_precision_is_rejected_with_a_suggestion(folder):
    with pytest.raises(RecipeError, match="unknown precision 'fp64'. Did you mean 'fp16'"):
        load_model(folder, precision="fp64")


def test_device_auto_selects_the_default_device_and_cpu_the_cpu(folder, monkeypatch):
    monkeypatch.setattr(devices, "_find_default_device", lambda: torch.device("meta"))  # a substitute for a GPU
    assert list_device_types(load_model(folder).network) == {"meta"}
    assert list_device_types(load_model(folder, device="cpu").network) == {"cpu"}


def test_malloc_is_configured_only_on_a_cpu(folder, monkeypatch):
    monkeypatch.setattr(bundle, "keep_malloc_arenas", None)
    load_model(folder, device="meta")


def test_images_are_scored_on_the_device_of_the_network(folder, monkeypatch):
    classifier, devices_used = load_model(folder, device="meta"), []
    monkeypatch.setattr(module, "autocast", lambda precision, device: devices_used.append(device.type) or nullcontext())
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # copy of the logits to the CPU
        module.score_batch(classifier, np.zeros((2, 64, 64), np.uint8))
    assert devices_used == ["meta"]


def test_an_unavailable_device_raises_an_error_with_the_fix(folder):
    with pytest.raises(RecipeError, match="Pass `device='auto'` or `device='cpu'`"):
        load_model(folder, device="cuda:77")


@pytest.mark.parametrize("name", ["mobilenetv2_035", "torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1"])
def test_a_head_with_hidden_layers_is_constructed_from_model_json(tmp_path, toy_manifest, name):
    recipe = RECIPE.replace(backbone=name, head_hidden=(16, 8), dropout=0.2, loss="binary_cross_entropy")
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    train(learner, recipe)
    save_model(tmp_path, learner, recipe, {})
    assert json.loads((tmp_path / "model.json").read_text())["head"] == {
        "hidden": [16, 8],
        "dropout": 0.2,
        "multi_scale": False,
    }
    before, after = (predict(model, toy_manifest).probability for model in (learner, load_model(tmp_path)))
    assert_identical(before, after)


def test_model_json_describes_the_model(folder):
    model_json = json.loads((folder / "model.json").read_text())
    assert model_json["kind"] == "single_label"
    assert model_json["labels"] == ["clear", "haze", "opacity"]
    assert model_json["backbone"]["library"] == "timm"
    assert model_json["backbone"]["name"] == "mobilenetv2_035"
    assert model_json["backbone"]["tag"] is None
    assert model_json["input_spec"] == {"image_size": 64, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert model_json["choices"] == {"precision": "fp32"}
    assert model_json["head"] == {"hidden": [], "dropout": 0.0, "multi_scale": False}


def test_model_json_contains_the_tag_of_the_initial_weights(tmp_path, toy_manifest, monkeypatch):
    save_file(timm.create_model("mobilenetv2_050").state_dict(), tmp_path / "hub.safetensors")
    monkeypatch.setattr(backbones, "_find_cached_file", lambda backbone: str(tmp_path / "hub.safetensors"))
    recipe = RECIPE.replace(backbone="mobilenetv2_050", weights="pretrained")
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    save_model(tmp_path, learner, recipe, {})
    backbone = json.loads((tmp_path / "model.json").read_text())["backbone"]
    assert learner.model.pretrained_cfg["tag"] == backbone["tag"] == "lamb_in1k"
    assert backbone["weights"] == "mobilenetv2_050.lamb_in1k"


def test_saving_does_not_need_the_weights_file_of_the_start(tmp_path, toy_manifest):
    file = tmp_path / "initial.safetensors"
    save_file(timm.create_model("mobilenetv2_035").state_dict(), file)
    recipe = RECIPE.replace(weights=str(file))
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    file.unlink()
    save_model(tmp_path, learner, recipe, {})
    assert json.loads((tmp_path / "model.json").read_text())["backbone"]["weights"] == "initial.safetensors"


def test_one_changed_bit_in_the_weights_is_detected(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="sha256 differs from model.json.*Copy it again"):
        load_model(folder)


def test_a_folder_without_a_model_raises_an_error_with_the_fix(tmp_path):
    with pytest.raises(InputMissingError, match="Pass the folder of a finished run"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'{"format": 2}', b'{"format": 2, "files": null}', b"[]"])
def test_a_model_json_of_another_program_is_rejected(folder, content):
    (folder / "model.json").write_bytes(content)
    with pytest.raises(ModelError, match="not a model.json of fastcxr"):
        load_model(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 99),
        ("labels", ["a", "b"]),
        ("backbone", {"library": "timm", "name": "no_such"}),
        ("input_spec", {}),
        ("head", {"hidden": [9], "dropout": 0.0}),
        ("head", {"layers": 3}),
        ("head", None),
        ("hflip_tta", 1),
    ],
)
def test_a_model_json_with_invalid_values_is_rejected(folder, key, value):
    model_json = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(model_json | {key: value}))
    with pytest.raises(ModelError, match="whose format this version cannot read|Use the versions listed in run.json"):
        load_model(folder)


def test_no_file_of_a_model_is_a_pickle(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    assert not any(path.read_bytes()[:2] in (b"\x80\x04", b"PK") for path in folder.iterdir())


def test_a_model_can_be_moved_to_another_folder(folder, tmp_path_factory, toy_manifest):
    moved = shutil.copytree(folder, tmp_path_factory.mktemp("moved") / "model")
    assert len(predict(load_model(moved), toy_manifest).table) == 12
