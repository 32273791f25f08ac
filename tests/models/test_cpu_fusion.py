"""Fused networks have the same outputs; a network stays unfused if they would differ."""

import ast
import copy
import os
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from fastcxr.models import cpu_fusion
from fastcxr.models.cpu_fusion import ConvBnAct, fuse_for_inference, make_noise_image, trace
from fastcxr.models.heads import HeadConfig, find_head, forward_with_features, replace_head, zero_init
from fastcxr.models.precision import autocast, keep_stem_fp32
from fastcxr.models.preprocessing import InputSpec

needs_bf16 = pytest.mark.skipif(
    os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX", reason="oneDNN is limited to AVX (conftest.py), without bfloat16"
)
INPUT_SPEC = InputSpec(image_size=64, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def make_network(name: str) -> nn.Module:
    """Return a timm network with random weights and batch norm statistics other than 0 and 1."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network.train()


def list_fused_convs(network: nn.Module) -> list[cpu_fusion.FusedConv]:
    forwards = [vars(module).get("forward") for module in network.modules() if isinstance(module, nn.Conv2d)]
    return [forward for forward in forwards if isinstance(forward, cpu_fusion.FusedConv)]


def disable_onednn(monkeypatch) -> None:
    monkeypatch.setattr(cpu_fusion, "has_onednn", lambda device: False)


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
N_FUSED_CONVS = {
    "mobilenetv2_035": 52,
    "resnet18": 20,  # residuals are added in place, between batch norm and activation
    "torchvision:resnet18": 20,  # each block calls one activation module twice
    "mobilenetv3_small_050": 34,  # squeeze and excitation, hard swish
    "densenet121": 59,
    "vgg11_bn": 8,
    "vit_tiny_patch16_224": 0,
}


def make_any_network(name: str) -> nn.Module:
    if name.startswith("torchvision:"):
        torch.manual_seed(0)
        return getattr(torchvision.models, name.partition(":")[2])(num_classes=3)
    return timm.create_model(name, num_classes=3, img_size=64) if name.startswith("vit") else make_network(name)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize(
    ("name", "n_fused"),
    [pytest.param(*item, marks=[pytest.mark.slow] if item[0] == "vgg11_bn" else []) for item in N_FUSED_CONVS.items()],
)
@torch.no_grad()
def test_a_fused_copy_has_the_same_outputs_and_the_network_does_not_change(name, n_fused, onednn, monkeypatch):
    if not onednn:
        disable_onednn(monkeypatch)
    network = make_any_network(name).train()
    before = copy.deepcopy(network.state_dict())
    fused = fuse_for_inference(network, INPUT_SPEC, "fp32")
    assert len(list_fused_convs(fused)) == n_fused
    assert network.training and not fused.training
    assert all(torch.equal(now, before[key]) for key, now in network.state_dict().items())
    torch.testing.assert_close(fused(IMAGES), network.eval()(IMAGES), rtol=1e-3, atol=1e-4)


class SharedConvOutput(nn.Module):
    """A network that cannot be fused: the batch norm is not the only user of the convolution's output."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.norm.running_mean += 1

    def forward(self, images):
        maps = self.conv(images)
        return self.head((self.norm(maps) + maps).mean(dim=(2, 3)))


@pytest.mark.parametrize("init_head", [lambda network: None, zero_init], ids=["random head", "zero head"])
@torch.no_grad()
def test_a_convolution_with_other_users_of_its_output_is_not_fused(init_head):
    network = SharedConvOutput()
    init_head(network)
    fused = fuse_for_inference(network, INPUT_SPEC, "fp32")
    assert not list_fused_convs(fused)
    nn.init.normal_(network.head.weight)
    fused.head.load_state_dict(network.head.state_dict())
    torch.testing.assert_close(fused(IMAGES), network.eval()(IMAGES))


@torch.no_grad()
def test_stage_features_and_a_multi_scale_head_do_not_change():
    network = make_network("resnet18")
    replace_head(network.eval(), 3, HeadConfig(multi_scale=True), torch.zeros(1, 3, 64, 64))
    nn.init.normal_(find_head(network).linear.weight)
    fused = fuse_for_inference(network, INPUT_SPEC, "fp32")
    stage_channels = dict(zip(find_head(network).stages, find_head(network).channels, strict=True))
    for found, expected in zip(
        forward_with_features(fused, IMAGES, stage_channels),
        forward_with_features(network, IMAGES, stage_channels),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert find_head(fused) is not find_head(network)


@needs_bf16
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_035", "mobilenetv3_small_050"])
@torch.no_grad()
def test_in_bfloat16_the_error_is_similar_to_that_of_the_unfused_network(name):
    network = make_network(name).eval().to(memory_format=torch.channels_last)
    images = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    exact, fused = network(images), fuse_for_inference(network, INPUT_SPEC, "bf16")
    assert len(list_fused_convs(fused)) == N_FUSED_CONVS[name]
    with autocast("bf16", torch.device("cpu")):
        errors = [float((found.float() - exact).norm() / exact.norm()) for found in (fused(images), network(images))]
    assert 0 < errors[0] < 1.5 * errors[1] < 0.3


@needs_bf16
@torch.no_grad()
def test_in_bfloat16_biases_and_the_stem_stay_in_float32():
    fused_convs = list_fused_convs(fuse_for_inference(make_network("mobilenetv2_100"), INPUT_SPEC, "bf16"))
    assert {conv.bias.dtype for conv in fused_convs} == {torch.float32}
    assert [conv.weight.dtype for conv in fused_convs[:4]] == [*3 * [torch.float32], torch.bfloat16]


@needs_bf16
@torch.no_grad()
def test_a_large_bias_that_cancels_a_large_sum_is_not_rounded():
    convolution, norm = nn.Conv2d(64, 1, 1, bias=False), nn.BatchNorm2d(1).eval()
    convolution.weight.fill_(-1.5625)  # exact in bfloat16; the sum is -100
    norm.bias.fill_(100.3)  # 100.5 in bfloat16
    fused_conv = cpu_fusion.FusedConv(ConvBnAct(convolution, norm, None), fuse_activation=False)
    fused_conv.weight = fused_conv.weight.bfloat16()
    found = fused_conv(torch.ones(1, 64, 4, 4)).float()
    torch.testing.assert_close(found, torch.full_like(found, 0.3), rtol=0, atol=0.01)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_035"])
@torch.no_grad()
def test_without_onednn_bfloat16_networks_are_not_fused(name, monkeypatch):
    disable_onednn(monkeypatch)
    network = make_network(name).eval().to(memory_format=torch.channels_last)
    fused = fuse_for_inference(network, INPUT_SPEC, "bf16")
    assert not list_fused_convs(fused)
    with autocast("bf16", torch.device("cpu")):
        assert torch.equal(fused(IMAGES), network(IMAGES))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@torch.no_grad()
def test_a_network_stays_unfused_if_the_cpu_does_not_support_fused_convolutions(precision, monkeypatch):
    def fail(self, maps):
        raise RuntimeError("needs the cpu support avx512")

    monkeypatch.setattr(cpu_fusion.FusedConv, "__call__", fail)
    network = make_network("mobilenetv2_035").eval().to(memory_format=torch.channels_last)
    fused = fuse_for_inference(network, INPUT_SPEC, precision)
    assert not list_fused_convs(fused)
    with autocast(precision, torch.device("cpu")):
        assert torch.equal(fused(IMAGES), network(IMAGES))


@pytest.mark.parametrize("head", [HeadConfig(), HeadConfig(hidden=(8,)), HeadConfig(multi_scale=True)], ids=str)
def test_the_inputs_of_a_zero_initialized_head_are_traced(head):
    network = make_network("resnet18").eval()
    replace_head(network, 3, head, torch.zeros(1, 3, 64, 64))
    zero_init(network)
    outputs = trace(network, make_noise_image(INPUT_SPEC))[1]
    head_inputs = [inputs for layer, inputs in outputs.items() if isinstance(layer, nn.Linear)]
    assert not outputs[None].any()
    assert head_inputs and all(inputs.any() for inputs in head_inputs)


@pytest.mark.parametrize("precision", [pytest.param("bf16", marks=needs_bf16), "fp32"])
def test_fusion_in_inference_mode_has_the_same_result(precision):
    network = make_network("mobilenetv2_035")
    expected = fuse_for_inference(network, INPUT_SPEC, precision)
    with torch.inference_mode():
        for given in (network, copy.deepcopy(network)):  # the copy consists of inference tensors
            found = fuse_for_inference(given, INPUT_SPEC, precision)
            assert len(list_fused_convs(found)) == N_FUSED_CONVS["mobilenetv2_035"]
            with autocast(precision, torch.device("cpu")):
                assert torch.equal(found(IMAGES), expected(IMAGES))


def test_fusion_does_not_change_the_global_random_state():
    network = make_network("mobilenetv2_035")
    state = torch.get_rng_state()
    fuse_for_inference(network, INPUT_SPEC, "fp32")
    assert torch.equal(state, torch.get_rng_state())


PACKAGE = Path(cpu_fusion.__file__).parents[1]


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_fuse_for_inference_is_the_only_entry_point_and_private_operators_are_not_used_in_other_modules(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    from_package = {alias.name for node in imports if node.module == "fastcxr.models" for alias in node.names}
    from_module = {alias.name for node in imports if node.module == cpu_fusion.__name__ for alias in node.names}
    assert "cpu_fusion" not in from_package and from_module <= {"fuse_for_inference"}
    if file != Path(cpu_fusion.__file__):
        assert "torch.ops" not in {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_without_batch_norm_is_copied_without_a_forward_pass(precision):
    network, calls = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=64, num_classes=3), []
    network.register_forward_pre_hook(lambda module, inputs: calls.append(inputs))
    keep_stem_fp32(network, INPUT_SPEC)
    fused = fuse_for_inference(network, INPUT_SPEC, precision)
    assert not calls and fused is not network and not fused.training
