"""A cohort and a dozen backbones come in; which of them suits it goes out, in minutes: no network is trained.

Each candidate looks at a sample of the cohort once, frozen; a linear head is fitted on its features and scored on
patients that the head has not seen.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fastai.learner import Learner

from fastcxr.config.fields import not_known
from fastcxr.config.recipe import Recipe
from fastcxr.data.splits import split_into_folds, take_fold
from fastcxr.errors import FastcxrError, RecipeError, TrainingError, WeightsError
from fastcxr.io.files import write_whole
from fastcxr.io.optional_outputs import optional
from fastcxr.models.backbones import find_backbone
from fastcxr.models.cpu_fusion import quicken
from fastcxr.models.devices import find_device, read_clock
from fastcxr.models.heads import head_of
from fastcxr.models.precision import computing
from fastcxr.models.weights import XRV, find_file
from fastcxr.progress.auto import find_progress
from fastcxr.progress.base import Progress
from fastcxr.report.data_figures import speed_against_quality
from fastcxr.report.style import svg_text
from fastcxr.training.feature_bank import Bank, make_bank
from fastcxr.training.learner import macro_auroc, make_learner
from fastcxr.training.linear_probe import Part, answer_all, fit_parts
from fastcxr.training.loaders import make_loaders
from fastcxr.workflows.load import read_cohort
from fastcxr.workflows.run_dir import CohortFolder, write_table

log = logging.getLogger("fastcxr")

CANDIDATES = (
    "mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0", "efficientnet_b2", "resnet18", "resnet34",
    "resnet50", "densenet121", "regnety_008", "convnext_tiny", "vit_small_patch16_224", "swin_tiny_patch4_window7_224",
)  # fmt: skip
SAMPLE = 500  # images of the cohort
SMALLEST_CLASS = 30
FOLDS = 5
STEPS = 4  # of a batch each, timed
TABLE = "scout.csv"
FIGURES = ("parameters", "images_per_second", "note", "auroc", "spread", "accuracy")


def scout(
    recipe: Recipe,
    backbones: Sequence[str],
    weights: dict[str, str],
    folder: str | Path,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """A row for each backbone, best AUROC first; scout.csv and scout.svg are written into the new `folder`.

    `weights`: a file for each backbone that does not take its own. A backbone whose pretrained weights cannot be had
    is timed with random ones, says so in `note`, and has no AUROC; one that no head fits has its note alone.
    Raises RecipeError for a name that nobody has, before anything is read; a FastcxrError for data that cannot be used.
    """
    if strangers := set(weights) - set(backbones):
        raise not_known(min(strangers), backbones, "weights are given for a backbone that is no candidate:")
    recipes = [recipe.but(backbone=name, weights=weights.get(name, recipe.weights)) for name in backbones]
    check_names(recipes)
    with ScoutFolder(folder).open(progress or find_progress()) as record:
        cohort, rows = sample_cohort(read_cohort(recipe, record), recipe), []
        for candidate in recipes:
            rows.append(look_at(candidate, cohort, record))
            table = rank(rows)
            write_table(record.folder / TABLE, table)  # each time: what is finished outlives a broken-off scout
        words = "AUROC of a linear head on each frozen backbone, against its speed"
        with optional("figure scout"):
            write_whole(record.folder / "scout.svg", svg_text(speed_against_quality(table), "scout", words))
    return table


class ScoutFolder(CohortFolder):
    """The folder of a scout: a table of the first candidates is of use when the last ones are missing."""

    def is_worth_keeping(self) -> bool:
        """Whether a candidate was finished."""
        return (self.folder / TABLE).exists()


def check_names(recipes: Sequence[Recipe]) -> None:
    """See that all that is named is there before the first candidate costs a pass.

    Raises RecipeError, InputMissingError for a weights file.
    """
    for recipe in recipes:
        find_device(recipe.device)
        # whether ImageNet weights are there is no question of names: who has none is marked in the table
        find_backbone(recipe.backbone, "none" if recipe.weights == "imagenet" else recipe.weights)
        if recipe.weights not in ("imagenet", "none") and not recipe.weights.startswith(XRV):
            find_file(recipe.weights)


def rank(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The rows as a table, best AUROC first, those without one last."""
    table = pd.DataFrame(rows).astype({"parameters": "Int64"})  # a whole number also beside rows that have none
    return table.sort_values("auroc", ascending=False, na_position="last", ignore_index=True)


