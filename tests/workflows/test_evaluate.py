"""Tests of external evaluation: training patients are left out, and unknown labels are rejected."""

import pandas as pd
import pytest
from toy_images import write_toys

from fastcxr.data.manifest import read_manifest
from fastcxr.data.manifest_file import write_manifest
from fastcxr.data.pack import pack_dataset
from fastcxr.errors import DataError
from fastcxr.workflows.evaluate import drop_overlap, validate_labels
from fastcxr.workflows.overlap import find_overlap
from fastcxr.workflows.run_dir import OutputDir
from fastcxr.workflows.run_state import IMAGE_HASH_COLUMN

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")


@pytest.fixture
def run(toy_folder, tmp_path):
    """Return the folder of a run trained on the toy images."""
    training_manifest = read_manifest(toy_folder).assign(split="train")
    (tmp_path / "run").mkdir()
    write_manifest(
        training_manifest.assign(**{IMAGE_HASH_COLUMN: [f"image {n}" for n in range(len(training_manifest))]}),
        tmp_path / "run/manifest.csv",
    )
    return tmp_path / "run"


@pytest.fixture
def external(tmp_path):
    """Write other images of two training patients and of new patients."""
    folder = write_toys(tmp_path / "external", per_class=6, first=100)
    for label, patient in (("clear", "00000000"), ("haze", "00001001")):
        file = min((folder / label).glob("*.png"))
        file.rename(file.with_name(f"{patient}_099.png"))
    return folder


def drop_images(data, run, tmp_path) -> tuple[int, list[str]]:
    """Return the number of remaining images and the paths of the images left out."""
    output_dir = OutputDir(tmp_path / "out")
    output_dir.acquire()
    manifest = read_manifest(data)
    remaining = drop_overlap(manifest, find_overlap(manifest, run, 64, output_dir), output_dir)
    return len(remaining), pd.read_csv(tmp_path / "out" / "skipped.csv")["path"].tolist()


EXPECTED = (16, ["clear/00000000_099.png", "haze/00001001_099.png"])


@pytest.mark.needs("h5py")
def test_training_patients_are_left_out_of_folders_and_packed_datasets(run, external, tmp_path):
    packed = pack_dataset(read_manifest(external), tmp_path / "external.h5")
    assert drop_images(external, run, tmp_path / "folder") == EXPECTED
    assert drop_images(packed, run, tmp_path / "packed") == EXPECTED


def test_training_patients_are_found_by_a_patient_column_with_ids_of_file_names(run, external, tmp_path):
    table = read_manifest(external)[["path", "label", "patient"]]
    table.to_csv(external / "table.csv", index=False)
    assert drop_images(external / "table.csv", run, tmp_path) == EXPECTED


@pytest.mark.parametrize(
    ("label", "fix"),
    [
        ("Covid", "Pass `relabel=['Covid=COVID-19']`, or exclude"),
        ("normal", "Pass `relabel=['normal=Normal']`, or exclude"),
        ("ARDS", "Pass `relabel=['ARDS=CLASS']` (CLASS: one of Bacteria, COVID-19, Normal), or exclude"),
        ("Abnormal", "Pass `relabel=['Abnormal=CLASS']`"),
    ],
)
def test_relabel_is_suggested_only_for_similar_labels(label, fix):
    with pytest.raises(DataError) as caught:
        validate_labels(pd.DataFrame({"label": ["Normal", label]}), ("Bacteria", "COVID-19", "Normal"))
    assert fix in str(caught.value)
