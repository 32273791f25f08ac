"""Grad-CAM marks the positions of the evidence: of maps and tokens, at each stage of a MultiScaleHead, for encoders."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny_encoders import SIZE, TINY_ENCODERS
from torch import nn

from fastcxr.errors import ModelError
from fastcxr.inference.grad_cam import find_target_layers, grad_cam, to_feature_maps
from fastcxr.inference.sanity_check import run_sanity_check
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.encoder_network import make_encoder_network
from fastcxr.models.heads import HeadConfig, MultiScaleHead, find_head, replace_head
from fastcxr.training.feature_cache import output_head_features

STRIPES_SIDE = 16  # pixels


class CornerNetwork(nn.Module):
    """Network with two classes: brightness of the upper left corner, and brightness of the rest."""

    def __init__(self):
        super().__init__()
        self.cells = nn.AvgPool2d(8)
        self.split = Split()
        self.classifier = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.classifier.weight.copy_(torch.eye(2))

    def forward(self, images):
        return self.classifier(self.split(self.cells(images)).mean(dim=(2, 3)))

    def get_classifier(self):
        return self.classifier


class Split(nn.Module):
    """Two channels: the corner, and the rest."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2))

    def forward(self, maps):
        corner = torch.zeros_like(maps[:, :1])
        corner[:, :, :2, :2] = 1
        return torch.cat([maps[:, :1] * corner, maps[:, :1] * (1 - corner)], dim=1) * self.gain[:, None, None]


def test_a_class_that_depends_on_one_corner_has_saliency_only_there():
    network, images = CornerNetwork().requires_grad_(False), torch.rand(2, 1, 64, 64) + 1
    layers = find_target_layers(network, images[:1].clone())
    assert layers == ("split",), "the last map before pooling"
    corner, rest = grad_cam(network, layers, images, torch.tensor([0, 1]))
    assert corner[:16, :16].sum() > 0.8 * corner.sum(), "bilinear interpolation extends slightly over the edge"
    assert corner[24:, 24:].sum() == 0
    assert rest[:8, :8].sum() == 0 and rest[32:, 32:].min() > 0


def test_the_mean_of_a_pooled_map_equals_its_contribution_to_the_logit():
    network, images = CornerNetwork().requires_grad_(False), torch.rand(3, 1, 64, 64)
    found = grad_cam(network, ("split",), images, torch.tensor([0, 1, 0])).mean(dim=(1, 2))
    logits = network(images)[torch.arange(3), torch.tensor([0, 1, 0])]
    torch.testing.assert_close(found, logits, rtol=0.02, atol=0)


def build(name, config=None, size=64):
    torch.manual_seed(0)
    backbone = find_backbone(name, "none")
    network = make_network(backbone, 3, "none", size, config or HeadConfig()).eval().requires_grad_(False)
    return network, torch.rand(2, len(backbone.mean), size, size)


@pytest.mark.parametrize(
    "names",
    [
        ("mobilenetv2_035", "bn2"), ("resnet10t", "layer4"), ("densenet121", "features"), ("convnext_atto", "norm_pre"),
        ("vit_tiny_patch16_224", *(f"blocks.{number}.norm1" for number in range(12))), ("baseline_cnn", "pool"),
        ("torchvision:squeezenet1_1", "classifier.0"), ("torchvision:resnet18", "layer4"),
    ],
)  # fmt: skip
def test_the_last_map_and_the_attentions_of_a_class_token_are_found_with_an_untrained_head(names):
    network, images = build(names[0])
    layers = find_target_layers(network, images[:1].clone())
    assert layers == names[1:]
    assert grad_cam(network, layers, images, torch.tensor([0, 2])).abs().sum() == 0, "an untrained head has no evidence"
    for part in find_head(network).modules():
        if hasattr(part, "weight"):
            nn.init.normal_(part.weight)
    maps = torch.cat([grad_cam(network, layers, images, torch.full((2,), k)) for k in range(3)])
    assert maps.shape == (6, *images.shape[2:]) and maps.min() >= 0 and maps.max() > 0


def test_tokens_become_a_map_without_the_class_token():
    network, _ = build("vit_tiny_patch16_224")
    tokens = torch.arange(-1, 16).float().view(1, 17, 1)
    assert torch.equal(to_feature_maps(tokens, network)[0, 0], torch.arange(16).float().view(4, 4))


def test_maps_with_channels_last_are_converted():
    network = nn.Identity()
    network.output_fmt = "NHWC"
    maps = torch.rand(2, 7, 7, 5)
    assert torch.equal(to_feature_maps(maps, network), maps.movedim(3, 1))


def test_the_evidence_that_a_class_token_reads_in_an_early_block_is_marked():
    network = make_encoder_network(TINY_ENCODERS["rad-dino"], 2, SIZE).eval().requires_grad_(False)
    nn.init.normal_(network.head.weight)
    for block in network.blocks[1:]:
        nn.init.zeros_(block.attn.proj.weight)  # only the first block moves information between tokens
    images, layers = torch.rand(2, 3, SIZE, SIZE), find_target_layers(network, torch.rand(1, 3, SIZE, SIZE))
    saliency = torch.stack([grad_cam(network, layers, images, torch.full((2,), k)) for k in range(2)])
    assert (saliency.amax(dim=(2, 3)) > 0).any()


