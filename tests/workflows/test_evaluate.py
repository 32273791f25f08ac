"""A test elsewhere leaves out the patients that the model knows, in whatever form the other data comes."""

import pandas as pd
import pytest
from toy_images import write_toys

from fastcxr.data.manifest import read_manifest, write_manifest
from fastcxr.data.pack import pack_dataset
from fastcxr.errors import DataError
from fastcxr.workflows.evaluate import drop_training_images, validate_labels
from fastcxr.workflows.run_dir import OutputDir
from fastcxr.workflows.run_state import IMAGE_HASH_COLUMN

pytestmark = pytest.mark.usefixtures("without_figures")


@pytest.fixture
def run(toy_folder, tmp_path):
    """What a run that was trained on the toys says of them."""
    taught = read_manifest(toy_folder).assign(split="train")
    (tmp_path / "run").mkdir()
    write_manifest(
        taught.assign(**{IMAGE_HASH_COLUMN: [f"picture {n}" for n in range(len(taught))]}),
        tmp_path / "run/manifest.csv",
    )
    return tmp_path / "run"


@pytest.fixture
def other(tmp_path):
    """Other pictures, of some of the patients of the toys and of new ones."""
    folder = write_toys(tmp_path / "other", per_class=6, first=100)
    for label, patient in (("clear", "00000000"), ("haze", "00001001")):
        file = min((folder / label).glob("*.png"))
        file.rename(file.with_name(f"{patient}_099.png"))
    return folder


def leave_out(data, run, tmp_path) -> tuple[int, list[str]]:
    """How many images are left, and the paths of the others."""
    record = OutputDir(tmp_path / "there")
    record.acquire()
    left = drop_training_images(read_manifest(data), run, 64, record)
    return len(left), pd.read_csv(tmp_path / "there" / "skipped.csv")["path"].tolist()


KNOWN = (16, ["clear/00000000_099.png", "haze/00001001_099.png"])


@pytest.mark.needs("h5py")
def test_patients_of_the_training_are_left_out_of_a_folder_and_of_a_packed_cohort_alike(run, other, tmp_path):
    packed = pack_dataset(read_manifest(other), tmp_path / "other.h5")
    assert leave_out(other, run, tmp_path / "folder") == KNOWN
    assert leave_out(packed, run, tmp_path / "packed") == KNOWN


def test_a_patient_column_that_repeats_the_file_name_holds_there_too(run, other, tmp_path):
    table = read_manifest(other)[["path", "label", "patient"]]
    table.to_csv(other / "table.csv", index=False)
    assert leave_out(other / "table.csv", run, tmp_path) == KNOWN


@pytest.mark.parametrize(
    ("label", "remedy"),
    [
        ("Covid", "as --relabel 'Covid=COVID-19', or leave"),
        ("normal", "as --relabel 'normal=Normal', or leave"),
        ("ARDS", "as --relabel 'ARDS=CLASS' with one of Bacteria, COVID-19, Normal as CLASS, or leave"),
        ("Abnormal", "as --relabel 'Abnormal=CLASS'"),
    ],
)
def test_a_pair_is_suggested_only_of_names_that_are_alike(label, remedy):
    with pytest.raises(DataError) as caught:
        validate_labels(pd.DataFrame({"label": ["Normal", label]}), ("Bacteria", "COVID-19", "Normal"))
    assert remedy in str(caught.value)
