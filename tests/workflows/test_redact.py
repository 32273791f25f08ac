"""Tests that no output contains absolute paths: recipes, commands, messages and all files of a run."""

import csv
import os
import shlex
from pathlib import Path

import pytest
from PIL import Image
from tiny_network import NAME
from toy_images import write_toys

from fastcxr.config.recipe import Recipe
from fastcxr.config.recipe_paths import redact_paths
from fastcxr.data.image_table import make_image_table
from fastcxr.inference.predict import predict
from fastcxr.io.redact import hide_in_text, redact_command
from fastcxr.metrics.predictions import write_predictions
from fastcxr.models.bundle import load_model
from fastcxr.progress.base import Progress
from fastcxr.workflows.describe import describe
from fastcxr.workflows.explain import write_explanation
from fastcxr.workflows.train import run

SECRETS = "ZZTESTNAME", "far away", "pytest-of"  # parent folders of the images, the table and the run


def test_redact_paths_keeps_the_last_part_of_absolute_paths():
    recipe = Recipe(
        data=("/home/ZZTESTNAME/a", "b/c"), weights="/home/ZZTESTNAME/w.pth", patient_table="/ZZTESTNAME/p.csv"
    )
    redacted = redact_paths(recipe)
    assert (redacted.data, redacted.weights, redacted.patient_table) == (("a", "b/c"), "w.pth", "p.csv")
    assert redact_paths(Recipe()) == Recipe()


def test_redact_command_keeps_only_the_last_part_of_absolute_paths(tmp_path):
    folder = tmp_path / "ZZTESTNAME" / "my data"
    folder.mkdir(parents=True)
    command = (
        f"fastcxr train --data '{folder}' --out='{folder}' --weights '{folder}/new.pth' --patient-regex '/(.*)_' a/b"
    )
    assert redact_command(command) == (
        "fastcxr train --data 'my data' '--out=my data' --weights new.pth --patient-regex '/(.*)_' a/b"
    )
    assert redact_command(None) is None


def test_redact_command_redacts_paths_after_a_second_equals_sign(tmp_path):
    assert redact_command(f"fastcxr train --filter=path={tmp_path},x --filter path={tmp_path}") == (
        f"fastcxr train --filter=path={tmp_path.name},x --filter path={tmp_path.name}"
    )


def test_hide_in_text_keeps_only_the_last_part_of_absolute_paths(tmp_path):
    folder = tmp_path / "ZZTESTNAME" / "my data"
    folder.mkdir(parents=True)
    assert hide_in_text(f"FCX-E010 {folder}: damaged. Check '{folder}'.") == (
        "FCX-E010 my data: damaged. Check 'my data'."
    )
    assert hide_in_text(f"no file {tmp_path}/ZZTESTNAME/gone/a.png, nor b") == "no file a.png, nor b"
    kept = "use --patient-regex '^[^/]+/([^/]+)/', AP/PA, 3 / 4, https://a.org/tmp/b, runs/a-1 or ../tmp/x"
    assert hide_in_text(kept) == kept


@pytest.fixture(scope="module")
def table_of_paths(tmp_path_factory):
    """Write a CSV with absolute paths of toy images in another folder; some files are not images."""
    folder = tmp_path_factory.mktemp("ZZTESTNAME")
    toys = write_toys(folder / "far away" / "toys", per_class=12)
    (toys / "clear" / "torn.png").write_bytes(b"\x89PNG")
    Image.new("L", (72, 72)).save(toys / "haze" / "blank.png")
    (folder / "tables").mkdir()
    with (folder / "tables" / "mine.csv").open("w", newline="") as file:
        rows = [(str(image), image.parent.name) for image in sorted(toys.glob("*/*.png"))]
        csv.writer(file).writerows([("path", "label"), *rows])
    return folder / "tables" / "mine.csv"


def find_leaks(folder: Path, *secrets: str) -> list[str]:
    """Return the files in the folder whose name or content contains one of the secrets."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return [
        str(file.relative_to(folder))
        for file in files
        if any(secret.encode() in file.read_bytes() or secret in str(file.relative_to(folder)) for secret in secrets)
    ]


@pytest.fixture(scope="module")
def trained(table_of_paths, tmp_path_factory):
    """Train on that table, in a folder given by its absolute path."""
    folder = tmp_path_factory.mktemp("ZZTESTNAME") / "run"
    options = {"image_size": 64, "epochs": 1, "strategy": "full", "skip_bad": True, "predict_train": True}
    recipe = Recipe(NAME, data=str(table_of_paths), weights="none", **options)
    run(recipe, folder, command=shlex.join(["fastcxr", "train", "--data", str(table_of_paths), f"--out={folder}"]))
    return folder


def test_outputs_of_a_table_with_absolute_paths_contain_none(table_of_paths, trained, tmp_path):
    assert {"skipped.csv", "manifest.csv", "predictions.csv", "saliency.csv", "report.html"} <= set(os.listdir(trained))
    assert find_leaks(trained, *SECRETS) == []
    describe(
        Recipe(data=str(table_of_paths)), tmp_path / "described", command=f"fastcxr describe --data {table_of_paths}"
    )
    assert find_leaks(tmp_path / "described", *SECRETS) == []


def test_outputs_of_images_given_by_absolute_paths_contain_none(table_of_paths, trained, tmp_path):
    toys, classifier = table_of_paths.parent.parent / "far away" / "toys", load_model(trained)
    for number, paths in enumerate(([toys], [toys / "clear" / "torn.png", min((toys / "haze").iterdir())])):
        table = make_image_table(paths)
        write_predictions(predict(classifier, table, splits=None), tmp_path / f"{number}.csv")
        write_explanation(classifier, table, tmp_path / f"maps-{number}", progress=Progress())
    assert find_leaks(tmp_path, *SECRETS) == []
