"""Tests that every variant and every backbone of the published studies trains on the sample, with random weights."""

import csv
import logging
import runpy
from pathlib import Path

import numpy as np
import pytest

from fastcxr.config.recipe import Recipe
from fastcxr.inference.predict import predict
from fastcxr.models.backbones import find_backbone
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.trainer import train
from fastcxr.workflows.load import assign_recipe_splits, load_dataset
from fastcxr.workflows.run_dir import OutputDir

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "recipes").glob("*.py"))
SMALL = {"weights": "none", "image_size": 64, "epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "data_format": "csv"}
LARGE_BACKBONES = ("vgg16", "vgg19_bn")  # above 100 million parameters
# each has the architecture of a smaller backbone of the studies
DEEP_BACKBONES = ("resnet101", "resnet152", "densenet169", "densenet201", "efficientnet_b7")
# labels of the synthetic images in each study
LABELS = {
    "bolhassani2024": ("Normal", "Bacteria", "Virus", "COVID-19"),
    "le2021": ("Normal", "Virus", "COVID-19"),
    "lopez2023": ("COVID-19", "Normal"),
    "rachha2020": ("COVID-19", "No-Findings", "Pneumonia"),
}


def read_variants() -> list[tuple[str, str, Recipe]]:
    """Return study, name and recipe of every variant of all scripts."""
    return [
        (script.stem, variant, recipe)
        for script in SCRIPTS
        for variant, recipe in runpy.run_path(str(script))["RECIPES"].items()
    ]


def iterate_variants():
    """Yield study and recipe of every variant with a small backbone, and once if they are the same but for theirs."""
    distinct = {}
    for study, variant, recipe in read_variants():
        distinct.setdefault((study, recipe.replace(backbone="resnet10t", **SMALL)), variant)
    for (study, recipe), variant in distinct.items():
        yield pytest.param(study, recipe, id=f"{study}-{variant}")


def iterate_backbones():
    """Yield study and recipe of the first variant with each backbone."""
    variants = {recipe.backbone: (study, recipe) for study, _, recipe in reversed(read_variants())}
    for backbone, variant in variants.items():
        slow = [pytest.mark.slow] if backbone in LARGE_BACKBONES + DEEP_BACKBONES else []
        yield pytest.param(*variant, id=backbone, marks=slow)


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, list[Path]]:
    """Return two tables of synthetic images with the labels of each study; some variants merge the second."""
    return {study: write_tables(tmp_path_factory.mktemp(study), labels) for study, labels in LABELS.items()}


def write_tables(folder: Path, labels: tuple[str, ...]) -> list[Path]:
    """Write a table of 16 training, 4 validation and 4 test images, every label in each, and one of 4 more images."""
    images = sorted((ROOT / "data" / "sample").glob("*/*.jpg"))
    selected = [images[k * len(images) // 28] for k in range(28)]
    splits = ["train"] * 16 + ["valid"] * 4 + ["test"] * 4 + ["train"] * 4
    rows = [
        {
            "path": image,
            "label": labels[k % len(labels)],
            "patient": k,
            "split": split,
            "view": ("PA", "AP", "AP Supine")[k % 3],
        }
        for k, (image, split) in enumerate(zip(selected, splits, strict=True))
    ]
    tables = [(folder / "first.csv", rows[:24]), (folder / "second.csv", rows[24:])]
    for table, part in tables:
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(part)
    return [table for table, _ in tables]


def make_small(recipe: Recipe, tables: list[Path]) -> Recipe:
    """Return the variant with a small network and few images; with a filter it gets the second table."""
    data = tuple(map(str, tables)) if recipe.filter else str(tables[0])
    if recipe.strategy == "gradual":  # random weights would change it to full
        return recipe.replace(**SMALL, data=data, strategy="full")
    return recipe.replace(**SMALL, data=data, fold=1 if recipe.folds else None, ignore_given_splits=False)


@pytest.mark.parametrize(("study", "recipe"), iterate_variants())
def test_a_variant_trains_and_predicts(study, recipe, tables, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    check_training_and_predictions(make_small(recipe, tables[study]), tmp_path)


@pytest.mark.parametrize(("study", "recipe"), iterate_backbones())
def test_a_backbone_of_a_study_trains_and_predicts(study, recipe, tables, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    check_training_and_predictions(make_small(recipe, tables[study]).replace(image_size=32), tmp_path)


def test_every_backbone_of_a_study_is_found():
    for _, _, recipe in read_variants():
        assert find_backbone(recipe.backbone, "none").name == recipe.backbone.removeprefix("fastcxr:")


def check_training_and_predictions(recipe: Recipe, folder: Path) -> None:
    """Train by the recipe and check the losses, the weights and the predictions of the test images."""
    manifest = assign_recipe_splits(load_dataset(recipe, OutputDir(folder)), recipe)
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    training = train(learner, recipe)
    losses = training.history["train_loss"]
    assert len(learner.dls.train) >= 1 and np.isfinite(losses).all()
    changed = [not old.equal(new) for old, new in zip(before, learner.model.parameters(), strict=True)]
    assert any(changed), "training changes the weights"
    predictions = predict(learner, manifest, splits=("test",))
    np.testing.assert_allclose(predictions.probability.sum(axis=1), 1.0, atol=1e-6)
    assert set(predictions.labels) == set(manifest["label"])
