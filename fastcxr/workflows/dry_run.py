"""What a training will need before it starts: images, time, disk, memory and weights. Nothing is written to a run."""

import math
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from fastcxr.config.recipe import Recipe
from fastcxr.data.bit_depth import BitDepths, find_depths
from fastcxr.data.cache.quota import (
    IMAGE_QUOTA_FRACTION,
    find_image_cache_dir,
    find_store_dir,
    list_cache_entries,
    make_size_error,
    read_cache_limit,
)
from fastcxr.data.findings import list_findings
from fastcxr.data.label_options import find_uncertain_policy
from fastcxr.data.label_policy import compute_truth
from fastcxr.errors import FastcxrError, ImageError, StorageError
from fastcxr.inference.images import read_fitted_images
from fastcxr.io.memory import read_available_memory
from fastcxr.models.backbones import find_backbone, is_cached
from fastcxr.models.checkpoint_file import find_weights_file
from fastcxr.models.devices import find_device
from fastcxr.models.encoders import XRV_PREFIX, find_image_size
from fastcxr.models.heads import uses_feature_cache
from fastcxr.progress.base import record_logging
from fastcxr.training.checkpoints import FREE_SPACE_FIX, count_run_bytes
from fastcxr.training.fit_ood import MAX_SPLIT_IMAGES
from fastcxr.training.learner import validate_model_options
from fastcxr.training.loaders import make_sampler_options, select_training_rows
from fastcxr.training.time_budget import REPORT_SECONDS, Deadline
from fastcxr.training.timed_steps import TimedSteps, time_steps
from fastcxr.workflows.cross_validate import find_held_out_unit, needs_patient_level_folds, plan_folds
from fastcxr.workflows.load import Dataset, assign_recipe_splits
from fastcxr.workflows.run_state import has_same_recipe

