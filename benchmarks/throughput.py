"""Training images a second: fastcxr, plain fastai, and the same network on one batch that is always there.

    python benchmarks/throughput.py --data DIR --weights FILE [--backbone NAME] [--size 224] [--steps 20] [--runs 3]

All layers learn. fastcxr and plain fastai go end to end (reading, augmenting, stepping); the ceiling repeats forward,
backward and step on one normalised batch in the arithmetic that fastcxr chose. The first steps of each run are not
counted. The three alternate, so that a busy machine slows all; the table gives medians.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: what the command line of fastcxr sets, for all

import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner
from peer import make_plain_learner

from fastcxr import Recipe, make_learner, make_loaders, read_manifest, split_by_patient
from fastcxr.training.arithmetic import computing

WARM_UP = 3


class Stopwatch(Callback):
    """Seconds from the last warm-up step to the last step; then it ends the fit."""

    def __init__(self, steps: int):
        self.steps = steps

    def after_batch(self) -> None:
        if self.training and self.iter + 1 in (WARM_UP, WARM_UP + self.steps):
            wait(self.dls.device)
            self.began, self.ended = getattr(self, "ended", None), time.perf_counter()
        if self.iter + 1 == WARM_UP + self.steps:
            raise CancelFitException


def wait(device: torch.device) -> None:
    """A GPU answers before it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def end_to_end(learner: Learner, steps: int) -> float:
    """Images a second of a fit."""
    learner.unfreeze()
    watch = Stopwatch(steps)
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, 1e-5, cbs=watch)
    return steps * learner.dls.train.bs / (watch.ended - watch.began)


def ceiling(learner: Learner, steps: int) -> float:
    """Images a second of the network and optimizer alone."""
    learner.create_opt()
    images, labels = learner.dls.train.one_batch()
    images = images.contiguous(memory_format=torch.channels_last)
    learner.model.train().to(memory_format=torch.channels_last)
    for number in range(WARM_UP + steps):
        if number == WARM_UP:
            wait(learner.dls.device)
            started = time.perf_counter()
        with computing(learner.precision, learner.dls.device):
            logits = learner.model(images)
        learner.loss_func(logits.float(), labels).backward()
        learner.opt.step()
        learner.opt.zero_grad()
    wait(learner.dls.device)
    return steps * len(labels) / (time.perf_counter() - started)


def show(speeds: dict[str, list[float]]) -> None:
    """One row a road, and the two ratios that matter."""
    for words, found in speeds.items():
        print(f"{words:<34} {statistics.median(found):>9.1f} images/s   of {', '.join(f'{x:.1f}' for x in found)}")
    ours, plain, most = (statistics.median(found) for found in speeds.values())
    print(f"fastcxr is {ours / plain:.2f} times plain fastai, {100 * ours / most:.0f} % of its network alone")


def main() -> None:
    """Run all roads by turns and print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", required=True)
    words.add_argument("--weights", required=True, help="a file, or none")
    words.add_argument("--backbone", default="mobilenetv2_100")
    words.add_argument("--size", type=int, default=224)
    words.add_argument("--batch-size", type=int, default=32)
    words.add_argument("--steps", type=int, default=20)
    words.add_argument("--runs", type=int, default=3)
    given = words.parse_args()
    weights = given.weights if given.weights == "none" else str(Path(given.weights).resolve())
    recipe = Recipe(
        given.backbone, weights=weights, image_size=given.size, batch_size=given.batch_size, strategy="deep"
    )
    manifest = split_by_patient(read_manifest(given.data), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        ours, plain = make_learner(make_loaders(manifest, recipe), recipe), make_plain_learner(manifest, recipe, folder)
        roads: dict[str, Callable[[], float]] = {
            f"fastcxr, {ours.precision}": partial(end_to_end, ours, given.steps),
            "plain fastai": partial(end_to_end, plain, given.steps),
            f"the network alone, {ours.precision}": partial(ceiling, ours, given.steps),
        }
        speeds: dict[str, list[float]] = {name: [] for name in roads}
        for _ in range(given.runs):
            for name, road in roads.items():
                speeds[name].append(road())
    show(speeds)


if __name__ == "__main__":
    main()
