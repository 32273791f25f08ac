"""Ranking of backbones for a dataset, without training a network.

Each frozen backbone computes the features of a sample of the images. A linear probe is cross-validated on them, grouped
by patient.
"""

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from fastai.learner import Learner
from torch import nn

from fastcxr.config.fields import unknown_name_error
from fastcxr.config.recipe import Recipe
from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.data.findings import FINDING_PREFIX, is_multi_label, list_findings
from fastcxr.data.label_options import find_uncertain_policy
from fastcxr.data.label_policy import compute_truth
from fastcxr.data.splits import select_fold, split_into_folds
from fastcxr.errors import FastcxrError, RecipeError, TrainingError, WeightsError
from fastcxr.executors.run_tasks import run_tasks
from fastcxr.executors.shared_folder import SharedFolder
from fastcxr.executors.worker import Outcome, Task
from fastcxr.io.files import atomic_write
from fastcxr.io.formatting import format_score, join_names
from fastcxr.io.optional_outputs import skip_on_error
from fastcxr.models.backbones import find_backbone, is_cached, validate_pretrained
from fastcxr.models.checkpoint_file import find_weights_file
from fastcxr.models.cpu_fusion import fuse_for_inference
from fastcxr.models.devices import find_device, find_float64_device, read_clock
from fastcxr.models.encoder_files import describe_source
from fastcxr.models.encoders import CHEST_PREFIX, ENCODERS, XRV_PREFIX
from fastcxr.models.fitting_batches import FittingBatches
from fastcxr.models.heads import MultiScaleHead, find_head
from fastcxr.models.precision import autocast
from fastcxr.models.registry import find_encoder, find_known_parameters
from fastcxr.progress.auto import make_default_progress
from fastcxr.progress.base import Progress
from fastcxr.report.data_figures import plot_speed_and_auroc
from fastcxr.report.style import to_svg
from fastcxr.training.feature_cache import FeatureCache, make_feature_cache
from fastcxr.training.interrupt import InterruptibleProgress, interrupt_when
from fastcxr.training.learner import (
    compute_finding_auroc_from_logits,
    compute_macro_auroc,
    find_task,
    make_learner,
)
from fastcxr.training.linear_probe import FeatureSplit, compute_all_logits, fit_probe
from fastcxr.training.loaders import make_loaders
from fastcxr.workflows.load import load_dataset
from fastcxr.workflows.run_dir import OutputDir, write_table

log = logging.getLogger("fastcxr")

DEFAULT_BACKBONES = (
    "mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0", "efficientnet_b2", "resnet18", "resnet34",
    "resnet50", "densenet121", "regnety_008", "convnext_tiny", "vit_small_patch16_224", "swin_tiny_patch4_window7_224",
)  # fmt: skip
N_SAMPLE_IMAGES = 500
MIN_CLASS_IMAGES = 30  # of each class, and with each finding, in the sample
N_FOLDS = 5
REFERENCE_BACKBONE = "mobilenetv2_100"  # with ImageNet weights, among the chest encoders
N_TIMED_BATCHES = 4  # the first is a warm-up
MAX_BATCH_SECONDS = 5.0  # of a timed batch, which has fewer images on a slow device
TABLE_FILE = "scout.csv"
UNRANKED_FIX = "Pass `weights=NAME=FILE`, or name an open encoder while online"
UNRANKED_MESSAGE = "%s is not ranked: %s"
OUT_OF_REACH = "out of reach"  # first words of the note on an encoder without weights
INTEGER_COLUMNS = ("image_size", "parameters")
COST_COLUMNS = ("images_per_second", "seconds_per_1000_images")  # of the network on this device, without reading images
RESULT_COLUMNS = (*INTEGER_COLUMNS, *COST_COLUMNS, "note", "auroc", "auroc_sd")  # and accuracy of classes


