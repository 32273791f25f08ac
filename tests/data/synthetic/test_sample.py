"""Tests for sample.py: the sample is reproducible, written completely or not at all, and free of shortcuts."""

import hashlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from fastcxr.data.synthetic import sample
from fastcxr.data.synthetic.sample import draw_image, find_or_write_sample, plan_images, write_sample_dataset
from fastcxr.errors import OutputError

COMMITTED = Path(__file__).parents[3] / "data" / "sample"
N_REDRAWN = 4  # drawing all images takes 20 seconds


@pytest.fixture(scope="module")
def committed():
    """Files, classes and patients of the committed images."""
    files = sorted(COMMITTED.glob("*/*.jpg"))
    labels = np.array([file.parent.name for file in files])
    patients = np.array([file.name[:8] for file in files])
    return files, labels, patients


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(sample, "IMAGES_PER_CLASS", 2)


def macro_auroc(features, labels, patients, strength):
    """Return the macro AUROC of a logistic regression in 5-fold cross-validation grouped by patient."""
    # all components are kept: a rotation, which gives the same result ten times faster
    rotated = PCA().fit_transform(StandardScaler().fit_transform(features))
    model = LogisticRegression(C=strength, max_iter=500)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    probability = cross_val_predict(model, rotated, labels, groups=patients, cv=folds, method="predict_proba")
    return roc_auc_score(labels, probability, multi_class="ovr", average="macro")


def read_resized(files, size):
    return np.array([np.asarray(Image.open(file).resize((size, size), Image.Resampling.BOX)) / 255 for file in files])


def test_an_image_drawn_twice_is_identical():
    for exposure in plan_images()[:2]:
        first, second = (hashlib.sha256(draw_image(exposure).tobytes()).hexdigest() for _ in range(2))
        assert first == second


def test_the_first_images_equal_the_committed_ones():
    for exposure in plan_images()[:N_REDRAWN]:
        drawn = np.asarray(Image.open(sample.io.BytesIO(sample._encode_jpeg(draw_image(exposure)))))
        committed = np.asarray(Image.open(COMMITTED / exposure.finding / exposure.name))
        # equal on one machine; other processors may round differently
        assert drawn.shape == committed.shape
        assert np.abs(drawn.astype(int) - committed).max() <= 1


def test_the_committed_files_are_the_planned_ones(committed):
    planned = {f"{exposure.finding}/{exposure.name}" for exposure in plan_images()}
    assert {f"{file.parent.name}/{file.name}" for file in committed[0]} == planned


def test_another_seed_draws_other_patients():
    assert [e.name for e in plan_images(1)[:20]] != [e.name for e in plan_images(0)[:20]]


def test_classes_have_the_same_number_of_images_and_some_patients_recover(committed):
    _, labels, patients = committed
    assert len(set(Counter(labels.tolist()).values())) == 1
    classes = {patient: set(labels[patients == patient].tolist()) for patient in patients.tolist()}
    assert max(Counter(patients.tolist()).values()) == 4
    assert any(found == {"clear_lungs", "lobar_opacity"} for found in classes.values())
    assert all(len(found) < 3 for found in classes.values())


def test_file_names_contain_the_patient_and_every_file_is_marked_synthetic(committed):
    for file in committed[0]:
        assert re.fullmatch(r"\d{8}_\d{3}\.jpg", file.name)
        with Image.open(file) as image:
            assert image.mode == "L"
            assert image.info["comment"].startswith(b"SYNTHETIC")
    assert (COMMITTED / "README.txt").read_text().startswith("SYNTHETIC")


def test_the_sample_is_small_on_disk(committed):
    assert sum(file.stat().st_size for file in committed[0]) < 4_000_000


@pytest.mark.slow
def test_a_linear_model_of_pixels_cannot_separate_the_classes(committed):
    files, labels, patients = committed
    pixels = read_resized(files, 64).reshape(len(files), -1)
    scores = {strength: macro_auroc(pixels, labels, patients, strength) for strength in (1e-4, 1e-3, 1e-2, 1e-1)}
    assert max(scores.values()) < 0.80, scores


def test_only_the_lungs_contain_class_information(committed):
    files, labels, patients = committed
    images = read_resized(files, 64)
    border = np.ones((64, 64), bool)
    border[6:-6, 6:-6] = False
    arrays = [np.asarray(Image.open(file)) for file in files]
    inputs = {
        "border": images[:, border],
        "histogram": np.array([np.histogram(array, 32, (0, 256))[0] / array.size for array in arrays]),
        "brightness": np.array([(array.mean(), array.std()) for array in arrays]),
        "file": np.array([(file.stat().st_size, *a.shape) for file, a in zip(files, arrays, strict=True)]),
        "name": np.array([(int(file.name[:8]), int(file.name[9:12])) for file in files]),
    }
    scores = {name: macro_auroc(features, labels, patients, 1e-2) for name, features in inputs.items()}
    assert max(scores.values()) < 0.60, scores


def test_a_sample_is_complete_and_no_temporary_folder_remains(tmp_path, small):
    folder = write_sample_dataset(tmp_path / "deep" / "sample")
    assert len(list(folder.glob("*/*.jpg"))) == 6
    assert [path.name for path in folder.parent.iterdir()] == ["sample"]


def test_an_interrupted_write_leaves_no_files(tmp_path, small, monkeypatch):
    def stop(exposure):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "draw_image", stop)
    with pytest.raises(KeyboardInterrupt):
        write_sample_dataset(tmp_path / "sample")
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_used_and_another_folder_is_an_error(tmp_path, small):
    write_sample_dataset(tmp_path)
    with pytest.raises(OutputError, match="the folder is not empty.*Choose a new folder") as error:
        write_sample_dataset(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, small):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written.*Choose a writable folder"):
        write_sample_dataset(tmp_path / "file" / "sample")


def test_two_processes_get_the_same_complete_sample(tmp_path, small, monkeypatch):
    draw, folder = sample.draw_image, tmp_path / "sample"

    def draw_slowly(exposure):
        monkeypatch.setattr(sample, "draw_image", draw)
        write_sample_dataset(folder)  # another process finishes while this one draws its first image
        return draw(exposure)

    monkeypatch.setattr(sample, "draw_image", draw_slowly)
    assert write_sample_dataset(folder) == folder
    assert len(list(folder.glob("*/*.jpg"))) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]


def test_a_file_written_meanwhile_is_kept(tmp_path, small, monkeypatch):
    draw, folder = sample.draw_image, tmp_path / "sample"

    def draw_slowly(exposure):
        folder.mkdir(exist_ok=True)
        (folder / "mine.txt").write_text("mine")
        return draw(exposure)

    monkeypatch.setattr(sample, "draw_image", draw_slowly)
    with pytest.raises(OutputError, match="Choose"):
        write_sample_dataset(folder)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_the_cached_sample_is_drawn_once(tmp_path, small, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = find_or_write_sample()
    assert folder == tmp_path / "fastcxr" / "sample-v1"
    monkeypatch.setattr(sample, "draw_image", None)
    assert find_or_write_sample() == folder


def test_the_module_prints_its_usage_and_errors_on_the_command_line(tmp_path):
    command = [sys.executable, "-m", "fastcxr.data.synthetic.sample"]
    usage = subprocess.run(command, capture_output=True, text=True)
    assert usage.returncode != 0
    assert "usage: python -m fastcxr.data.synthetic.sample DIR" in usage.stderr
    (tmp_path / "mine.txt").write_text("mine")
    result = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode != 0
    assert "Choose a new folder" in result.stderr
