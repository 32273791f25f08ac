"""Tests for redact.py"""

import csv
import os
import shlex
from pathlib import Path

import pytest
from PIL import Image
from toy_images import write_toys

from fastcxr.config.recipe import Recipe, redact_paths
from fastcxr.data.manifest import read_unlabelled
from fastcxr.inference.predict import predict
from fastcxr.io.redact import hide_in_text, redact_command
from fastcxr.metrics.predictions import write_predictions
from fastcxr.models.bundle import load_model
from fastcxr.progress.base import Progress
from fastcxr.workflows.describe import describe
from fastcxr.workflows.explain import write_explanation
from fastcxr.workflows.train import run

SECRETS = "ZZTESTNAME", "far away", "pytest-of"  # folders above the images, the table and the run


def test_of_an_absolute_path_the_last_part_stays_and_a_relative_one_is_kept():
    recipe = Recipe(
        data=("/home/ZZTESTNAME/a", "b/c"), weights="/home/ZZTESTNAME/w.pth", patient_table="/ZZTESTNAME/p.csv"
    )
    shown = redact_paths(recipe)
    assert (shown.data, shown.weights, shown.patient_table) == (("a", "b/c"), "w.pth", "p.csv")
    assert redact_paths(Recipe()) == Recipe()


def test_a_command_keeps_its_words_and_loses_its_absolute_paths(tmp_path):
    place = tmp_path / "ZZTESTNAME" / "my data"
    place.mkdir(parents=True)
    command = f"fastcxr train --data '{place}' --out='{place}' --weights '{place}/new.pth' --patient-regex '/(.*)_' a/b"
    shown = redact_command(command)
    assert shown == "fastcxr train --data 'my data' '--out=my data' --weights new.pth --patient-regex '/(.*)_' a/b"
    assert redact_command(None) is None


def test_a_command_loses_the_paths_behind_a_second_sign_too(tmp_path):
    assert redact_command(f"fastcxr train --filter=path={tmp_path},x --filter path={tmp_path}") == (
        f"fastcxr train --filter=path={tmp_path.name},x --filter path={tmp_path.name}"
    )


def test_a_message_loses_its_absolute_paths_and_keeps_its_words(tmp_path):
    place = tmp_path / "ZZTESTNAME" / "my data"
    place.mkdir(parents=True)
    assert hide_in_text(f"FCX-E010 {place}: damaged. Look at '{place}'.") == (
        "FCX-E010 my data: damaged. Look at 'my data'."
    )
    assert hide_in_text(f"no file {tmp_path}/ZZTESTNAME/gone/a.png, nor b") == "no file a.png, nor b"
    kept = "say --patient-regex '^[^/]+/([^/]+)/', AP/PA, 3 / 4, https://a.org/tmp/b, runs/a-1 or ../tmp/x"
    assert hide_in_text(kept) == kept


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """A CSV in one folder of toys in another, by their absolute paths; some of the files are no images."""
    place = tmp_path_factory.mktemp("ZZTESTNAME")
    toys = write_toys(place / "far away" / "toys", per_class=12)
    (toys / "clear" / "torn.png").write_bytes(b"\x89PNG")
    Image.new("L", (72, 72)).save(toys / "haze" / "blank.png")
    (place / "tables").mkdir()
    with (place / "tables" / "mine.csv").open("w", newline="") as file:
        rows = [(str(image), image.parent.name) for image in sorted(toys.glob("*/*.png"))]
        csv.writer(file).writerows([("path", "label"), *rows])
    return place / "tables" / "mine.csv"


def find_leaks(folder: Path, *secrets: str) -> list[str]:
    """The files below the folder of which any byte names one of the secrets, in their names or contents."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return [
        str(file.relative_to(folder))
        for file in files
        if any(secret.encode() in file.read_bytes() or secret in str(file.relative_to(folder)) for secret in secrets)
    ]


@pytest.fixture(scope="module")
def trained(listed, tmp_path_factory):
    """A run on that table, in a folder that the command names by its absolute path too."""
    folder = tmp_path_factory.mktemp("ZZTESTNAME") / "run"
    recipe = Recipe("mobilenetv2_035", data=str(listed), weights="none", image_size=64, epochs=1, strategy="full",
                    skip_bad=True, predict_train=True)  # fmt: skip
    run(recipe, folder, command=shlex.join(["fastcxr", "train", "--data", str(listed), f"--out={folder}"]))
    return folder


def test_no_output_of_a_table_of_absolute_paths_names_any(listed, trained, tmp_path):
    assert {"skipped.csv", "manifest.csv", "predictions.csv", "saliency.csv", "report.html"} <= set(os.listdir(trained))
    assert find_leaks(trained, *SECRETS) == []
    describe(Recipe(data=str(listed)), tmp_path / "shown", command=f"fastcxr describe --data {listed}")
    assert find_leaks(tmp_path / "shown", *SECRETS) == []


def test_no_output_of_images_named_by_absolute_paths_names_any(listed, trained, tmp_path):
    toys, classifier = listed.parent.parent / "far away" / "toys", load_model(trained)
    for number, places in enumerate(([toys], [toys / "clear" / "torn.png", min((toys / "haze").iterdir())])):
        table = read_unlabelled(places)
        write_predictions(predict(classifier, table, splits=None), tmp_path / f"{number}.csv")
        write_explanation(classifier, table, tmp_path / f"maps-{number}", progress=Progress())
    assert find_leaks(tmp_path, *SECRETS) == []
