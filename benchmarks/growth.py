"""Time and memory of one pass of a frozen network, metrics, audit and a fitted head, for growing datasets.

    python benchmarks/growth.py [--step pass] [--images 1000 10000 100000] [--size 64] [--classes 2]

Each step and size is measured in a separate process:

pass: decode into the image cache, then one feature pass of mobilenetv2_050 with random weights (no flipped images).
metrics: metrics, calibration and intervals of random probabilities, two images per patient.
audit: all checks of the audit.
probe: fit a head on 2 views of 640 random features.

"pass" and "audit" read PNG files of `size` pixels, which are drawn into a temporary folder; the caches are temporary as
well. Memory: peak of allocated memory (RssAnon), peak of mapped files (RssFile), which the system can reclaim, and peak
of both together (VmHWM).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
from common import make_parser
from PIL import Image

IMAGES_PER_FOLDER = 10_000


def draw_images(folder: Path, count: int, size: int) -> None:
    """Write `count` different gray PNG files."""
    rng = np.random.default_rng(0)
    slope = np.linspace(60, 180, size)[:, None]
    for number in range(count):
        path = folder / str(number // IMAGES_PER_FOLDER) / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        image = slope + rng.normal(0, 12, (size, size))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, compress_level=1)


def record_peaks(peaks: dict[str, int]) -> None:
    """Read the memory of this process ten times per second, and keep the highest values [kB]."""
    while True:
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], int(value.split()[0]))
        time.sleep(0.1)


def measure_pass(folder: Path, count: int, size: int, classes: int) -> dict[str, float]:
    """Return the seconds of decoding and of the feature pass."""
    from fastcxr import Recipe, make_learner, make_loaders
    from fastcxr.progress.base import Progress
    from fastcxr.training.feature_cache import make_feature_cache

    recipe = Recipe("mobilenetv2_050", weights="none", image_size=size, strategy="linear_probe", hflip_tta=False)
    table = list_images(folder, count, classes)
    started = time.perf_counter()
    loaders = make_loaders(table, recipe)
    read = time.perf_counter()
    learner = make_learner(loaders, recipe)
    built = time.perf_counter()
    make_feature_cache(learner, recipe, Progress())
    return {"cache": read - started, "pass": time.perf_counter() - built}


def measure_audit(folder: Path, count: int, size: int, classes: int) -> dict[str, float]:
    """Return the seconds of all checks of the audit."""
    from fastcxr.progress.base import Progress
    from fastcxr.workflows.audit import run_checks

    table = list_images(folder, count, classes).assign(patient_origin="column")
    started = time.perf_counter()
    run_checks(table, 0, Progress())
    return {"audit": time.perf_counter() - started}


def measure_metrics(folder: Path, count: int, size: int, classes: int) -> dict[str, float]:
    """Return the seconds of metrics, calibration and intervals."""
    from fastcxr.metrics.evaluate import evaluate_predictions
    from fastcxr.metrics.predictions import make_predictions

    table = list_images(folder, count, classes).assign(split="test", patient=[str(i // 2) for i in range(count)])
    labels = sorted(table["label"].unique())
    truth = pd.Categorical(table["label"], labels).codes
    probability = np.random.default_rng(0).random((count, classes))
    probability[np.arange(count), truth] += 1
    predictions = make_predictions(table, probability / probability.sum(axis=1, keepdims=True), labels)
    started = time.perf_counter()
    evaluate_predictions(predictions)
    return {"metrics": time.perf_counter() - started}


def measure_probe(folder: Path, count: int, size: int, classes: int) -> dict[str, float]:
    """Return the seconds of a fit with all penalties, on 8 of 10 images."""
    import torch

    from fastcxr.progress.base import Progress
    from fastcxr.training.linear_probe import FeatureSplit, fit_probe
    from fastcxr.training.losses import LabelSmoothingCrossEntropy

    features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, (2, count, 640))
    rng, labels = np.random.default_rng(0), torch.arange(count) % classes
    centres = rng.normal(0, 0.1, (classes, 640)).astype(np.float32)
    for start in range(0, count, IMAGES_PER_FOLDER):
        rows = slice(start, start + IMAGES_PER_FOLDER)
        features[:, rows] = centres[labels[rows]] + rng.normal(size=features[:, rows].shape)
    head = torch.nn.Module()
    head.linear = torch.nn.Linear(640, classes)
    head.mean, head.std = torch.zeros(640), torch.ones(640)
    split = np.arange(count) % 10 < 8
    rows = [np.flatnonzero(part) for part in (split, ~split)]
    parts = [FeatureSplit(features, part, labels[part], torch.ones(len(part))) for part in rows]
    started = time.perf_counter()
    fit_probe(head, LabelSmoothingCrossEntropy(0.0), *parts, Progress())
    return {"probe": time.perf_counter() - started}


STEPS = {"pass": measure_pass, "metrics": measure_metrics, "audit": measure_audit, "probe": measure_probe}


def list_images(folder: Path, count: int, classes: int) -> pd.DataFrame:
    """Return the manifest of the first `count` files, one patient per image."""
    rows = [(f"{i // IMAGES_PER_FOLDER}/{i}.png", f"class {i % classes}", str(i)) for i in range(count)]
    table = pd.DataFrame(rows, columns=["path", "label", "patient"])
    table = table.assign(source="", file=[str(folder / path) for path in table["path"]])
    return table.assign(split=np.where(table.index % 10 < 8, "train", "valid"))


def measure(given: argparse.Namespace) -> None:
    """Print seconds and peak memory [MB] of one step in this process."""
    peaks = {"RssAnon": 0, "RssFile": 0, "VmHWM": 0}
    threading.Thread(target=record_peaks, args=(peaks,), daemon=True).start()
    seconds = STEPS[given.step](given.folder, given.images[0], given.size, given.classes)
    names = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
    print(f"{given.images[0]:>9,} {names:>24} " + " ".join(f"{peak / 1024:>12,.0f}" for peak in peaks.values()))


def main() -> None:
    """Draw the images if the step reads files, then measure each size in a separate process."""
    parser = make_parser(__doc__)
    parser.add_argument("--step", choices=STEPS, default="pass")
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--size", type=int, default=64, help="image size [px]")
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="existing images: measure the first of --images once")
    given = parser.parse_args()
    if given.folder:
        measure(given)
        return
    print(f"{'images':>9} {'seconds':>24} {'own, MB':>12} {'mapped, MB':>12} {'both, MB':>12}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if given.step in ("pass", "audit"):
            draw_images(Path(folder), max(given.images), given.size)
        for count in given.images:
            with tempfile.TemporaryDirectory() as cache:
                options = f"--step {given.step} --images {count} --size {given.size} --classes {given.classes}"
                environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
                environment |= {"XDG_CACHE_HOME": cache, "FASTCXR_CACHE_GB": "30"}
                command = [sys.executable, __file__, "--folder", folder, *options.split()]
                subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
