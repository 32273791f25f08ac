"""A weights file fills a network exactly, or is refused with the keys; nothing in it runs."""

import ast
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fastcxr
from fastcxr.errors import InputMissingError, WeightsError
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.heads import LINEAR_HEAD, HeadConfig

BACKBONE = "mobilenetv2_035"


def network(classes: int = 3, weights: str = "none", head: HeadConfig = LINEAR_HEAD):
    return make_network(find_backbone(BACKBONE, weights), classes, weights, 64, head)


@pytest.fixture(scope="module")
def thousand():
    torch.manual_seed(1)
    return make_network(find_backbone(BACKBONE, "none"), 1000, "none", 64).state_dict()


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}])
def test_a_plain_state_dict_fills_the_body_and_drops_a_head_of_another_size(thousand, tmp_path, wrap):
    torch.save(wrap(thousand), tmp_path / "w.pth")
    filled = network(weights=str(tmp_path / "w.pth")).state_dict()
    same = [name for name in thousand if "classifier" not in name]
    assert all(torch.equal(filled[name], thousand[name]) for name in same)
    assert filled["classifier.weight"].shape[0] == 3


def test_safetensors_fill_the_network_and_a_head_of_the_same_size_comes_along(tmp_path):
    torch.manual_seed(2)
    state = network().state_dict()
    save_file(state, tmp_path / "w.safetensors")
    filled = network(weights=str(tmp_path / "w.safetensors")).state_dict()
    assert all(torch.equal(filled[name], state[name]) for name in state)


def test_a_head_of_another_form_starts_anew_and_one_of_another_size_keeps_its_hidden_layers(thousand, tmp_path):
    save_file(thousand, tmp_path / "linear.safetensors")
    network(weights=str(tmp_path / "linear.safetensors"), head=HeadConfig(hidden=(8,)))
    two_layers = network(5, head=HeadConfig(hidden=(8,))).state_dict()
    save_file(two_layers, tmp_path / "hidden.safetensors")
    filled = network(3, str(tmp_path / "hidden.safetensors"), HeadConfig(hidden=(8,))).state_dict()
    assert torch.equal(filled["classifier.0.weight"], two_layers["classifier.0.weight"])
    assert filled["classifier.2.weight"].shape == (3, 8)
    network(3, str(tmp_path / "hidden.safetensors"))


def test_every_other_mismatch_is_an_error_that_lists_the_keys(thousand, tmp_path):
    broken = {name: value for name, value in thousand.items() if name != "conv_stem.weight"}
    broken |= {"stranger": torch.zeros(1), "bn1.bias": torch.zeros(5)}
    save_file(broken, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        network(weights=str(tmp_path / "w.safetensors"))
    assert "lacks conv_stem.weight; has unknown stranger; has other shapes for bn1.bias" in str(caught.value)
    assert "w.safetensors" in str(caught.value)


def test_older_files_without_batch_counters_are_taken(thousand, tmp_path):
    save_file({k: v for k, v in thousand.items() if "num_batches" not in k}, tmp_path / "w.safetensors")
    network(weights=str(tmp_path / "w.safetensors"))


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"state_dict": Hostile()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="refused: this file holds code.*Save its state dict alone"):
        network(weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x00" * 500])
def test_a_file_that_is_no_weights_file_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        network(weights=str(tmp_path / name))


def test_an_image_given_as_weights_is_not_said_to_hold_code(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff\xe0" + b"\x00" * 100)
    with pytest.raises(WeightsError, match="no weights file: torch.save did not write it. Give a .safetensors"):
        network(weights=str(tmp_path / "x.jpg"))


def test_a_missing_file_names_the_choices():
    with pytest.raises(InputMissingError, match="Give --weights pretrained, none, or a .safetensors"):
        network(weights="nowhere.safetensors")


def test_the_real_imagenet_weights_fit(real_weights):
    make_network(find_backbone("mobilenetv2_100", str(real_weights)), 3, str(real_weights), 64)


def test_no_file_is_unpickled_without_restriction():
    sources = [file.read_text(encoding="utf-8") for file in Path(fastcxr.__file__).parent.rglob("*.py")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    calls = [ast.unparse(node) for node in nodes if isinstance(node, ast.Call)]
    loading = [call for call in calls if call.startswith(("torch.load(", "load_learner(", "pickle."))]
    assert len(loading) == 1
    assert "weights_only=True" in loading[0]
    assert not [call for call in calls if "allow_pickle=True" in call]
