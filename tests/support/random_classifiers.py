"""Classifiers with random weights, calibration and out-of-distribution detector, without training."""

from dataclasses import replace

import numpy as np
import torch
from tiny_network import NAME
from torch import nn

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.bundle import Classifier
from fastcxr.models.heads import LINEAR_HEAD, HeadConfig, find_head, find_stages, forward_with_features
from fastcxr.models.ood import OODDetector
from fastcxr.models.preprocessing import InputSpec, make_blank_image, normalize

LABELS = ("clear", "haze", "opacity")
LINES = {"clear": {"slope": 1.7, "intercept": -0.4}, "haze": {"slope": 0.6, "intercept": 0.2}}  # opacity has none
MULTI_SCALE, HIDDEN = HeadConfig(multi_scale=True), HeadConfig(hidden=(8,), dropout=0.3)


def make_random_images(n: int, size: int, seed: int = 0) -> np.ndarray:
    """Return noise of different brightness and contrast, uint8, shape (n, size, size)."""
    draw = np.random.default_rng(seed)
    middle, spread = draw.uniform(60, 200, (n, 1, 1)), draw.uniform(10, 60, (n, 1, 1))
    return draw.normal(middle, spread, (n, size, size)).clip(0, 255).astype(np.uint8)


def make_random_classifier(
    name: str = NAME,
    size: int = 64,
    head: HeadConfig = LINEAR_HEAD,
    *,
    has_lines: bool = False,
    hflip_tta: bool = False,
    seed: int = 0,
) -> Classifier:
    """Return a classifier whose head has random weights. `has_lines`: findings with calibration lines."""
    backbone = find_backbone(name, "none")
    spec = InputSpec(image_size=size, mean=backbone.mean, std=backbone.std)
    torch.manual_seed(seed)
    network = make_network(backbone, len(LABELS), "none", size, head).eval()
    for layer in find_head(network).modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.5)
    set_batch_norm(network, spec)
    thresholds = {label: {"threshold": 0.3} for label in LABELS}
    return Classifier(
        network=network,
        labels=LABELS,
        input_spec=spec,
        task=MULTI_LABEL if has_lines else "single_label",
        temperature=1.0 if has_lines else 1.6,
        thresholds={"thresholds": thresholds} | ({"findings": LINES} if has_lines else {}),
        ood_detector=make_random_detector(network, spec),
        hflip_tta=hflip_tta,
    )


def set_batch_norm(network: nn.Module, spec: InputSpec) -> None:
    """Set the statistics of the batch norms to those of random images: otherwise all outputs are equal."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(normalize(torch.from_numpy(make_random_images(16, spec.image_size, seed=2))[:, None], spec))
    network.eval()


def make_random_detector(network: nn.Module, spec: InputSpec) -> OODDetector | None:
    """Return a detector for which some random images are out of distribution, None for a network without stages."""
    stage_channels = find_stages(network, make_blank_image(spec))
    if not stage_channels:
        return None
    images = normalize(torch.from_numpy(make_random_images(16, spec.image_size, seed=1))[:, None], spec)
    with torch.no_grad():
        features = forward_with_features(network, images, stage_channels)[1].double().numpy()
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-3
    _, singular_values, directions = np.linalg.svd((features - mean) / std, full_matrices=False)
    detector = OODDetector(
        stage_channels=stage_channels,
        mean=mean.astype(np.float32),
        std=std.astype(np.float32),
        directions=directions[:4].astype(np.float32),
        variances=(singular_values[:4] ** 2 / 15).astype(np.float32),
        noise=np.array([0.05], np.float32),
    )
    scores = detector.compute_scores(torch.from_numpy(features))
    return replace(detector, threshold=float(np.median(scores)))
