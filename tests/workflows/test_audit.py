"""An audit is one page and one JSON file, and a failed check stands on every report of that cohort."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_network import NAME
from toy_images import write_toys

from fastcxr.config.recipe import Recipe
from fastcxr.data.fingerprint import content_fingerprint, manifest_fingerprint
from fastcxr.report.data_notices import find_shortcuts
from fastcxr.workflows.audit import audit, check_before_training
from fastcxr.workflows.load import assign_recipe_splits, read_recipe_manifest
from fastcxr.workflows.train import run

pytestmark = pytest.mark.usefixtures("without_figures")

QUICK = {"patients", "copies", "sources", "sizes"}  # checks that come before every training


@pytest.fixture
def leaky(tmp_path):
    """Toys in given splits, one picture of train in test again."""
    toys = write_toys(tmp_path / "toys", per_class=16)
    for label in sorted(toys.iterdir()):
        for number, file in enumerate(sorted(label.glob("*.png"))):
            place = tmp_path / "data" / ("train", "train", "valid", "test")[number // 2 % 4] / label.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place / file.name)
    clear = tmp_path / "data" / "train" / "clear"
    shutil.copy(min(clear.iterdir()), tmp_path / "data" / "test" / "clear" / "again.png")
    return tmp_path / "data"


def test_the_page_names_what_failed_and_shows_it_side_by_side(leaky, tmp_path):
    page = audit(Recipe(data=str(leaky)), tmp_path / "audit")
    findings = json.loads((tmp_path / "audit" / "audit.json").read_text())["findings"]
    assert findings[0]["verdict"] == "FAIL"
    copies = next(finding for finding in findings if finding["check"] == "copies")
    assert copies["verdict"] == "FAIL"
    assert "test/clear/again.png" in {path for group in copies["groups"] for _, path in group}
    text = page.read_text()
    assert "again.png" in text.replace("<wbr>", "") and text.count("data:image/jpeg;base64") >= 2
    assert "Exact duplicates across splits or classes: 1 image." in text


@pytest.mark.parametrize("reason", [None, "the copy is known"])
def test_a_report_of_such_a_cohort_is_stamped_unless_somebody_says_why_not(leaky, tmp_path, reason):
    recipe = Recipe(NAME, data=str(leaky), weights="none", image_size=64, epochs=1, strategy="full")
    text = run(recipe.replace(waive_audit=reason), tmp_path / "run").read_text()
    assert ("Confounded: do not use these metrics" in text) == (reason is None)
    assert ("Reason given: the copy is known" in text) == (reason is not None)
    assert (tmp_path / "run" / "audit.json").exists()


@pytest.fixture
def audited(tmp_path, monkeypatch):
    """Toys whose second class alone is framed, their finished audit in runs/, and the manifest that a run trains on."""
    toys = write_toys(tmp_path / "toys", per_class=16, labels=("clear", "haze"))
    for file in (toys / "haze").iterdir():
        Image.fromarray(np.pad(np.asarray(Image.open(file))[4:-4, 4:-4], 4)).save(file)
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(data=str(toys))
    audit(recipe, Path("runs") / "audit-toys-1")
    return recipe


def found_before_training(recipe, folder):
    folder.mkdir(parents=True)
    check_before_training(folder, assign_recipe_splits(read_recipe_manifest(recipe), recipe))
    return json.loads((folder / "audit.json").read_text())["findings"]


def test_what_an_audit_of_the_same_cohort_found_is_taken_over_into_a_run_and_stamps_it(audited, tmp_path, caplog):
    recipe = audited.replace(backbone=NAME, weights="none", image_size=64, epochs=1, strategy="full")
    with caplog.at_level("INFO", "fastcxr"):
        text = run(recipe, tmp_path / "runs" / "run").read_text()
    taken = {
        row["check"]: row for row in json.loads((tmp_path / "runs" / "run" / "audit.json").read_text())["findings"]
    }
    assert taken["edge"]["verdict"] == "FAIL" and {"patients", "copies", "likeness"} <= set(taken)
    assert "findings of runs/audit-toys-1 taken over" in caplog.text
    assert taken["edge"]["message"] in text and "Confounded: do not use these metrics" in text


def move_one(toys):
    """One image is of the other class."""
    file = min((toys / "clear").iterdir())
    file.rename(toys / "haze" / ("moved" + file.name))


def change_bytes(toys):
    """One byte of one file is another, its size the same."""
    file = min((toys / "clear").iterdir())
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def split_otherwise(toys):
    """Nothing about the files; the seed below."""


@pytest.mark.parametrize("change", [move_one, change_bytes, split_otherwise])
def test_what_an_audit_of_another_cohort_found_is_not_taken_over(audited, tmp_path, change):
    change(tmp_path / "toys")
    recipe = audited.replace(seed=43) if change is split_otherwise else audited
    assert {row["check"] for row in found_before_training(recipe, tmp_path / "run")} == QUICK


def test_an_audit_that_is_torn_or_unfinished_is_not_taken_over(audited, tmp_path, caplog):
    place = tmp_path / "runs" / "audit-toys-1"
    content = (place / "audit.json").read_text()
    (place / "audit.json").write_text(content[:-40])
    assert {row["check"] for row in found_before_training(audited, tmp_path / "torn")} == QUICK
    assert "audit-toys-1 cannot be read" in caplog.text
    (place / "audit.json").write_text(content)
    (place / "audit.html").unlink()
    assert {row["check"] for row in found_before_training(audited, tmp_path / "unfinished")} == QUICK


def test_a_cohort_is_known_again_in_another_order_and_with_patients_called_otherwise(audited):
    manifest = assign_recipe_splits(read_recipe_manifest(audited), audited)
    other = manifest.assign(patient="p" + manifest["patient"]).sample(frac=1, random_state=0)
    assert (manifest_fingerprint(other), content_fingerprint(other)) == (
        manifest_fingerprint(manifest),
        content_fingerprint(manifest),
    )
    assert manifest_fingerprint(manifest.assign(patient="one")) != manifest_fingerprint(manifest)


def test_an_audit_of_another_version_is_not_taken_over(audited, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcxr.data.fingerprint.VERSION", "9.9")
    assert {row["check"] for row in found_before_training(audited, tmp_path / "run")} == QUICK


def test_images_that_cannot_be_read_are_counted_on_the_page(leaky, tmp_path):
    (leaky / "train" / "clear" / "broken.png").write_bytes(b"no image")
    page = audit(Recipe(data=str(leaky)), tmp_path / "audit")
    assert "1 image left out" in page.read_text()


def test_a_failed_check_of_something_else_hides_no_warning_of_sources():
    for check, is_there in (("copies", True), ("sources", False)):
        record = SimpleNamespace(
            findings=[{"check": check, "verdict": "FAIL"}],
            files=pd.DataFrame(columns=["label", "kind", "width", "height", "images"]),
            table=pd.DataFrame({"source": ["s", "t"] * 9, "label": ["a", "b"] * 9}),
        )
        attributes = [attribute for _, attribute in find_shortcuts(record, {})]
        assert ("source" in attributes) == is_there
