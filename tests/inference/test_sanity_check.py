"""The sanity check rejects maps that do not depend on the weights and accepts Grad-CAM."""

import copy

import pytest
import torch
from torch import nn

from fastcxr.inference.grad_cam import find_target_layers, grad_cam
from fastcxr.inference.sanity_check import (
    MAX_RANK_CORRELATION,
    SanityCheck,
    compute_rank_correlation,
    randomise_cascade,
    run_sanity_check,
)
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.heads import find_head
from fastcxr.models.param_groups import merged_layer_groups


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = make_network(find_backbone("mobilenetv2_035", "none"), 3, "none", 64).eval().requires_grad_(False)
    nn.init.normal_(find_head(network).weight)
    return network


def make_images(count: int) -> torch.Tensor:
    return nn.functional.interpolate(torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)), 64)


def make_edge_map(network, images, classes):
    """Return a map that does not depend on the network."""
    return images.mean(dim=1).diff(dim=1, append=torch.zeros(len(images), 1, 64)).abs()


def test_a_map_that_does_not_depend_on_the_weights_fails(network):
    check = run_sanity_check(network, make_edge_map, make_images(4), torch.tensor([0, 1, 2, 0]))
    assert check.correlation == pytest.approx([1.0] * 5)
    assert not check.is_passed
    assert "hardly changes when the weights are random (rank correlation 1.00)" in check.failure_reason


def test_grad_cam_changes_with_the_weights(network):
    images = make_images(8)
    layers = find_target_layers(network, images[:1].clone())
    check = run_sanity_check(
        network, lambda *given: grad_cam(given[0], layers, *given[1:]), images, torch.arange(8) % 3
    )
    assert check.is_passed and check.failure_reason == ""
    assert len(check.correlation) == len(merged_layer_groups(network))


def test_the_verdict_uses_the_step_with_all_weights_randomised():
    assert SanityCheck(correlation=(0.9, MAX_RANK_CORRELATION), images=4).is_passed
    assert not SanityCheck(correlation=(0.1, MAX_RANK_CORRELATION + 0.01), images=4).is_passed


def test_groups_are_randomised_from_the_head_down_in_a_copy_of_the_network(network):
    before = [parameter.clone() for parameter in network.parameters()]
    is_in_group = [[any(p is q for q in group) for p in network.parameters()] for group in merged_layer_groups(network)]
    other = copy.deepcopy(network)
    for step, _ in enumerate(randomise_cascade(network, other, seed=0), start=1):
        changed = [not torch.equal(p, q) for p, q in zip(before, other.parameters(), strict=True)]
        is_randomised = [any(column) for column in zip(*is_in_group[-step:], strict=True)]
        assert not any(c and not r for c, r in zip(changed, is_randomised, strict=True)), (
            "only randomised parameters change"
        )
        assert sum(changed) > 0.3 * sum(is_randomised), "constant batch norm weights do not change"
    assert all(torch.equal(p, q) for p, q in zip(before, network.parameters(), strict=True))


def test_a_constant_map_has_no_rank_correlation():
    pattern = torch.rand(1, 64, 64)
    assert compute_rank_correlation(torch.ones(1, 64, 64), pattern) == 0
    assert compute_rank_correlation(pattern, 3 * pattern + 1) == pytest.approx(1)
    assert compute_rank_correlation(pattern, -pattern) == pytest.approx(-1)
