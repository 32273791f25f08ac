"""Time to quality of fastcxr and plain fastai, with the same images, split, backbone and weights.

    python benchmarks/plain_fastai.py --data DIR --weights FILE [--patient-table FILE] [--until 0.95] [--epochs 5]

Plain fastai is the method of its tutorial: ImageDataLoaders, Resize, aug_transforms, vision_learner, lr_find and
fine_tune. The split is that of fastcxr, grouped by patient. For both, the validation loss selects the model. After each
improvement, the AUROC on the test split is computed while the clock is stopped. "reached" is the first time [s] at
which it is at least `--until`. fastcxr starts with an empty cache. The two alternate, each run in a separate process.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common import make_parser, parse_or_measure, run_in_subprocess
from fastai.callback.core import Callback
from fastai.learner import Learner, Recorder
from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, set_seed, vision_learner

from fastcxr import Recipe, make_learner, make_loaders, predict, read_manifest, split_by_patient, train
from fastcxr.metrics.classification import compute_metrics
from fastcxr.progress.base import Progress

N_WORKERS = {
    "plain fastai": None,
    "plain fastai, no workers": 0,
}  # loader workers; None: fastai's default, one per core


def make_plain_learner(
    manifest: pd.DataFrame, recipe: Recipe, folder: str | Path, workers: int | None = None
) -> Learner:
    """Return a learner as in fastai's tutorial, for the training and validation rows.

    `recipe.weights` is a file of weights, or "none": vision_learner is offline here.
    """
    set_seed(recipe.seed, reproducible=True)
    table = manifest[manifest["split"] != "test"].assign(is_valid=lambda rows: rows["split"] == "valid")
    loaders = ImageDataLoaders.from_df(
        table, path="/", fn_col="file", label_col="label", valid_col="is_valid", bs=recipe.batch_size,
        num_workers=workers, item_tfms=Resize(recipe.image_size), batch_tfms=aug_transforms(),
    )  # fmt: skip
    options = (
        {"pretrained": False} if recipe.weights == "none" else {"pretrained_cfg_overlay": {"file": recipe.weights}}
    )
    return vision_learner(loaders, recipe.backbone, path=folder, **options)


@dataclass
class Clock:
    """Seconds of training without evaluation, and the models that the validation loss selected."""

    started: float = field(default_factory=time.perf_counter)
    paused_seconds: float = 0.0
    lowest_loss: float = np.inf
    selected: list[dict[str, float]] = field(default_factory=list)

    def add_epoch(self, loss: float, evaluate: Callable[[], dict[str, float]]) -> None:
        """Evaluate the current model if its validation loss is the lowest, with the clock stopped."""
        now = time.perf_counter()
        if loss < self.lowest_loss:
            self.lowest_loss = loss
            self.selected.append({"seconds": now - self.started - self.paused_seconds} | evaluate())
        self.paused_seconds += time.perf_counter() - now

    def make_row(self, until: float) -> dict[str, float]:
        """Return the results of a run."""
        seconds = time.perf_counter() - self.started - self.paused_seconds
        reached = next((model["seconds"] for model in self.selected if model["auroc"] >= until), np.nan)
        return self.selected[-1] | {"seconds": seconds, "reached": reached}


class PlainClockCallback(Callback):
    """Adds every epoch of plain fastai to the clock."""

    order = Recorder.order + 1  # after the validation loss of the epoch is recorded

    def __init__(self, clock: Clock, evaluate: Callable[[], dict[str, float]]):
        self.clock, self.evaluate = clock, evaluate

    def after_epoch(self) -> None:
        self.clock.add_epoch(self.recorder.values[-1][1], self.evaluate)  # [training loss, validation loss]


def train_plain(manifest: pd.DataFrame, recipe: Recipe) -> Clock:
    clock, test = Clock(), manifest[manifest["split"] == "test"]
    with tempfile.TemporaryDirectory() as folder:
        learner = make_plain_learner(manifest, recipe, folder)
        test_loader = learner.dls.test_dl(test)

        @torch.no_grad()
        def evaluate() -> dict[str, float]:
            learner.model.eval()
            probability = torch.cat([learner.model(batch[0]).softmax(dim=1) for batch in test_loader])
            return compute_test_metrics(test, probability.cpu().numpy(), list(learner.dls.vocab))

        with learner.no_bar(), learner.no_logging():
            rate = learner.lr_find(show_plot=False).valley
            learner.fine_tune(recipe.epochs, rate, cbs=PlainClockCallback(clock, evaluate))
    return clock


class ClockProgress(Progress):
    """Adds every epoch of fastcxr to the clock."""

    def __init__(self, clock: Clock, evaluate: Callable[[], dict[str, float]]):
        self.clock, self.evaluate = clock, evaluate

    def epoch(self, row: dict) -> None:
        self.clock.add_epoch(row["valid_loss"], self.evaluate)


def train_fastcxr(manifest: pd.DataFrame, recipe: Recipe) -> Clock:
    test = manifest[manifest["split"] == "test"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        clock = Clock()
        learner = make_learner(make_loaders(manifest, recipe), recipe)

        def evaluate() -> dict[str, float]:
            predictions = predict(learner, manifest, splits=("test",), progress=Progress())
            return compute_test_metrics(test, predictions.probability, list(predictions.labels))

        train(learner, recipe, ClockProgress(clock, evaluate))
    return clock


def compute_test_metrics(test: pd.DataFrame, probability: np.ndarray, labels: list[str]) -> dict[str, float]:
    metrics = compute_metrics(pd.Index(labels).get_indexer(test["label"]), probability.astype(float), labels)
    return {"accuracy": metrics["accuracy"], "auroc": metrics["auroc"]["macro"]}


METHODS = {"fastcxr": train_fastcxr, "plain fastai": train_plain}


def measure(given: argparse.Namespace) -> dict[str, float]:
    """Return the results of one method and seed."""
    recipe = Recipe(given.backbone, weights=given.weights, epochs=given.epochs, seed=given.seed)
    manifest = split_by_patient(read_manifest(given.data, patient_table=given.patient_table), seed=given.seed)
    sizes = {f"{name} images": int(count) for name, count in manifest["split"].value_counts().items()}
    return {"seed": given.seed} | METHODS[given.variant](manifest, recipe).make_row(given.until) | sizes


def main() -> None:
    """Run both methods alternately, each run in a separate process, and print the table."""
    parser = make_parser(__doc__, ["data", "weights"], ["patient-table", "backbone"])
    parser.add_argument("--until", type=float, default=0.95, help="AUROC")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--alone", action="store_true", help="fastcxr without plain fastai")
    parser.add_argument("--seed", type=int, help="seed of --variant")
    given = parse_or_measure(parser, METHODS, measure)
    rows = []
    for seed in range(given.seeds):
        for method in list(METHODS)[: 1 if given.alone else 2]:
            row = run_in_subprocess(method, seed=seed)
            rows.append({"method": method, **row})
            print(f"{method:<13} " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
    columns = ["seconds", "reached", "accuracy", "auroc"]
    print(pd.DataFrame(rows).groupby("method")[columns].agg(["median", "min", "max"]).round(4).to_string())


if __name__ == "__main__":
    main()