def test_an_early_stage_of_a_multi_scale_head_contributes_its_map():
    network, images = build("mobilenetv2_035", HeadConfig(multi_scale=True))
    head, layers = find_head(network), find_target_layers(network, images[:1].clone())
    assert layers == (*head.stages, "bn2")
    nn.init.zeros_(head.linear.weight)
    head.linear.weight[1, 0] = 1.0  # one channel of the first stage
    stage_outputs = {}
    hook = network.get_submodule(head.stages[0]).register_forward_hook(
        lambda *given: stage_outputs.update(map=given[2])
    )
    saliency = grad_cam(network, layers, images, torch.tensor([1, 1]))
    hook.remove()
    expected = nn.functional.interpolate(stage_outputs["map"][:, :1], size=(64, 64), mode="bilinear")[:, 0]
    torch.testing.assert_close(saliency, expected.relu(), rtol=1e-3, atol=1e-4)
    head.mean[0] = 100.0  # the feature is far below its mean: no evidence for the class
    assert grad_cam(network, layers, images, torch.tensor([1, 1])).sum() == 0


def test_the_contributions_of_all_stages_add_up_to_the_logit():
    network, images = build("resnet10t", HeadConfig(multi_scale=True))
    head = find_head(network)
    nn.init.normal_(head.linear.weight, std=0.1)
    head.linear.bias += 1e4  # the bias is no evidence
    head.mean -= 50.0  # only positive evidence, nothing is clipped
    head.linear.weight.abs_()
    saliency = grad_cam(network, find_target_layers(network, images[:1].clone()), images, torch.tensor([0, 1]))
    logits = network(images)[torch.arange(2), torch.tensor([0, 1])] - head.linear.bias[:2]
    torch.testing.assert_close(saliency.mean(dim=(1, 2)), logits, rtol=1e-3, atol=0.1)


def test_a_network_without_a_spatial_map_raises_an_error_with_a_fix():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ModelError, match="no spatial map.*`method='occlusion'`"):
        find_target_layers(network, torch.rand(1, 1, 8, 8))


def test_no_hook_remains_in_the_network():
    network, images = build("resnet10t")
    before = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())
    grad_cam(network, find_target_layers(network, images[:1].clone()), images, torch.tensor([0, 1]))
    after = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())
    assert after == before


def draw_stripes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Return noise with a square of stripes: images (n, 3, size, size), directions (n,), row and column (n, 2)."""
    rng = np.random.default_rng(seed)
    images, corners = rng.normal(size=(count, SIZE, SIZE)) / 2, 8 * rng.integers(0, 6, (count, 2))
    stripes = np.broadcast_to(np.where(np.arange(STRIPES_SIDE) % 4 < 2, 2.0, -2.0), (STRIPES_SIDE, STRIPES_SIDE))
    for number, (row, column) in enumerate(corners):
        images[number, row:, column:][:STRIPES_SIDE, :STRIPES_SIDE] += stripes if number % 2 else stripes.T
    return torch.from_numpy(images).float()[:, None].expand(-1, 3, -1, -1), torch.arange(count) % 2, corners


@torch.no_grad()
def fit_two_classes(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> None:
    """Fit the linear layer of the head by logistic regression."""
    head, found = find_head(network), []
    if isinstance(head, MultiScaleHead):
        with output_head_features(head):
            features = network(images)
        head.mean.copy_(features.mean(dim=0))
        head.std.copy_(features.std(dim=0))
    layer = head.linear if isinstance(head, MultiScaleHead) else head
    hook = layer.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].numpy()))
    network(images)
    hook.remove()
    mean, scale = found[0].mean(axis=0), found[0].std(axis=0)
    fit = LogisticRegression(C=0.1, max_iter=500).fit((found[0] - mean) / scale, classes)
    weight = torch.from_numpy(fit.coef_[0] / scale).float()
    layer.weight.copy_(torch.stack([-weight, weight]))
    layer.bias.copy_(layer.weight @ torch.from_numpy(-mean))


@pytest.mark.parametrize("multi_scale", [False, True])
@pytest.mark.parametrize("name", TINY_ENCODERS)
def test_maps_of_each_kind_of_encoder_mark_the_evidence_and_pass_the_sanity_check(name, multi_scale):
    torch.manual_seed(0)
    network = make_encoder_network(TINY_ENCODERS[name], 2, SIZE)
    if multi_scale:
        replace_head(network, 2, HeadConfig(multi_scale=True), torch.zeros(1, 3, SIZE, SIZE))
    fit_two_classes(network.eval().requires_grad_(False), *draw_stripes(100, seed=0)[:2])
    images, classes, corners = draw_stripes(8, seed=1)
    layers = find_target_layers(network, images[:1].clone())
    check = run_sanity_check(network, lambda *given: grad_cam(given[0], layers, *given[1:]), images, classes)
    assert check.is_passed, check.summary
    if name == "ark6" and not multi_scale:  # two positions a side, of random weights
        return
    assert torch.equal(network(images).argmax(dim=1), classes)
    maps = grad_cam(network, layers, images, classes)
    inside = [part[r:, c:][:STRIPES_SIDE, :STRIPES_SIDE].mean() for part, (r, c) in zip(maps, corners, strict=True)]
    assert (torch.stack(inside) / maps.mean(dim=(1, 2))).mean() > 3
