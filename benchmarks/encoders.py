"""Inference images/s, peak memory and parameters of the chest encoders at full size, with random weights.

    python benchmarks/encoders.py [NAME ...] [--device auto] [--threads 2]

Each encoder runs in its own process at its own image size, in float32 and, where the hardware supports it natively, in
bfloat16: median of three batches after a warm-up. A batch has at most 64 images, and takes about five seconds at most.
Processor seconds, of all threads, for one image in float32 depend less on other load than images/s. Memory: of the
process on a CPU, of torch on a GPU. The gain of the encoders cannot be measured with random weights.
"""

import argparse
import os
import resource
import statistics
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: the same as `import fastcxr` sets

import torch
from common import get_processor_seconds, make_parser, parse_or_measure, run_in_subprocess
from torch import nn

from fastcxr.io.cpus import count_cpus
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.cpu_fusion import fuse_for_inference
from fastcxr.models.devices import find_device, read_clock
from fastcxr.models.encoders import ENCODERS
from fastcxr.models.precision import autocast, is_native
from fastcxr.models.preprocessing import InputSpec
from fastcxr.models.registry import count_parameters

BATCH_SIZE, MAX_BATCH_SECONDS, N_BATCHES = 64, 5.0, 3
N_CLASSES = 2
# the eight networks of torchxrayvision are two architectures
NAMES = [name for name, encoder in ENCODERS.items() if encoder.access != "package"]
NAMES += ["densenet121-res224-all", "resnet50-res512-all"]


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return the measurements of one encoder."""
    torch.set_num_threads(given.threads)
    device, backbone = find_device(given.device), find_backbone(given.variant, "none")
    network = make_network(backbone, N_CLASSES, "none", backbone.native_size).eval().to(device)
    spec = InputSpec(image_size=backbone.native_size, mean=backbone.mean, std=backbone.std)
    speeds = {
        precision: measure_speed(network.to(memory_format=torch.channels_last), spec, precision, device)
        for precision in ("fp32", "bf16")
        if is_native(precision, device)
    }
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak_bytes = torch.cuda.max_memory_allocated(device)
    return {"size": spec.image_size, "memory": peak_bytes, "speeds": speeds}


@torch.inference_mode()
def measure_speed(network: nn.Module, spec: InputSpec, precision: str, device: torch.device) -> tuple[float, float]:
    """Return the images/s of a network, and the processor seconds for one image."""
    fused = fuse_for_inference(network, spec, precision)

    def measure_seconds(n_images: int) -> tuple[float, float]:
        images = torch.zeros(n_images, len(spec.mean), spec.image_size, spec.image_size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        started, processor_started = read_clock(device), get_processor_seconds()
        with autocast(precision, device):
            fused(images)
        return read_clock(device) - started, get_processor_seconds() - processor_started

    measure_seconds(1)
    n_images = min(BATCH_SIZE, max(1, int(MAX_BATCH_SECONDS / measure_seconds(1)[0])))
    if n_images > 1:
        measure_seconds(n_images)
    seconds, processor_seconds = zip(*(measure_seconds(n_images) for _ in range(N_BATCHES)), strict=True)
    return n_images / statistics.median(seconds), statistics.median(processor_seconds) / n_images


def main() -> None:
    """Print one row for each encoder."""
    parser = make_parser(__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=count_cpus())
    names = parse_or_measure(parser, ENCODERS, measure).names
    device = find_device("auto")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}")
    print(f"| {'encoder':<24} | px | parameters | fp32, images/s | processor s | bf16, images/s | peak memory |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in names:
        row = run_in_subprocess(name)
        (fp32, processor_seconds), bf16 = row["speeds"]["fp32"], row["speeds"].get("bf16")
        speeds = f"{fp32:.3g} | {processor_seconds:.3g} | {f'{bf16[0]:.3g}' if bf16 else '-'}"
        parameters = f"{count_parameters(name, 'chest') / 1e6:.1f} M"
        print(f"| {name:<24} | {row['size']} | {parameters} | {speeds} | {row['memory'] / 2**30:.2f} GiB |", flush=True)


if __name__ == "__main__":
    main()
