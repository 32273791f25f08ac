"""fastcxr beside plain fastai: time to quality on the same images, split, backbone and weights, in one go.

    python benchmarks/plain_fastai.py --data DIR --weights FILE [--patient-table FILE] [--until 0.95] [--epochs 5]

Plain fastai is what its own tutorial teaches: ImageDataLoaders, Resize, aug_transforms, vision_learner, lr_find and
fine_tune. The split is fastcxr's, patient-grouped. In both roads validation loss chooses the model; whenever there is a
better one, its AUROC on the test patients is taken with the clock stopped. "reached" is the second in which it first
was `--until`. fastcxr starts with an empty cache each time. The two alternate, each in a process of its own.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: what `import fastcxr` sets, for both

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from peer import make_plain_learner, run_alone

from fastcxr import Recipe, make_learner, make_loaders, predict, read_manifest, split_by_patient, train
from fastcxr.metrics.classification import compute_metrics
from fastcxr.progress.base import Progress


@dataclass
class Clock:
    """Seconds of work, and the models that validation chose in their course."""

    started: float = field(default_factory=time.perf_counter)
    stopped: float = 0.0
    lowest: float = np.inf
    chosen: list[dict] = field(default_factory=list)

    def look(self, loss: float, score: Callable[[], tuple[float, float]]) -> None:
        """With the clock stopped: score the model of now if validation prefers it."""
        now = time.perf_counter()
        if loss < self.lowest:
            self.lowest, (accuracy, auroc) = loss, score()
            self.chosen.append({"seconds": now - self.started - self.stopped, "accuracy": accuracy, "auroc": auroc})
        self.stopped += time.perf_counter() - now

    def row(self, until: float) -> dict[str, float]:
        """What the benchmark prints of one road."""
        reached = [model["seconds"] for model in self.chosen if model["auroc"] >= until]
        whole = time.perf_counter() - self.started - self.stopped
        return {"seconds": whole, "reached": reached[0] if reached else np.nan} | {
            name: self.chosen[-1][name] for name in ("accuracy", "auroc")
        }


class Looks(Callback):
    """Lets the clock look at the end of every epoch of plain fastai."""

    def __init__(self, clock: Clock, score: Callable):
        self.clock, self.score = clock, score

    def after_epoch(self) -> None:
        """The recorder's second value is the validation loss."""
        if len(self.recorder.values):  # not while the rate is being found
            self.clock.look(self.recorder.values[-1][1], lambda: self.score(self.learn))


def plain_fastai(manifest: pd.DataFrame, recipe: Recipe) -> Clock:
    """The tutorial's road."""
    clock, test = Clock(), manifest[manifest["split"] == "test"]
    with tempfile.TemporaryDirectory() as folder:
        learner = make_plain_learner(manifest, recipe, folder)
        loaders = learner.dls
        test_loader = loaders.test_dl(test)

        @torch.no_grad()
        def score_test(learn) -> tuple[float, float]:
            learn.model.eval()
            probability = torch.cat([learn.model(batch[0]).softmax(dim=1) for batch in test_loader])
            return score(test, probability.numpy(), list(loaders.vocab))

        with learner.no_bar(), learner.no_logging():
            rate = learner.lr_find(show_plot=False).valley
            learner.fine_tune(recipe.epochs, rate, cbs=Looks(clock, score_test))
    return clock


class Watch(Progress):
    """Lets the clock look at every row of fastcxr's history."""

    def __init__(self, clock: Clock, score: Callable):
        self.clock, self.score = clock, score

    def epoch(self, row: dict) -> None:
        """A row of history, its model still in the learner."""
        self.clock.look(row["valid_loss"], self.score)


def ours(manifest: pd.DataFrame, recipe: Recipe) -> Clock:
    """fastcxr's road, its cache empty."""
    test = manifest[manifest["split"] == "test"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        clock = Clock()
        learner = make_learner(make_loaders(manifest, recipe), recipe)

        def score_test() -> tuple[float, float]:
            predictions = predict(learner, manifest, splits=("test",), progress=Progress())
            return score(test, predictions.probability, list(predictions.labels))

        train(learner, recipe, Watch(clock, score_test))
    return clock


def score(test: pd.DataFrame, probability: np.ndarray, labels: list[str]) -> tuple[float, float]:
    """Accuracy and macro AUROC."""
    figures = compute_metrics(pd.Index(labels).get_indexer(test["label"]), probability.astype(float), labels)
    return figures["accuracy"], figures["auroc"]["macro"]


ROADS = {"fastcxr": ours, "plain fastai": plain_fastai}


def measure_road(given: argparse.Namespace) -> dict[str, float]:
    """One road at one seed."""
    weights = str(Path(given.weights).resolve())
    recipe = Recipe(given.backbone, weights=weights, epochs=given.epochs, seed=given.seed)
    manifest = split_by_patient(read_manifest(given.data, patient_table=given.patient_table), seed=given.seed)
    sizes = {f"{name} images": int(count) for name, count in manifest["split"].value_counts().items()}
    return {"seed": given.seed} | ROADS[given.road](manifest, recipe).row(given.until) | sizes


def main() -> None:
    """Run both roads by turns, each in a process of its own, and print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", required=True)
    words.add_argument("--weights", required=True)
    words.add_argument("--patient-table")
    words.add_argument("--backbone", default="mobilenetv2_100")
    words.add_argument("--until", type=float, default=0.95)
    words.add_argument("--epochs", type=int, default=5)
    words.add_argument("--seeds", type=int, default=5)
    words.add_argument("--alone", action="store_true", help="fastcxr without its peer")
    words.add_argument("--road", choices=ROADS, help="this one alone")
    words.add_argument("--seed", type=int, help="of the one road")
    given = words.parse_args()
    if given.road:
        print(json.dumps(measure_road(given)))
        return
    rows = []
    for seed in range(given.seeds):
        for road in list(ROADS)[: 1 if given.alone else 2]:
            row = run_alone(road, seed=seed)
            rows.append({"road": road, **row})
            print(f"{road:<13} " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()), flush=True)
    table = (
        pd.DataFrame(rows).groupby("road")[["seconds", "reached", "accuracy", "auroc"]].agg(["median", "min", "max"])
    )
    print(table.round(4).to_string())


if __name__ == "__main__":
    main()
