"""Tests of packed datasets in HDF5."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from public_datasets import make_cohen, write_image
from recording_progress import Counted
from sample_images import make_dicom, make_reference, save_dicom
from toy_datasets import check_message

from fastcxr.data.image_table import make_image_table
from fastcxr.data.imaging.read import check_images, fit_square, read_image
from fastcxr.data.manifest import read_manifest
from fastcxr.data.manifest_file import write_manifest
from fastcxr.data.pack import pack_dataset, shuffle_rows
from fastcxr.data.readers.hdf5 import read_packed_image
from fastcxr.errors import BadImagesError, DataError, ImageError, OutputError, RecipeError

try:
    import h5py
except ModuleNotFoundError:  # all tests of this module are skipped
    h5py = None

pytestmark = pytest.mark.needs("h5py")


@pytest.fixture
def dataset(tmp_path):
    return make_cohen(tmp_path / "cohen")


@pytest.fixture
def packed(dataset, tmp_path):
    return pack_dataset(read_manifest(dataset), tmp_path / "cohort.h5")


def refuse(call, kind=DataError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return check_message(caught.value)


def test_a_packed_image_equals_the_image_of_its_file(dataset, packed):
    before, after = read_manifest(dataset), read_manifest(packed)
    for file, reference in zip(before["file"], after["file"], strict=True):
        np.testing.assert_array_equal(read_image(reference), read_image(file))


def test_rows_patients_and_additional_columns_are_read_unchanged(dataset, packed):
    before = read_manifest(dataset, keep_columns=("modality",))
    packed = pack_dataset(before, packed.with_name("again.h5"))
    after = read_manifest(packed, keep_columns=("modality",))
    names = ["source", "path", "label", "patient", "patient_origin", "split", "view", "modality", "age"]
    pd.testing.assert_frame_equal(after[names], before[names])
    assert after["file"].tolist() == [f"{packed}#{number}" for number in range(5)]


def test_packed_notes_can_be_filtered_but_are_not_in_the_manifest(dataset, packed):
    noted = read_manifest(dataset).assign(**{"clinical notes": "cough"})
    manifest = read_manifest(pack_dataset(noted, packed.with_name("noted.h5")), filter=("clinical notes=cough",))
    assert len(manifest) == 5
    assert "clinical notes" not in manifest


def test_a_packed_dataset_is_read_as_unlabelled_images(packed):
    rows, known = make_image_table([packed]), read_manifest(packed)
    assert rows.to_dict("list") == known[["source", "path", "file"]].to_dict("list")


def test_the_file_has_the_documented_format(packed):
    with h5py.File(packed) as content:
        assert (content.attrs["format"], content.attrs["version"]) == ("fastcxr cohort", 1)
        assert content["classes"].asstr()[:].tolist() == ["COVID-19", "SARS"]
        assert content["labels"][:].tolist() == [0, 0, 0, 1, 1]
        assert content["names"].asstr()[0] == "images/a one.png"
        assert content["images"][0].size == content["shapes"][0].prod()


def test_images_packed_with_a_size_are_padded_squares_in_one_array(dataset, tmp_path):
    manifest = read_manifest(dataset)
    path = pack_dataset(manifest, tmp_path / "small.hdf5", size=32)
    with h5py.File(path) as content:
        assert content["images"].shape == (5, 32, 32)
    image = read_image(read_manifest(path)["file"][3])
    np.testing.assert_array_equal(image, fit_square(read_image(manifest["file"][3]), 32))


def test_the_seed_determines_the_shuffled_order(dataset):
    manifest = read_manifest(dataset)
    one, same, other = (shuffle_rows(manifest, seed)["path"].tolist() for seed in (1, 1, 2))
    assert one == same != other
    assert sorted(one) == sorted(manifest["path"])


def test_a_packed_dataset_can_be_packed_and_merged_again(dataset, packed, tmp_path):
    again = pack_dataset(read_manifest(packed), tmp_path / "again.h5")
    np.testing.assert_array_equal(read_image(f"{again}#2"), read_image(f"{packed}#2"))
    merged = read_manifest([packed, dataset])
    assert len(merged) == 5, "exact duplicates are found by the stored checksums"


def make_dicoms(root, **patients):
    """Two classes of DICOM files; `patients`: the patient identifier of each file name."""
    for number, (name, patient) in enumerate(patients.items()):
        folder = root / ("sick", "well")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = make_reference(seed=sum(name.encode()))
        save_dicom(folder / f"{name}.dcm", make_dicom(image, PatientID=patient))
    return root


def test_packing_keeps_the_origin_of_each_patient(tmp_path):
    for number, name in enumerate(["00000013_000", "00000013_001", "person7_virus_1", "scan"]):
        write_image(tmp_path / "ward" / ("sick", "well")[number % 2] / f"{name}.png", number)
    before = read_manifest(tmp_path / "ward")
    after = read_manifest(pack_dataset(before, tmp_path / "ward.h5"))
    names = ["path", "patient", "patient_origin"]
    pd.testing.assert_frame_equal(after[names], before[names])
    assert set(after["patient_origin"]) == {"nih", "kermany", "image"}


def test_a_hashed_patient_is_the_same_in_a_packed_dataset_and_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCXR_SALT", "a secret of the tests")
    ward = make_dicoms(tmp_path / "ward", a="P1", b="P2", c="P3", d="P3")
    more = make_dicoms(tmp_path / "more", e="P1", f="P4")
    packed = pack_dataset(read_manifest(ward), tmp_path / "ward.h5")
    merged, unpacked = read_manifest([packed, more]), read_manifest([ward, more])
    assert merged["patient"].tolist() == unpacked["patient"].tolist()
    assert merged["patient"].nunique() == 4


def test_without_recorded_origins_the_origin_of_packed_patients_is_the_column(dataset, packed):
    with h5py.File(packed, "a") as content:
        del content["columns"]["patient_origin"]
    after = read_manifest(packed)
    assert after["patient"].tolist() == read_manifest(dataset)["patient"].tolist()
    assert set(after["patient_origin"]) == {"column"}


def test_no_machine_path_is_written(packed, tmp_path):
    write_manifest(read_manifest(packed), tmp_path / "manifest.csv")
    assert str(tmp_path) not in (tmp_path / "manifest.csv").read_text()
    assert str(tmp_path).encode() not in packed.read_bytes()


def test_several_threads_read_at_the_same_time(packed):
    files = read_manifest(packed)["file"].tolist() * 40
    assert check_images(files) == []
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda file: int(read_packed_image(file).sum()), files))
    assert sums == sums[:5] * 40


def test_a_replaced_file_is_opened_again(dataset, packed, tmp_path):
    read_image(f"{packed}#0")
    other = pack_dataset(read_manifest(dataset)[::-1].reset_index(drop=True), tmp_path / "other.h5")
    last = read_image(f"{packed}#4")
    other.replace(packed)
    np.testing.assert_array_equal(read_image(f"{packed}#0"), last)


def test_progress_is_reported(dataset, tmp_path):
    progress = Counted()
    pack_dataset(read_manifest(dataset), tmp_path / "c.h5", progress=progress)
    assert progress.seen[0] == (5, "packing images")
    assert sum(progress.seen[1:]) == 5


def test_unreadable_images_prevent_packing_unless_skipped(dataset, tmp_path, caplog):
    (dataset / "images" / "b.jpg").write_bytes(b"GIF89a")
    manifest, to = read_manifest(dataset), tmp_path / "new" / "c.h5"
    to.parent.mkdir()
    with pytest.raises(BadImagesError, match="leave them out with `skip_bad=True`"):
        pack_dataset(manifest, to)
    assert list(to.parent.iterdir()) == []
    pack_dataset(manifest, to, skip_bad=True)
    assert read_manifest(to)["path"].tolist() == [path for path in manifest["path"] if "b.jpg" not in path]
    assert "left out 1 unreadable image: images/b.jpg (content is GIF" in caplog.text
    assert str(tmp_path) not in caplog.text


def test_an_invalid_output_path_or_size_is_rejected(dataset, packed, tmp_path):
    manifest = read_manifest(dataset)
    assert "exists already. Choose another name" in refuse(lambda: pack_dataset(manifest, packed), OutputError)
    assert "Name the file c.h5" in refuse(lambda: pack_dataset(manifest, tmp_path / "c.zip"), OutputError)
    text = refuse(lambda: pack_dataset(manifest, tmp_path / "no" / "c.h5"), OutputError)
    assert "choose another folder" in text
    text = refuse(lambda: pack_dataset(manifest, tmp_path / "c.h5", size=3), RecipeError)
    assert "at least 16. Choose a larger size" in text


def test_a_foreign_hdf5_file_is_rejected(tmp_path):
    with h5py.File(tmp_path / "theirs.h5", "w") as content:
        content["images"] = np.zeros((3, 4, 4), np.uint8)
    text = refuse(lambda: read_manifest(tmp_path / "theirs.h5"))
    assert "the HDF5 file was not created by fastcxr. Pack the images themselves: `fastcxr pack DIR --to FILE`" in text


def test_a_later_format_version_is_rejected(packed):
    with h5py.File(packed, "a") as content:
        content.attrs["version"] = 2
    assert "Update fastcxr, or pack the images again" in refuse(lambda: read_manifest(packed))


@pytest.mark.parametrize("size", [0, 20, 4000])
def test_a_truncated_file_is_rejected(packed, size):
    packed.write_bytes(packed.read_bytes()[:size])
    assert "the HDF5 file is damaged" in refuse(lambda: read_manifest(packed))
    text = refuse(lambda: read_image(f"{packed}#0"), ImageError)
    assert "Copy the file again, or create it again with `fastcxr pack`" in text


@pytest.mark.parametrize("name", ["labels", "classes", "names", "images", "sha256"])
def test_a_file_without_one_of_its_datasets_is_rejected(packed, name):
    with h5py.File(packed, "a") as content:
        del content[name]
    assert "the HDF5 file is damaged" in refuse(lambda: read_manifest(packed))


def test_an_inconsistent_shape_is_an_image_error(packed):
    with h5py.File(packed, "a") as content:
        content["shapes"][0] = (81, 96)
    assert "the HDF5 file is damaged" in refuse(lambda: read_image(f"{packed}#0"), ImageError)
    assert [error.path for error in check_images([f"{packed}#0", f"{packed}#1"])] == [f"{packed}#0"]


def test_references_to_nothing_are_image_errors(packed, tmp_path):
    assert "got image 5, expected 0 to 4. Use a number below 5" in refuse(lambda: read_image(f"{packed}#5"), ImageError)
    assert "no such file. Check the name" in refuse(lambda: read_image(tmp_path / "gone.h5#1"), ImageError)


def test_an_existing_file_named_like_a_reference_is_read_as_a_file(tmp_path):
    file = write_image(tmp_path / "scan.png", 1)
    file.rename(tmp_path / "scan.h5#1")
    assert read_image(tmp_path / "scan.h5#1").shape == (80, 96)


def test_a_packed_dataset_with_another_suffix_is_rejected(packed):
    packed = packed.rename(packed.with_suffix(".data"))
    assert "Rename it to end in .h5" in refuse(lambda: read_manifest(packed))


def test_without_h5py_the_error_names_the_extra(dataset, packed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    for call in (lambda: read_manifest(packed), lambda: pack_dataset(read_manifest(dataset), tmp_path / "c.h5")):
        assert 'not installed. Run `pip install "fastcxr[hdf5]"`' in refuse(call)


def test_packing_keeps_the_pixels_of_coronahack(real_data, tmp_path):
    manifest = read_manifest(real_data / "coronahack", classes=("COVID-19", "Normal")).tail(130).reset_index(drop=True)
    after = read_manifest(pack_dataset(manifest, tmp_path / "c.h5"), filter=("split=train,test",))
    for file, reference in zip(manifest["file"], after["file"], strict=True):
        np.testing.assert_array_equal(read_image(reference), read_image(file))
