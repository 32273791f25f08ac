"""Training images/s of fastcxr, plain fastai, and the network alone on one batch.

    python benchmarks/throughput.py --data DIR --weights FILE [--backbone NAME] [--size 224] [--steps 20] [--runs 3]

All layers are trained. fastcxr and plain fastai are measured end to end (reading, augmentation, step), the latter with
its default number of loader workers and without workers. The network alone repeats forward pass, backward pass and step
on one normalised batch, in the precision of fastcxr. The first steps of each run are not counted. The variants
alternate, each run in a separate process; the table contains medians.
"""

import argparse
import statistics
import tempfile

import torch
from common import make_parser, parse_or_measure, run_in_subprocess
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner
from plain_fastai import N_WORKERS, make_plain_learner

from fastcxr import Recipe, make_learner, make_loaders, read_manifest, split_by_patient
from fastcxr.models.devices import read_clock
from fastcxr.models.precision import autocast

N_WARM_UP_STEPS = 3
VARIANTS = ("fastcxr", *N_WORKERS, "network alone")


class Stopwatch(Callback):
    """Measures the seconds from the last warm-up step to the last step, and then ends the fit."""

    def __init__(self, n_steps: int):
        self.n_steps, self.times = n_steps, []

    def after_batch(self) -> None:
        if self.training and self.iter + 1 in (N_WARM_UP_STEPS, N_WARM_UP_STEPS + self.n_steps):
            self.times.append(read_clock(self.dls.device))
        if len(self.times) == 2:
            raise CancelFitException


def measure_end_to_end(learner: Learner, n_steps: int) -> float:
    """Return the images/s of a fit."""
    learner.unfreeze()
    stopwatch = Stopwatch(n_steps)
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, 1e-5, cbs=stopwatch)
    return n_steps * learner.dls.train.bs / (stopwatch.times[1] - stopwatch.times[0])


def measure_network(learner: Learner, n_steps: int) -> float:
    """Return the images/s of network and optimizer alone."""
    learner.create_opt()
    # fastai's tensor subclasses slow every step down; a fit of fastcxr removes them too
    images, labels = (part.as_subclass(torch.Tensor) for part in learner.dls.train.one_batch())
    images = images.contiguous(memory_format=torch.channels_last)
    learner.model.train().to(memory_format=torch.channels_last)
    started = 0.0
    for number in range(N_WARM_UP_STEPS + n_steps):
        if number == N_WARM_UP_STEPS:
            started = read_clock(learner.dls.device)
        with autocast(learner.fastcxr.precision, learner.dls.device):
            logits = learner.model(images)
        learner.loss_func(logits.float(), labels).backward()
        learner.opt.step()
        learner.opt.zero_grad()
    return n_steps * len(labels) / (read_clock(learner.dls.device) - started)


def measure(given: argparse.Namespace) -> float:
    """Return the images/s of one variant."""
    recipe = Recipe(given.backbone, weights=given.weights, image_size=given.size, batch_size=given.batch_size,
                    strategy="full")  # fmt: skip
    manifest = split_by_patient(read_manifest(given.data), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        if given.variant in N_WORKERS:
            plain = make_plain_learner(manifest, recipe, folder, N_WORKERS[given.variant])
            return measure_end_to_end(plain, given.steps)
        learner = make_learner(make_loaders(manifest, recipe), recipe)
        return (measure_end_to_end if given.variant == "fastcxr" else measure_network)(learner, given.steps)


def print_table(speeds: dict[str, list[float]]) -> None:
    """Print one row for each variant, and the two ratios of the goals."""
    for variant, found in speeds.items():
        values = ", ".join(f"{speed:.1f}" for speed in found)
        print(f"{variant:<24} {statistics.median(found):>9.1f} images/s   of {values}")
    fastcxr, *plain, network = (statistics.median(found) for found in speeds.values())
    print(f"fastcxr: {fastcxr / max(plain):.2f} times the faster plain fastai, "
          f"{100 * fastcxr / network:.0f} % of the network alone")  # fmt: skip


def main() -> None:
    """Run all variants alternately, each run in a separate process, and print the table."""
    parser = make_parser(__doc__, ["data", "weights"], ["backbone"])
    parser.add_argument("--size", type=int, default=224, help="image size [px]")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    given = parse_or_measure(parser, VARIANTS, measure)
    speeds = {variant: [] for variant in VARIANTS}
    for _ in range(given.runs):
        for variant in VARIANTS:
            speeds[variant].append(run_in_subprocess(variant))
    print_table(speeds)


if __name__ == "__main__":
    main()
