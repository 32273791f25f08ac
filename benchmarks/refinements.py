"""What might refine the default road, and what it gives: averaged weights, mirror images, small images first.

    python benchmarks/refinements.py --data DIR --weights FILE [--patient-table FILE] [--epochs 5] [--seeds 3]

All of them come from one training a seed, of all layers from a fitted head on (strategy lp_ft), but for small images
first, which is one of its own. Validation loss picks the epoch in each. Test figures are of the same patients:

    head alone        the fitted head on the frozen body
    lp_ft             the head alone or the best epoch after it
    moving average    the weights' moving average over the steps (a new step counts for 1 in 50), as of each epoch's end
    half way          the mean of the weights of the head alone and of each epoch
    small first       the first three fifths of the epochs at 160 px, the others at 224 px
    ... + mirror      the logits' mean over each image and its mirror image

What fastcxr ships is "lp_ft" with the head alone "+ mirror": that head, and it alone, has learned from mirror images.
The table is the mean over seeds, and of AUROC also the lowest and highest difference from "lp_ft" of the same seed.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: what `import fastcxr` sets

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from peer import run_alone
from torch import nn

from fastcxr import Recipe, make_learner, make_loaders, read_manifest, split_by_patient
from fastcxr.metrics.classification import compute_metrics
from fastcxr.models.precision import autocast
from fastcxr.models.preprocessing import normalize
from fastcxr.progress.base import Progress
from fastcxr.training.callbacks import FreezeBatchNormStats
from fastcxr.training.linear_probe import fit_head
from fastcxr.training.schedules import compute_group_rates, make_scheduler
from fastcxr.training.trainer import resolve_stages, unfreeze

NEW = 0.02  # what a step adds to the moving average
SMALL = 160
Weights = dict[str, torch.Tensor]


def weights_of(network: nn.Module) -> Weights:
    """A copy of all weights."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def mix(first: Weights, second: Weights, share: float) -> Weights:
    """Weights between two networks; `share`: of the second."""
    return {name: torch.lerp(first[name], second[name], share) if first[name].is_floating_point() else second[name]
            for name in first}  # fmt: skip


class Watch(Callback):
    """Keeps the moving average, and the weights of every epoch's end."""

    def __init__(self, start: Weights):
        self.average, self.epochs, self.averages = start, [], []

    def after_batch(self) -> None:
        if self.training:
            self.average = mix(self.average, self.model.state_dict(), NEW)

    def after_validate(self) -> None:
        self.epochs.append(weights_of(self.model))
        self.averages.append(self.average)


def learn(learner: Learner, recipe: Recipe, epochs: int) -> Watch:
    """All layers, as strategy lp_ft teaches them."""
    stage = resolve_stages(recipe, len(learner.splitter(learner.model)))[0]
    unfreeze(learner, stage)
    watch, rates = Watch(weights_of(learner.model)), compute_group_rates(learner, stage, recipe.learning_rate)
    with learner.no_bar(), learner.no_logging():
        callbacks = [watch, FreezeBatchNormStats(), make_scheduler(learner, recipe, epochs, rates)]
        learner.fit(epochs, lr=rates, cbs=callbacks)
    return watch


