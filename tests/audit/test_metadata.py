"""Facts of files, devices and people that tell the classes are found one by one; the same facts at random are not."""

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


def manifest_of(n=120, seed=0):
    """A manifest of two classes and the facts of its files, none of which tells them apart."""
    rng = np.random.default_rng(seed)
    facts = {
        "width": rng.integers(900, 1100, n),
        "height": rng.integers(900, 1100, n),
        "bytes": rng.integers(90_000, 99_000, n),
        "kind": rng.choice(["PNG", "JPEG"], n),
        "mode": rng.choice(["L", "RGB"], n),
        "coarseness": rng.choice([300, 900], n).astype(float),
        "maker": rng.choice(["agfa", "fuji"], n),
    }
    people = {
        "view": rng.choice(["AP", "pa"], n),
        "patient_age": rng.integers(20, 80, n).astype(str),
        "gender": rng.choice(["F", "male"], n),
    }
    labels = np.array(["well", "ill"])[np.arange(n) % 2]
    patients = [f"p{number}" for number in range(n)]
    return pd.DataFrame({"label": labels, "patient": patients, "source": "s", **people}), pd.DataFrame(facts)


ALONE = {"size", "aspect", "bytes", "kind", "mode", "coarseness", "maker", "view", "age", "sex"}
PLANTED = {  # check: the column, what it is in the second class and in the first
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


def check(manifest, facts):
    folds = assign_folds(manifest["label"].to_numpy(), manifest["patient"].to_numpy())
    return {finding.check: finding for finding in check_metadata(manifest, facts, folds)}


@pytest.mark.parametrize("seed", range(3))
def test_facts_at_random_do_not_fail_and_each_is_named(seed):
    found = check(*manifest_of(seed=seed))
    assert set(found) == ALONE | {"files"}
    assert not [name for name, finding in found.items() if finding.verdict == "FAIL"]
    assert {found[name].verdict for name in ALONE} == {"PASS"}


@pytest.mark.parametrize("name", PLANTED)
def test_a_fact_that_is_the_class_fails_by_itself_with_its_figure_beside_chance(name):
    manifest, facts = manifest_of()
    column, one, other = PLANTED[name]
    table = facts if column in facts else manifest
    table[column] = np.where(manifest["label"] == "ill", one, other)
    found = check(manifest, facts)
    assert found[name].verdict == "FAIL" and found[name].fix
    assert found[name].value > 0.99 > 0.75 > found[name].chance_level
    others = {name for name in ALONE if found[name].verdict == "FAIL"} - {"aspect", "bytes"}  # these follow the size
    assert others <= {name}


def test_a_fact_that_tells_most_is_a_warning_and_says_what_is_usual():
    manifest, facts = manifest_of(200)
    ill = manifest["label"] == "ill"
    rare = np.random.default_rng(1).random(200) < 0.14
    manifest["view"] = np.where(ill ^ rare, "AP", "PA")
    found = check(manifest, facts)["view"]
    assert found.verdict == "WARN" and "Commonest view: ill AP, well PA." in found.message


def test_a_fact_is_judged_among_images_that_have_it():
    manifest, facts = manifest_of()
    manifest.loc[manifest["label"] == "ill", "gender"] = "unknown"
    facts["coarseness"] = facts["coarseness"].where(facts["kind"] == "JPEG")
    facts["mode"] = "L"
    found = check(manifest, facts)
    assert "sex" not in found and "mode" not in found, "known of one class alone, and one for all"
    assert found["coarseness"].verdict == "PASS"


def test_files_say_how_coarse_their_jpeg_is_and_who_made_the_device(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80), dtype=np.uint8))
    files = [str(tmp_path / name) for name in ("fine.jpg", "coarse.jpg", "none.png", "chest.dcm")]
    picture.save(files[0], quality=95)
    picture.save(files[1], quality=30)
    picture.save(files[2])
    header = dcmread(get_testdata_file("CT_small.dcm"))
    header.Modality, header.SOPClassUID = "DX", ComputedRadiographyImageStorage
    header.Manufacturer = "Somebody GmbH "
    header.save_as(files[3])
    facts = extract_features(files, Progress()).metadata
    assert facts["coarseness"][0] < facts["coarseness"][1]
    assert facts["coarseness"][2:].isna().all() and facts["mode"].isna().tolist() == [False] * 3 + [True]
    assert facts["maker"].tolist()[3] == "somebody gmbh" and facts["maker"][:3].isna().all()


def images_of(n=120, mark=0):
    """Two sources in each of two classes; `mark` is what the second source adds to a corner."""
    pictures = np.random.default_rng(0).random((n, 64, 64)).astype(np.float32)
    source = np.array(["s", "t"])[np.arange(n) // 2 % 2]
    pictures[source == "t", :6, :6] += mark
    labels = np.array(["a", "b"])[np.arange(n) % 2]
    return pd.DataFrame({"label": labels, "source": source, "patient": np.arange(n).astype(str)}), pictures


@pytest.mark.parametrize(("mark", "verdict"), [(0, "PASS"), (1, "WARN")])
def test_a_source_that_is_seen_within_one_class_is_a_warning(mark, verdict):
    (found,) = check_source_leak(*images_of(mark=mark))
    assert found.verdict == verdict and found.chance_level == 0.5
    assert (found.value >= 0.9) == (verdict == "WARN")


def test_without_two_sources_of_enough_images_in_a_class_nothing_is_said():
    manifest, pictures = images_of(mark=1)
    assert check_source_leak(manifest.assign(source=manifest["label"]), pictures) == []
    few = np.where(np.arange(len(manifest)) < 16, "t", "s")
    assert check_source_leak(manifest.assign(source=few), pictures) == []
    one_patient = manifest["patient"].where(manifest["source"] == "s", "q")
    assert check_source_leak(manifest.assign(patient=one_patient), pictures) == []


@pytest.mark.parametrize(
    ("figure", "null", "verdict"), [(0.95, 0.6, "FAIL"), (0.85, 0.6, "WARN"), (0.75, 0.6, "PASS"), (0.95, 0.96, "PASS")]
)
def test_no_figure_counts_that_shuffled_labels_reach(figure, null, verdict):
    assert _grade_auroc(figure, null) == verdict


def test_what_a_header_does_not_say_stays_unsaid():
    manifest = pd.DataFrame({"sex": pd.array(["F", None, " ", "unknown"], dtype="str")})
    assert _read_demographic(manifest, "sex", parse_sex) == [parse_sex("F"), None, None, None]
