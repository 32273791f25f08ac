"""Tests of the data audit: its page, audit.json, and the reuse of its findings in runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from public_layouts import make_nih, write_gray
from tiny_network import NAME
from toy_images import write_toys

from fastcxr.audit.manifest_checks import check_sources, find_exclusive_classes
from fastcxr.config.recipe import Recipe
from fastcxr.data.fingerprint import content_fingerprint, manifest_fingerprint
from fastcxr.report.data_notices import find_accepted_confounding, find_failed_checks, list_failed_checks
from fastcxr.report.run_reader import read_run_record
from fastcxr.workflows.audit import audit, check_before_training
from fastcxr.workflows.load import assign_recipe_splits, read_recipe_manifest
from fastcxr.workflows.train import run

pytestmark = pytest.mark.usefixtures("without_figures", "without_maps", "few_draws")

MANIFEST_CHECKS = {"patients", "copies", "sources", "sizes"}  # run before every training


@pytest.fixture
def leaky_data(tmp_path):
    """Toy images in given splits; one training image is also in the test split."""
    toys = write_toys(tmp_path / "toys", per_class=16)
    for label in sorted(toys.iterdir()):
        for number, file in enumerate(sorted(label.glob("*.png"))):
            folder = tmp_path / "data" / ("train", "train", "valid", "test")[number // 2 % 4] / label.name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / file.name)
    clear = tmp_path / "data" / "train" / "clear"
    shutil.copy(min(clear.iterdir()), tmp_path / "data" / "test" / "clear" / "again.png")
    return tmp_path / "data"


def test_the_page_lists_failed_checks_with_their_images(leaky_data, tmp_path):
    page = audit(Recipe(data=str(leaky_data)), tmp_path / "audit")
    findings = json.loads((tmp_path / "audit" / "audit.json").read_text())["findings"]
    assert findings[0]["verdict"] == "FAIL"
    copies = next(finding for finding in findings if finding["check"] == "copies")
    assert copies["verdict"] == "FAIL"
    assert "test/clear/again.png" in {path for group in copies["groups"] for _, path in group}
    text = page.read_text()
    assert "again.png" in text.replace("<wbr>", "") and text.count("data:image/jpeg;base64") >= 2
    assert "Exact duplicates across splits or classes: 1 image." in text


@pytest.mark.parametrize("reason", [None, "the duplicate is known"])
def test_a_report_has_a_critical_notice_unless_the_failed_audit_is_accepted(leaky_data, tmp_path, reason):
    recipe = Recipe(NAME, data=str(leaky_data), weights="none", image_size=64, epochs=1, strategy="full")
    text = run(recipe.replace(waive_audit=reason), tmp_path / "run").read_text()
    assert ("Confounded: do not use these metrics" in text) == (reason is None)
    assert ("Reason given: the duplicate is known" in text) == (reason is not None)
    assert (tmp_path / "run" / "audit.json").exists()


@pytest.fixture
def audited_recipe(tmp_path, monkeypatch):
    """Return the recipe of toy images with a border in one class; their finished audit is in runs/."""
    toys = write_toys(tmp_path / "toys", per_class=16, labels=("clear", "haze"))
    for file in (toys / "haze").iterdir():
        Image.fromarray(np.pad(np.asarray(Image.open(file))[4:-4, 4:-4], 4)).save(file)
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(data=str(toys))
    audit(recipe, Path("runs") / "audit-toys-1")
    return recipe


def read_findings_before_training(recipe, folder, **choices):
    folder.mkdir(parents=True)
    check_before_training(folder, assign_recipe_splits(read_recipe_manifest(recipe), recipe), **choices)
    return json.loads((folder / "audit.json").read_text())["findings"]


def test_a_run_reuses_the_findings_of_an_audit_of_the_same_data(audited_recipe, tmp_path, caplog):
    recipe = audited_recipe.replace(backbone=NAME, weights="none", image_size=64, epochs=1, strategy="full")
    with caplog.at_level("INFO", "fastcxr"):
        text = run(recipe, tmp_path / "runs" / "run").read_text()
    content = json.loads((tmp_path / "runs" / "run" / "audit.json").read_text())
    reused = {row["check"]: row for row in content["findings"]}
    assert reused["edge"]["verdict"] == "FAIL" and {"patients", "copies", "likeness"} <= set(reused)
    date = json.loads(Path("runs/audit-toys-1/run.json").read_text())["started"][:10]
    assert content["reused_audit"] == {"folder": "audit-toys-1", "date": date}
    assert f"results of the audit in runs/audit-toys-1 of {date} are reused (`reuse_audit=False`" in caplog.text
    assert f"Folder: audit-toys-1. Date: {date}. It checked the same images" in text
    assert reused["edge"]["message"] in text and "Confounded: do not use these metrics" in text


def test_an_audit_is_not_reused_if_the_user_refuses_it(audited_recipe, tmp_path):
    findings = read_findings_before_training(audited_recipe, tmp_path / "run", reuse_audit=False)
    assert {row["check"] for row in findings} == MANIFEST_CHECKS
    assert "reused_audit" not in json.loads((tmp_path / "run" / "audit.json").read_text())


def move_one_image(toys):
    """Move an image to the other class."""
    file = min((toys / "clear").iterdir())
    file.rename(toys / "haze" / ("moved" + file.name))


def change_bytes(toys):
    """Change a byte of a file but not its size."""
    file = min((toys / "clear").iterdir())
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def change_seed(toys):
    """Change no file; the test changes the seed."""


@pytest.mark.parametrize("change", [move_one_image, change_bytes, change_seed])
def test_findings_of_an_audit_of_other_data_are_not_reused(audited_recipe, tmp_path, change):
    change(tmp_path / "toys")
    recipe = audited_recipe.replace(seed=43) if change is change_seed else audited_recipe
    assert {row["check"] for row in read_findings_before_training(recipe, tmp_path / "run")} == MANIFEST_CHECKS


def test_a_damaged_or_unfinished_audit_is_not_reused(audited_recipe, tmp_path, caplog):
    folder = tmp_path / "runs" / "audit-toys-1"
    content = (folder / "audit.json").read_text()
    (folder / "audit.json").write_text(content[:-40])
    assert {
        row["check"] for row in read_findings_before_training(audited_recipe, tmp_path / "damaged")
    } == MANIFEST_CHECKS
    assert "audit-toys-1 cannot be read" in caplog.text
    (folder / "audit.json").write_text(content)
    run_json = (folder / "run.json").read_text()
    (folder / "run.json").unlink()
    findings = read_findings_before_training(audited_recipe, tmp_path / "undated")
    assert {row["check"] for row in findings} == MANIFEST_CHECKS
    (folder / "run.json").write_text(run_json)
    (folder / "audit.html").unlink()
    assert {
        row["check"] for row in read_findings_before_training(audited_recipe, tmp_path / "unfinished")
    } == MANIFEST_CHECKS


def test_fingerprints_do_not_depend_on_row_order_and_patient_names(audited_recipe):
    manifest = assign_recipe_splits(read_recipe_manifest(audited_recipe), audited_recipe)
    other = manifest.assign(patient="p" + manifest["patient"]).sample(frac=1, random_state=0)
    assert (manifest_fingerprint(other), content_fingerprint(other)) == (
        manifest_fingerprint(manifest),
        content_fingerprint(manifest),
    )
    assert manifest_fingerprint(manifest.assign(patient="one")) != manifest_fingerprint(manifest)


def test_an_audit_of_another_version_is_not_reused(audited_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("fastcxr.data.fingerprint.VERSION", "9.9")
    assert {row["check"] for row in read_findings_before_training(audited_recipe, tmp_path / "run")} == MANIFEST_CHECKS


def test_the_page_counts_unreadable_images(leaky_data, tmp_path):
    (leaky_data / "train" / "clear" / "unreadable.png").write_bytes(b"no image")
    page = audit(Recipe(data=str(leaky_data)), tmp_path / "audit")
    assert "1 image left out" in page.read_text()


def test_an_audit_of_findings_checks_each_finding(tmp_path):
    data = make_nih(tmp_path / "nih")
    for number, file in enumerate(data.glob("images_*/images/*.png")):
        write_gray(file, number, size=(72, 64))
    page = audit(Recipe(data=str(data)), tmp_path / "audit")
    findings = {row["check"]: row for row in json.loads((tmp_path / "audit" / "audit.json").read_text())["findings"]}
    assert {"no_finding", "sources", "sizes", "view", "age", "edge", "likeness", "shuffled"} <= set(findings)
    assert "Infiltration 0 in test" in findings["sizes"]["message"]
    assert "View" in findings["view"]["title"] and findings["view"]["chance_level"] > 0.5
    text = page.read_text()
    assert "Images per finding" in text and "<h2>Checks</h2>" in text and "<h2>Findings</h2>" not in text
    assert "<td>0</td><td>0</td>" not in text  # the message states that there are no duplicates


@pytest.fixture
def record(run_folder):
    """The record of a run with two sources, two classes, and no image files."""
    manifest = pd.DataFrame({"source": ["s", "t"] * 9, "label": ["a", "b"] * 9})
    files = pd.DataFrame({"label": [], "kind": [], "width": [], "height": [], "images": []})
    return replace(read_run_record(run_folder), manifest=manifest, files=files, recipe={})


def test_only_a_failed_check_of_sources_replaces_the_notice_about_sources(record):
    for check, is_there in (("copies", True), ("sources", False)):
        checked = replace(record, findings=[{"check": check, "title": check, "verdict": "FAIL"}])
        assert ("Source and class" in [row["title"] for row in list_failed_checks(checked)]) == is_there


@pytest.mark.parametrize("check", ["size", "patients"])
def test_an_image_size_of_one_class_is_a_failed_check_with_and_without_an_audit(record, check):
    sizes = {"label": ["a", "b"], "kind": ["PNG"] * 2, "width": [64, 90], "height": [64, 90], "images": [20, 20]}
    reused = [{"check": check, "title": "Width and height", "verdict": "FAIL", "message": "AUROC 1.", "fix": ""}]
    reused += [{"check": "sources", "title": "Sources", "verdict": "PASS"}]
    record = replace(record, findings=reused, files=pd.DataFrame(sizes), manifest=record.manifest.assign(source="s"))
    (text,) = [text for (text,) in find_failed_checks(record, {})]
    assert ("No other class has the image size" in text) == (check != "size")
    waived = replace(record, recipe={"waive_audit": "measured"})
    assert not list(find_failed_checks(waived, {}))
    ((accepted,),) = find_accepted_confounding(waived, {})
    assert "failed. Reason given: measured" in accepted


@pytest.mark.parametrize(("n_exclusive", "verdict"), [(18, "FAIL"), (17, "PASS")])
def test_nine_in_ten_images_from_exclusive_sources_fail(n_exclusive, verdict):
    sources = ["own"] * n_exclusive + ["shared"] * (40 - n_exclusive)
    manifest = pd.DataFrame({"label": ["a"] * 20 + ["b"] * 20, "source": sources, "images": 1})
    assert check_sources(manifest).verdict == verdict
    assert bool(find_exclusive_classes(manifest, "source")) == (verdict == "FAIL")
