"""Inference images/s of frozen networks with and without fused layers, and accuracy of their features.

    python benchmarks/feature_pass.py [BACKBONE ...] [--data DIR --weights FILE] [--runs 5]

Speed: passes of 32 images of 224 px with random weights; the variants alternate; medians. Accuracy, with --data and
--weights (of mobilenetv2_100): root mean square difference from float32 features of every twelfth radiograph, in
standard deviations of each feature. The unfused bfloat16 network has no float32 stem.
"""

import copy
import os
from functools import partial

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: the same as `import fastcxr` sets

import timm
import torch
from common import make_parser, time_alternately
from torch import nn

from fastcxr import Recipe, make_learner, make_loaders, read_manifest, split_by_patient
from fastcxr.models.cpu_fusion import fuse_for_inference
from fastcxr.models.heads import find_head
from fastcxr.models.precision import autocast, keep_malloc_arenas
from fastcxr.models.preprocessing import InputSpec, normalize
from fastcxr.training.feature_cache import output_head_features

BACKBONES = ("mobilenetv2_100", "efficientnet_b0", "resnet18", "resnet50", "densenet121", "convnext_atto")
BATCH_SIZE, IMAGE_SIZE = 32, 224
CPU = torch.device("cpu")


@torch.inference_mode()
def infer(network: nn.Module, images: torch.Tensor, precision: str) -> torch.Tensor:
    """Return the output of the network, computed in batches."""
    with autocast(precision, CPU):
        return torch.cat([network(batch).float() for batch in images.split(BATCH_SIZE)])


def measure_speed(name: str, runs: int) -> dict[str, float]:
    """Return the images/s of each variant."""
    network = timm.create_model(name).eval().to(memory_format=torch.channels_last)
    input_spec = InputSpec(image_size=IMAGE_SIZE, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    images = torch.randn(BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE).contiguous(memory_format=torch.channels_last)
    calls = {}
    for precision in ("bf16", "fp32"):
        calls[precision] = partial(infer, network, images, precision)
        fused = fuse_for_inference(network, input_spec, precision)
        calls[f"{precision}, fused"] = partial(infer, fused, images, precision)
    return {variant: len(images) / seconds for variant, seconds in time_alternately(calls, runs).items()}


def measure_accuracy(data: str, weights: str) -> dict[str, float]:
    """Return the root mean square difference from float32 features, in standard deviations of each feature."""
    recipe = Recipe("mobilenetv2_100", weights=weights, image_size=288, strategy="linear_probe", precision="fp32")
    manifest = split_by_patient(read_manifest(data), seed=0)
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    image_cache, input_spec = learner.dls.fastcxr.image_cache, learner.dls.fastcxr.input_spec
    images = torch.from_numpy(image_cache.read(range(0, len(image_cache.files), 12)))[:, None]
    images = normalize(images, input_spec).contiguous(memory_format=torch.channels_last)
    plain = copy.deepcopy(learner.model).eval().to(memory_format=torch.channels_last)
    variants = {"bf16": plain, "bf16, fused": fuse_for_inference(plain, input_spec, "bf16")}
    with output_head_features(find_head(plain)):
        reference = infer(plain, images, "fp32")
    deviation, errors = reference.std(dim=0).clamp_min(1e-6), {}
    for variant, network in variants.items():
        with output_head_features(find_head(network)):
            features = infer(network, images, "bf16")
        errors[variant] = float(((features - reference) / deviation).square().mean().sqrt())
    return errors


def main() -> None:
    """Print both tables."""
    parser = make_parser(__doc__, (), ["data", "weights"])
    parser.add_argument("backbones", nargs="*", default=BACKBONES, metavar="BACKBONE")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    keep_malloc_arenas()
    for name in given.backbones:
        speeds = ", ".join(f"{variant} {speed:.0f}" for variant, speed in measure_speed(name, given.runs).items())
        print(f"{name:<18} images/s: {speeds}", flush=True)
    if given.data and given.weights:
        for variant, error in measure_accuracy(given.data, given.weights).items():
            print(f"features in {variant:<12} {error:.3f} standard deviations from float32")


if __name__ == "__main__":
    main()