class Judge:
    """Scores weights on validation and test images, which it reads once."""

    def __init__(self, learner: Learner, manifest: pd.DataFrame):
        self.learner, pictures = learner, learner.dls.fastcxr.image_cache
        place = {file: row for row, file in enumerate(pictures.files)}
        labels = pd.Index(list(learner.dls.vocab))
        parts = {split: manifest[manifest["split"] == split] for split in ("valid", "test")}
        self.squares = {split: pictures.read([place[f] for f in part["file"]]) for split, part in parts.items()}
        self.truth = {split: labels.get_indexer(part["label"]) for split, part in parts.items()}

    @torch.no_grad()
    def answer(self, weights: Weights, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the images, and of their mirror images."""
        network = self.learner.model.eval()
        network.load_state_dict(weights)
        found = [[], []]
        for start in range(0, len(self.squares[split]), 32):
            batch = normalize(
                torch.from_numpy(self.squares[split][start : start + 32])[:, None], self.learner.dls.fastcxr.input_spec
            )
            with autocast(self.learner.fastcxr.precision, torch.device("cpu")):
                found[0].append(self.learner.model(batch).float())
                found[1].append(self.learner.model(batch.flip(3)).float())
        return torch.cat(found[0]), torch.cat(found[1])

    def rows(self, name: str, candidates: list[Weights]) -> Iterator[dict]:
        """Two rows: of the candidate with the lowest validation loss, by itself and with mirror images."""
        answers = [(self.answer(weights, "valid"), weights) for weights in candidates]
        ways = {name: lambda pair: pair[0], f"{name} + mirror": lambda pair: (pair[0] + pair[1]) / 2}
        for words, join in ways.items():
            losses = [self.loss(join(pair)) for pair, _ in answers]
            logits = join(self.answer(answers[int(np.argmin(losses))][1], "test"))
            figures = compute_metrics(
                self.truth["test"], logits.double().softmax(1).numpy(), list(self.learner.dls.vocab)
            )
            yield {"variant": words, "epoch": int(np.argmin(losses)), "valid_loss": min(losses),
                   "accuracy": figures["accuracy"], "auroc": figures["auroc"]["macro"]}  # fmt: skip

    def loss(self, logits: torch.Tensor) -> float:
        """The recipe's own, of the validation images."""
        return float(self.learner.loss_func(logits, torch.tensor(self.truth["valid"])))


def measure_seed(given: argparse.Namespace) -> dict:
    """All variants at one seed."""
    recipe = Recipe(given.backbone, weights=str(Path(given.weights).resolve()), epochs=given.epochs, seed=given.seed)
    table = split_by_patient(
        read_manifest(given.data, patient_table=given.patient_table, data_format=given.data_format), seed=given.seed
    )
    learner = make_learner(make_loaders(table, recipe), recipe)
    fit_head(learner, recipe, Progress())
    judge, start, began = Judge(learner, table), weights_of(learner.model), time.perf_counter()
    watch = learn(learner, recipe, given.epochs)
    whole = time.perf_counter() - began
    rows = [*judge.rows("head alone", [start]), *judge.rows("lp_ft", [start, *watch.epochs])]
    rows += judge.rows("moving average", [start, *watch.averages])
    rows += judge.rows("half way", [start, *(mix(start, end, 0.5) for end in watch.epochs)])
    began = time.perf_counter()
    rows += judge.rows("small first", [start, *small_first(learner, table, recipe, start)])
    return {"seed": given.seed, "seconds": whole, "small first, seconds": time.perf_counter() - began, "rows": rows}


def small_first(learner: Learner, table: pd.DataFrame, recipe: Recipe, start: Weights) -> list[Weights]:
    """The weights of the later epochs, which follow on epochs of small images."""
    first = recipe.epochs * 3 // 5
    small = recipe.replace(image_size=SMALL)
    pupil = make_learner(make_loaders(table, small), small)
    pupil.model.load_state_dict(start)
    learn(pupil, small, first)
    learner.model.load_state_dict(pupil.model.state_dict())
    return learn(learner, recipe, recipe.epochs - first).epochs


def main() -> None:
    """A process for each seed, and the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", required=True)
    words.add_argument("--weights", required=True)
    words.add_argument("--patient-table")
    words.add_argument("--data-format", default="auto")
    words.add_argument("--backbone", default="mobilenetv2_100")
    words.add_argument("--epochs", type=int, default=5)
    words.add_argument("--seeds", type=int, default=3)
    words.add_argument("--road", help="one seed alone")
    words.add_argument("--seed", type=int, help="the seed")
    given = words.parse_args()
    if given.road:
        print(json.dumps(measure_seed(given)))
        return
    rows = []
    for seed in range(given.seeds):
        found = run_alone("all", seed=seed)
        print(f"seed {seed}: {found['seconds']:.0f} s, small first {found['small first, seconds']:.0f} s", flush=True)
        best = next(row["auroc"] for row in found["rows"] if row["variant"] == "lp_ft")
        rows += [{**row, "seed": seed, "difference": row["auroc"] - best} for row in found["rows"]]
        print(pd.DataFrame(rows[-len(found["rows"]) :]).round(4).to_string(index=False), flush=True)
    table = pd.DataFrame(rows).groupby("variant", sort=False)
    means = table[["valid_loss", "accuracy", "auroc"]].mean()
    spread = table["difference"].agg(["min", "max"])
    print(means.join(spread).round(4).to_string())


if __name__ == "__main__":
    main()