def scout(
    recipe: Recipe,
    backbones: Sequence[str],
    weights: dict[str, str],
    folder: str | Path,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Rank backbones by the AUROC of a linear probe; write scout.csv and, of ranked ones, scout.svg into a new folder.

    A backbone without available weights is timed with random weights and has a note instead of an AUROC. A chest
    encoder without available weights, and a backbone without a supported head, have only a note. `weights`: weights
    files by backbone; the others use those of the recipe. `executor`: any Executor of concurrent.futures with one task
    per process, for the candidates; their speed is then that beside each other.

    Raises RecipeError for an unknown backbone, before the data is read, and FastcxrError for data that cannot be used.
    If no backbone can be ranked or timed, raises WeightsError for missing weights, else TrainingError; scout.csv has
    the reasons.
    """
    if unknown_names := set(weights) - set(backbones):
        raise unknown_name_error(min(unknown_names), backbones, "weights are given for a backbone not in the list:")
    return rank_candidates(recipe, make_candidates(recipe, backbones, weights), [], folder, progress, executor)


def scout_encoders(
    recipe: Recipe,
    backbones: Sequence[str],
    weights: dict[str, str],
    folder: str | Path,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Rank the chest encoders whose weights are on this computer, as scout does; nothing is downloaded for the others.

    Candidates are also `backbones`, the names in `weights`, and REFERENCE_BACKBONE if its weights are on this computer.
    All others have a row with a note only. Raises the errors of scout.
    """
    names = list(dict.fromkeys([*backbones, *weights]))
    given = {name.removeprefix(CHEST_PREFIX) for name in names}
    others = [name for name in (*ENCODERS, REFERENCE_BACKBONE) if name not in given]
    available = [name for name in others if is_cached(find_backbone(name))]
    missing = [make_out_of_reach_row(name) for name in others if name not in available]
    return rank_candidates(
        recipe, make_candidates(recipe, [*names, *available], weights), missing, folder, progress, executor
    )


def make_candidates(recipe: Recipe, backbones: Sequence[str], weights: dict[str, str]) -> list[Recipe]:
    """Return the recipe with each backbone and its weights."""
    names = dict.fromkeys(backbones)
    return [recipe.replace(backbone=name, weights=weights.get(name, recipe.weights)) for name in names]


def rank_candidates(
    recipe: Recipe,
    candidates: Sequence[Recipe],
    unranked: Sequence[dict[str, Any]],
    folder: str | Path,
    progress: Progress | None,
    executor: Executor | None,
) -> pd.DataFrame:
    """Return and write the ranking of the candidates on the data of `recipe`; `unranked`: further rows."""
    validate_candidates(candidates)
    with ScoutDir(folder).open(progress or make_default_progress()) as scout_dir:
        manifest, rows = sample_manifest(load_dataset(recipe, scout_dir), recipe), {}
        here = (scout_dir,) if executor is None else ()
        tasks = {one.backbone: Task(evaluate_candidate, (one, manifest, *here)) for one in candidates}

        def add_row(name: str, outcome: Outcome) -> str:
            rows[name] = outcome.result
            found = [rows[name] for name in tasks if name in rows]  # in the order of the candidates
            write_table(scout_dir.folder / TABLE_FILE, make_ranking(found))  # in case of an interruption
            auroc = outcome.result["auroc"]
            return outcome.result["note"] if np.isnan(auroc) else f"AUROC {format_score(auroc)}"

        with SharedFolder(scout_dir.folder, interrupt_when) if executor is not None else nullcontext() as shared:
            found = run_tasks(tasks, executor, scout_dir, shared=shared, on_finished=add_row)
        table = make_ranking([*found.values(), *unranked])
        write_table(scout_dir.folder / TABLE_FILE, table)
        if table["auroc"].notna().any():
            description = "AUROC of a linear head on each frozen backbone versus its speed"
            with skip_on_error("figure scout"):
                atomic_write(scout_dir.folder / "scout.svg", to_svg(plot_speed_and_auroc(table), "scout", description))
        if table["images_per_second"].isna().all():
            raise make_unranked_error(table, scout_dir.folder / TABLE_FILE)
    return table


def make_unranked_error(table: pd.DataFrame, path: Path) -> FastcxrError:
    """Return the error for a table in which no candidate is ranked or timed; `path`: of the table."""
    n_missing = int(table["note"].str.startswith(OUT_OF_REACH).sum())
    n_failed = len(table) - n_missing
    counts = [f"{n:,} {reason}" for n, reason in ((n_missing, "without weights"), (n_failed, "failed")) if n]
    problem = f"no candidate was ranked: {join_names(counts)}, see the notes of the table"
    if n_missing:
        return WeightsError(problem, UNRANKED_FIX, path=path)
    return TrainingError(problem, "Choose other backbones or weights", path=path)


class ScoutDir(OutputDir):
    """Output folder of scout."""

    def keep_on_error(self) -> bool:
        """Return whether a candidate is finished."""
        return (self.folder / TABLE_FILE).exists()


def validate_candidates(recipes: Sequence[Recipe]) -> None:
    """Raise RecipeError for an unknown device, backbone or weights, InputMissingError for a missing weights file."""
    for recipe in recipes:
        find_device(recipe.device)
        # weights that are not available yield a note in the table, not an error
        find_backbone(recipe.backbone, "none" if recipe.weights == "pretrained" else recipe.weights)
        if recipe.weights not in ("pretrained", "none") and not recipe.weights.startswith(XRV_PREFIX):
            find_weights_file(recipe.weights)


def make_ranking(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return the rows as a table, best AUROC first, rows without AUROC last."""
    table = pd.DataFrame(rows).astype(dict.fromkeys(INTEGER_COLUMNS, "Int64"))  # integers with missing values
    return table.sort_values("auroc", ascending=False, na_position="last", ignore_index=True, kind="stable")


def sample_manifest(manifest: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """Return about N_SAMPLE_IMAGES images in folds, stratified, with MIN_CLASS_IMAGES or more of each class or finding.

    All images of a class or finding with fewer images are in the sample.
    """
    sample_fraction = min(1.0, N_SAMPLE_IMAGES / len(manifest))
    shuffled = manifest.sample(frac=1, random_state=recipe.seed)
    if is_multi_label(shuffled):
        is_present = shuffled[[FINDING_PREFIX + name for name in list_findings(shuffled)]].eq(1).fillna(False)
        groups = [shuffled[is_present[column].astype(bool)] for column in is_present]
        groups.append(shuffled[~is_present.any(axis=1).astype(bool)])
    else:
        groups = [group for _, group in shuffled.groupby("label")]
    samples = pd.concat([group.head(max(MIN_CLASS_IMAGES, round(sample_fraction * len(group)))) for group in groups])
    samples = samples[~samples.index.duplicated()]
    folds = split_into_folds(samples.reset_index(drop=True), N_FOLDS, unit=recipe.split, seed=recipe.seed)
    # in the order of the manifest: a sample of all images shares the cached features of a training
    return folds.set_axis(samples.index).sort_index().reset_index(drop=True)


def evaluate_candidate(recipe: Recipe, manifest: pd.DataFrame, progress: Progress | None = None) -> dict[str, Any]:
    """Return a row of the table; after an error it has only a note. Without `progress` the process is a worker."""
    progress = progress or InterruptibleProgress()
    names = RESULT_COLUMNS if is_multi_label(manifest) else (*RESULT_COLUMNS, "accuracy")
    row = {"backbone": recipe.backbone} | dict.fromkeys(names, np.nan)
    try:
        return row | measure_candidate(recipe, manifest, progress)
    except (RecipeError, TrainingError) as error:
        log.warning(UNRANKED_MESSAGE, recipe.backbone, error.problem)
        return row | {"note": error.problem}


def make_out_of_reach_row(name: str) -> dict[str, Any]:
    """Return the row of a chest encoder or the reference without weights: parameters, and a note on its weights."""
    encoder, columns = find_encoder(name), dict.fromkeys(RESULT_COLUMNS, np.nan)
    note = f"{OUT_OF_REACH}: {describe_source(encoder) if encoder else 'reference, name it to download it'}"
    n_parameters = find_known_parameters(name, "chest" if encoder else "timm")
    return {"backbone": name} | columns | {"parameters": n_parameters, "note": note}


def measure_candidate(recipe: Recipe, manifest: pd.DataFrame, progress: Progress) -> dict[str, Any]:
    """Return size, speed and metrics of a candidate; without its weights only size and speed.

    A chest encoder whose weights cannot be fetched is not timed.
    """
    encoder = find_encoder(recipe.backbone) if recipe.weights == "pretrained" else None
    try:
        if encoder:
            validate_pretrained(find_backbone(encoder.name))  # before the network is constructed
        learner, note = make_candidate_learner(recipe, manifest, progress), ""
    except WeightsError as error:
        log.warning(UNRANKED_MESSAGE, recipe.backbone, error.problem)
        if encoder:
            return make_out_of_reach_row(encoder.name) | {"backbone": recipe.backbone}
        note = "pretrained weights not available" if recipe.weights == "pretrained" else error.problem
        learner = make_candidate_learner(recipe.replace(weights="none"), manifest, progress)
    n_parameters = sum(parameter.numel() for parameter in cast(nn.Module, learner.model).parameters())
    sizes = {"image_size": learner.dls.fastcxr.input_spec.image_size, "parameters": n_parameters}
    throughput = measure_throughput(learner)
    costs = dict(zip(COST_COLUMNS, (throughput, round_to_3_digits(1000 / throughput)), strict=True))
    row = sizes | costs | {"note": note}
    return row if note else row | cross_validate_head(learner, recipe, manifest, progress)


def make_candidate_learner(recipe: Recipe, manifest: pd.DataFrame, progress: Progress) -> Learner:
    """Return a learner of the candidate with the sample. Raise WeightsError, or RecipeError for its head."""
    fold_manifest = select_fold(manifest, 1, unit=recipe.split, seed=recipe.seed, uncertain=recipe.uncertain)
    return make_learner(make_loaders(fold_manifest, recipe, progress), recipe)


@torch.no_grad()
def measure_throughput(learner: Learner) -> float:
    """Return the median throughput of several batches, in images per second."""
    device, input_spec, precision = learner.dls.device, learner.dls.fastcxr.input_spec, learner.fastcxr.precision
    batch = torch.zeros(learner.dls.train.bs, len(input_spec.mean), *[input_spec.image_size] * 2)
    batch = batch.to(device, memory_format=torch.channels_last)
    network = fuse_for_inference(cast(nn.Module, learner.model), input_spec, precision)
    batches = FittingBatches(len(batch))

    def measure_seconds(n_images: int) -> float:
        started = read_clock(device)
        with autocast(precision, device):
            deque(batches.compute(lambda rows: network(batch[rows]), n_images), maxlen=0)
        return read_clock(device) - started

    measure_seconds(1)  # a warm-up
    n_images = min(len(batch), max(1, int(MAX_BATCH_SECONDS / measure_seconds(1))))
    batch_seconds = [measure_seconds(n_images) for _ in range(N_TIMED_BATCHES)]
    return round_to_3_digits(n_images / float(np.median(batch_seconds[1:])))


def round_to_3_digits(value: float) -> float:
    """Return the value with three significant digits."""
    return float(f"{value:.3g}")


def cross_validate_head(
    learner: Learner, recipe: Recipe, manifest: pd.DataFrame, progress: Progress
) -> dict[str, float]:
    """Return AUROC (mean and standard deviation) and, of classes, accuracy over the folds.

    Each fold is held out once; the next fold selects the L2 penalty.
    """
    feature_cache, labels = make_feature_cache(learner, recipe, progress), list(learner.dls.vocab)
    device = find_float64_device(learner.dls.device)
    head = cast(MultiScaleHead, find_head(cast(nn.Module, learner.model)))
    loss, results = learner.loss_func.func, []
    folds = sorted(manifest["fold"].unique())
    for number, fold in enumerate(folds):
        valid_fold = folds[(number + 1) % len(folds)]
        is_train = ~manifest["fold"].isin([fold, valid_fold])
        train, valid, test = (
            select_features(part, feature_cache, make_targets(part, labels, part_recipe).to(device))
            for part, part_recipe in (
                (manifest[is_train], recipe),
                (manifest[manifest["fold"] == valid_fold], None),
                (manifest[manifest["fold"] == fold], None),
            )
        )
        head_fit = fit_probe(head, loss, train, valid, progress)
        logits = compute_all_logits(head_fit.weight, head, test)
        results.append(compute_fold_metrics(logits, test.labels, find_task(learner.dls)))
    metrics = {name: np.array([result[name] for result in results]) for name in results[0]}
    means = {name: float(values.mean()) for name, values in metrics.items()}
    return means | {"auroc_sd": float(metrics["auroc"].std(ddof=1))}


def compute_fold_metrics(logits: torch.Tensor, targets: torch.Tensor, task: str) -> dict[str, float]:
    """Return the macro AUROC and, of classes, the accuracy of a held-out fold; `targets`: see make_targets."""
    if task == MULTI_LABEL:
        return {"auroc": compute_finding_auroc_from_logits(logits, targets)}
    probability = logits.softmax(dim=1)
    accuracy = float((probability.argmax(dim=1) == targets).float().mean())
    return {"auroc": compute_macro_auroc(probability, targets), "accuracy": accuracy}


def make_targets(table: pd.DataFrame, labels: list[str], recipe: Recipe | None) -> torch.Tensor:
    """Return the class numbers, shape (n,), or the targets of findings, shape (n, k).

    `recipe`: of training images, whose uncertain labels it decides on; None for other images.
    """
    if not is_multi_label(table):
        return torch.tensor([labels.index(label) for label in table["label"]])
    if recipe is None:
        return torch.from_numpy(compute_truth(table, labels))
    return torch.from_numpy(compute_truth(table.assign(split="train"), labels, find_uncertain_policy(recipe)))


def select_features(table: pd.DataFrame, feature_cache: FeatureCache, targets: torch.Tensor) -> FeatureSplit:
    """Return the features and targets of the images in `table`, each image once; a fit computes on their device."""
    rows, weights = feature_cache.find_rows(table["file"].tolist()), torch.ones(len(table), device=targets.device)
    return FeatureSplit(feature_cache.features, rows, targets, weights)


def parse_weights(entries: Sequence[str]) -> dict[str, str]:
    """Return weights files by backbone. Raise RecipeError for an entry that is not NAME=FILE."""
    weights = {}
    for entry in entries:
        name, _, file = entry.partition("=")
        if not (name and file):
            problem = f"`weights={entry!r}` does not name a backbone and a file"
            raise RecipeError(problem, "Pass NAME=FILE, such as mobilenetv2_100=w.pth")
        weights[name] = file
    return weights
