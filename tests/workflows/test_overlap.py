"""Tests of the overlap of other data with the images of a run."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sample_images import make_dicom, save_dicom
from tiny_network import NAME
from toy_images import draw_chest

from fastcxr.config.recipe import Recipe
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.manifest import read_manifest
from fastcxr.data.manifest_file import write_manifest
from fastcxr.errors import DataError
from fastcxr.io.files import read_checksums
from fastcxr.progress.base import Progress
from fastcxr.workflows import overlap
from fastcxr.workflows.evaluate import evaluate
from fastcxr.workflows.overlap import CROP, FEATURES_FILE, NEAR_DUPLICATE, SAME_PIXELS, find_overlap, write_features
from fastcxr.workflows.run_state import IMAGE_HASH_COLUMN
from fastcxr.workflows.train import run as train

pytestmark = pytest.mark.usefixtures("without_figures", "without_maps", "few_draws")
SIZE = 64


def write_chests(folder, numbers, save):
    """Write random smooth images, one for each number, into two class folders; `save` takes a path and an image."""
    for number in numbers:
        label = folder / ("haze" if number % 2 else "clear")
        label.mkdir(parents=True, exist_ok=True)
        save(label / f"{folder.name}-{number:03d}", draw_chest(np.random.default_rng(number)))
    return folder


def save_png(path, image):
    Image.fromarray(image).save(path.with_suffix(".png"))


def save_resized_dicom(path, image):
    """Save as a resized DICOM file of 12 bits, with another patient."""
    small = np.asarray(Image.fromarray(image).resize((200, 180)), np.uint16)
    save_dicom(path.with_suffix(".dcm"), make_dicom(small * 16, BitsStored=12, PatientID=f"other{path.stem}"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Return a run folder with the features of 20 images: 12 train, 4 valid, 4 test."""
    folder = tmp_path_factory.mktemp("overlap")
    manifest = read_manifest(write_chests(folder / "data", range(20), save_png)).sort_values("path")
    manifest = manifest.assign(split=(["train"] * 6 + ["valid"] * 2 + ["test"] * 2) * 2).reset_index(drop=True)
    manifest = manifest.assign(**{IMAGE_HASH_COLUMN: open_image_cache(manifest["file"].tolist(), SIZE).hash_images()})
    (folder / "run").mkdir()
    write_manifest(manifest, folder / "run" / "manifest.csv")
    write_features(folder / "run", manifest, Progress())
    return folder / "run"


@pytest.mark.parametrize(("change", "is_copied"), [(None, True), ("order", False), ("pixels", False)])
def test_only_features_of_the_same_images_are_copied(run_dir, tmp_path, monkeypatch, change, is_copied):
    manifest = read_manifest(run_dir.parent / "data").sort_values("path", ignore_index=True)
    manifest = manifest.assign(**{IMAGE_HASH_COLUMN: open_image_cache(manifest["file"].tolist(), SIZE).hash_images()})
    if change == "order":
        manifest = manifest[::-1].reset_index(drop=True)
    if change == "pixels":
        manifest.loc[0, IMAGE_HASH_COLUMN] = "0" * 32
    calls, extract = [], overlap.extract_features
    monkeypatch.setattr(overlap, "extract_features", lambda *given: (calls.append(given), extract(*given))[1])
    write_features(tmp_path, manifest, Progress(), run_dir / FEATURES_FILE)
    assert len(calls) == 1 - is_copied
    assert ((tmp_path / FEATURES_FILE).read_bytes() == (run_dir / FEATURES_FILE).read_bytes()) == is_copied


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 damaged"])
def test_features_are_computed_if_those_of_the_earlier_run_cannot_be_read(run_dir, tmp_path, content):
    earlier = tmp_path / "earlier.npz"
    if content is not None:
        earlier.write_bytes(content)
    manifest = read_manifest(run_dir.parent / "data").sort_values("path", ignore_index=True)
    manifest = manifest.assign(**{IMAGE_HASH_COLUMN: open_image_cache(manifest["file"].tolist(), SIZE).hash_images()})
    write_features(tmp_path, manifest, Progress(), earlier)
    assert (tmp_path / FEATURES_FILE).read_bytes() == (run_dir / FEATURES_FILE).read_bytes()


def test_resized_images_of_a_run_in_dicom_are_near_duplicates(run_dir, tmp_path):
    manifest = read_manifest(write_chests(tmp_path / "dicom", range(20), save_resized_dicom))
    overlap = find_overlap(manifest, run_dir, SIZE, Progress())
    assert set(overlap["reason"]) == {NEAR_DUPLICATE} and len(overlap) == 20
    assert overlap["split"].value_counts().to_dict() == {"train": 12, "valid": 4, "test": 4}
    numbers = manifest["path"][overlap.index].str[-7:-4]
    assert numbers.tolist() == overlap["path"].str[-7:-4].tolist(), "each is matched with its original"


