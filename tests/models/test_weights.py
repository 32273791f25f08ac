"""Weights files are loaded exactly or rejected with the mismatched keys; code in them never runs."""

import ast
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import fastcxr
from fastcxr.errors import InputMissingError, WeightsError
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.heads import LINEAR_HEAD, HeadConfig
from fastcxr.models.weights import load_weights

BACKBONE = "mobilenetv2_035"


def build(classes: int = 3, weights: str = "none", head: HeadConfig = LINEAR_HEAD):
    return make_network(find_backbone(BACKBONE, weights), classes, weights, 64, head)


@pytest.fixture(scope="module")
def imagenet_state():
    torch.manual_seed(1)
    return make_network(find_backbone(BACKBONE, "none"), 1000, "none", 64).state_dict()


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}}])
def test_a_state_dict_fills_the_backbone_and_skips_a_head_of_another_size(imagenet_state, tmp_path, wrap):
    torch.save(wrap(imagenet_state), tmp_path / "w.pth")
    filled = build(weights=str(tmp_path / "w.pth")).state_dict()
    backbone = [name for name in imagenet_state if "classifier" not in name]
    assert all(torch.equal(filled[name], imagenet_state[name]) for name in backbone)
    assert filled["classifier.weight"].shape[0] == 3


def test_safetensors_fill_the_network_and_a_head_of_the_same_size(tmp_path):
    torch.manual_seed(2)
    state = build().state_dict()
    save_file(state, tmp_path / "w.safetensors")
    filled = build(weights=str(tmp_path / "w.safetensors")).state_dict()
    assert all(torch.equal(filled[name], state[name]) for name in state)


def test_only_the_layers_of_a_head_that_differ_keep_their_initial_values(imagenet_state, tmp_path):
    save_file(imagenet_state, tmp_path / "linear.safetensors")
    build(weights=str(tmp_path / "linear.safetensors"), head=HeadConfig(hidden=(8,)))
    two_layers = build(5, head=HeadConfig(hidden=(8,))).state_dict()
    save_file(two_layers, tmp_path / "hidden.safetensors")
    filled = build(3, str(tmp_path / "hidden.safetensors"), HeadConfig(hidden=(8,))).state_dict()
    assert torch.equal(filled["classifier.0.weight"], two_layers["classifier.0.weight"])
    assert filled["classifier.2.weight"].shape == (3, 8)
    build(3, str(tmp_path / "hidden.safetensors"))


