"""Training images a second: fastcxr, plain fastai, and the same network on one batch that is always there.

    python benchmarks/throughput.py --data DIR --weights FILE [--backbone NAME] [--size 224] [--steps 20] [--runs 3]

All layers learn. fastcxr and plain fastai go end to end (reading, augmenting, stepping), the latter with processes that
read beside it, as is its default, and without; the ceiling repeats forward, backward and step on one normalised batch
in the arithmetic that fastcxr chose. The first steps of each run are not counted. They alternate, each in a process of
its own; the table gives medians.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: what `import fastcxr` sets, for all

import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner
from peer import make_plain_learner, run_alone

from fastcxr import Recipe, make_learner, make_loaders, read_manifest, split_by_patient
from fastcxr.models.devices import read_clock
from fastcxr.models.precision import autocast

WARM_UP = 3
PLAIN = {"plain fastai": None, "plain fastai, no workers": 0}  # processes that read; None is fastai's own choice
ROADS = ("fastcxr", *PLAIN, "the network alone")


class Stopwatch(Callback):
    """Seconds from the last warm-up step to the last step; then it ends the fit."""

    def __init__(self, steps: int):
        self.steps = steps

    def after_batch(self) -> None:
        if self.training and self.iter + 1 in (WARM_UP, WARM_UP + self.steps):
            self.began, self.ended = getattr(self, "ended", None), read_clock(self.dls.device)
        if self.iter + 1 == WARM_UP + self.steps:
            raise CancelFitException


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
    # fastai's own tensors would slow every step down; in a fit it takes them off too
    images, labels = (part.as_subclass(torch.Tensor) for part in (images, labels))
    images = images.contiguous(memory_format=torch.channels_last)
    learner.model.train().to(memory_format=torch.channels_last)
    for number in range(WARM_UP + steps):
        if number == WARM_UP:
            started = read_clock(learner.dls.device)
        with autocast(learner.fastcxr.precision, learner.dls.device):
            logits = learner.model(images)
        learner.loss_func(logits.float(), labels).backward()
        learner.opt.step()
        learner.opt.zero_grad()
    return steps * len(labels) / (read_clock(learner.dls.device) - started)


def measure(given: argparse.Namespace) -> float:
    """Images a second of one road."""
    weights = given.weights if given.weights == "none" else str(Path(given.weights).resolve())
    recipe = Recipe(
        given.backbone, weights=weights, image_size=given.size, batch_size=given.batch_size, strategy="full"
    )
    manifest = split_by_patient(read_manifest(given.data), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        if given.road in PLAIN:
            return end_to_end(make_plain_learner(manifest, recipe, folder, PLAIN[given.road]), given.steps)
        learner = make_learner(make_loaders(manifest, recipe), recipe)
        return (end_to_end if given.road == "fastcxr" else ceiling)(learner, given.steps)


def show(speeds: dict[str, list[float]]) -> None:
    """One row a road, and the two ratios that matter."""
    for words, found in speeds.items():
        print(f"{words:<24} {statistics.median(found):>9.1f} images/s   of {', '.join(f'{x:.1f}' for x in found)}")
    ours, *plain, most = (statistics.median(found) for found in speeds.values())
    print(f"fastcxr is {ours / max(plain):.2f} times the faster plain fastai, {100 * ours / most:.0f} % of its network")


def main() -> None:
    """Run all roads by turns, each in a process of its own, and print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", required=True)
    words.add_argument("--weights", required=True, help="a file, or none")
    words.add_argument("--backbone", default="mobilenetv2_100")
    words.add_argument("--size", type=int, default=224)
    words.add_argument("--batch-size", type=int, default=32)
    words.add_argument("--steps", type=int, default=20)
    words.add_argument("--runs", type=int, default=3)
    words.add_argument("--road", choices=ROADS, help="this one alone")
    given = words.parse_args()
    if given.road:
        print(json.dumps({"speed": measure(given)}))
        return
    speeds = {road: [] for road in ROADS}
    for _ in range(given.runs):
        for road in ROADS:
            speeds[road].append(run_alone(road)["speed"])
    show(speeds)


if __name__ == "__main__":
    main()
