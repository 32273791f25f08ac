"""Gain of each part of the bfloat16 code for CPUs: five folds of a linear probe, and single batches.

    python benchmarks/cpu_fusion.py --data DIR --weights FILE [--patient-table TABLE] [--variants NAME ...] [--runs 3]
    python benchmarks/cpu_fusion.py --batches [--backbones NAME ...] [--runs 3]

Five folds: every run is a process that starts with an empty cache, decodes all images, computes their features in
bfloat16, fits five heads and writes the reports. The variants alternate. The table contains the median of the seconds,
of the processor seconds (user and system), and of the images/s of the feature pass (flipped images count).

Batches: median processor seconds of two inference passes of 16 images of 224 px in each variant, and of one training
step with and without the gradients of grouped_conv.py. Random weights; one process, in which the variants alternate.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: the same as `import fastcxr` sets

import pandas as pd
import torch
from common import get_processor_seconds, make_parser, parse_or_measure, run_in_subprocess, time_alternately
from torch import nn

from fastcxr.cli.main import app
from fastcxr.models import cpu_fusion, precision
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.preprocessing import InputSpec
from fastcxr.training import feature_cache, learner

VARIANTS = {
    "all parts": (),
    "without fused convolutions": ("fuse_blocks",),
    "without fused activations": ("ONEDNN_ACTIVATIONS",),
    "without float32 stem": ("keep_stem_fp32",),
    "without any": ("fuse_blocks", "keep_stem_fp32"),
}
SUBSTITUTES = {  # names in cpu_fusion.py, and replacements without effect
    "fuse_blocks": lambda network, input_spec, precision: network,
    "ONEDNN_ACTIVATIONS": {},
    "keep_stem_fp32": lambda network, input_spec: None,
}
N_IMAGES, IMAGE_SIZE = 16, 224
CPU = torch.device("cpu")


@contextmanager
def switch_off(variant: str) -> Iterator[None]:
    """Disable the parts that a variant omits."""
    with ExitStack() as patches:
        for name in VARIANTS[variant]:
            for module in (cpu_fusion, learner):
                if hasattr(module, name):
                    patches.enter_context(patch.object(module, name, SUBSTITUTES[name]))
        yield


def cross_validate(given: argparse.Namespace) -> dict[str, float]:
    """Run five folds from an empty cache, and return seconds, images/s of the feature pass, and metrics."""
    feature_seconds, n_images = [], []
    fill_feature_cache = feature_cache.fill_feature_cache

    def fill_and_time(arrays, *arguments):
        started = time.perf_counter()
        fill_feature_cache(arrays, *arguments)
        feature_seconds.append(time.perf_counter() - started)
        n_images.append(sum(len(array.values) for array in arrays))

    feature_cache.fill_feature_cache = fill_and_time
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        out = Path(folder) / "run"
        patients = ["--patient-table", given.patient_table] if given.patient_table else []
        started, processor_started = time.perf_counter(), get_processor_seconds()
        options = f"--strategy linear_probe --folds 5 --image-size {given.image_size} --precision bf16"
        with switch_off(given.variant):
            app(
                ["train", given.backbone, "--data", given.data, *patients, "--weights", given.weights,
                 "--out", str(out), *options.split()],
                result_action="return_value",
            )  # fmt: skip
        seconds, processor_seconds = time.perf_counter() - started, get_processor_seconds() - processor_started
        metrics = json.loads((out / "metrics.json").read_text())["oof"]
    return {
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "images_per_second": sum(n_images) / sum(feature_seconds),
        "accuracy": metrics["accuracy"],
        "auroc": metrics["auroc"]["macro"],
        "load": os.getloadavg()[0],
    }


def measure_batches(name: str, runs: int) -> dict[str, float]:
    """Return the median processor seconds of inference in each variant, and of a training step."""
    torch.manual_seed(0)
    network = make_network(find_backbone(name, "none"), 3, "none", IMAGE_SIZE).to(memory_format=torch.channels_last)
    images = torch.randn(N_IMAGES, 3, IMAGE_SIZE, IMAGE_SIZE).contiguous(memory_format=torch.channels_last)
    input_spec = InputSpec(image_size=IMAGE_SIZE, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    calls = {}
    for variant in VARIANTS:
        with switch_off(variant):
            calls[variant] = partial(infer, cpu_fusion.fuse_for_inference(network, input_spec, "bf16"), images)
    calls["training step"] = partial(train_step, network, images, precision.GroupedConvBackward)
    calls["training step without grouped gradients"] = partial(train_step, network, images, nullcontext)
    return time_alternately(calls, runs, get_processor_seconds)


@torch.inference_mode()
def infer(network: nn.Module, images: torch.Tensor) -> None:
    """Run two passes in bfloat16, without gradients."""
    with precision.autocast("bf16", CPU):
        network(images)
        network(images)


def train_step(network: nn.Module, images: torch.Tensor, grouped_backward: Callable) -> None:
    """Run one forward and backward pass in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16), grouped_backward():
        logits = network.train()(images)
    logits.float().square().sum().backward()
    network.zero_grad()


def main() -> None:
    """Print the table of the five folds, or that of the single batches."""
    parser = make_parser(__doc__, (), ["data", "weights", "patient-table", "backbone"])
    parser.add_argument("--image-size", type=int, default=288)
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS), help="only these")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batches", action="store_true", help="measure single batches instead of the five folds")
    parser.add_argument("--backbones", nargs="*", default=["mobilenetv2_100", "efficientnet_b0", "resnet18"])
    given = parse_or_measure(parser, VARIANTS, cross_validate)
    if given.batches:
        precision.keep_malloc_arenas()
        table = pd.DataFrame({name: measure_batches(name, given.runs) for name in given.backbones})
        print(table.round(3).to_string())
        return
    if not given.data or not given.weights:
        parser.error("--data and --weights are required")
    results = {variant: [] for variant in given.variants}
    for _ in range(given.runs):
        for variant in given.variants:
            row = run_in_subprocess(variant)
            results[variant].append(row)
            print(f"{variant:<28}", {name: round(number, 4) for name, number in row.items()}, flush=True)
    table = pd.DataFrame({variant: pd.DataFrame(found).median() for variant, found in results.items()}).T
    print(table.round(4).to_string())


if __name__ == "__main__":
    main()
