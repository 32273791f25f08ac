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

from fastcxr.config.fields import unknown_name_error
from fastcxr.config.recipe import Recipe
from fastcxr.data.splits import select_fold, split_into_folds
from fastcxr.errors import FastcxrError, RecipeError, TrainingError, WeightsError
from fastcxr.io.files import atomic_write
from fastcxr.io.optional_outputs import skip_on_error
from fastcxr.models.backbones import find_backbone
from fastcxr.models.cpu_fusion import fuse_for_inference
from fastcxr.models.devices import find_device, read_clock
from fastcxr.models.heads import find_head
from fastcxr.models.precision import autocast
from fastcxr.models.weights import XRV_PREFIX, find_weights_file
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.report.data_figures import plot_speed_and_auroc
from fastcxr.report.style import to_svg
from fastcxr.training.feature_cache import FeatureCache, make_feature_cache
from fastcxr.training.learner import compute_macro_auroc, make_learner
from fastcxr.training.linear_probe import FeatureSplit, compute_all_logits, fit_probe
from fastcxr.training.loaders import make_loaders
from fastcxr.workflows.load import load_dataset
from fastcxr.workflows.run_dir import OutputDir, write_table

log = logging.getLogger("fastcxr")

DEFAULT_BACKBONES = (
    "mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0", "efficientnet_b2", "resnet18", "resnet34",
    "resnet50", "densenet121", "regnety_008", "convnext_tiny", "vit_small_patch16_224", "swin_tiny_patch4_window7_224",
)  # fmt: skip
N_SAMPLE_IMAGES = 500  # images of the cohort
MIN_CLASS_IMAGES = 30
N_FOLDS = 5
N_TIMED_BATCHES = 4  # of a batch each, timed
TABLE_FILE = "scout.csv"
RESULT_COLUMNS = ("parameters", "images_per_second", "note", "auroc", "auroc_sd", "accuracy")


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
    if unknown_names := set(weights) - set(backbones):
        raise unknown_name_error(
            min(unknown_names), backbones, "weights are given for a backbone that is no candidate:"
        )
    recipes = [recipe.replace(backbone=name, weights=weights.get(name, recipe.weights)) for name in backbones]
    validate_candidates(recipes)
    with ScoutDir(folder).open(progress or make_default_progress()) as scout_dir:
        manifest, rows = sample_manifest(load_dataset(recipe, scout_dir), recipe), []
        for candidate in recipes:
            rows.append(evaluate_candidate(candidate, manifest, scout_dir))
            table = make_ranking(rows)
            write_table(scout_dir.folder / TABLE_FILE, table)  # each time: what is finished outlives a broken-off scout
        description = "AUROC of a linear head on each frozen backbone, against its speed"
        with skip_on_error("figure scout"):
            atomic_write(scout_dir.folder / "scout.svg", to_svg(plot_speed_and_auroc(table), "scout", description))
    return table


class ScoutDir(OutputDir):
    """The folder of a scout: a table of the first candidates is of use when the last ones are missing."""

    def keep_on_error(self) -> bool:
        """Whether a candidate was finished."""
        return (self.folder / TABLE_FILE).exists()


def validate_candidates(recipes: Sequence[Recipe]) -> None:
    """See that all that is named is there before the first candidate costs a pass.

    Raises RecipeError, InputMissingError for a weights file.
    """
    for recipe in recipes:
        find_device(recipe.device)
        # whether ImageNet weights are there is no question of names: who has none is marked in the table
        find_backbone(recipe.backbone, "none" if recipe.weights == "pretrained" else recipe.weights)
        if recipe.weights not in ("pretrained", "none") and not recipe.weights.startswith(XRV_PREFIX):
            find_weights_file(recipe.weights)


