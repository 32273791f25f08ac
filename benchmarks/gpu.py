"""Measurements on one GPU in one process: training and scoring images/s, runs, precisions and peak memory.

    python benchmarks/gpu.py --data DIR --weights FILE [--patient-table TABLE] [--only NAME ...] [--minutes 7] [--out F]

DIR is the three-class dataset of Ozturk et al. 2020, FILE the ImageNet weights of mobilenetv2_100; other backbones have
random weights. The table is printed row by row, and with --out also written after each row, so that a crash or a
time-out keeps what was measured. A measurement that fails is a row with its error, and the next one starts. No
measurement continues after --minutes.

- runs: the default strategy and five folds from an empty cache, with their reports, without imports. A second default
  run, from an empty cache too, shows how long the first use of each kernel takes
- training: a bare loop (eager bfloat16, channels last, fused AdamW of torch) and the network with the optimizer and
  settings of fastcxr, both on one batch; fastcxr and plain fastai end to end
- large: the same for one large backbone at 600 px, and one epoch of `fastcxr train` with it
- scoring: `predict` of images in the cache
- precision: AUROC, images/s and peak memory in fp32, bf16 and fp16
- plain: seconds and AUROC of plain fastai's fine_tune with the same split
"""

import argparse
import gc
import math
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import fastai
import matplotlib.pyplot  # noqa: F401  lists the fonts of a new machine before a run is timed
import numpy as np
import pandas as pd
import timm
import torch
import torchvision
from common import make_parser
from fastai.learner import Learner
from plain_fastai import compute_test_metrics, make_plain_learner, train_plain
from throughput import N_WARM_UP_STEPS, measure_end_to_end, measure_network

from fastcxr import Recipe, __version__, make_learner, make_loaders, predict, read_manifest, split_by_patient, train
from fastcxr.io.cpus import count_cpus
from fastcxr.io.files import read_json
from fastcxr.models.devices import find_device, read_clock
from fastcxr.progress.base import Progress
from fastcxr.workflows.cross_validate import cross_validate
from fastcxr.workflows.train import run

# on two CPU cores: benchmarks/README.md, "Five folds from an empty cache" and "GPU"
CPU_AUROC_DEFAULT: float | None = 0.9505
CPU_AUROC_FOLDS = 0.957
MAX_AUROC_DIFFERENCE = 0.005
MIN_NETWORK_SHARE, MIN_END_TO_END_SHARE = 0.95, 0.85  # of the bare loop, and of the network
MAX_DEFAULT_SECONDS, MAX_FOLDS_SECONDS = 12, 15
MIN_SCORED_PER_SECOND = 5000
N_SCORED_IMAGES = 20_000
LARGE_BATCH_SIZE = 16
GIGABYTE = 2**30
# in this order: runs are measured in a process without warm-up, as those of users are
NAMES = ("runs", "training", "scoring", "large", "precision", "plain")
Row = tuple[str, str, str]  # measurement, value, goal


@dataclass
class Table:
    """The table of results: each row is printed at once, and the whole table is written to `path` if there is one."""

    path: Path | None
    lines: list[str] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        """Print a row, and write the table."""
        self.lines.append(f"| {' | '.join(cells)} |")
        print(self.lines[-1], flush=True)
        if self.path:
            self.path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


