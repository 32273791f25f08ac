"""Changes to the default strategy: averaged weights, flipped images, and small images first.

    python benchmarks/refinements.py --data DIR --weights FILE [--patient-table FILE] [--epochs 5] [--seeds 3]

All variants of a seed use one training of all layers that starts from the fitted head (strategy lp_ft), except for
small images first, which is trained separately. The validation loss selects the epoch of each variant:

    head only                  the fitted head on the frozen backbone
    lp_ft                      the head only, or the best epoch after it
    moving average             moving average of the weights (a new step counts 1/50) at the end of each epoch
    mean of head and epoch     mean of the weights of the head only and of each epoch
    160 px, then 224 px        the first three fifths of the epochs at 160 px, the others at 224 px
    ..., flipped too           mean of the logits of each image and its flipped copy

fastcxr uses "lp_ft"; the head only, which is also fitted on flipped images, is applied to flipped images too. The table
contains means over seeds, and the lowest and highest difference of AUROC from "lp_ft" with the same seed.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import make_parser, parse_or_measure, run_in_subprocess
from fastai.callback.core import Callback
from fastai.learner import Learner
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

MOVING_AVERAGE_WEIGHT = 0.02  # of the newest step
SMALL_IMAGE_SIZE, BATCH_SIZE = 160, 32
Weights = dict[str, torch.Tensor]


def copy_weights(network: nn.Module) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def mix_weights(first: Weights, second: Weights, weight: float) -> Weights:
    """Interpolate between two networks; `weight` is that of the second."""
    return {name: torch.lerp(first[name], second[name], weight) if first[name].is_floating_point() else second[name]
            for name in first}  # fmt: skip


class WeightsCallback(Callback):
    """Keeps the weights and their moving average at the end of every epoch."""

    def __init__(self, initial: Weights):
        self.average, self.epochs, self.averages = initial, [], []

    def after_batch(self) -> None:
        if self.training:
            self.average = mix_weights(self.average, self.model.state_dict(), MOVING_AVERAGE_WEIGHT)

    def after_validate(self) -> None:
        self.epochs.append(copy_weights(self.model))
        self.averages.append(self.average)


def fine_tune(learner: Learner, recipe: Recipe, epochs: int) -> WeightsCallback:
    """Train all layers as strategy lp_ft does after the head is fitted."""
    stage = resolve_stages(recipe, len(learner.splitter(learner.model)))[0]
    unfreeze(learner, stage)
    weights, rates = (
        WeightsCallback(copy_weights(learner.model)),
        compute_group_rates(learner, stage, recipe.learning_rate),
    )
    with learner.no_bar(), learner.no_logging():
        callbacks = [weights, FreezeBatchNormStats(), make_scheduler(learner, recipe, epochs, rates)]
        learner.fit(epochs, lr=rates, cbs=callbacks)
    return weights


class Evaluator:
    """Validation loss and test metrics of weights, on images that are read once."""

    def __init__(self, learner: Learner, manifest: pd.DataFrame):
        self.learner, image_cache = learner, learner.dls.fastcxr.image_cache
        rows = {file: row for row, file in enumerate(image_cache.files)}
        self.labels = list(learner.dls.vocab)
        parts = {split: manifest[manifest["split"] == split] for split in ("valid", "test")}
        self.images = {split: image_cache.read([rows[file] for file in part["file"]]) for split, part in parts.items()}
        self.truth = {split: pd.Index(self.labels).get_indexer(part["label"]) for split, part in parts.items()}

    @torch.no_grad()
    def predict(self, weights: Weights, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of the images, and those of the flipped images."""
        network = self.learner.model.eval()
        network.load_state_dict(weights)
        logits, flipped_logits = [], []
        for batch in torch.from_numpy(self.images[split])[:, None].split(BATCH_SIZE):
            batch = normalize(batch, self.learner.dls.fastcxr.input_spec)
            with autocast(self.learner.fastcxr.precision, torch.device("cpu")):
                logits.append(network(batch).float())
                flipped_logits.append(network(batch.flip(3)).float())
        return torch.cat(logits), torch.cat(flipped_logits)

    def make_rows(self, name: str, candidates: list[Weights]) -> Iterator[dict[str, Any]]:
        """Yield the row of the candidate with the lowest validation loss, without and with flipped images."""
        predictions, truth = (
            [self.predict(weights, "valid") for weights in candidates],
            torch.tensor(self.truth["valid"]),
        )
        averages = {name: lambda pair: pair[0], f"{name}, flipped too": lambda pair: (pair[0] + pair[1]) / 2}
        for variant, average in averages.items():
            losses = [float(self.learner.loss_func(average(pair), truth)) for pair in predictions]
            best = int(np.argmin(losses))
            probability = average(self.predict(candidates[best], "test")).double().softmax(1).numpy()
            metrics = compute_metrics(self.truth["test"], probability, self.labels)
            yield {"variant": variant, "epoch": best, "valid_loss": losses[best],
                   "accuracy": metrics["accuracy"], "auroc": metrics["auroc"]["macro"]}  # fmt: skip


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return the rows of all variants for one seed."""
    recipe = Recipe(given.backbone, weights=given.weights, epochs=given.epochs, seed=given.seed)
    table = read_manifest(given.data, patient_table=given.patient_table, data_format=given.data_format)
    table = split_by_patient(table, seed=given.seed)
    learner = make_learner(make_loaders(table, recipe), recipe)
    fit_head(learner, recipe, Progress())
    evaluator, head, started = Evaluator(learner, table), copy_weights(learner.model), time.perf_counter()
    trained = fine_tune(learner, recipe, given.epochs)
    seconds = time.perf_counter() - started
    rows = [*evaluator.make_rows("head only", [head]), *evaluator.make_rows("lp_ft", [head, *trained.epochs])]
    rows += evaluator.make_rows("moving average", [head, *trained.averages])
    means = [mix_weights(head, weights, 0.5) for weights in trained.epochs]
    rows += evaluator.make_rows("mean of head and epoch", [head, *means])
    started = time.perf_counter()
    rows += evaluator.make_rows("160 px, then 224 px", [head, *train_small_first(learner, table, recipe, head)])
    return {"seconds": seconds, "small_first_seconds": time.perf_counter() - started, "rows": rows}


def train_small_first(learner: Learner, table: pd.DataFrame, recipe: Recipe, head: Weights) -> list[Weights]:
    """Train on small images, then on full-size images; return the weights of the latter epochs."""
    n_small_epochs = recipe.epochs * 3 // 5
    small_recipe = recipe.replace(image_size=SMALL_IMAGE_SIZE)
    small_learner = make_learner(make_loaders(table, small_recipe), small_recipe)
    small_learner.model.load_state_dict(head)
    fine_tune(small_learner, small_recipe, n_small_epochs)
    learner.model.load_state_dict(small_learner.model.state_dict())
    return fine_tune(learner, recipe, recipe.epochs - n_small_epochs).epochs


def main() -> None:
    """Run each seed in a separate process, and print the table."""
    parser = make_parser(__doc__, ["data", "weights"], ["patient-table", "backbone"])
    parser.add_argument("--data-format", default="auto")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--seed", type=int, help="seed of --variant")
    given = parse_or_measure(parser, ["all"], measure)
    tables = []
    for seed in range(given.seeds):
        found = run_in_subprocess("all", seed=seed)
        print(f"seed {seed}: {found['seconds']:.0f} s, small first {found['small_first_seconds']:.0f} s", flush=True)
        table = pd.DataFrame(found["rows"])
        reference = table.loc[table["variant"] == "lp_ft", "auroc"].item()
        tables.append(table.assign(seed=seed, difference=table["auroc"] - reference))
        print(tables[-1].round(4).to_string(index=False), flush=True)
    groups = pd.concat(tables).groupby("variant", sort=False)
    means = groups[["valid_loss", "accuracy", "auroc"]].mean()
    print(means.join(groups["difference"].agg(["min", "max"])).round(4).to_string())


if __name__ == "__main__":
    main()
