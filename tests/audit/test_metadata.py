"""Tests for metadata.py: properties that predict the class are detected, random properties are not."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import ComputedRadiographyImageStorage

from fastcxr.audit.image_features import extract_features
from fastcxr.audit.metadata import _grade_auroc, _read_demographic, check_metadata
from fastcxr.audit.probe_models import assign_folds
from fastcxr.audit.shortcut_probes import check_source_leak
from fastcxr.data.demographics import parse_sex
from fastcxr.progress.base import Progress


def make_manifest(n=120, seed=0):
    """Return a manifest of two classes and metadata of its files that are independent of the class."""
    rng = np.random.default_rng(seed)
    metadata = {
        "width": rng.integers(900, 1100, n),
        "height": rng.integers(900, 1100, n),
        "bytes": rng.integers(90_000, 99_000, n),
        "kind": rng.choice(["PNG", "JPEG"], n),
        "mode": rng.choice(["L", "RGB"], n),
        "coarseness": rng.choice([300, 900], n).astype(float),
        "maker": rng.choice(["agfa", "fuji"], n),
    }
    demographics = {
        "view": rng.choice(["AP", "pa"], n),
        "patient_age": rng.integers(20, 80, n).astype(str),
        "gender": rng.choice(["F", "male"], n),
    }
    labels = np.array(["well", "ill"])[np.arange(n) % 2]
    patients = [f"p{number}" for number in range(n)]
    return pd.DataFrame({"label": labels, "patient": patients, "source": "s", **demographics}), pd.DataFrame(metadata)


CHECKS = {"size", "aspect", "bytes", "kind", "mode", "coarseness", "maker", "view", "age", "sex"}
PLANTED = {  # check: column, value in the class ill, value in the class well
    "size": ("width", 1024, 2048),
    "bytes": ("bytes", 50_000, 200_000),
    "kind": ("kind", "PNG", "JPEG"),
    "mode": ("mode", "L", "RGB"),
    "coarseness": ("coarseness", 300.0, 900.0),
    "maker": ("maker", "agfa", "fuji"),
    "view": ("view", "AP", "PA"),
    "age": ("patient_age", "004Y", "055Y"),
    "sex": ("gender", "F", "M"),
}


def check(manifest, metadata):
    folds = assign_folds(manifest["label"].to_numpy(), manifest["patient"].to_numpy())
    return {finding.check: finding for finding in check_metadata(manifest, metadata, folds)}


@pytest.mark.parametrize("seed", range(3))
def test_random_properties_do_not_fail_and_each_has_a_finding(seed):
    found = check(*make_manifest(seed=seed))
    assert set(found) == CHECKS | {"files"}
    assert not [name for name, finding in found.items() if finding.verdict == "FAIL"]
    assert {found[name].verdict for name in CHECKS} == {"PASS"}


@pytest.mark.parametrize("name", PLANTED)
def test_a_property_equal_to_the_class_fails_with_its_auroc_and_chance_level(name):
    manifest, metadata = make_manifest()
    column, one, other = PLANTED[name]
    table = metadata if column in metadata else manifest
    table[column] = np.where(manifest["label"] == "ill", one, other)
    found = check(manifest, metadata)
    assert found[name].verdict == "FAIL" and found[name].fix
    assert found[name].value > 0.99 > 0.75 > found[name].chance_level
    failed = {name for name in CHECKS if found[name].verdict == "FAIL"}
    assert failed <= {name, "aspect", "bytes"}  # aspect and bytes follow from the size


def test_a_property_correlated_with_the_class_is_a_warning_with_typical_values():
    manifest, metadata = make_manifest(200)
    ill = manifest["label"] == "ill"
    rare = np.random.default_rng(1).random(200) < 0.14
    manifest["view"] = np.where(ill ^ rare, "AP", "PA")
    found = check(manifest, metadata)["view"]
    assert found.verdict == "WARN" and "Most frequent view: ill AP, well PA." in found.message


def test_a_property_is_checked_on_the_images_that_have_it():
    manifest, metadata = make_manifest()
    manifest.loc[manifest["label"] == "ill", "gender"] = "unknown"
    metadata["coarseness"] = metadata["coarseness"].where(metadata["kind"] == "JPEG")
    metadata["mode"] = "L"
    found = check(manifest, metadata)
    assert "sex" not in found and "mode" not in found, "sex is known in one class only, mode has one value"
    assert found["coarseness"].verdict == "PASS"


def test_jpeg_quantisation_and_dicom_manufacturer_are_read(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80), dtype=np.uint8))
    files = [str(tmp_path / name) for name in ("fine.jpg", "coarse.jpg", "none.png", "chest.dcm")]
    image.save(files[0], quality=95)
    image.save(files[1], quality=30)
    image.save(files[2])
    header = dcmread(get_testdata_file("CT_small.dcm"))
    header.Modality, header.SOPClassUID = "DX", ComputedRadiographyImageStorage
    header.Manufacturer = "Acme GmbH "
    header.save_as(files[3])
    metadata = extract_features(files, Progress()).metadata
    assert metadata["coarseness"][0] < metadata["coarseness"][1]
    assert metadata["coarseness"][2:].isna().all() and metadata["mode"].isna().tolist() == [False] * 3 + [True]
    assert metadata["maker"].tolist()[3] == "acme gmbh" and metadata["maker"][:3].isna().all()


def make_images(n=120, mark=0):
    """Return images of two classes, each with two sources; `mark` is added to a corner of the second source."""
    images = np.random.default_rng(0).random((n, 64, 64)).astype(np.float32)
    source = np.array(["s", "t"])[np.arange(n) // 2 % 2]
    images[source == "t", :6, :6] += mark
    labels = np.array(["a", "b"])[np.arange(n) % 2]
    return pd.DataFrame({"label": labels, "source": source, "patient": np.arange(n).astype(str)}), images


@pytest.mark.parametrize(("mark", "verdict"), [(0, "PASS"), (1, "WARN")])
def test_a_source_that_pixels_predict_within_one_class_is_a_warning(mark, verdict):
    (found,) = check_source_leak(*make_images(mark=mark))
    assert found.verdict == verdict and found.chance_level == 0.5
    assert (found.value >= 0.9) == (verdict == "WARN")


def test_without_two_large_sources_in_a_class_there_is_no_finding():
    manifest, images = make_images(mark=1)
    assert check_source_leak(manifest.assign(source=manifest["label"]), images) == []
    few = np.where(np.arange(len(manifest)) < 16, "t", "s")
    assert check_source_leak(manifest.assign(source=few), images) == []
    one_patient = manifest["patient"].where(manifest["source"] == "s", "q")
    assert check_source_leak(manifest.assign(patient=one_patient), images) == []


@pytest.mark.parametrize(
    ("auroc", "chance_level", "verdict"),
    [(0.95, 0.6, "FAIL"), (0.85, 0.6, "WARN"), (0.75, 0.6, "PASS"), (0.95, 0.96, "PASS")],
)
def test_an_auroc_at_chance_level_passes(auroc, chance_level, verdict):
    assert _grade_auroc(auroc, chance_level) == verdict


def test_missing_demographics_stay_missing():
    manifest = pd.DataFrame({"sex": pd.array(["F", None, " ", "unknown"], dtype="str")})
    assert _read_demographic(manifest, "sex", parse_sex) == [parse_sex("F"), None, None, None]
