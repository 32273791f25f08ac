"""Tests that every variant and every backbone of the published studies trains on the sample, with random weights."""

import csv
import json
import logging
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fastcxr.config.recipe import Recipe
from fastcxr.data.findings import list_findings
from fastcxr.data.label_options import find_uncertain_policy
from fastcxr.data.label_policy import compute_truth
from fastcxr.inference.predict import predict
from fastcxr.models.backbones import find_backbone
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.trainer import train
from fastcxr.workflows.load import assign_recipe_splits, load_dataset
from fastcxr.workflows.run_dir import OutputDir
from fastcxr.workflows.study import compare_with_paper

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "recipes").glob("*.py"))
SMALL = {"weights": "none", "image_size": 32, "epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "data_format": "csv"}
LARGE_BACKBONES = ("vgg16", "vgg19_bn")  # above 100 million parameters
# the others have similar architectures
DEEP_BACKBONES = (
    "resnet101",
    "resnet152",
    "densenet169",
    "densenet201",
    "efficientnet_b4",
    "efficientnet_b7",
    "resnet50",
)
# labels of the synthetic images in each study
LABELS = {
    "bolhassani2024": ("Normal", "Bacteria", "Virus", "COVID-19"),
    "le2021": ("Normal", "Virus", "COVID-19"),
    "lopez2023": ("COVID-19", "Normal"),
    "rachha2020": ("COVID-19", "No-Findings", "Pneumonia"),
}
# findings of the synthetic images; every third label is uncertain or unknown
FINDINGS = {
    "chestxray14": ("Atelectasis", "Effusion", "Hernia"),
    "chexpert": ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
}


def read_variants() -> list[tuple[str, str, Recipe]]:
    """Return study, name and recipe of every variant of all scripts."""
    return [
        (script.stem, variant, recipe)
        for script in SCRIPTS
        for variant, recipe in runpy.run_path(str(script))["RECIPES"].items()
    ]


def iterate_variants():
    """Yield study and recipe of every variant with a small backbone, and once if they are the same but for theirs.

    A variant whose strategy, loss, sampling and folds are those of an earlier one is slow.
    """
    distinct, kinds = {}, set()
    for study, variant, recipe in read_variants():
        distinct.setdefault((study, recipe.replace(backbone="resnet10t", **SMALL)), variant)
    for (study, recipe), variant in distinct.items():
        kind = recipe.strategy, recipe.loss, recipe.class_weights, recipe.sampler, recipe.folds, recipe.task
        yield pytest.param(study, recipe, id=f"{study}-{variant}", marks=[pytest.mark.slow] * (kind in kinds))
        kinds.add(kind)


def iterate_backbones():
    """Yield study and recipe of the first variant with each backbone."""
    variants = {recipe.backbone: (study, recipe) for study, _, recipe in reversed(read_variants())}
    for backbone, variant in variants.items():
        slow = [pytest.mark.slow] if backbone in LARGE_BACKBONES + DEEP_BACKBONES else []
        yield pytest.param(*variant, id=backbone, marks=slow)


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, list[Path]]:
    """Return two tables of synthetic images with the labels of each study; some variants merge the second."""
    label_tables = {study: write_tables(tmp_path_factory.mktemp(study), labels) for study, labels in LABELS.items()}
    return label_tables | {
        study: write_tables(tmp_path_factory.mktemp(study), (), findings) for study, findings in FINDINGS.items()
    }


def write_tables(folder: Path, labels: tuple[str, ...], findings: tuple[str, ...] = ()) -> list[Path]:
    """Write a table of 16 training, 4 validation and 4 test images, every label in each, and one of 4 more images.

    `findings`: a column for each finding instead of the labels.
    """
    images = sorted((ROOT / "data" / "sample").glob("*/*.jpg"))
    selected = [images[k * len(images) // 28] for k in range(28)]
    splits = ["train"] * 16 + ["valid"] * 4 + ["test"] * 4 + ["train"] * 4
    rows = [
        {
            "path": image,
            "patient": k,
            "split": split,
            "view": ("PA", "AP", "AP Supine")[k % 3],
            **({"label": labels[k % len(labels)]} if labels else {}),
            **{finding: (1, 0, 1, 0, -1, "")[(k + n) % 6] for n, finding in enumerate(findings)},
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
    check_training_and_predictions(make_small(recipe, tables[study]), tmp_path)


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
    if predictions.is_multi_label:
        assert predictions.labels == tuple(list_findings(manifest))
        assert ((predictions.probability > 0) & (predictions.probability < 1)).all()
        return
    np.testing.assert_allclose(predictions.probability.sum(axis=1), 1.0, atol=1e-6)
    assert set(predictions.labels) == set(manifest["label"])


def test_the_published_values_of_findings_are_beside_those_of_a_run(tmp_path):
    study = runpy.run_path(str(ROOT / "recipes" / "chestxray14.py"))
    auroc = {"macro": 0.8, "per_class": dict.fromkeys(study["FINDINGS"], 0.8) | {"Hernia": None}}
    per_class = {name: {"positives": 5} for name in study["FINDINGS"]}
    metrics = {"n_images": 100, "task": "multi_label", "auroc": auroc, "per_class": per_class}
    (tmp_path / "metrics.json").write_text(json.dumps({"test": metrics}))
    first, *others = compare_with_paper({"chexnet": tmp_path, "wang": None}, study["PAPER"])
    assert [column.header for column in first.columns] == ["variant", "paper AUROC", "AUROC", "images"]
    assert [list(column.cells) for column in first.columns] == [
        ["chexnet", "wang"],
        ["0.841", "0.738"],
        ["0.800", "–"],
        ["100", "–"],
    ]
    rows = {table.title: [list(column.cells)[0] for column in table.columns[1:]] for table in others}
    assert len(rows) == 14 and rows["Edema"] == ["0.888", "0.800"] and rows["Hernia"] == ["0.916", "–"]


def test_every_published_value_is_one_of_a_variant_and_a_metric():
    for script in SCRIPTS:
        study = runpy.run_path(str(script))
        assert set(study["PAPER"]) <= set(study["RECIPES"])
        assert all(0 < value <= 1 for metrics in study["PAPER"].values() for value in metrics.values())


def test_uncertain_labels_differ_between_the_variants_of_chexpert():
    recipes = runpy.run_path(str(ROOT / "recipes" / "chexpert.py"))["RECIPES"]
    columns = {f"finding_{name}": pd.array([-1, -1], "Int8") for name in FINDINGS["chexpert"]}
    rows = pd.DataFrame({"split": ["train", "test"], "label": ""} | columns)
    truth = {name: compute_truth(rows, uncertain=find_uncertain_policy(recipe)) for name, recipe in recipes.items()}
    assert all(np.isnan(values[1]).all() for values in truth.values()), "never evaluated"
    nan = pytest.approx(np.nan, nan_ok=True)
    assert truth["u_ones"][0].tolist() == [1] * 5 and truth["u_zeros"][0].tolist() == [0] * 5
    assert truth["u_ignore"][0].tolist() == [nan] * 5
    assert truth["per_finding"][0].tolist() == [1, nan, nan, 1, nan]
