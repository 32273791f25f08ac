"""Every registered encoder at depth 2: training step, linear probe, prediction, saliency map, saved model, pixels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import timm
import torch
from fastai.learner import Learner
from tiny_encoders import TINY_ENCODERS
from torch import nn
from training_probes import RECIPE, SILENT, make

from fastcxr.config.recipe import Recipe
from fastcxr.inference.explain import find_attribution_method, make_inputs
from fastcxr.inference.images import read_fitted_images
from fastcxr.inference.predict import predict
from fastcxr.models import backbones, encoders
from fastcxr.models.bundle import Classifier, extract_classifier, load_classifier, save_model
from fastcxr.models.encoder_network import N_DEPTHS, make_encoder_network
from fastcxr.models.encoders import ENCODERS, Encoder, find_patch_size
from fastcxr.models.heads import find_head, find_stages, forward_with_features
from fastcxr.models.param_groups import find_frozen, layer_groups
from fastcxr.models.preprocessing import make_blank_image
from fastcxr.training.feature_cache import output_head_features
from fastcxr.training.linear_probe import fit_head
from fastcxr.training.trainer import train

GRAY = 128
STAGE_DEPTHS = {
    "swin": {"depths": (1, 1, 1, 1), "embed_dim": 48},
    "densenet": {"block_config": (2, 2, 2, 2)},
    "resnet": {"layers": (1, 1, 1, 1)},
}
NARROW_BLOCKS = {"depth": 2, "embed_dim": 192, "num_heads": 3}


def shrink(encoder: Encoder) -> Encoder:
    """Return the encoder with two narrow blocks, or few in each stage, at a small image size.

    test_convert_parity.py has blocks of true width.
    """
    if encoder.features == "pooled":
        depth = next(option for name, option in STAGE_DEPTHS.items() if encoder.architecture.startswith(name))
        return replace(encoder, image_size=64, options={**encoder.options, **depth})
    return replace(encoder, image_size=3 * find_patch_size(encoder), options={**encoder.options, **NARROW_BLOCKS})


def list_networks() -> list[str]:
    """List the encoders whose networks differ."""
    first_names: dict[tuple, str] = {}
    for name, encoder in ENCODERS.items():
        first_names.setdefault((encoder.architecture, encoder.features, str(encoder.options)), name)
    return list(first_names.values())


def use_encoders(patch: pytest.MonkeyPatch, table: Mapping[str, Encoder]) -> None:
    """Replace the table of encoders, and do not compare the size of saved weights with that of the full network."""
    for module in (backbones, encoders):
        patch.setattr(module, "ENCODERS", table)
    patch.setattr("fastcxr.models.model_json.find_known_parameters", lambda *arguments: None)


@pytest.fixture(scope="module")
def small_encoders() -> Mapping[str, Encoder]:
    """Replace each registered encoder by a small one."""
    table = {name: shrink(encoder) for name, encoder in ENCODERS.items()}
    with pytest.MonkeyPatch.context() as patch:
        use_encoders(patch, table)
        yield table


@dataclass
class Probe:
    """A learner after a training step of all layers and a fit of its head, and what they changed."""

    learner: Learner
    recipe: Recipe
    encoder: Encoder
    is_changed: list[bool]  # of each layer group, by the training step

    @property
    def classifier(self) -> Classifier:
        """The classifier of the learner."""
        return extract_classifier(self.learner)


@pytest.fixture(scope="module", params=list_networks())
def probe(request, small_encoders, toy_manifest) -> Probe:
    encoder = small_encoders[request.param]
    recipe = RECIPE.replace(
        backbone=encoder.name, image_size="auto", batch_size=9, optimizer="sgd", hflip_tta=False, device="cpu"
    )
    learner = make(toy_manifest.groupby(["label", "split"]).head(3).reset_index(drop=True), recipe)
    nn.init.normal_(find_head(learner.model).linear.weight, std=0.1)
    before = [[parameter.clone() for parameter in group] for group in layer_groups(learner.model)]
    learner.unfreeze()
    learner.fit(1, 0.1)  # one batch
    is_changed = [
        any(not torch.equal(*pair) for pair in zip(*groups, strict=True))
        for groups in zip(before, layer_groups(learner.model), strict=True)
    ]
    fit_head(learner, recipe, SILENT)
    return Probe(learner=learner, recipe=recipe, encoder=encoder, is_changed=is_changed)


def test_every_encoder_is_trained_probed_explained_saved_and_loaded(probe, tmp_path):
    assert all(probe.is_changed), "the training step changes each layer group"
    classifier, table = probe.classifier, probe.learner.dls.fastcxr.manifest
    probability = predict(classifier, table, splits=None).probability
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-5)
    assert np.isfinite(probability).all() and np.ptp(probability, axis=0).max() > 1e-3, "images differ"

    fitted_images = list(read_fitted_images(table["file"][:2].tolist(), probe.encoder.image_size, None))
    images = make_inputs(classifier, np.stack(fitted_images))
    with torch.no_grad():
        expected = classifier.network.eval()(images).softmax(dim=1)
    np.testing.assert_allclose(probability[:2], expected, atol=1e-3)  # predict fuses convolutions
    maps = find_attribution_method("grad_cam", classifier)(classifier.network, images, torch.tensor([0, 1]))
    assert maps.shape == (2, *images.shape[2:]) and maps.isfinite().all() and (maps.amax(dim=(1, 2)) > 0).any()

    save_model(tmp_path, probe.learner, probe.recipe, {"precision": "fp32"})
    loaded = load_classifier(tmp_path, device="cpu")
    assert np.array_equal(predict(loaded, table, splits=None).probability, probability)


def test_the_features_of_a_probe_are_means_of_patch_tokens_and_those_of_the_encoder(probe):
    network, size = probe.learner.model, probe.encoder.image_size
    images = torch.rand(2, len(probe.encoder.mean), size, size)
    with torch.no_grad(), output_head_features(find_head(network)):
        found = network.eval()(images)
    with torch.no_grad():
        last = network.forward_head(network.forward_features(images), pre_logits=True)
        if hasattr(network, "blocks"):
            tokens = network.forward_intermediates(images, norm=False, output_fmt="NLC", intermediates_only=True)
            means = [patches.mean(dim=1) for patches in tokens]
        else:
            means = [None for _ in find_head(network).channels]
    n_last = last.shape[1]
    torch.testing.assert_close(found[:, -n_last:], last, rtol=1e-4, atol=1e-5)
    if hasattr(network, "blocks"):
        torch.testing.assert_close(found[:, :-n_last], torch.cat(means, dim=1), rtol=1e-4, atol=1e-5)
        factor = 2 if probe.encoder.features == "both" else 1
        assert n_last == factor * network.embed_dim
    else:
        assert found.shape[1] - n_last == sum(find_head(network).channels)


def test_a_gray_image_reaches_the_first_layer_with_the_normalization_of_the_encoder(probe):
    classifier, inputs, size = probe.classifier, [], probe.encoder.image_size
    first_conv = next(module for module in classifier.network.modules() if isinstance(module, nn.Conv2d))
    hook = first_conv.register_forward_pre_hook(lambda module, given: inputs.append(given[0].clone()))
    image = np.full((2 * size, 2 * size), GRAY, np.uint8)
    image[: size // 2, : size // 2] = 255  # a blank image is an error
    predict(classifier, [image])
    hook.remove()
    mean, std = (torch.tensor(values)[:, None, None] for values in (probe.encoder.mean, probe.encoder.std))
    gray = inputs[-1][0, :, size // 2 :, size // 2 :]
    torch.testing.assert_close(gray, ((GRAY / 255 - mean) / std).expand_as(gray), rtol=1e-5, atol=1e-5)


@pytest.fixture
def tiny_encoders(monkeypatch):
    """Replace the table of encoders by small ones, one of each kind."""
    use_encoders(monkeypatch, TINY_ENCODERS)


@pytest.mark.usefixtures("tiny_encoders")
@pytest.mark.parametrize(
    "name",
    [pytest.param("chexfound", marks=pytest.mark.slow), pytest.param("medsiglip", marks=pytest.mark.slow), "ark6"],
)
def test_an_encoder_in_bfloat16_has_an_ood_detector_and_the_predictions_of_float32(name, many_toys, tmp_path):
    recipe = RECIPE.replace(backbone=name, image_size="auto", strategy="full", precision="bf16", device="cpu")
    learner = make(many_toys, recipe.replace(batch_size=20))
    training = train(learner, recipe, SILENT)
    assert np.isfinite(training.history["train_loss"]).all()
    detector, network = learner.fastcxr.ood_detector, learner.model
    assert detector.stage_channels == find_stages(network, make_blank_image(learner.dls.fastcxr.input_spec))
    save_model(tmp_path, learner, recipe, {"precision": "bf16"})
    found, exact = (
        predict(load_classifier(tmp_path, precision=precision, device="cpu"), many_toys, splits=["test"])
        for precision in ("bf16", "fp32")
    )
    np.testing.assert_allclose(found.probability, exact.probability, atol=0.02)
    scores = found.table["ood_score"]
    np.testing.assert_allclose(scores, exact.table["ood_score"], rtol=0.1)
    assert (scores > 1).mean() < 0.2, "in distribution"
    band = np.pad(np.full((20, 72), 255, np.uint8), ((0, 52), (0, 0)))
    assert predict(load_classifier(tmp_path, device="cpu"), [band]).table["ood_score"][0] > 5 * scores.median()


def test_the_features_of_a_timm_network_include_the_class_token_as_in_earlier_versions():
    network = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=3).eval()
    image, maps = torch.rand(1, 3, 32, 32), []
    stage_channels = find_stages(network, image)
    hook = network.blocks[0].register_forward_hook(lambda module, inputs, output: maps.append(output))
    with torch.no_grad():
        features = forward_with_features(network, image, stage_channels)[1]
    hook.remove()
    torch.testing.assert_close(features[:, :192], maps[0].mean(dim=1))


def test_a_linear_probe_uses_four_depths():
    for name in ("rad-dino", "medsiglip", "chexfound"):
        with torch.device("meta"):
            network = make_encoder_network(ENCODERS[name], 3, ENCODERS[name].image_size)
        numbers = [int(stage["module"].removeprefix("blocks.")) + 1 for stage in network.feature_info]
        n_blocks = len(network.blocks)
        assert len(numbers) == N_DEPTHS and numbers[-1] == n_blocks
        np.testing.assert_allclose(numbers, n_blocks * np.arange(1, N_DEPTHS + 1) / N_DEPTHS, atol=1)


def test_dropout_and_stochastic_depth_of_frozen_blocks_are_off():
    encoder = TINY_ENCODERS["chexfound"]
    rates = {"drop_rate": 0.1, "pos_drop_rate": 0.1, "drop_path_rate": 0.2, "proj_drop_rate": 0.1}
    network = make_encoder_network(replace(encoder, options={**encoder.options, **rates}), 3, encoder.image_size)
    groups = layer_groups(network.requires_grad_(False))
    for parameter in (*groups[-1], *groups[-2]):  # head and last block
        parameter.requires_grad_(True)
    frozen = {id(module) for module in find_frozen(network)}
    is_frozen = {name: id(module) in frozen for name, module in network.named_modules()}
    assert all(is_frozen[name] for name in ("pos_drop", "blocks.0.drop_path1", "blocks.1.drop_path2", "blocks.1.mlp"))
    assert not any(is_frozen[name] for name in ("blocks.2.drop_path2", "blocks.2.mlp", "norm", "fc_norm", "head_drop"))
