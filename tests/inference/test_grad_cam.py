"""Grad-CAM marks the positions of the evidence, for maps and tokens, and at each stage of a MultiScaleHead."""

import pytest
import torch
from torch import nn

from fastcxr.errors import ModelError
from fastcxr.inference.grad_cam import find_target_layers, grad_cam, to_feature_maps
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.heads import HeadConfig, find_head


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
    ("name", "last"),
    [
        ("mobilenetv2_035", "bn2"), ("resnet10t", "layer4"), ("densenet121", "features"), ("convnext_atto", "norm_pre"),
        ("vit_tiny_patch16_224", "blocks.11.norm1"), ("baseline_cnn", "pool"),
        ("torchvision:squeezenet1_1", "classifier.0"), ("torchvision:resnet18", "layer4"),
    ],
)  # fmt: skip
def test_the_last_map_is_found_with_an_untrained_head(name, last):
    network, images = build(name)
    layers = find_target_layers(network, images[:1].clone())
    assert layers == (last,)
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
