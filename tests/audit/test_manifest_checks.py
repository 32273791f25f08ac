"""Each planted leak and shortcut is found, and a cohort without any is told so."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from recording_progress import peak_memory

from fastcxr.audit import image_features, near_duplicates
from fastcxr.audit.image_features import ImageFeatures, extract_features
from fastcxr.audit.manifest_checks import (
    check_class_sizes,
    check_duplicates,
    check_manifest,
    check_patients,
    check_sources,
)
from fastcxr.audit.near_duplicates import check_near_duplicates, find_near_duplicates
from fastcxr.audit.shortcut_probes import check_shortcuts
from fastcxr.progress.base import Progress


def draw_chest(rng, size=256):
    """A picture with the frequencies of a radiograph: unlike any other, smooth, dark at the sides."""
    waves = np.fft.rfft2(rng.normal(size=(size, size)))
    distance = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) + 1 / size
    picture = np.fft.irfft2(waves / distance**1.6, s=(size, size))
    picture = (picture - picture.min()) / np.ptp(picture)
    return (30 + 200 * picture).astype(np.uint8)


def save(picture, path, **options):
    Image.fromarray(picture).save(path, **options)
    return str(path)


@pytest.fixture
def cohort(tmp_path):
    """Forty images of two classes and thirty patients, from two sources that hold both."""
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


def features_of(table):
    return extract_features(table["file"].tolist(), Progress())


def test_a_cohort_without_faults_passes_what_it_can_pass(cohort):
    verdicts = {finding.check: finding.verdict for finding in check_manifest(cohort)}
    assert verdicts == {"patients": "PASS", "copies": "PASS", "sources": "PASS", "sizes": "WARN"}
    assert check_near_duplicates(cohort, features_of(cohort)).verdict == "PASS"


def test_a_patient_in_two_splits_fails_and_its_images_are_shown(cohort):
    cohort.loc[cohort["patient"] == "p3", "split"] = ["train", "test"]
    found = check_patients(cohort)
    assert found.verdict == "FAIL" and "1 patient with 2 images" in found.message
    assert found.groups == (tuple(cohort.index[cohort["patient"] == "p3"]),)


def test_nobody_known_is_a_warning(cohort):
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
def test_copies_fail_where_splits_or_labels_part_them(cohort, tmp_path, change, verdict):
    first = cohort[(cohort["label"] == "a") & (cohort["split"] == "train")].iloc[0]
    (tmp_path / "copy.png").write_bytes((tmp_path / first["path"]).read_bytes())
    copy = first.to_dict() | {"path": "copy.png", "file": str(tmp_path / "copy.png"), "patient": "q"} | change
    found = check_duplicates(pd.concat([cohort, pd.DataFrame([copy])], ignore_index=True))
    assert found.verdict == verdict
    assert found.groups == ((first.name, 40),)


def test_a_class_with_a_source_of_its_own_fails(cohort):
    found = check_sources(cohort.assign(source=np.where(cohort["label"] == "a", "s", "t")))
    assert found.verdict == "FAIL" and (found.value, found.chance_level) == (1.0, 0.5)
    assert check_sources(cohort.assign(source="s")).value is None


def test_few_images_behind_a_figure_are_a_warning(cohort):
    many = pd.concat([cohort] * 10, ignore_index=True)
    assert (check_class_sizes(cohort).verdict, check_class_sizes(many).verdict) == ("WARN", "PASS")


def jpeg(picture):
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=30)
    return np.asarray(Image.open(content))


CHANGES = {
    "saved anew": jpeg,
    "resized": lambda picture: np.asarray(Image.fromarray(picture).resize((180, 180))),
    "brightened": lambda picture: (255 * (picture / 255) ** 0.7).astype(np.uint8),
    "padded": lambda picture: np.pad(picture, 6),
    "mirrored": lambda picture: picture[:, ::-1].copy(),
    "inverted": lambda picture: 255 - picture,
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_picture_in_another_form_is_found_and_no_other_is(name, tmp_path):
    rng = np.random.default_rng(1)
    pictures = [draw_chest(rng) for _ in range(60)]
    files = [save(picture, tmp_path / f"{number}.png") for number, picture in enumerate(pictures)]
    files += [
        save(CHANGES[name](picture), tmp_path / f"changed-{number}.png") for number, picture in enumerate(pictures)
    ]
    pairs = set(find_near_duplicates(extract_features(files, Progress())))
    wanted = {(number, number + 60) for number in range(60)}
    assert len(pairs & wanted) >= 57, "a recall of .95"
    assert not pairs - wanted


def test_one_picture_is_found_although_noise_makes_its_border_uneven(tmp_path):
    rng = np.random.default_rng(1)
    framed = [np.pad(draw_chest(rng), 30) for _ in range(20)]
    noisy = [np.clip(picture + rng.integers(0, 24, picture.shape), 0, 255).astype(np.uint8) for picture in framed]
    files = [save(picture, tmp_path / f"{number}.png") for number, picture in enumerate(framed + noisy)]
    assert find_near_duplicates(extract_features(files, Progress())) == [(number, number + 20) for number in range(20)]


def test_images_of_two_blocks_are_compared_as_those_of_one(monkeypatch):
    rng = np.random.default_rng(1)
    small = np.stack([draw_chest(rng, 64) for _ in range(60)])
    small[30:40], small[45:50], small[55:] = small[:10, :, ::-1], 255 - small[10:15], small[20:25]
    looks = ImageFeatures(small, small, None, None)
    whole = find_near_duplicates(looks)
    monkeypatch.setattr(image_features, "ROWS", 7)
    monkeypatch.setattr(near_duplicates, "BLOCK_ROWS", 7)
    monkeypatch.setattr(near_duplicates, "PAIRS", 2)
    assert find_near_duplicates(looks) == whole
    assert set(whole) >= {(0, 30), (9, 39), (10, 45), (14, 49), (20, 55), (24, 59)}


def test_near_duplicates_are_found_in_less_memory_than_the_images_take_as_numbers(monkeypatch):
    monkeypatch.setattr(near_duplicates, "BLOCK_ROWS", 256)
    monkeypatch.setattr(image_features, "ROWS", 256)
    small = np.random.default_rng(0).integers(0, 256, (2000, 64, 64), dtype=np.uint8)
    looks = ImageFeatures(small, small, None, None)
    assert peak_memory(lambda: find_near_duplicates(looks)) < 32e6, "all images in single precision take 33 MB"


def test_images_are_kept_as_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(image_features, "ROWS", 32)
    rng = np.random.default_rng(0)
    files = [save(rng.integers(0, 256, (64, 64), dtype=np.uint8), tmp_path / f"{n}.png") for n in range(10)] * 60
    features_of(pd.DataFrame({"file": files[:10]}))  # imports
    assert peak_memory(lambda: features_of(pd.DataFrame({"file": files}))) < 12_000 * len(files), "two squares of 4 KiB"


def test_one_picture_in_two_splits_fails_and_two_patients_in_one_split_are_a_warning(cohort, tmp_path):
    first = cohort[cohort["split"] == "train"].iloc[0]
    file = save(jpeg(np.asarray(Image.open(first["file"]))), tmp_path / "anew.png")
    for split, verdict in (("test", "FAIL"), ("train", "WARN")):
        copy = first.to_dict() | {"path": "anew.png", "file": file, "patient": "q", "split": split}
        table = pd.concat([cohort, pd.DataFrame([copy])], ignore_index=True)
        found = check_near_duplicates(table, features_of(table))
        assert found.verdict == verdict and found.groups == ((first.name, 40),)


def images_of(n, seed=0, mark=None):
    """Looks of n pictures of two classes; `mark` changes those of the second."""
    rng = np.random.default_rng(seed)
    small = np.stack([draw_chest(rng, 64) for _ in range(n)])
    labels = np.array(["a", "b"])[np.arange(n) % 2]
    bytes_ = rng.integers(9000, 9999, n)
    facts = pd.DataFrame(
        {"width": 256, "height": 256, "bytes": bytes_, "kind": "PNG", "mode": "L", "coarseness": np.nan, "maker": None}
    )
    if mark:
        mark(small, labels == "b", facts)
    histogram = np.stack([np.bincount(picture.ravel() // 8, minlength=32) / picture.size for picture in small])
    table = pd.DataFrame({"label": labels, "patient": [f"p{i // 2}-{i % 2}" for i in range(n)], "source": "s"})
    return table, ImageFeatures(small, small, histogram, facts)


def mark_corner(small, chosen, facts):
    small[chosen, 2:6, 2:6] = 255


def mark_files(small, chosen, facts):
    facts.loc[chosen, "mode"] = "RGB"


def mark_gray(small, chosen, facts):
    small[chosen] = (small[chosen] * 0.6).astype(np.uint8)


def verdicts(table, looks):
    return {finding.check: finding.verdict for finding in check_shortcuts(table, looks, Progress())}


def test_where_nothing_tells_the_classes_nothing_fails():
    assert "FAIL" not in verdicts(*images_of(160)).values()


@pytest.mark.parametrize(("mark", "check"), [(mark_corner, "corners"), (mark_files, "files"), (mark_gray, "gray")])
def test_a_planted_shortcut_fails(mark, check):
    assert verdicts(*images_of(160, mark=mark))[check] == "FAIL"


def test_a_mark_outside_the_lungs_is_found_with_the_centre_black():
    found = verdicts(*images_of(160, mark=mark_corner))
    assert found["centre"] == "FAIL" and found["shuffled"] == "PASS"


def test_too_few_images_are_not_probed():
    table, looks = images_of(12)
    (found,) = check_shortcuts(table, looks, Progress())
    assert found.verdict == "WARN" and "nothing can be probed" in found.message