@pytest.mark.parametrize(("name", "is_found"), [("case-report-fig1", True), ("12", False)])
def test_a_crop_is_found_under_the_same_distinctive_name(run_dir, tmp_path, name, is_found):
    folder, numbers = tmp_path / "run", range(6)
    manifest = read_manifest(write_chests(tmp_path / "data", numbers, save_png)).assign(split="train")
    paths = [f"{path[:-4]}-{name}.png" if is_found else f"{path[-7:-4]}.png" for path in manifest["path"]]
    hashes = open_image_cache(manifest["file"].tolist(), SIZE).hash_images()
    manifest = manifest.assign(path=paths, **{IMAGE_HASH_COLUMN: hashes})
    folder.mkdir()
    write_manifest(manifest, folder / "manifest.csv")
    write_features(folder, manifest, Progress())
    crops = read_manifest(
        write_chests(tmp_path / "crops", numbers, lambda p, image: save_png(p, image[30:226, 30:226]))
    )
    overlap = find_overlap(crops.assign(path=paths), folder, SIZE, Progress())
    assert overlap["reason"].tolist() == [CROP] * 6 * is_found
    others = read_manifest(write_chests(tmp_path / "others", range(100, 106), save_png)).assign(path=paths)
    assert find_overlap(others, folder, SIZE, Progress()).empty, "other images with the same names"


def test_unrelated_images_do_not_overlap(run_dir, tmp_path):
    manifest = read_manifest(write_chests(tmp_path / "other", range(100, 180), save_resized_dicom))
    assert find_overlap(manifest, run_dir, SIZE, Progress()).empty


def test_without_features_only_the_same_pixels_are_found_with_a_warning(run_dir, tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.csv").write_bytes((run_dir / "manifest.csv").read_bytes())
    write_chests(tmp_path / "data", range(2), save_png)
    write_chests(tmp_path / "data", range(2, 8), save_resized_dicom)
    overlap = find_overlap(read_manifest(tmp_path / "data"), tmp_path / "run", SIZE, Progress())
    assert overlap["reason"].tolist() == [SAME_PIXELS] * 2
    assert "the run has no features.npz: near-duplicates of its training images are not found" in caplog.text


def test_damaged_features_are_rejected_with_a_fix(run_dir, tmp_path):
    manifest = read_manifest(write_chests(tmp_path / "data", range(100, 104), save_png))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.csv").write_bytes((run_dir / "manifest.csv").read_bytes())
    content = (run_dir / FEATURES_FILE).read_bytes()
    middle = len(content) // 2
    other_file = io.BytesIO()
    np.save(other_file, np.zeros(3))
    changed_bytes = content[:middle] + bytes(50) + content[middle + 50 :]
    for damaged in (content[:-99], changed_bytes, other_file.getvalue(), b"", b"no archive"):
        (tmp_path / "run" / FEATURES_FILE).write_bytes(damaged)
        with pytest.raises(DataError, match="features cannot be read .*. Restore the file, or delete it"):
            find_overlap(manifest, tmp_path / "run", SIZE, Progress())
    (tmp_path / "run" / FEATURES_FILE).unlink()
    assert find_overlap(manifest, tmp_path / "run", SIZE, Progress()).empty, "the fix works"


def test_evaluate_leaves_out_or_keeps_resized_training_images_and_reports_them(tmp_path):
    recipe = Recipe(NAME, data=str(write_chests(tmp_path / "toys", range(30), save_png)), weights="none")
    train(recipe.replace(image_size=SIZE, epochs=1, strategy="full"), tmp_path / "run")
    assert FEATURES_FILE in read_checksums(tmp_path / "run")
    with np.load(tmp_path / "run" / FEATURES_FILE) as features:
        manifest = pd.read_csv(tmp_path / "run" / "manifest.csv")
        assert all(features[name].tolist() == manifest[name].tolist() for name in ("source", "path", IMAGE_HASH_COLUMN))
        assert features["thumbnails"].shape == (30, 2, 64, 64)
    write_chests(tmp_path / "other", range(30), save_resized_dicom)
    write_chests(tmp_path / "other", range(100, 110), save_resized_dicom)
    data, n_fitted = Recipe(data=str(tmp_path / "other")), int((manifest["split"] != "test").sum())
    for keep_overlap, n_images in ((False, 40 - n_fitted), (True, 40)):
        folder = tmp_path / f"external-{keep_overlap}"
        text = evaluate(tmp_path / "run", data, folder, keep_overlap=keep_overlap).read_text()
        overlap = json.loads((folder / "run.json").read_text())["tested"]["overlap"]
        counts = {"training": {NEAR_DUPLICATE: n_fitted}, "test": {NEAR_DUPLICATE: 30 - n_fitted}}
        assert overlap == {"kept": keep_overlap, **counts}
        assert json.loads((folder / "metrics.json").read_text())["test"]["n_images"] == n_images
        assert (f"Overlap with the training images of the model: {n_fitted} images" in text) == keep_overlap
        assert f"Images of the test split of the run: {30 - n_fitted} images" in text
        assert f"{n_fitted} images {'kept despite' if keep_overlap else 'left out because of'} overlap with" in text
    write_chests(tmp_path / "same", range(30), save_resized_dicom)
    text = evaluate(tmp_path / "run", Recipe(data=str(tmp_path / "same")), tmp_path / "own").read_text()
    assert f"No external images: all {30 - n_fitted} images are in the test split of the run" in text
    assert "Tested on external data" not in text
    skipped = pd.read_csv(tmp_path / "external-False" / "skipped.csv")
    assert len(skipped) == n_fitted
    assert skipped["reason"].str.contains("toys-0...png in the (?:train|valid) split of the run: near-duplicate").all()
