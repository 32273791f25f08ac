"""Tests for the audit: every planted leak and shortcut is detected, and data without any passes."""

import io
from functools import partial

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from recording_progress import peak_memory
from toy_images import draw_chest

from fastcxr.audit import hash_search, image_features, near_duplicates
from fastcxr.audit.image_features import ImageFeatures, extract_features
from fastcxr.audit.manifest_checks import (
    check_class_sizes,
    check_duplicates,
    check_manifest,
    check_patients,
    check_sources,
)
from fastcxr.audit.near_duplicates import check_near_duplicates, find_near_duplicates, match_near_duplicates
from fastcxr.audit.shortcut_probes import check_shortcuts
from fastcxr.progress.base import Progress


def save(image, path, **options):
    Image.fromarray(image).save(path, **options)
    return str(path)


@pytest.fixture
def cohort(tmp_path):
    """Forty images of two classes and thirty patients; both sources contain both classes."""
    rng, rows = np.random.default_rng(0), []
    for number in range(40):
        file = save(draw_chest(rng), tmp_path / f"{number}.png")
        rows.append({
            "path": f"{number}.png", "file": file, "label": "ab"[number % 2], "source": "st"[number // 2 % 2],
            "patient": f"p{number % 30}", "patient_origin": "column", "split": "train",
        })  # fmt: skip
    table = pd.DataFrame(rows)
    part = table["patient"].str[1:].astype(int) % 5
    return table.assign(split=np.where(part == 0, "test", np.where(part == 1, "valid", "train")))


def compute_features(table):
    return extract_features(table["file"].tolist(), Progress())


def test_data_without_faults_passes(cohort):
    verdicts = {finding.check: finding.verdict for finding in check_manifest(cohort)}
    assert verdicts == {"patients": "PASS", "copies": "PASS", "sources": "PASS", "sizes": "WARN"}
    assert check_near_duplicates(cohort, compute_features(cohort)).verdict == "PASS"


def test_a_patient_in_two_splits_fails_with_its_images_as_a_group(cohort):
    cohort.loc[cohort["patient"] == "p3", "split"] = ["train", "test"]
    finding = check_patients(cohort)
    assert finding.verdict == "FAIL" and "1 patient with 2 images" in finding.message
    assert finding.groups == (tuple(cohort.index[cohort["patient"] == "p3"]),)


def test_missing_patient_identifiers_are_a_warning(cohort):
    unknown = cohort.assign(patient=cohort["path"], patient_origin="image")
    assert check_patients(unknown).verdict == "WARN"
    assert (
        check_patients(unknown.assign(patient_origin=["copy"] * 2 + ["image"] * (len(unknown) - 2))).verdict == "WARN"
    )


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"split": "train", "label": "a"}, "WARN"),
        ({"split": "test"}, "FAIL"),
        ({"label": "b", "split": "train"}, "FAIL"),
    ],
)
def test_exact_duplicates_in_two_splits_or_classes_fail(cohort, tmp_path, change, verdict):
    first = cohort[(cohort["label"] == "a") & (cohort["split"] == "train")].iloc[0]
    (tmp_path / "copy.png").write_bytes((tmp_path / first["path"]).read_bytes())
    duplicate = first.to_dict() | {"path": "copy.png", "file": str(tmp_path / "copy.png"), "patient": "q"} | change
    finding = check_duplicates(pd.concat([cohort, pd.DataFrame([duplicate])], ignore_index=True))
    assert finding.verdict == verdict
    assert finding.groups == ((first.name, 40),)


def test_classes_from_different_sources_fail(cohort):
    finding = check_sources(cohort.assign(source=np.where(cohort["label"] == "a", "s", "t")))
    assert finding.verdict == "FAIL" and (finding.value, finding.chance_level) == (1.0, 0.5)
    assert check_sources(cohort.assign(source="s")).value is None


def test_few_images_of_a_class_are_a_warning(cohort):
    many = pd.concat([cohort] * 10, ignore_index=True)
    assert (check_class_sizes(cohort).verdict, check_class_sizes(many).verdict) == ("WARN", "PASS")


def jpeg(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=30)
    return np.asarray(Image.open(content))


CHANGES = {
    "saved again": jpeg,
    "resized": lambda image: np.asarray(Image.fromarray(image).resize((180, 180))),
    "brightened": lambda image: (255 * (image / 255) ** 0.7).astype(np.uint8),
    "padded": lambda image: np.pad(image, 6),
    "flipped": lambda image: image[:, ::-1].copy(),
    "inverted": lambda image: 255 - image,
}


@pytest.mark.parametrize("name", CHANGES)
def test_near_duplicates_are_found_and_unrelated_images_are_not(name, tmp_path):
    rng = np.random.default_rng(1)
    images = [draw_chest(rng) for _ in range(60)]
    files = [save(image, tmp_path / f"{number}.png") for number, image in enumerate(images)]
    files += [save(CHANGES[name](image), tmp_path / f"changed-{number}.png") for number, image in enumerate(images)]
    pairs = set(find_near_duplicates(extract_features(files, Progress())))
    wanted = {(number, number + 60) for number in range(60)}
    assert len(pairs & wanted) >= 57, "a recall of .95"
    assert not pairs - wanted


def test_a_near_duplicate_with_noise_in_its_border_is_found(tmp_path):
    rng = np.random.default_rng(1)
    framed = [np.pad(draw_chest(rng), 30) for _ in range(20)]
    noisy = [np.clip(image + rng.integers(0, 24, image.shape), 0, 255).astype(np.uint8) for image in framed]
    files = [save(image, tmp_path / f"{number}.png") for number, image in enumerate(framed + noisy)]
    assert find_near_duplicates(extract_features(files, Progress())) == [(number, number + 20) for number in range(20)]