def make_ranking(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The rows as a table, best AUROC first, those without one last."""
    table = pd.DataFrame(rows).astype({"parameters": "Int64"})  # a whole number also beside rows that have none
    return table.sort_values("auroc", ascending=False, na_position="last", ignore_index=True)


def sample_manifest(manifest: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """About SAMPLE images, the classes in their proportions but none too small, dealt into patient folds."""
    sample_fraction = min(1.0, N_SAMPLE_IMAGES / len(manifest))
    shuffled = manifest.sample(frac=1, random_state=recipe.seed)
    class_samples = [
        group.head(max(MIN_CLASS_IMAGES, round(sample_fraction * len(group)))) for _, group in shuffled.groupby("label")
    ]
    return split_into_folds(pd.concat(class_samples, ignore_index=True), N_FOLDS, unit=recipe.split, seed=recipe.seed)


def evaluate_candidate(recipe: Recipe, manifest: pd.DataFrame, progress: Progress) -> dict[str, Any]:
    """One row of the table; a candidate that something stands against has it in `note`, and no AUROC."""
    empty_row = dict.fromkeys(RESULT_COLUMNS, np.nan)
    try:
        return {"backbone": recipe.backbone} | empty_row | measure_candidate(recipe, manifest, progress)
    except (RecipeError, TrainingError) as error:
        return {"backbone": recipe.backbone} | empty_row | {"note": log_unranked(recipe, error)}


def measure_candidate(recipe: Recipe, manifest: pd.DataFrame, progress: Progress) -> dict[str, Any]:
    """Size, speed and scores of a candidate; without its pretrained weights there are no scores."""
    try:
        learner = make_candidate_learner(recipe, manifest, progress)
    except WeightsError as error:
        note = log_unranked(recipe, error)
        note = "no pretrained weights here" if recipe.weights == "pretrained" else note
        return measure_size_and_speed(make_candidate_learner(recipe.replace(weights="none"), manifest, progress)) | {
            "note": note
        }
    return measure_size_and_speed(learner) | {"note": ""} | cross_validate_head(learner, recipe, manifest, progress)


def make_candidate_learner(recipe: Recipe, manifest: pd.DataFrame, progress: Progress) -> Learner:
    """The candidate with the pictures of the cohort. Raises WeightsError, RecipeError."""
    fold_manifest = select_fold(manifest, 1, unit=recipe.split, seed=recipe.seed)
    return make_learner(make_loaders(fold_manifest, recipe, progress), recipe)


def measure_size_and_speed(learner: Learner) -> dict[str, Any]:
    """Size and speed of a candidate."""
    n_parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    return {"parameters": n_parameters, "images_per_second": measure_throughput(learner)}


def log_unranked(recipe: Recipe, error: FastcxrError) -> str:
    """Say aloud why a candidate is not ranked; returns the reason."""
    log.warning("%s is not ranked: %s", recipe.backbone, error.problem)
    return error.problem


@torch.no_grad()
def measure_throughput(learner: Learner) -> float:
    """Images a second through the network, in the middle of several batches."""
    batch = torch.zeros(
        learner.dls.train.bs, len(learner.dls.fastcxr.input_spec.mean), *[learner.dls.fastcxr.input_spec.image_size] * 2
    )
    batch = batch.to(learner.dls.device, memory_format=torch.channels_last)
    network, batch_seconds = (
        fuse_for_inference(learner.model, learner.dls.fastcxr.input_spec, learner.fastcxr.precision),
        [],
    )
    for _ in range(N_TIMED_BATCHES):
        started = read_clock(learner.dls.device)
        with autocast(learner.fastcxr.precision, learner.dls.device):
            network(batch)
        batch_seconds.append(read_clock(learner.dls.device) - started)
    return round(len(batch) / float(np.median(batch_seconds[1:])), 1)


def cross_validate_head(
    learner: Learner, recipe: Recipe, manifest: pd.DataFrame, progress: Progress
) -> dict[str, float]:
    """AUROC with its spread over the folds, and accuracy: each fold held out once, the next one choosing the ridge."""
    feature_cache, labels = make_feature_cache(learner, recipe, progress), list(learner.dls.vocab)
    head, loss, results = find_head(learner.model), learner.loss_func.func, []
    folds = sorted(manifest["fold"].unique())
    for number, fold in enumerate(folds):
        valid_fold = folds[(number + 1) % len(folds)]
        train, valid, test = (
            select_features(manifest[rows], feature_cache, labels)
            for rows in (
                ~manifest["fold"].isin([fold, valid_fold]),
                manifest["fold"] == valid_fold,
                manifest["fold"] == fold,
            )
        )
        head_fit = fit_probe(head, loss, train, valid, progress)
        probability = compute_all_logits(head_fit.weight, head, test).softmax(dim=1)
        accuracy_of_fold = float((probability.argmax(dim=1) == test.labels).float().mean())
        results.append((compute_macro_auroc(probability, test.labels), accuracy_of_fold))
    auroc, accuracy = np.array(results).T
    return {"auroc": float(auroc.mean()), "auroc_sd": float(auroc.std(ddof=1)), "accuracy": float(accuracy.mean())}


def select_features(table: pd.DataFrame, feature_cache: FeatureCache, labels: list[str]) -> FeatureSplit:
    """These images in the bank, each once."""
    targets = torch.tensor([labels.index(label) for label in table["label"]])
    return FeatureSplit(feature_cache.features, feature_cache.find_rows(table["file"]), targets, torch.ones(len(table)))


def parse_weights(entries: Sequence[str]) -> dict[str, str]:
    """NAME=FILE words as a table. Raises RecipeError for another form."""
    pairs = [word.partition("=") for word in entries]
    for name, sign, file in pairs:
        if not (name and sign and file):
            problem = f"--weights {name}{sign}{file} names no backbone"
            raise RecipeError(problem, "Write NAME=FILE, as mobilenetv2_100=w.pth")
    return {name: file for name, _, file in pairs}
