"""Fusion: the same outputs without batch norms, or the unfused network where they would differ."""

import ast
import copy
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from fastcxr.models import cpu_fusion
from fastcxr.models.cpu_fusion import ConvBnAct, fuse_for_inference, make_noise_image, trace
from fastcxr.models.heads import HeadConfig, find_head, forward_with_features, replace_head, zero_init
from fastcxr.models.precision import autocast
from fastcxr.models.preprocessing import InputSpec

PIXELS = InputSpec(image_size=64, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def make(name: str) -> nn.Module:
    """A network of random weights whose batch norms do something."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network.train()


def joints_of(network: nn.Module) -> list[cpu_fusion.FusedConv]:
    """What stands in the place of convolutions."""
    ways = [vars(module).get("forward") for module in network.modules() if isinstance(module, nn.Conv2d)]
    return [way for way in ways if isinstance(way, cpu_fusion.FusedConv)]


def forget_onednn(monkeypatch) -> None:
    """A machine without it."""
    monkeypatch.setattr(cpu_fusion, "has_onednn", lambda device: False)


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


JOINED = {
    "mobilenetv2_035": 52,
    "resnet18": 20,  # its residuals are added in place, between a batch norm and an activation
    "torchvision:resnet18": 20,  # one activation in several places
    "mobilenetv3_small_050": 34,  # squeeze and excitation, hard swish
    "densenet121": 59,
    "vgg11_bn": 8,
    "vit_tiny_patch16_224": 0,
}


def make_any(name: str) -> nn.Module:
    """Of timm or torchvision."""
    if name.startswith("torchvision:"):
        torch.manual_seed(0)
        return getattr(torchvision.models, name.partition(":")[2])(num_classes=3)
    return timm.create_model(name, num_classes=3, img_size=64) if name.startswith("vit") else make(name)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize(
    ("name", "joined"),
    [pytest.param(*item, marks=[pytest.mark.slow] if item[0] == "vgg11_bn" else []) for item in JOINED.items()],
)
@torch.no_grad()
def test_the_same_comes_out_and_the_network_itself_stays(name, joined, onednn, monkeypatch):
    if not onednn:
        forget_onednn(monkeypatch)
    network = make_any(name).train()
    before = copy.deepcopy(network.state_dict())
    quick = fuse_for_inference(network, PIXELS, "fp32")
    assert len(joints_of(quick)) == joined
    assert network.training and not quick.training
    assert all(torch.equal(now, before[key]) for key, now in network.state_dict().items())
    torch.testing.assert_close(quick(IMAGES), network.eval()(IMAGES), rtol=1e-3, atol=1e-4)


class Shared(nn.Module):
    """Folding is wrong here: the convolution's answer is read by others than its batch norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.norm.running_mean += 1

    def forward(self, images):
        answer = self.conv(images)
        return self.head((self.norm(answer) + answer).mean(dim=(2, 3)))


@pytest.mark.parametrize("start", [lambda network: None, zero_init], ids=["random head", "head of zeros"])
@torch.no_grad()
def test_a_convolution_that_others_read_too_keeps_its_batch_norm(start):
    network = Shared()
    start(network)
    quick = fuse_for_inference(network, PIXELS, "fp32")
    assert not joints_of(quick)
    nn.init.normal_(network.head.weight)
    quick.head.load_state_dict(network.head.state_dict())
    torch.testing.assert_close(quick(IMAGES), network.eval()(IMAGES))


@torch.no_grad()
def test_stages_and_a_head_over_depths_see_what_they_saw():
    network = make("resnet18")
    replace_head(network.eval(), 3, HeadConfig(multi_scale=True), torch.zeros(1, 3, 64, 64))
    nn.init.normal_(find_head(network).linear.weight)
    quick = fuse_for_inference(network, PIXELS, "fp32")
    depths = dict(zip(find_head(network).stages, find_head(network).channels, strict=True))
    for found, expected in zip(
        forward_with_features(quick, IMAGES, depths), forward_with_features(network, IMAGES, depths), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert find_head(quick) is not find_head(network)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_035", "mobilenetv3_small_050"])
@torch.no_grad()
def test_in_bfloat16_the_answers_are_no_further_from_those_of_float32(name):
    network = make(name).eval().to(memory_format=torch.channels_last)
    images = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    exact, quick = network(images), fuse_for_inference(network, PIXELS, "bf16")
    assert len(joints_of(quick)) == JOINED[name]
    with autocast("bf16", torch.device("cpu")):
        errors = [float((found.float() - exact).norm() / exact.norm()) for found in (quick(images), network(images))]
    assert 0 < errors[0] < 1.5 * errors[1] < 0.3


@torch.no_grad()
def test_in_bfloat16_biases_and_the_beginning_stay_in_float32():
    joints = joints_of(fuse_for_inference(make("mobilenetv2_100"), PIXELS, "bf16"))
    assert {joint.bias.dtype for joint in joints} == {torch.float32}
    assert [joint.weight.dtype for joint in joints[:4]] == [*3 * [torch.float32], torch.bfloat16]


@torch.no_grad()
def test_a_large_bias_that_evens_out_a_large_sum_is_not_rounded():
    convolution, norm = nn.Conv2d(64, 1, 1, bias=False), nn.BatchNorm2d(1).eval()
    convolution.weight.fill_(-1.5625)  # a number of bfloat16; all together -100
    norm.bias.fill_(100.3)  # 100.5 in bfloat16
    joint = cpu_fusion.FusedConv(ConvBnAct(convolution, norm, None), without_activation=True)
    joint.weight = joint.weight.bfloat16()
    found = joint(torch.ones(1, 64, 4, 4)).float()
    torch.testing.assert_close(found, torch.full_like(found, 0.3), rtol=0, atol=0.01)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_035"])
@torch.no_grad()
def test_without_onednn_bfloat16_is_not_fused_and_no_bit_changes(name, monkeypatch):
    forget_onednn(monkeypatch)
    network = make(name).eval().to(memory_format=torch.channels_last)
    quick = fuse_for_inference(network, PIXELS, "bf16")
    assert not joints_of(quick)
    with autocast("bf16", torch.device("cpu")):
        assert torch.equal(quick(IMAGES), network(IMAGES))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@torch.no_grad()
def test_where_onednn_cannot_do_it_the_network_stays_as_it_is(precision, monkeypatch):
    def refuse(self, maps):
        raise RuntimeError("needs the cpu support avx512")

    monkeypatch.setattr(cpu_fusion.FusedConv, "__call__", refuse)
    network = make("mobilenetv2_035").eval().to(memory_format=torch.channels_last)
    quick = fuse_for_inference(network, PIXELS, precision)
    assert not joints_of(quick)
    with autocast(precision, torch.device("cpu")):
        assert torch.equal(quick(IMAGES), network(IMAGES))


@pytest.mark.parametrize("plan", [HeadConfig(), HeadConfig(hidden=(8,)), HeadConfig(multi_scale=True)], ids=str)
def test_what_a_head_of_zeros_sees_is_looked_at(plan):
    network = make("resnet18").eval()
    replace_head(network, 3, plan, torch.zeros(1, 3, 64, 64))
    zero_init(network)
    ends = trace(network, make_noise_image(PIXELS))[1]
    seen = [end for layer, end in ends.items() if isinstance(layer, nn.Linear)]
    assert not ends[None].any()
    assert seen and all(end.any() for end in seen)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_who_asks_in_inference_mode_gets_the_same_network(precision):
    network = make("mobilenetv2_035")
    expected = fuse_for_inference(network, PIXELS, precision)
    with torch.inference_mode():
        for given in (network, copy.deepcopy(network)):  # the second is made of inference tensors itself
            found = fuse_for_inference(given, PIXELS, precision)
            assert len(joints_of(found)) == JOINED["mobilenetv2_035"]
            with autocast(precision, torch.device("cpu")):
                assert torch.equal(found(IMAGES), expected(IMAGES))


def test_folding_draws_no_random_number():
    network = make("mobilenetv2_035")
    state = torch.get_rng_state()
    fuse_for_inference(network, PIXELS, "fp32")
    assert torch.equal(state, torch.get_rng_state())


PACKAGE = Path(cpu_fusion.__file__).parents[1]


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_one_function_is_the_only_entry_point_and_private_operators_are_used_only_here(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    from_package = {alias.name for node in imports if node.module == "fastcxr.models" for alias in node.names}
    from_module = {alias.name for node in imports if node.module == cpu_fusion.__name__ for alias in node.names}
    assert "cpu_fusion" not in from_package and from_module <= {"fuse_for_inference"}
    if file != Path(cpu_fusion.__file__):
        assert "torch.ops" not in {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