def test_every_other_mismatch_raises_an_error_that_lists_the_keys(imagenet_state, tmp_path):
    broken = {name: value for name, value in imagenet_state.items() if name != "conv_stem.weight"}
    broken |= {"extra": torch.zeros(1), "bn1.bias": torch.zeros(5)}
    save_file(broken, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as caught:
        build(weights=str(tmp_path / "w.safetensors"))
    assert "missing keys: conv_stem.weight; unknown keys: extra; different shapes: bn1.bias" in str(caught.value)
    assert "w.safetensors" in str(caught.value)


def test_older_files_without_num_batches_tracked_are_loaded(imagenet_state, tmp_path):
    save_file({k: v for k, v in imagenet_state.items() if "num_batches" not in k}, tmp_path / "w.safetensors")
    build(weights=str(tmp_path / "w.safetensors"))


def test_a_checkpoint_that_holds_itself_is_rejected(tmp_path):
    content = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="E204 .*no tensors in the file"):
        build(weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize(("n_file", "n_network"), [(3, 1), (1, 3)])
@torch.inference_mode()
def test_one_and_three_channels_have_the_same_output_for_gray_images(tmp_path, caplog, n_file, n_network):
    caplog.set_level("INFO", "fastcxr")
    torch.manual_seed(3)
    original, network = (timm.create_model("resnet10t", in_chans=n, num_classes=2).eval() for n in (n_file, n_network))
    save_file(original.state_dict(), tmp_path / "w.safetensors")
    load_weights(network, tmp_path / "w.safetensors")
    gray = torch.randn(1, 1, 64, 64)
    outputs = [model(gray.expand(-1, n, -1, -1)) for model, n in ((original, n_file), (network, n_network))]
    torch.testing.assert_close(*outputs)
    assert f"first layer adapted from {n_file} to {n_network} channels" in caplog.text


def test_tables_of_swin_windows_are_resampled_as_stated(tmp_path, caplog):
    caplog.set_level("INFO", "fastcxr")
    options = {"depths": (1, 1), "num_heads": (3, 6), "num_classes": 2}
    original = timm.create_model("swin_tiny_patch4_window7_224", **options)
    network = timm.create_model("swin_tiny_patch4_window7_224", img_size=192, window_size=6, **options)
    save_file(original.state_dict(), tmp_path / "w.safetensors")
    load_weights(network, tmp_path / "w.safetensors")
    assert "tables of relative positions resampled from 13 x 13 to 11 x 11" in caplog.text


def test_patches_of_another_size_are_not_resampled(tmp_path):
    small = {"depth": 1, "num_classes": 2}
    save_file(timm.create_model("vit_tiny_patch16_224", **small).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="different shapes: patch_embed.proj.weight, pos_embed"):
        load_weights(timm.create_model("vit_tiny_patch16_224", patch_size=14, **small), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "tensors",
    [
        {"patch_embed.proj.weight": torch.tensor(1.0)},
        {"patch_embed.proj.weight": torch.zeros(4, 3, 16, 16), "pos_embed": torch.zeros(3)},
        {"patch_embed.proj.weight": torch.zeros(4, 3, 16, 16), "register_tokens": torch.zeros(1, 4, 4)},
        {"encoder.layer.0.layer_scale1.lambda1": torch.zeros(3), "embeddings.register_tokens": torch.zeros(3)},
        {"visual.class_embedding": torch.tensor(1.0), "visual.positional_embedding": torch.zeros(2)},
    ],
)
def test_tensors_of_impossible_shapes_are_rejected(tmp_path, tensors):
    save_file(tensors, tmp_path / "w.safetensors")
    for name in (BACKBONE, "vit_tiny_patch16_224", "eva02_tiny_patch14_224"):
        with pytest.raises(WeightsError, match="E205 .*w.safetensors"):
            load_weights(timm.create_model(name, num_classes=2), tmp_path / "w.safetensors")


class CodeOnLoad:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def test_a_file_with_code_is_rejected_and_the_code_does_not_run(tmp_path):
    torch.save({"state_dict": CodeOnLoad()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="other objects than tensors.*save only its state dict"):
        build(weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", r"is empty \(0 bytes\). Download it again in a browser"),
        ("\ufeff<html>\r\n\tnot found: é</html>".encode(), "is a text or HTML page.* Download it again in a browser"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer.* Run `git lfs pull`"),
        (b"\x00" * 500, ""),
        (b"\xff" * 500, ""),
    ],
)
def test_a_file_without_weights_is_rejected(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"E204 .*{name}.*{text}"):
        build(weights=str(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([torch.zeros(1)], "contains a list, expected tensors by name"),
        (torch.zeros(1), "contains a Tensor, expected tensors by name"),
        ({}, "no tensors in the file"),
    ],
)
def test_a_file_without_tensors_by_name_is_rejected(tmp_path, content, text):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=f"E204 .*{text}"):
        build(weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin"], "in it, .*model.safetensors$"),
        (["README.md", "encoder.pt"], "in it, .*encoder.pt$"),
        (["first.pth", "second.pth"], "in it$"),
    ],
)
def test_the_error_for_a_folder_names_its_weights_file(tmp_path, names, text):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(InputMissingError, match=f"is a folder. Pass the weights file {text}"):
        build(weights=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "n_channels", "text"),
    [("resnet18", 3, "conv1 7 x 7, 3 channels"), (BACKBONE, 3, "conv_stem 3 x 3, 3 channels"),
     ("resnet18", 1, "conv1 7 x 7, 1 channel")],
)  # fmt: skip
def test_the_error_describes_a_convolutional_network_in_a_transformer(tmp_path, name, n_channels, text):
    save_file(timm.create_model(name, in_chans=n_channels).state_dict(), tmp_path / "w.safetensors")
    network = timm.create_model("vit_tiny_patch16_224", depth=1)
    with pytest.raises(WeightsError, match=f"found: a convolutional network: first layer {text}"):
        load_weights(network, tmp_path / "w.safetensors")


def test_an_image_is_rejected_as_a_file_not_written_by_torch(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff\xe0" + b"\x00" * 100)
    with pytest.raises(WeightsError, match="not a file written by torch.save. Pass a .safetensors"):
        build(weights=str(tmp_path / "x.jpg"))


def test_the_error_for_a_missing_file_lists_the_choices():
    with pytest.raises(InputMissingError, match="Pass `weights='pretrained'`, `weights='none'`, or a .safetensors"):
        build(weights="missing.safetensors")


def test_real_imagenet_weights_fit(real_weights):
    make_network(find_backbone("mobilenetv2_100", str(real_weights)), 3, str(real_weights), 64)


# these read pipes from a process that they started, or that started them
PIPES = ("executors/new_process.py", "data/cache/decoding_process.py")


def test_no_module_unpickles_files_without_weights_only():
    files = [file for file in Path(fastcxr.__file__).parent.rglob("*.py") if not file.as_posix().endswith(PIPES)]
    sources = [file.read_text(encoding="utf-8") for file in files]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    calls = [ast.unparse(node) for node in nodes if isinstance(node, ast.Call)]
    loading = [call for call in calls if call.startswith(("torch.load(", "load_learner(", "pickle."))]
    assert len(loading) == 1
    assert "weights_only=True" in loading[0]
    assert not [call for call in calls if "allow_pickle=True" in call]