N_DECODED, N_WARM_UP = 64, 4  # images whose decoding is timed, and images that are decoded before
FEATURE_BYTES = 4  # of a feature in the cache
FIT_UNKNOWN = "the fit of the head on the features: seconds to minutes, more for many features and images"


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """Steps and seconds of a stage; `epochs` are those that fit into the time limit."""

    name: str
    epochs: int
    requested_epochs: int
    steps_per_epoch: int
    step_seconds: float
    epoch_seconds: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a training needs, and what this computer has; sizes in bytes, durations in seconds.

    Attributes:
        data: images and patients of each split, and images of each class or finding in each split.
        model: backbone, image size, and where its weights come from.
        machine: device, threads, precision, GPUs, memory and processes.
        times: decoding, feature pass, stages, and all after training; the sum of one run, and of all runs.
        disk: needed and free space of the image cache, the features and the run folder.
        memory: of a training step, and available.
        runs: number of runs (folds or sources), and how many at a time.
        unknown: what cannot be known before.
        error: the error that the run would meet, if any.
    """

    data: dict[str, Any]
    model: dict[str, Any]
    machine: dict[str, Any]
    times: dict[str, Any]
    disk: dict[str, Any]
    memory: dict[str, Any]
    runs: dict[str, Any]
    unknown: list[str] = field(default_factory=list)
    error: FastcxrError | None = None

    def to_json(self) -> dict[str, Any]:
        """Return all values but the error."""
        return {name: value for name, value in asdict(self).items() if name != "error"}


def dry_run(recipe: Recipe, folder: str | Path, n_jobs: int = 1, n_processes: int | None = None) -> DryRun:
    """Estimate what a training needs; a few images are decoded and a few training steps are timed.

    Args:
        recipe: the experiment.
        folder: the run folder; it is not created.
        n_jobs: folds or sources that run at a time.
        n_processes: processes of one training; default: those that torchrun started, or 1.

    Raises:
        FastcxrError: the error of a training, for data, images, weights, options or a folder that cannot be used.
    """
    validate_model_options(recipe)
    has_same_recipe(Path(folder), recipe)
    dataset = Dataset(recipe)
    manifest, runs, one_recipe = dataset.read_manifest(), _count_runs(recipe, dataset, n_jobs), recipe
    if recipe.is_multi_run:
        one_recipe = next(iter(plan_folds(recipe, Path(folder), dataset).values()))[0]
    manifest = assign_recipe_splits(manifest, one_recipe)
    size = find_image_size(recipe)
    sample, images_per_second, n_unreadable = _decode_sample(select_training_rows(manifest), size, recipe.seed)
    with record_logging([]):  # of the loaders of the sample
        n_rows = _count_train_rows(manifest, one_recipe)
        timed = time_steps(one_recipe, sample, n_rows)
    counts = {str(split): int(n) for split, n in manifest["split"].value_counts().items()}
    decode_seconds = len(manifest) / images_per_second
    times = _estimate_times(one_recipe, timed, counts, n_rows, decode_seconds, runs["n_runs"])
    times |= {"decoded_images_per_second": images_per_second, "all_runs_seconds": _sum_runs(times, runs)}
    disk = _describe_disk(recipe, Path(folder), len(manifest), size, timed)
    return DryRun(
        data=_describe_data(manifest, one_recipe) | {"unreadable_of_sample": [n_unreadable, N_DECODED + N_WARM_UP]},
        model=_describe_model(recipe, size),
        machine=_describe_machine(recipe, timed, n_processes),
        times=times,
        disk=disk,
        memory={"step_bytes": timed.step_bytes or None, "is_measured": timed.is_measured} | _read_memory(recipe),
        runs=runs,
        unknown=_list_unknown(one_recipe, times),
        error=_find_storage_error(disk),
    )


def _count_runs(recipe: Recipe, dataset: Dataset, n_jobs: int) -> dict[str, Any]:
    if not recipe.is_multi_run:
        return {"n_runs": 1, "unit": "run", "jobs": 1}
    n_runs = len(plan_folds(recipe, Path(), dataset))
    if needs_patient_level_folds(recipe):  # the same folds with a patient-level split
        n_runs *= 2
    return {"n_runs": n_runs, "unit": find_held_out_unit(recipe), "jobs": min(n_jobs, n_runs)}


def _decode_sample(rows: pd.DataFrame, size: int, seed: int) -> tuple[pd.DataFrame, float, int]:
    """Return a sample of readable train and valid rows with all classes, the images decoded per second, and errors."""
    firsts = rows[~rows.duplicated(["split", "label"])]
    others = rows.drop(firsts.index)
    n_others = min(len(others), max(0, N_DECODED + N_WARM_UP - len(firsts)))
    sample = pd.concat([firsts, others.sample(n_others, random_state=seed)]).sample(frac=1, random_state=seed)
    files, depths = sample["file"].tolist(), find_depths(sample, BitDepths())
    images = list(read_fitted_images(files[:N_WARM_UP], size, None, depths[:N_WARM_UP]))
    started = time.perf_counter()
    images += list(read_fitted_images(files[N_WARM_UP:], size, None, depths[N_WARM_UP:]))
    seconds = time.perf_counter() - started
    is_readable = [not isinstance(image, ImageError) for image in images]
    rate = max(1, len(files) - N_WARM_UP) / max(seconds, 1e-6)
    return sample[is_readable].reset_index(drop=True), rate, len(files) - sum(is_readable)


def _count_train_rows(manifest: pd.DataFrame, recipe: Recipe) -> int:
    train_rows = select_training_rows(manifest).query("split == 'train'")
    return len(make_sampler_options(train_rows, recipe).get("rows", train_rows))


def _estimate_times(
    recipe: Recipe, timed: TimedSteps, counts: dict[str, int], n_rows: int, decode_seconds: float, n_runs: int
) -> dict[str, Any]:
    """Return the seconds of each part of one run."""
    n_views, forward = 1 + recipe.hflip_tta, timed.forward_seconds
    n_images, n_valid = sum(counts.values()), counts.get("valid", 0)
    feature_seconds = n_images * n_views * forward if uses_feature_cache(recipe) else 0.0
    n_steps = max(1, n_rows // timed.batch_size)  # the last, smaller batch of an epoch is left out
    n_predicted = n_images - counts.get("train", 0) * (not recipe.predict_train)
    n_ood = sum(min(counts.get(split, 0), MAX_SPLIT_IMAGES) for split in ("train", "valid"))
    after_seconds = REPORT_SECONDS + (n_predicted * n_views + n_ood) * forward * bool(timed.stages)
    limit_seconds = (Deadline.parse(recipe.time_limit).seconds - decode_seconds - feature_seconds) / n_runs
    seconds_left = limit_seconds - after_seconds
    stages = []
    for number, stage in enumerate(timed.stages):
        epoch_seconds = stage.step_seconds * n_steps + n_valid * forward
        share = stage.epochs / max(1, sum(one.epochs for one in timed.stages[number:]))
        search_seconds = stage.search_steps * stage.step_seconds
        affordable = (seconds_left * share - search_seconds) / epoch_seconds
        epochs = stage.epochs if math.isinf(affordable) else max(0, min(stage.epochs, int(affordable)))
        seconds = epochs * epoch_seconds + search_seconds * bool(epochs)
        seconds_left -= seconds
        stages.append(
            StageEstimate(
                name=stage.name, epochs=epochs, requested_epochs=stage.epochs, steps_per_epoch=n_steps,
                step_seconds=stage.step_seconds, epoch_seconds=epoch_seconds, seconds=seconds,
            )
        )  # fmt: skip
    training_seconds = sum(stage.seconds for stage in stages)
    return {
        "decode_seconds": decode_seconds,
        "feature_seconds": feature_seconds,
        "stages": [asdict(stage) for stage in stages],
        "batch_size": timed.batch_size,
        "total_steps": sum(stage.epochs * stage.steps_per_epoch for stage in stages),
        "after_seconds": after_seconds,
        "run_seconds": decode_seconds + feature_seconds + training_seconds + after_seconds,
    }


def _sum_runs(times: dict[str, Any], runs: dict[str, Any]) -> float:
    """Return the seconds of all runs; images are decoded once, and features computed once."""
    shared_seconds = times["decode_seconds"] + times["feature_seconds"]
    return shared_seconds + (times["run_seconds"] - shared_seconds) * math.ceil(runs["n_runs"] / runs["jobs"])


def _describe_data(manifest: pd.DataFrame, recipe: Recipe) -> dict[str, Any]:
    rows_by_split = dict(iter(manifest.groupby("split", sort=False)))
    order = [split for split in ("train", "valid", "test") if split in rows_by_split]
    splits = [*order, *(split for split in rows_by_split if split not in order)]
    if findings := list_findings(manifest):
        truth = pd.DataFrame(compute_truth(manifest, findings, find_uncertain_policy(recipe)) == 1, columns=findings)
        images = {name: truth[name].groupby(manifest["split"].to_numpy()).sum().to_dict() for name in findings}
    else:
        groups = manifest.groupby("label")["split"]
        images = {str(label): split.value_counts().to_dict() for label, split in groups}
    return {
        "n_images": len(manifest),
        "n_patients": int(manifest["patient"].nunique()),
        "task": "multi_label" if findings else "single_label",
        "splits": {
            name: {"n_images": len(rows_by_split[name]), "n_patients": int(rows_by_split[name]["patient"].nunique())}
            for name in splits
        },
        "images_per_class": {label: {split: int(n.get(split, 0)) for split in splits} for label, n in images.items()},
    }


def _describe_model(recipe: Recipe, size: int) -> dict[str, Any]:
    """Return backbone and image size, and where the weights come from."""
    backbone = find_backbone(recipe.backbone, recipe.weights)
    if recipe.weights == "none":
        source, is_local = "random weights", True
    elif recipe.weights.startswith(XRV_PREFIX):
        source, is_local = f"{recipe.weights} of torchxrayvision", None
    elif recipe.weights == "pretrained":
        source, is_local = backbone.url or f"pretrained weights of {backbone.full_name}", is_cached(backbone)
    else:
        source, is_local = find_weights_file(recipe.weights).name, True
    return {"backbone": backbone.full_name, "image_size": size, "weights": source, "is_on_this_computer": is_local}


def _describe_machine(recipe: Recipe, timed: TimedSteps, n_processes: int | None) -> dict[str, Any]:
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return {
        "device": str(find_device(recipe.device)),
        "precision": timed.precision.removeprefix("precision: "),
        "threads": torch.get_num_threads(),
        "processes": n_processes or int(os.environ.get("WORLD_SIZE") or 1),
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in gpus],
    }


def _read_memory(recipe: Recipe) -> dict[str, Any]:
    device = find_device(recipe.device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    return {"free_gpu_bytes": free, "available_host_bytes": read_available_memory()}


def _describe_disk(recipe: Recipe, folder: Path, n_images: int, size: int, timed: TimedSteps) -> dict[str, Any]:
    """Return the needed and the free bytes of the image cache, the features and the run folder."""
    cache_dir = _find_existing(find_image_cache_dir())
    limit, free = read_cache_limit(), shutil.disk_usage(cache_dir).free
    entries = list_cache_entries(find_image_cache_dir())
    stored = sum(entry.n_images or 0 for entry in entries if entry.folder == find_store_dir(size))
    n_view_bytes = n_images * timed.n_features * FEATURE_BYTES
    image_bytes, disk_bytes = n_images * size**2, (free + sum(entry.n_bytes for entry in entries)) / 2
    image_limit = IMAGE_QUOTA_FRACTION * limit
    fits = image_bytes <= min(image_limit, disk_bytes)
    advice = "" if fits else str(make_size_error(image_bytes, image_limit, disk_bytes, IMAGE_QUOTA_FRACTION))
    run_dir = _find_existing(folder)
    return {
        "image_cache_bytes": image_bytes,
        "image_cache_limit_bytes": min(image_limit, disk_bytes),
        "image_cache_fits": fits,
        "image_cache_advice": advice,
        "cached_images_of_this_size": stored,
        "feature_bytes": n_view_bytes * (1 + recipe.hflip_tta) if uses_feature_cache(recipe) else 0,
        "cache_free_bytes": free,
        "run_bytes": count_run_bytes(timed.weights_bytes) if timed.stages else timed.weights_bytes,
        "run_free_bytes": shutil.disk_usage(run_dir).free,
        "run_folder": str(folder),
    }


def _find_existing(folder: Path) -> Path:
    """Return the folder, or the first folder above it that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _find_storage_error(disk: dict[str, Any]) -> StorageError | None:
    if disk["run_free_bytes"] >= disk["run_bytes"]:
        return None
    needed, free = (f"{disk[name] / 1e6:,.1f} MB" for name in ("run_bytes", "run_free_bytes"))
    return StorageError(f"the run needs {needed}, {free} are free", FREE_SPACE_FIX, path=disk["run_folder"])


def _list_unknown(recipe: Recipe, times: dict[str, Any]) -> list[str]:
    unknown = []
    if uses_feature_cache(recipe):
        unknown.append(FIT_UNKNOWN)
    if times["stages"]:
        unknown.append("early stopping, which ends a stage before its last epoch")
    unknown.append("saliency maps and near-duplicates after training, which take longer for many images")
    if recipe.batch_size == "auto" and times["stages"]:
        unknown.append("the batch size of the run, which is chosen when it starts")
    return unknown
