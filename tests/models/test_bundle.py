"""A saved model predicts what the trained one did; a damaged or foreign one is refused before anything is built."""

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
from safetensors.torch import save_file
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.errors import InputMissingError, ModelError, RecipeError
from fastcxr.inference import predict as module
from fastcxr.inference.predict import predict
from fastcxr.metrics.calibration import scale_probabilities
from fastcxr.models import backbones, bundle, devices
from fastcxr.models.bundle import load_model, save_model
from fastcxr.training.feature_bank import FeatureBank
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


def places_of(network: nn.Module) -> set[str]:
    """Kinds of the devices that its numbers are on."""
    return {tensor.device.type for tensor in network.state_dict().values()}


@pytest.fixture
def folder(trained, tmp_path):
    save_model(tmp_path, trained, RECIPE, {"precision": "fp32"})
    return tmp_path


def test_a_reloaded_model_gives_the_same_probabilities(trained, folder, toy_manifest):
    before, after = (predict(model, toy_manifest).probability for model in (trained, load_model(folder)))
    np.testing.assert_array_equal(before, after)


def test_who_predicts_in_inference_mode_gets_the_same_probabilities(folder, toy_manifest):
    expected = predict(load_model(folder), toy_manifest).probability
    with torch.inference_mode():
        np.testing.assert_array_equal(predict(load_model(folder), toy_manifest).probability, expected)


NOT_FOR_PREDICTION = {"fastai", "fastcore", "fasttransform", "sklearn", "matplotlib", "jinja2"}
NOT_FOR_PREDICTION |= {"scipy.stats", "scipy.optimize", "fastcxr.training.learner", "fastcxr.training.loaders"}


def test_the_command_predict_loads_no_library_of_training_or_reports(folder, toy_manifest):
    code = f"""import sys
from fastcxr.cli.main import main
try:
    main()
finally:
    print("loaded:", *({NOT_FOR_PREDICTION!r} & set(sys.modules)), file=sys.stderr)"""
    words = ["predict", str(folder), toy_manifest["file"].iloc[0]]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "prob_" in done.stdout
    assert done.stderr.splitlines()[-1] == "loaded:"


def test_a_loaded_model_keeps_freed_memory_for_its_next_batch(folder, monkeypatch):
    kept = []
    monkeypatch.setattr(bundle, "keep_malloc_arenas", lambda: kept.append(True))
    load_model(folder)
    assert kept, "without it a prediction spends more than half of its time on getting pages again"


def test_the_temperature_and_the_thresholds_travel_with_the_model(trained, tmp_path, toy_manifest):
    calibration = {"temperature": 0.5, "thresholds": {"clear": {"threshold": 0.4}}, "uncertain_below": None}
    save_model(tmp_path, trained, RECIPE, {"precision": "fp32"}, calibration)
    classifier = load_model(tmp_path)
    assert classifier.thresholds["thresholds"]["clear"]["threshold"] == 0.4
    expected = scale_probabilities(predict(trained, toy_manifest).probability, 0.5)
    np.testing.assert_allclose(predict(classifier, toy_manifest).probability, expected, atol=1e-6)


@pytest.mark.parametrize("given", [{"temperature": 0}, {"temperature": "1"}, {"thresholds": {"a": 1}}, 7])
def test_calibration_that_makes_no_sense_is_refused(folder, given):
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(facts | {"calibration": given}))
    with pytest.raises(ModelError, match="the calibration is invalid"):
        load_model(folder)


def test_models_of_earlier_versions_have_no_calibration(folder):
    facts = json.loads((folder / "model.json").read_text())
    del facts["calibration"]
    (folder / "model.json").write_text(json.dumps(facts))
    assert load_model(folder).temperature == 1


@pytest.mark.parametrize("mirror", [True, False])
def test_a_test_time_flip_is_what_the_run_decided_however_many_views_its_bank_has(
    trained, tmp_path, monkeypatch, mirror
):
    views = 1 if mirror else 3  # neither number says anything of mirror images
    probe = SimpleNamespace(bank=FeatureBank(np.zeros((views, 1, 4)), {}, mirror))
    monkeypatch.setattr(trained.fastcxr, "fitted_probe", probe)
    save_model(tmp_path, trained, RECIPE, {"precision": "fp32"})
    assert load_model(tmp_path).hflip_tta is mirror


def test_models_of_earlier_versions_look_once(folder):
    facts = json.loads((folder / "model.json").read_text())
    del facts["hflip_tta"]
    (folder / "model.json").write_text(json.dumps(facts))
    assert not load_model(folder).hflip_tta


@pytest.mark.parametrize(
    ("said", "native", "expected"), [("bf16", True, "bf16"), ("bf16", False, "fp32"), ("fp32", True, "fp32")]
)
def test_a_model_computes_as_it_was_trained_where_the_machine_can(
    trained, tmp_path, monkeypatch, said, native, expected
):
    monkeypatch.setattr("fastcxr.models.precision.is_bf16_native", lambda device: native)
    save_model(tmp_path, trained, RECIPE, {"precision": said})
    assert load_model(tmp_path).precision == expected


