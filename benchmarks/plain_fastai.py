"""fastcxr beside plain fastai: the same images, split, backbone, weights and number of epochs, in one go.

    python benchmarks/plain_fastai.py --data DIR --weights FILE [--patients FILE] [--epochs 5] [--seeds 3]

Plain fastai is what its own tutorial teaches: ImageDataLoaders, Resize, aug_transforms, vision_learner, fine_tune. The
split is fastcxr's, patient-grouped; validation images see every epoch, test images one prediction at the end. The two
alternate, so that a busy machine slows both; the table gives the median and the range over the seeds.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: what the command line of fastcxr sets, for both

import numpy as np
import pandas as pd
from fastai.vision.all import ImageDataLoaders, Resize, accuracy, aug_transforms, set_seed, vision_learner

from fastcxr import Recipe, make_learner, make_loaders, predict, read_manifest, split_by_patient, train
from fastcxr.evaluation.metrics import measure


def plain_fastai(manifest: pd.DataFrame, recipe: Recipe) -> tuple[float, float, float]:
    """Seconds, test accuracy and macro AUROC of the tutorial's road."""
    set_seed(recipe.seed, reproducible=True)
    started = time.perf_counter()
    table = manifest[manifest["split"] != "test"].assign(is_valid=lambda rows: rows["split"] == "valid")
    loaders = ImageDataLoaders.from_df(
        table, path="/", fn_col="file", label_col="label", valid_col="is_valid", bs=recipe.batch_size, num_workers=0,
        item_tfms=Resize(recipe.image_size), batch_tfms=aug_transforms(),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        overlay = {"file": recipe.weights}
        learner = vision_learner(
            loaders, recipe.backbone, metrics=accuracy, path=folder, pretrained_cfg_overlay=overlay
        )
        with learner.no_bar(), learner.no_logging():
            # as many epochs in all as the strategy fine: three before every layer learns
            learner.fine_tune(recipe.epochs, freeze_epochs=3)
            seconds = time.perf_counter() - started
            test = manifest[manifest["split"] == "test"]
            probability, _ = learner.get_preds(dl=loaders.test_dl(test))
    return seconds, *score(test, probability.numpy(), list(loaders.vocab))


def ours(manifest: pd.DataFrame, recipe: Recipe) -> tuple[float, float, float]:
    """Seconds, test accuracy and macro AUROC of fastcxr's road."""
    started = time.perf_counter()
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    train(learner, recipe)
    seconds = time.perf_counter() - started
    predictions = predict(learner, manifest, splits=("test",))
    return seconds, *score(manifest[manifest["split"] == "test"], predictions.probability, list(predictions.labels))


def score(test: pd.DataFrame, probability: np.ndarray, labels: list[str]) -> tuple[float, float]:
    """Accuracy and macro AUROC."""
    figures = measure(pd.Index(labels).get_indexer(test["label"]), probability.astype(float), labels)
    return figures["accuracy"], figures["auroc"]["macro"]


def main() -> None:
    """Run both roads by turns and print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", required=True)
    words.add_argument("--weights", required=True)
    words.add_argument("--patients")
    words.add_argument("--backbone", default="mobilenetv2_100")
    words.add_argument("--epochs", type=int, default=5)
    words.add_argument("--seeds", type=int, default=3)
    given = words.parse_args()
    rows = []
    for seed in range(given.seeds):
        recipe = Recipe(given.backbone, weights=str(Path(given.weights).resolve()), epochs=given.epochs, seed=seed)
        manifest = split_by_patient(read_manifest(given.data, patients=given.patients), seed=seed)
        for name, road in (("fastcxr", ours), ("plain fastai", plain_fastai)):
            seconds, accuracy_, auroc = road(manifest, recipe)
            rows.append({"road": name, "seed": seed, "seconds": seconds, "accuracy": accuracy_, "auroc": auroc})
            print(f"{name:<13} seed {seed}  {seconds:7.1f} s  accuracy {accuracy_:.4f}  AUROC {auroc:.4f}", flush=True)
    table = pd.DataFrame(rows).groupby("road")[["seconds", "accuracy", "auroc"]].agg(["median", "min", "max"])
    print(table.round(4).to_string())


if __name__ == "__main__":
    main()
