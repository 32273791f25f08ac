"""Small copies of public datasets with real radiographs, read from their folder, its parent and inner folders."""

import subprocess
import sys

import pytest

from fastcxr.data.findings import list_findings
from fastcxr.data.manifest import read_manifest
from fastcxr.errors import DataError, FastcxrError

# folder: images, findings (0: one label per image), classes, splits
READ = {
    "nih": (60, 14, None, {"train", "test"}),
    "chexpert": (70, 13, None, {"train", "valid"}),
    "chexpert/CheXpert-v1.0-small": (70, 13, None, {"train", "valid"}),
    "rsna": (48, 0, {"Normal", "No Lung Opacity / Not Normal", "Lung Opacity"}, set()),
    "vinbigdata": (40, 2, None, set()),
    "vindr-cxr": (40, 2, None, set()),
    "vindr-cxr/1.0.0": (40, 2, None, set()),
    "padchest": (40, 3, None, set()),
    "mimic-cxr-jpg": (40, 3, None, {"train", "valid", "test"}),
    "COVID-19_Radiography_Dataset": (120, 0, {"COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"}, set()),
    "kermany": (88, 0, {"NORMAL", "PNEUMONIA"}, {"train", "valid", "test"}),
    "kermany/chest_xray": (88, 0, {"NORMAL", "PNEUMONIA"}, {"train", "valid", "test"}),
    "shenzhen": (30, 0, {"Normal", "Tuberculosis"}, set()),
    "shenzhen/ChinaSet_AllFiles": (30, 0, {"Normal", "Tuberculosis"}, set()),
    "prefixed_splits": (48, 0, {"normal", "pneumonia"}, {"train", "test"}),
    "mixed_views": (24, 0, {"normal", "ill"}, set()),
    "own/one_hot.csv": (40, 0, {"Normal", "Pneumonia"}, set()),
    "own/findings.csv": (40, 3, None, set()),
    "own/list_labels.csv": (40, 2, None, set()),
    "own/no_suffix.csv": (40, 0, {"normal", "ill"}, set()),
    "own/labels.csv.gz": (40, 0, {"normal", "ill"}, set()),
}
STOPPED = {
    "own": "several tables",
    "own/comma_labels.csv": "`label_separator=','`",
    "own/some_missing.csv": "1 files are missing: 'images/not_downloaded.png'",
    "nih/images_001": "NIH ChestX-ray14",
    "nih/images_001/images": "NIH ChestX-ray14",
    "chexpert/CheXpert-v1.0-small/train": "CheXpert",
    ".": "several public datasets",
}


@pytest.fixture(scope="session")
def layouts(real_data, tmp_path_factory):
    """The folder of the copies."""
    script, folder = real_data.parent / "cases" / "make_layouts.py", tmp_path_factory.mktemp("layouts")
    if not script.is_file():
        pytest.skip("the real radiographs have no layouts beside them")
    subprocess.run([sys.executable, str(script), str(real_data), str(folder)], check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("name", READ)
def test_a_download_is_read_as_published(layouts, name):
    n_images, n_findings, classes, splits = READ[name]
    manifest = read_manifest(layouts / name)
    assert len(manifest) == n_images
    assert len(list_findings(manifest)) == n_findings
    assert classes is None or set(manifest["label"]) == classes
    assert set(manifest["split"].dropna()) == splits


@pytest.mark.parametrize("name", STOPPED)
def test_a_folder_that_needs_a_choice_stops(layouts, name):
    with pytest.raises(FastcxrError) as caught:
        read_manifest(layouts / name)
    assert STOPPED[name] in str(caught.value)


def test_choices_of_the_user(layouts):
    assert len(read_manifest(layouts / "mixed_views", filter=["view=PA,AP"])) == 16
    assert len(list_findings(read_manifest(layouts / "own" / "comma_labels.csv", label_separator=","))) == 2
    assert len(read_manifest(layouts / "own" / "some_missing.csv", skip_bad=True)) == 40
    two_classes = read_manifest(layouts / "rsna", label_variant="boxes")
    assert two_classes["label"].nunique() == 2
    splits = read_manifest([layouts / "own" / "train.csv", layouts / "own" / "test.csv"])["split"]
    assert splits.value_counts().to_dict() == {"train": 20, "test": 20}
    chosen = read_manifest(layouts / "nih", classes=["No Finding,Pneumonia"])
    assert chosen["label"].value_counts().to_dict() == {"No Finding": 30, "Pneumonia": 30}
    with pytest.raises(DataError, match="label_separator"):
        read_manifest(layouts / "own" / "comma_labels.csv", skip_bad=True)