def sample_cohort(manifest: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """About SAMPLE images, the classes in their proportions but none too small, dealt into patient folds."""
    share = min(1.0, SAMPLE / len(manifest))
    mixed = manifest.sample(frac=1, random_state=recipe.seed)
    kept = [group.head(max(SMALLEST_CLASS, round(share * len(group)))) for _, group in mixed.groupby("label")]
    return split_into_folds(pd.concat(kept, ignore_index=True), FOLDS, unit=recipe.split, seed=recipe.seed)


def look_at(recipe: Recipe, cohort: pd.DataFrame, progress: Progress) -> dict[str, Any]:
    """One row of the table; a candidate that something stands against has it in `note`, and no AUROC."""
    nothing = dict.fromkeys(FIGURES, np.nan)
    try:
        return {"backbone": recipe.backbone} | nothing | measure(recipe, cohort, progress)
    except (RecipeError, TrainingError) as error:
        return {"backbone": recipe.backbone} | nothing | {"note": leave_unranked(recipe, error)}


def measure(recipe: Recipe, cohort: pd.DataFrame, progress: Progress) -> dict[str, Any]:
    """Size, speed and scores of a candidate; without its pretrained weights there are no scores."""
    try:
        learner = make_candidate(recipe, cohort, progress)
    except WeightsError as error:
        note = leave_unranked(recipe, error)
        note = "no pretrained weights here" if recipe.weights == "imagenet" else note
        return describe(make_candidate(recipe.but(weights="none"), cohort, progress)) | {"note": note}
    return describe(learner) | {"note": ""} | score_folds(learner, recipe, cohort, progress)


def make_candidate(recipe: Recipe, cohort: pd.DataFrame, progress: Progress) -> Learner:
    """The candidate with the pictures of the cohort. Raises WeightsError, RecipeError."""
    manifest = take_fold(cohort, 1, unit=recipe.split, seed=recipe.seed)
    return make_learner(make_loaders(manifest, recipe, progress), recipe)


def describe(learner: Learner) -> dict[str, Any]:
    """Size and speed of a candidate."""
    size = sum(parameter.numel() for parameter in learner.model.parameters())
    return {"parameters": size, "images_per_second": time_network(learner)}


def leave_unranked(recipe: Recipe, error: FastcxrError) -> str:
    """Say aloud why a candidate is not ranked; returns the reason."""
    log.warning("%s is not ranked: %s", recipe.backbone, error.what)
    return error.what


@torch.no_grad()
def time_network(learner: Learner) -> float:
    """Images a second through the network, in the middle of several batches."""
    batch = torch.zeros(learner.dls.train.bs, len(learner.dls.pixels.mean), *[learner.dls.pixels.image_size] * 2)
    batch = batch.to(learner.dls.device, memory_format=torch.channels_last)
    network, seconds = quicken(learner.model, learner.dls.pixels, learner.precision), []
    for _ in range(STEPS):
        started = read_clock(learner.dls.device)
        with computing(learner.precision, learner.dls.device):
            network(batch)
        seconds.append(read_clock(learner.dls.device) - started)
    return round(len(batch) / float(np.median(seconds[1:])), 1)


def score_folds(learner: Learner, recipe: Recipe, cohort: pd.DataFrame, progress: Progress) -> dict[str, float]:
    """AUROC with its spread over the folds, and accuracy: each fold held out once, the next one choosing the ridge."""
    bank, labels = make_bank(learner, recipe, progress), list(learner.dls.vocab)
    head, loss, results = head_of(learner.model), learner.loss_func.func, []
    folds = sorted(cohort["fold"].unique())
    for number, fold in enumerate(folds):
        chooser = folds[(number + 1) % len(folds)]
        train, valid, test = (
            take_rows(cohort[rows], bank, labels)
            for rows in (~cohort["fold"].isin([fold, chooser]), cohort["fold"] == chooser, cohort["fold"] == fold)
        )
        fit = fit_parts(head, loss, train, valid, progress)
        probability = answer_all(fit.weight, head, test).softmax(dim=1)
        right = float((probability.argmax(dim=1) == test.labels).float().mean())
        results.append((macro_auroc(probability, test.labels), right))
    auroc, accuracy = np.array(results).T
    return {"auroc": float(auroc.mean()), "spread": float(auroc.std(ddof=1)), "accuracy": float(accuracy.mean())}


def take_rows(table: pd.DataFrame, bank: Bank, labels: list[str]) -> Part:
    """These images in the bank, each once."""
    numbers = torch.tensor([labels.index(label) for label in table["label"]])
    return Part(bank.features, bank.rows(table["file"]), numbers, torch.ones(len(table)))


def read_weights(words: Sequence[str]) -> dict[str, str]:
    """NAME=FILE words as a table. Raises RecipeError for another form."""
    pairs = [word.partition("=") for word in words]
    for name, sign, file in pairs:
        if not (name and sign and file):
            what = f"--weights {name}{sign}{file} names no backbone"
            raise RecipeError(what, "Write NAME=FILE, as mobilenetv2_100=w.pth")
    return {name: file for name, _, file in pairs}
