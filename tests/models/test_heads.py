"""Heads from a HeadConfig replace the original head and give all classes the same initial probability."""

import pytest
import torch
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.heads import (
    LINEAR_HEAD,
    Float64Linear,
    Head,
    HeadConfig,
    find_head,
    find_head_modules,
    find_head_parameters,
    replace_head,
)
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders

HIDDEN_HEAD = HeadConfig(hidden=(32, 16), dropout=0.25)
# linear heads in all libraries, one with pooling and norm, one convolution, two heads (distilled)
BACKBONES = [
    "mobilenetv2_035", "convnext_atto", "deit_tiny_distilled_patch16_224", "fastcxr:baseline_cnn",
    "torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1", "torchvision:resnet18",
]  # fmt: skip


def build(name: str, head: HeadConfig = LINEAR_HEAD) -> nn.Module:
    return make_network(find_backbone(name, "none"), 3, "none", 64, head)


def run(network: nn.Module, name: str) -> torch.Tensor:
    return network(torch.rand(4, len(find_backbone(name, "none").mean), 64, 64))


@pytest.mark.parametrize("name", BACKBONES)
def test_a_head_with_hidden_layers_has_equal_initial_probabilities_and_gradients(name):
    network = build(name, HIDDEN_HEAD)
    with torch.no_grad():
        torch.testing.assert_close(run(network.eval(), name).softmax(dim=1), torch.full((4, 3), 1 / 3))
    heads = [module for module in network.modules() if isinstance(module, Head)]
    assert all([type(m) for m in head][1::3] == [nn.ReLU, nn.ReLU] for head in heads)
    assert all(isinstance(head[i], nn.Dropout) and head[i].p == 0.25 for head in heads for i in (2, 5))
    nn.init.normal_(heads[0][-1].weight)
    logits = run(network.train(), name)
    logits = logits[0] if isinstance(logits, tuple) else logits  # distilled networks train two heads
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in heads[0].parameters())


def test_hidden_layers_have_random_weights_from_the_seed(toy_manifest):
    recipe = Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=6, head_hidden=(32,), dropout=0.1)
    loaders = make_loaders(toy_manifest, recipe)
    first, same, other = (find_head(make_learner(loaders, recipe.replace(seed=s)).model)[0].weight for s in (1, 1, 2))
    assert first.std() > 0.01
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_dropout_without_hidden_layers_precedes_the_linear_layer():
    head = find_head(build("mobilenetv2_035", HeadConfig(dropout=0.5)))
    assert [type(module) for module in head] == [nn.Dropout, Float64Linear]


def test_the_default_head_is_one_linear_layer():
    assert type(find_head(build("mobilenetv2_035"))) is Float64Linear
    assert type(find_head(build("torchvision:resnet18"))) is Float64Linear


@pytest.mark.parametrize("name", ["mobilenetv2_035", "torchvision:mobilenet_v3_small"])
def test_a_linear_head_has_equal_initial_probabilities(name):
    probability = build(name).eval()(torch.rand(8, 3, 64, 64)).softmax(dim=1)
    torch.testing.assert_close(probability, torch.full((8, 3), 1 / 3))


def test_head_parameters_and_modules_are_found_by_name():
    assert find_head_parameters(build("mobilenetv2_035")) == {"classifier.weight", "classifier.bias"}
    keys = {f"classifier.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert find_head_parameters(build("mobilenetv2_035", HeadConfig(hidden=(8,)))) == keys
    assert find_head_modules(build("deit_tiny_distilled_patch16_224")) == ["head", "head_dist"]


def test_a_head_that_cannot_be_replaced_raises_an_error_with_the_fix():
    class IdentityHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Identity()

        def get_classifier(self):
            return self.last

    with pytest.raises(RecipeError, match="Remove `head_hidden` and `dropout`"):
        replace_head(IdentityHead(), 3, HIDDEN_HEAD, torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("config", [HeadConfig(), HIDDEN_HEAD, HeadConfig(multi_scale=True)])
def test_the_logits_of_an_image_do_not_depend_on_the_batch_or_on_autocast(config):
    head = find_head(build("mobilenetv2_035", config)).eval()
    linear_layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
    nn.init.normal_(linear_layers[-1].weight)
    features = torch.rand(33, linear_layers[0].in_features)
    classify = getattr(head, "classify", head)
    with torch.no_grad():
        logits, one_by_one = classify(features), torch.cat([classify(row[None]) for row in features])
        with torch.autocast("cpu", torch.bfloat16):
            in_bfloat16 = classify(features)
    assert logits.dtype == torch.float32
    assert one_by_one.equal(logits) and in_bfloat16.equal(logits)