@pytest.mark.parametrize(
    ("asked", "native", "expected"),
    [("fp32", True, "fp32"), ("bf16", False, "bf16"), ("auto", True, "bf16"), ("auto", False, "fp32")],
)
@pytest.mark.parametrize("said", ["fp32", "bf16"])
def test_another_arithmetic_is_taken_when_asked_for(trained, tmp_path, monkeypatch, said, asked, native, expected):
    monkeypatch.setattr("fastcxr.models.precision.is_bf16_native", lambda device: native)
    save_model(tmp_path, trained, RECIPE, {"precision": said})
    assert load_model(tmp_path, precision=asked).precision == expected


def test_an_arithmetic_that_nobody_knows_is_refused_with_the_nearest(folder):
    with pytest.raises(RecipeError, match="precision cannot be 'fp16'. Did you mean 'bf16'"):
        load_model(folder, precision="fp16")


def test_auto_asks_for_a_gpu_and_cpu_does_not(folder, monkeypatch):
    monkeypatch.setattr(devices, "_find_default_device", lambda: torch.device("meta"))  # as if it were one
    assert places_of(load_model(folder).network) == {"meta"}
    assert places_of(load_model(folder, device="cpu").network) == {"cpu"}


def test_memory_is_kept_on_a_cpu_alone(folder, monkeypatch):
    monkeypatch.setattr(bundle, "keep_malloc_arenas", None)
    load_model(folder, device="meta")


def test_pictures_are_looked_at_where_the_network_is(folder, monkeypatch):
    classifier, seen = load_model(folder, device="meta"), []
    monkeypatch.setattr(module, "autocast", lambda precision, device: seen.append(device.type) or nullcontext())
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # the answer, to the CPU
        module.score_batch(classifier, np.zeros((2, 64, 64), np.uint8))
    assert seen == ["meta"]


def test_a_device_that_is_not_here_says_what_to_give(folder):
    with pytest.raises(RecipeError, match="Give --device auto, or cpu"):
        load_model(folder, device="cuda:77")


@pytest.mark.parametrize("name", ["mobilenetv2_035", "torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1"])
def test_a_described_head_is_rebuilt_from_model_json(tmp_path, toy_manifest, name):
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
    np.testing.assert_array_equal(before, after)


def test_a_model_saved_before_heads_were_described_has_a_linear_one(folder):
    facts = json.loads((folder / "model.json").read_text())
    assert facts.pop("head") == {"hidden": [], "dropout": 0.0, "multi_scale": False}
    (folder / "model.json").write_text(json.dumps(facts))
    assert isinstance(load_model(folder).network.classifier, nn.Linear)


def test_model_json_says_what_it_is(folder):
    facts = json.loads((folder / "model.json").read_text())
    assert facts["kind"] == "single_label"
    assert facts["labels"] == ["clear", "haze", "opacity"]
    assert facts["backbone"]["library"] == "timm"
    assert facts["backbone"]["name"] == "mobilenetv2_035"
    assert facts["backbone"]["tag"] is None
    assert facts["input_spec"] == {"image_size": 64, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert facts["choices"] == {"precision": "fp32"}


def test_model_json_names_the_tag_of_the_weights_that_were_loaded(tmp_path, toy_manifest, monkeypatch):
    save_file(timm.create_model("mobilenetv2_050").state_dict(), tmp_path / "hub.safetensors")
    monkeypatch.setattr(backbones, "_find_cached_file", lambda backbone: str(tmp_path / "hub.safetensors"))
    recipe = RECIPE.replace(backbone="mobilenetv2_050", weights="pretrained")
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    save_model(tmp_path, learner, recipe, {})
    backbone = json.loads((tmp_path / "model.json").read_text())["backbone"]
    assert learner.model.pretrained_cfg["tag"] == backbone["tag"] == "lamb_in1k"
    assert backbone["weights"] == "mobilenetv2_050.lamb_in1k"


def test_a_weights_file_that_is_gone_after_training_costs_nothing(tmp_path, toy_manifest):
    file = tmp_path / "own.safetensors"
    save_file(timm.create_model("mobilenetv2_035").state_dict(), file)
    recipe = RECIPE.replace(weights=str(file))
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    file.unlink()
    save_model(tmp_path, learner, recipe, {})
    assert json.loads((tmp_path / "model.json").read_text())["backbone"]["weights"] == "own.safetensors"


def test_one_changed_bit_in_the_weights_is_refused(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="sha256 differs from model.json.*Copy it again"):
        load_model(folder)


def test_a_folder_without_a_model_says_what_to_name(tmp_path):
    with pytest.raises(InputMissingError, match="Name the folder of a finished run"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'{"format": 2}', b'{"format": 2, "files": null}', b"[]"])
def test_a_foreign_model_json_is_refused(folder, content):
    (folder / "model.json").write_bytes(content)
    with pytest.raises(ModelError, match="no model.json of fastcxr"):
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
def test_a_model_json_that_does_not_fit_is_refused(folder, key, value):
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(facts | {key: value}))
    with pytest.raises(ModelError, match="whose format this version cannot read|Use the versions that run.json names"):
        load_model(folder)


def test_no_file_of_a_model_is_a_pickle(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    assert not any(path.read_bytes()[:2] in (b"\x80\x04", b"PK") for path in folder.iterdir())


def test_a_model_works_from_another_place(folder, tmp_path_factory, toy_manifest):
    elsewhere = shutil.copytree(folder, tmp_path_factory.mktemp("moved") / "model")
    assert len(predict(load_model(elsewhere), toy_manifest).table) == 12
