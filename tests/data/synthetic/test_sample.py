"""Tests for sample.py: the cohort is the same everywhere, whole or absent, and no shortcut tells its classes apart."""

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
FIRST = 4  # images that are drawn again here; all of them would take twenty seconds


@pytest.fixture(scope="module")
def cohort():
    """Every committed image with its class and patient."""
    files = sorted(COMMITTED.glob("*/*.jpg"))
    labels = np.array([file.parent.name for file in files])
    patients = np.array([file.name[:8] for file in files])
    return files, labels, patients


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(sample, "IMAGES_PER_CLASS", 2)


def macro_auroc(features, labels, patients, strength):
    """Patient-wise five-fold cross-validated AUROC of a logistic regression, mean over the classes."""
    # every direction is kept: the axes are only turned, for the same answer in a tenth of the time
    turned = PCA().fit_transform(StandardScaler().fit_transform(features))
    model = LogisticRegression(C=strength, max_iter=500)
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    probability = cross_val_predict(model, turned, labels, groups=patients, cv=folds, method="predict_proba")
    return roc_auc_score(labels, probability, multi_class="ovr", average="macro")


def shrunk(files, size):
    return np.array([np.asarray(Image.open(file).resize((size, size), Image.Resampling.BOX)) / 255 for file in files])


def test_an_image_drawn_twice_is_the_same():
    for exposure in plan_images()[:2]:
        first, second = (hashlib.sha256(draw_image(exposure).tobytes()).hexdigest() for _ in range(2))
        assert first == second


def test_the_first_images_drawn_here_are_the_committed_ones():
    for exposure in plan_images()[:FIRST]:
        drawn = np.asarray(Image.open(sample.io.BytesIO(sample._encode_jpeg(draw_image(exposure)))))
        committed = np.asarray(Image.open(COMMITTED / exposure.finding / exposure.name))
        # equal on one machine; another one's arithmetic may turn a rounding over
        assert drawn.shape == committed.shape
        assert np.abs(drawn.astype(int) - committed).max() <= 1


def test_the_committed_files_are_the_planned_ones(cohort):
    planned = {f"{exposure.finding}/{exposure.name}" for exposure in plan_images()}
    assert {f"{file.parent.name}/{file.name}" for file in cohort[0]} == planned


def test_another_seed_draws_other_patients():
    assert [e.name for e in plan_images(1)[:20]] != [e.name for e in plan_images(0)[:20]]


def test_every_class_has_the_same_number_of_images_and_some_patients_recover(cohort):
    _, labels, patients = cohort
    assert len(set(Counter(labels.tolist()).values())) == 1
    classes = {patient: set(labels[patients == patient].tolist()) for patient in patients.tolist()}
    assert max(Counter(patients.tolist()).values()) == 4
    assert any(found == {"clear_lungs", "lobar_opacity"} for found in classes.values())
    assert all(len(found) < 3 for found in classes.values())


def test_names_carry_the_patient_and_every_file_says_synthetic(cohort):
    for file in cohort[0]:
        assert re.fullmatch(r"\d{8}_\d{3}\.jpg", file.name)
        with Image.open(file) as image:
            assert image.mode == "L"
            assert image.info["comment"].startswith(b"SYNTHETIC")
    assert (COMMITTED / "README.txt").read_text().startswith("SYNTHETIC")


def test_the_cohort_is_small_on_disk(cohort):
    assert sum(file.stat().st_size for file in cohort[0]) < 4_000_000


def test_pixels_alone_do_not_tell_the_classes_apart(cohort):
    files, labels, patients = cohort
    pixels = shrunk(files, 64).reshape(len(files), -1)
    scores = {strength: macro_auroc(pixels, labels, patients, strength) for strength in (1e-4, 1e-3, 1e-2, 1e-1)}
    assert max(scores.values()) < 0.80, scores


def test_nothing_but_the_lungs_tells_the_classes_apart(cohort):
    files, labels, patients = cohort
    pictures = shrunk(files, 64)
    border = np.ones((64, 64), bool)
    border[6:-6, 6:-6] = False
    arrays = [np.asarray(Image.open(file)) for file in files]
    blind = {
        "border": pictures[:, border],
        "histogram": np.array([np.histogram(array, 32, (0, 256))[0] / array.size for array in arrays]),
        "brightness": np.array([(array.mean(), array.std()) for array in arrays]),
        "file": np.array([(file.stat().st_size, *a.shape) for file, a in zip(files, arrays, strict=True)]),
        "name": np.array([(int(file.name[:8]), int(file.name[9:12])) for file in files]),
    }
    scores = {name: macro_auroc(features, labels, patients, 1e-2) for name, features in blind.items()}
    assert max(scores.values()) < 0.60, scores


def test_a_sample_is_whole_and_leaves_nothing_beside_it(tmp_path, small):
    folder = write_sample_dataset(tmp_path / "deep" / "sample")
    assert len(list(folder.glob("*/*.jpg"))) == 6
    assert [path.name for path in folder.parent.iterdir()] == ["sample"]


def test_an_interrupted_drawing_leaves_nothing(tmp_path, small, monkeypatch):
    def stop(exposure):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "draw_image", stop)
    with pytest.raises(KeyboardInterrupt):
        write_sample_dataset(tmp_path / "sample")
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled_and_a_full_one_is_refused(tmp_path, small):
    write_sample_dataset(tmp_path)
    with pytest.raises(OutputError, match="already holds something.*Choose a new folder") as error:
        write_sample_dataset(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_place_that_cannot_be_written_is_named(tmp_path, small):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written.*Choose a folder you may write to"):
        write_sample_dataset(tmp_path / "file" / "sample")


def test_of_two_processes_at_once_both_get_the_whole_sample(tmp_path, small, monkeypatch):
    draw, folder = sample.draw_image, tmp_path / "sample"

    def slower(exposure):
        monkeypatch.setattr(sample, "draw_image", draw)
        write_sample_dataset(folder)  # the other process ends while this one has just begun
        return draw(exposure)

    monkeypatch.setattr(sample, "draw_image", slower)
    assert write_sample_dataset(folder) == folder
    assert len(list(folder.glob("*/*.jpg"))) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]


def test_another_thing_that_appears_meanwhile_is_kept(tmp_path, small, monkeypatch):
    draw, folder = sample.draw_image, tmp_path / "sample"

    def slower(exposure):
        folder.mkdir(exist_ok=True)
        (folder / "mine.txt").write_text("mine")
        return draw(exposure)

    monkeypatch.setattr(sample, "draw_image", slower)
    with pytest.raises(OutputError, match="Choose"):
        write_sample_dataset(folder)
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_the_cache_is_drawn_once(tmp_path, small, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = find_or_write_sample()
    assert folder == tmp_path / "fastcxr" / "sample-v1"
    monkeypatch.setattr(sample, "draw_image", None)
    assert find_or_write_sample() == folder


def test_the_module_draws_from_the_command_line_and_explains_itself(tmp_path):
    command = [sys.executable, "-m", "fastcxr.data.synthetic.sample"]
    usage = subprocess.run(command, capture_output=True, text=True)
    assert usage.returncode != 0
    assert "usage: python -m fastcxr.data.synthetic.sample DIR" in usage.stderr
    (tmp_path / "mine.txt").write_text("mine")
    refused = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert refused.returncode != 0
    assert "Choose a new folder" in refused.stderr
