"""Inference: images a second and exactness of `fuse_for_inference`, beside the unfused network.

    python benchmarks/feature_pass.py [BACKBONE ...] [--data DIR --weights FILE] [--runs 5]

Speed: passes of 32 images of 224 px, random weights, the roads by turns, medians. Exactness, with --data and --weights
(of mobilenetv2_100): how far features of every twelfth radiograph are from those of float32, in their own standard
deviations; "in bfloat16" is the network of a learner without its exact beginning.
"""

import argparse
import copy
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: what `import fastcxr` sets, for all

import timm
import torch
from torch import nn

from fastcxr import Recipe, make_learner, make_loaders, read_manifest, split_by_patient
from fastcxr.models.cpu_fusion import fuse_for_inference
from fastcxr.models.heads import find_head
from fastcxr.models.precision import autocast, keep_malloc_arenas
from fastcxr.models.preprocessing import InputSpec, normalize
from fastcxr.training.feature_cache import output_head_features

BACKBONES = ("mobilenetv2_100", "efficientnet_b0", "resnet18", "resnet50", "densenet121", "convnext_atto")
CPU = torch.device("cpu")


def measure_speed(name: str, runs: int) -> dict[str, float]:
    """Images a second of each road; the first pass of each is not counted."""
    network = timm.create_model(name).eval().to(memory_format=torch.channels_last)
    pixels = InputSpec(image_size=224, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    roads = {f"{precision}": (network, precision) for precision in ("bf16", "fp32")}
    roads |= {
        f"{precision}, quick": (fuse_for_inference(network, pixels, precision), precision)
        for precision in ("bf16", "fp32")
    }
    images = torch.randn(32, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    seconds = {road: [] for road in roads}
    for _ in range(runs + 1):
        for road, (looking, precision) in roads.items():
            started = time.perf_counter()
            with torch.inference_mode(), autocast(precision, CPU):
                looking(images)
            seconds[road].append(time.perf_counter() - started)
    return {road: len(images) / statistics.median(found[1:]) for road, found in seconds.items()}


@torch.no_grad()
def find_features(network: nn.Module, images: torch.Tensor, precision: str) -> torch.Tensor:
    """What the head would see, shape (n, d)."""
    with output_head_features(find_head(network)), autocast(precision, CPU):
        return torch.cat([network(some).float() for some in images.split(32)])


def measure_exactness(data: str, weights: str) -> dict[str, float]:
    """Root mean square of the differences from float32, in standard deviations of each feature."""
    recipe = Recipe("mobilenetv2_100", weights=str(Path(weights).resolve()), image_size=288, strategy="linear_probe")
    manifest = split_by_patient(read_manifest(data), seed=0)
    learner = make_learner(make_loaders(manifest, recipe.replace(precision="fp32")), recipe.replace(precision="fp32"))
    pictures, pixels = learner.dls.fastcxr.image_cache, learner.dls.fastcxr.input_spec
    images = torch.from_numpy(pictures.read(range(0, len(pictures.files), 12)))[:, None]
    images = normalize(images, pixels).contiguous(memory_format=torch.channels_last)
    plain = copy.deepcopy(learner.model).eval().to(memory_format=torch.channels_last)
    exact = find_features(plain, images, "fp32")
    roads = {"bf16": plain, "bf16, quick": fuse_for_inference(plain, pixels, "bf16")}
    deviation = exact.std(dim=0).clamp_min(1e-6)
    found = {road: find_features(network, images, "bf16") for road, network in roads.items()}
    return {road: float(((one - exact) / deviation).square().mean().sqrt()) for road, one in found.items()}


def main() -> None:
    """Print both tables."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("backbones", nargs="*", default=BACKBONES)
    words.add_argument("--data")
    words.add_argument("--weights")
    words.add_argument("--runs", type=int, default=5)
    given = words.parse_args()
    keep_malloc_arenas()
    for name in given.backbones:
        speeds = ", ".join(f"{road} {speed:.0f}" for road, speed in measure_speed(name, given.runs).items())
        print(f"{name:<18} images/s: {speeds}", flush=True)
    if given.data and given.weights:
        for road, error in measure_exactness(given.data, given.weights).items():
            print(f"features in {road:<12} {error:.3f} standard deviations from float32")


if __name__ == "__main__":
    main()