def test_the_block_size_does_not_change_the_near_duplicates(monkeypatch):
    rng = np.random.default_rng(1)
    small = np.stack([draw_chest(rng, 64) for _ in range(60)])
    small[30:40], small[45:50], small[55:] = small[:10, :, ::-1], 255 - small[10:15], small[20:25]
    features = ImageFeatures(small, small, np.empty((60, 0)), pd.DataFrame(index=range(60)))
    whole = find_near_duplicates(features)
    first, second = features.select_rows(np.arange(30)), features.select_rows(np.arange(30, 60))
    matches = match_near_duplicates(second, first)
    monkeypatch.setattr(image_features, "ROWS", 7)
    monkeypatch.setattr(hash_search, "MAX_PAIRS", 7)
    monkeypatch.setattr(near_duplicates, "PAIRS", 2)
    assert find_near_duplicates(features) == whole
    assert match_near_duplicates(second, first) == matches == {b - 30: a for a, b in whole if a < 30 <= b}
    assert set(whole) >= {(0, 30), (9, 39), (10, 45), (14, 49), (20, 55), (24, 59)}


@pytest.mark.slow
def test_near_duplicates_need_less_memory_than_all_images_in_single_precision(monkeypatch):
    monkeypatch.setattr(hash_search, "MAX_PAIRS", 1 << 14)
    monkeypatch.setattr(image_features, "ROWS", 256)
    small = np.random.default_rng(0).integers(0, 256, (2000, 64, 64), dtype=np.uint8)
    features = ImageFeatures(small, small, None, None)
    for search in (find_near_duplicates, lambda images: match_near_duplicates(images, images)):
        assert peak_memory(partial(search, features)) < 32e6, "all images in single precision take 33 MB"


def test_thumbnails_are_stored_as_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(image_features, "ROWS", 32)
    rng = np.random.default_rng(0)
    files = [save(rng.integers(0, 256, (64, 64), dtype=np.uint8), tmp_path / f"{n}.png") for n in range(10)] * 60
    compute_features(pd.DataFrame({"file": files[:10]}))  # imports
    assert peak_memory(lambda: compute_features(pd.DataFrame({"file": files}))) < 12_000 * len(files), (
        "two thumbnails of 4 KiB"
    )


def test_a_near_duplicate_in_two_splits_fails_and_of_two_patients_is_a_warning(cohort, tmp_path):
    first = cohort[cohort["split"] == "train"].iloc[0]
    file = save(jpeg(np.asarray(Image.open(first["file"]))), tmp_path / "again.png")
    for split, verdict in (("test", "FAIL"), ("train", "WARN")):
        duplicate = first.to_dict() | {"path": "again.png", "file": file, "patient": "q", "split": split}
        table = pd.concat([cohort, pd.DataFrame([duplicate])], ignore_index=True)
        finding = check_near_duplicates(table, compute_features(table))
        assert finding.verdict == verdict and finding.groups == ((first.name, 40),)


def make_images(n, seed=0, mark=None):
    """Return a manifest and features of n images of two classes; `mark` changes the images of the second class."""
    rng = np.random.default_rng(seed)
    small = np.stack([draw_chest(rng, 64) for _ in range(n)])
    labels = np.array(["a", "b"])[np.arange(n) % 2]
    bytes_ = rng.integers(9000, 9999, n)
    metadata = pd.DataFrame(
        {"width": 256, "height": 256, "bytes": bytes_, "kind": "PNG", "mode": "L", "coarseness": np.nan, "maker": None}
    )
    if mark:
        mark(small, labels == "b", metadata)
    histogram = np.stack([np.bincount(image.ravel() // 8, minlength=32) / image.size for image in small])
    table = pd.DataFrame({"label": labels, "patient": [f"p{i // 2}-{i % 2}" for i in range(n)], "source": "s"})
    return table, ImageFeatures(small, small, histogram, metadata)


def mark_corner(small, is_marked, metadata):
    small[is_marked, 2:6, 2:6] = 255


def mark_color_mode(small, is_marked, metadata):
    metadata.loc[is_marked, "mode"] = "RGB"


def mark_gray(small, is_marked, metadata):
    small[is_marked] = (small[is_marked] * 0.6).astype(np.uint8)


def get_verdicts(table, features):
    return {finding.check: finding.verdict for finding in check_shortcuts(table, features, Progress())}


def test_images_without_shortcuts_do_not_fail():
    assert "FAIL" not in get_verdicts(*make_images(160)).values()


@pytest.mark.parametrize(("mark", "check"), [(mark_corner, "corners"), (mark_color_mode, "files"), (mark_gray, "gray")])
def test_a_planted_shortcut_fails(mark, check):
    assert get_verdicts(*make_images(160, mark=mark))[check] == "FAIL"


def test_a_mark_in_the_corner_is_detected_with_the_centre_masked():
    verdicts = get_verdicts(*make_images(160, mark=mark_corner))
    assert verdicts["centre"] == "FAIL" and verdicts["shuffled"] == "PASS"


def test_too_few_images_are_a_warning():
    table, features = make_images(12)
    (finding,) = check_shortcuts(table, features, Progress())
    assert finding.verdict == "WARN" and "Too few images to test for shortcuts" in finding.message