class Measurements:
    """The measurements of one command; each yields rows as soon as it has them."""

    def __init__(self, given: argparse.Namespace, folder: Path):
        self.given, self.folder, self.device = given, folder, find_device(given.device)
        self.options = {"data": given.data, "patient_table": given.patient_table, "device": given.device}
        self.manifest = split_by_patient(read_manifest(given.data, patient_table=given.patient_table), seed=0)

    def runs(self) -> Iterator[Row]:
        """Measure the default strategy twice, and five folds, from an empty cache."""
        recipe = self.make_recipe(strategy="lp_ft")
        default = self.measure_run(recipe, run)
        yield "default run, s", f"{default['seconds']:.1f}", f"below {MAX_DEFAULT_SECONDS}"
        again = self.measure_run(recipe, run)  # without the first use of each kernel of cuDNN in this process
        yield "default run again, s", f"{again['seconds']:.1f}", ""
        yield "default run, AUROC", f"{default['test']:.4f}", describe_auroc_goal(CPU_AUROC_DEFAULT)
        folds = self.measure_run(recipe.replace(strategy="linear_probe", folds=5, image_size=self.size(288)),
                                 cross_validate)  # fmt: skip
        yield "five folds, s", f"{folds['seconds']:.1f}", f"below {MAX_FOLDS_SECONDS}"
        yield "five folds, AUROC", f"{folds['oof']:.4f}", describe_auroc_goal(CPU_AUROC_FOLDS)

    def training(self) -> Iterator[Row]:
        """Measure the training images/s of each backbone."""
        for backbone in self.given.backbones:
            yield from self.measure_training(backbone, self.size(224), self.given.batch_size, self.given.steps)

    def large(self) -> Iterator[Row]:
        """Measure the training images/s of the large backbone, and one epoch of `fastcxr train` with it."""
        backbone, batch_size = self.given.large, min(LARGE_BATCH_SIZE, self.given.batch_size)
        yield from self.measure_training(backbone, self.size(600), batch_size, max(1, self.given.steps // 4))
        recipe = self.make_recipe(backbone=backbone, weights="none", epochs=1)
        recipe = recipe.replace(
            image_size=self.size(recipe.image_size), batch_size=min(recipe.batch_size, self.given.batch_size)
        )
        with self.record_peak_memory() as peak:
            seconds = self.measure_run(recipe, run)["seconds"]
        yield f"train {backbone} --weights none --epochs 1, s", f"{seconds:.1f}", "finishes"
        yield f"train {backbone}, peak memory", peak[0], ""

    def scoring(self) -> Iterator[Row]:
        """Measure `predict` of images in the cache."""
        recipe = self.make_recipe(strategy="full", image_size=self.size(224))
        learner = make_learner(make_loaders(self.manifest, recipe), recipe)
        n_images = min(N_SCORED_IMAGES, self.given.steps * 400)
        table = self.manifest.iloc[list(islice(cycle(range(len(self.manifest))), n_images))]
        predict(learner, table[: n_images // 10], splits=None, progress=Progress())
        started = read_clock(self.device)
        predict(learner, table, splits=None, progress=Progress())
        speed = n_images / (read_clock(self.device) - started)
        yield f"scoring from the cache, {recipe.backbone}, images/s", f"{speed:.0f}", f"{MIN_SCORED_PER_SECOND}"

    def precision(self) -> Iterator[Row]:
        """Measure AUROC, images/s and peak memory of the default strategy in each precision."""
        aurocs: dict[str, float] = {}
        for precision in ("fp32", "bf16", "fp16"):
            recipe = self.make_recipe(precision=precision, image_size=self.size(224))
            learner = make_learner(make_loaders(self.manifest, recipe), recipe)
            with self.record_peak_memory() as peak:
                train(learner, recipe, Progress())
            predictions = predict(learner, self.manifest, splits=("test",), progress=Progress())
            test = self.manifest[self.manifest["split"] == "test"]
            metrics = compute_test_metrics(test, predictions.probability, list(predictions.labels))
            aurocs[precision] = metrics["auroc"]
            difference = aurocs[precision] - aurocs["fp32"]
            goal = f"within {MAX_AUROC_DIFFERENCE} of fp32" if precision != "fp32" else ""
            yield f"{precision}, AUROC (difference)", f"{aurocs[precision]:.4f} ({difference:+.4f})", goal
            yield f"{precision}, peak memory", peak[0], ""
            speed = self.measure_end_to_end(recipe.replace(strategy="full"), self.given.steps)
            yield f"{precision}, {recipe.backbone}, end to end, images/s", f"{speed:.0f}", ""

    def plain(self) -> Iterator[Row]:
        """Measure plain fastai's fine_tune with the split of the default run."""
        recipe = self.make_recipe(image_size=self.size(224))
        row = train_plain(self.manifest, recipe).make_row(until=0.95)
        yield "plain fastai, lr_find and fine_tune, s", f"{row['seconds']:.1f}", ""
        yield "plain fastai, AUROC", f"{row['auroc']:.4f}", ""

    def make_recipe(self, **changes) -> Recipe:
        """Return a recipe of mobilenetv2_100 with its weights, or with other options."""
        defaults = {"backbone": self.given.backbone, "weights": self.given.weights, "epochs": self.given.epochs}
        return Recipe(**(self.options | defaults | changes))

    def size(self, image_size: int) -> int:
        """Return the image size, or that of --size."""
        return self.given.size or image_size

    def measure_run(self, recipe: Recipe, start: Callable[..., Path]) -> dict[str, float]:
        """Return the seconds of a run with its report, from an empty cache, and the AUROC of each split."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        started = time.perf_counter()
        start(recipe, folder / "run", Progress())
        seconds = time.perf_counter() - started
        metrics = read_json(folder / "run" / "metrics.json")
        aurocs = {split: metrics[split]["auroc"]["macro"] for split in ("test", "oof") if metrics.get(split)}
        return {"seconds": seconds, **aurocs}

    def measure_training(self, backbone: str, image_size: int, batch_size: int, n_steps: int) -> Iterator[Row]:
        """Measure the bare loop, the network with our optimizer, fastcxr and plain fastai end to end."""
        name = f"{backbone}, {image_size} px, batches of {batch_size}"
        bare = measure_bare_loop(backbone, image_size, batch_size, n_steps, self.device)
        yield f"{name}: bare loop, images/s", f"{bare:.0f}", ""
        recipe = self.make_recipe(backbone=backbone, weights="none", strategy="full", image_size=image_size,
                                  batch_size=batch_size)  # fmt: skip
        with self.record_peak_memory() as peak:
            network = measure_network(make_learner(make_loaders(self.manifest, recipe), recipe), n_steps)
        share = f"{network:.0f} ({network / bare:.0%} of the bare loop)"
        yield f"{name}: network, optimizer of fastcxr, images/s", share, f"{MIN_NETWORK_SHARE:.0%}"
        yield f"{name}: peak memory", peak[0], ""
        end_to_end = self.measure_end_to_end(recipe, n_steps)
        share = f"{end_to_end:.0f} ({end_to_end / network:.0%} of the network)"
        yield f"{name}: end to end, images/s", share, f"{MIN_END_TO_END_SHARE:.0%}"
        plain = self.measure_plain(recipe, n_steps)
        yield f"{name}: plain fastai, images/s", f"{plain:.0f} (fastcxr {end_to_end / plain:.2f} times)", ""

    def measure_end_to_end(self, recipe: Recipe, n_steps: int) -> float:
        """Return the images/s of a fit. Images are repeated within an epoch, which has all steps."""
        repeated = self.count_repeats(recipe.batch_size, n_steps)
        labels = self.manifest["label"].unique()
        recipe = recipe.replace(oversample=tuple(f"{label}={repeated}" for label in labels))
        return measure_end_to_end(make_learner(make_loaders(self.manifest, recipe), recipe), n_steps)

    def measure_plain(self, recipe: Recipe, n_steps: int) -> float:
        """Return the images/s of a fit of plain fastai, with its default number of loader workers."""
        parts = [self.manifest[self.manifest["split"] == "train"]] * self.count_repeats(recipe.batch_size, n_steps)
        table = pd.concat([*parts, self.manifest[self.manifest["split"] == "valid"]], ignore_index=True)
        learner: Learner = make_plain_learner(table, recipe, tempfile.mkdtemp(dir=self.folder))
        return measure_end_to_end(learner, n_steps)

    def count_repeats(self, batch_size: int, n_steps: int) -> int:
        """Return how often an epoch must repeat each training image to have all steps."""
        n_train = int((self.manifest["split"] == "train").sum())
        return max(2, math.ceil((N_WARM_UP_STEPS + n_steps + 1) * batch_size / n_train))

    @contextmanager
    def record_peak_memory(self) -> Iterator[list[str]]:
        """Yield a list that has the peak memory of the block after its end."""
        found: list[str] = []
        is_measured = self.device.type == "cuda"
        if is_measured:
            gc.collect()  # a Learner of an earlier measurement refers to itself
            torch.cuda.reset_peak_memory_stats(self.device)
        yield found
        found.append(f"{torch.cuda.max_memory_allocated(self.device) / GIGABYTE:.2f} GiB" if is_measured else "no GPU")


def measure_bare_loop(backbone: str, image_size: int, batch_size: int, n_steps: int, device: torch.device) -> float:
    """Return the images/s of a training loop without fastai and fastcxr, on one batch."""
    network = timm.create_model(backbone, num_classes=3).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    images, labels = images.contiguous(memory_format=torch.channels_last), torch.arange(batch_size, device=device) % 3
    started = 0.0
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False):
        for number in range(N_WARM_UP_STEPS + n_steps):
            if number == N_WARM_UP_STEPS:
                started = read_clock(device)
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return n_steps * batch_size / (read_clock(device) - started)


def describe_auroc_goal(cpu_auroc: float | None) -> str:
    """Return the goal of an AUROC."""
    return f"within {MAX_AUROC_DIFFERENCE} of a CPU ({cpu_auroc or 'not run yet'})"


def describe_machine(device: torch.device) -> str:
    """Return card, cores and versions in one line."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else f"no GPU, {platform.machine()}"
    versions = {
        "fastcxr": __version__, "torch": torch.__version__, "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(), "torchvision": torchvision.__version__,
        "fastai": fastai.__version__, "timm": timm.__version__, "numpy": np.__version__,
        "Python": platform.python_version(),
    }  # fmt: skip
    return f"{card}, {count_cpus()} cores; " + ", ".join(f"{name} {version}" for name, version in versions.items())


@contextmanager
def end_after(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block when these seconds are over."""

    def stop(signal_number: int, frame: object) -> None:
        raise TimeoutError("the time of --minutes is over")

    if seconds <= 0:
        stop(signal.SIGALRM, None)
    previous = signal.signal(signal.SIGALRM, stop)
    # again every 10 s: an error handler of a run may catch the first one
    signal.setitimer(signal.ITIMER_REAL, seconds, 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def main() -> None:
    """Run all measurements and print the table."""
    started = time.perf_counter()
    parser = make_parser(__doc__, ["data", "weights"], ["patient-table", "backbone"])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="measurements")
    parser.add_argument("--minutes", type=float, default=7.0, help="no measurement continues after this time")
    parser.add_argument("--out", type=Path, help="file of the table")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "efficientnet_b0"], help="of training")
    parser.add_argument("--large", default="efficientnet_b7", help="large backbone")
    parser.add_argument("--size", type=int, help="size of all images [px]; default: that of each measurement")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50, help="timed training steps")
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()
    table = Table(given.out)
    table.add("measurement", "value", "goal")
    table.add("---", "---", "---")
    table.add("machine", describe_machine(find_device(given.device)), "")
    table.add("command", f"`{shlex.join(['python', *sys.argv])}`", "")
    with tempfile.TemporaryDirectory() as folder:
        measurements = Measurements(given, Path(folder))
        for name in given.only:
            try:
                with end_after(60 * given.minutes - (time.perf_counter() - started)):
                    for row in getattr(measurements, name)():
                        table.add(*row)
            except Exception as error:  # noqa: BLE001  the other measurements are kept
                table.add(name, f"failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}", "")
    table.add("whole script without imports, s", f"{time.perf_counter() - started:.0f}", "below 480")


if __name__ == "__main__":
    main()
