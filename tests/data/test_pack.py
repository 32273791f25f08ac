"""Tests for pack.py and hdf5.py"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from public_datasets import make_cohen, write_image
from recording_progress import Counted
from sample_images import make_dicom, make_reference, save_dicom
from toy_datasets import check_message

from fastcxr.data.imaging.read import check_images, fit_square, read_image
from fastcxr.data.manifest import read_manifest, read_unlabelled, write_manifest
from fastcxr.data.pack import pack_dataset, shuffle_rows
from fastcxr.data.readers.hdf5 import read_packed_image
from fastcxr.errors import BadImagesError, DataError, ImageError, OutputError, RecipeError

try:
    import h5py
except ModuleNotFoundError:  # then every test here is skipped
    h5py = None

pytestmark = pytest.mark.needs("h5py")


@pytest.fixture
def cohort(tmp_path):
    return make_cohen(tmp_path / "cohen")


@pytest.fixture
def packed(cohort, tmp_path):
    return pack_dataset(read_manifest(cohort), tmp_path / "cohort.h5")


def refuse(call, kind=DataError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return check_message(caught.value)


def test_a_packed_image_is_the_picture_of_its_file(cohort, packed):
    before, after = read_manifest(cohort), read_manifest(packed)
    for file, reference in zip(before["file"], after["file"], strict=True):
        np.testing.assert_array_equal(read_image(reference), read_image(file))


def test_rows_patients_and_further_columns_come_back(cohort, packed):
    before = read_manifest(cohort, keep_columns=("modality",))
    packed = pack_dataset(before, packed.with_name("again.h5"))
    after = read_manifest(packed, keep_columns=("modality",))
    names = ["source", "path", "label", "patient", "patient_origin", "split", "view", "modality", "age"]
    pd.testing.assert_frame_equal(after[names], before[names])
    assert after["file"].tolist() == [f"{packed}#{number}" for number in range(5)]


def test_notes_that_an_earlier_version_packed_stay_in_the_file(cohort, packed):
    noted = read_manifest(cohort).assign(**{"clinical notes": "coughs"})
    manifest = read_manifest(pack_dataset(noted, packed.with_name("noted.h5")), filter=("clinical notes=coughs",))
    assert len(manifest) == 5
    assert "clinical notes" not in manifest


def test_the_images_of_a_packed_cohort_can_be_classified(packed):
    rows, known = read_unlabelled([packed]), read_manifest(packed)
    assert rows.to_dict("list") == known[["source", "path", "file"]].to_dict("list")


def test_the_file_can_be_read_by_anyone(packed):
    with h5py.File(packed) as content:
        assert (content.attrs["format"], content.attrs["version"]) == ("fastcxr cohort", 1)
        assert content["classes"].asstr()[:].tolist() == ["COVID-19", "SARS"]
        assert content["labels"][:].tolist() == [0, 0, 0, 1, 1]
        assert content["names"].asstr()[0] == "images/a one.png"
        assert content["images"][0].size == content["shapes"][0].prod()


def test_with_a_size_images_are_padded_squares_in_one_array(cohort, tmp_path):
    manifest = read_manifest(cohort)
    path = pack_dataset(manifest, tmp_path / "small.hdf5", size=32)
    with h5py.File(path) as content:
        assert content["images"].shape == (5, 32, 32)
    picture = read_image(read_manifest(path)["file"][3])
    np.testing.assert_array_equal(picture, fit_square(read_image(manifest["file"][3]), 32))


def test_a_shuffled_order_is_drawn_by_the_seed(cohort):
    manifest = read_manifest(cohort)
    one, same, other = (shuffle_rows(manifest, seed)["path"].tolist() for seed in (1, 1, 2))
    assert one == same != other
    assert sorted(one) == sorted(manifest["path"])


def test_a_packed_cohort_can_be_packed_and_merged_again(cohort, packed, tmp_path):
    again = pack_dataset(read_manifest(packed), tmp_path / "again.h5")
    np.testing.assert_array_equal(read_image(f"{again}#2"), read_image(f"{packed}#2"))
    merged = read_manifest([packed, cohort])
    assert len(merged) == 5, "checksums of the files are kept, so copies are found"


def make_dicoms(root, **patients):
    """Two classes of DICOM files; `patients`: the ID in each file, by its name."""
    for number, (name, patient) in enumerate(patients.items()):
        place = root / ("sick", "well")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture = make_reference(seed=sum(name.encode()))
        save_dicom(place / f"{name}.dcm", make_dicom(picture, PatientID=patient))
    return root


def test_where_each_patient_was_read_comes_back(tmp_path):
    for number, name in enumerate(["00000013_000", "00000013_001", "person7_virus_1", "scan"]):
        write_image(tmp_path / "ward" / ("sick", "well")[number % 2] / f"{name}.png", number)
    before = read_manifest(tmp_path / "ward")
    after = read_manifest(pack_dataset(before, tmp_path / "ward.h5"))
    names = ["path", "patient", "patient_origin"]
    pd.testing.assert_frame_equal(after[names], before[names])
    assert set(after["patient_origin"]) == {"nih", "kermany", "image"}


def test_a_hashed_patient_of_a_packed_cohort_is_the_same_person_in_a_folder_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCXR_SALT", "a secret of the tests")
    ward = make_dicoms(tmp_path / "ward", a="P1", b="P2", c="P3", d="P3")
    more = make_dicoms(tmp_path / "more", e="P1", f="P4")
    packed = pack_dataset(read_manifest(ward), tmp_path / "ward.h5")
    merged, unpacked = read_manifest([packed, more]), read_manifest([ward, more])
    assert merged["patient"].tolist() == unpacked["patient"].tolist()
    assert merged["patient"].nunique() == 4


def test_a_file_of_an_earlier_release_says_not_where_patients_were_read_and_is_taken_as_a_table(cohort, packed):
    with h5py.File(packed, "a") as content:
        del content["columns"]["patient_origin"]
    after = read_manifest(packed)
    assert after["patient"].tolist() == read_manifest(cohort)["patient"].tolist()
    assert set(after["patient_origin"]) == {"column"}


def test_no_path_of_the_machine_is_written(packed, tmp_path):
    write_manifest(read_manifest(packed), tmp_path / "manifest.csv")
    assert str(tmp_path) not in (tmp_path / "manifest.csv").read_text()
    assert str(tmp_path).encode() not in packed.read_bytes()


def test_many_threads_may_read_at_once(packed):
    files = read_manifest(packed)["file"].tolist() * 40
    assert check_images(files) == []
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda file: int(read_packed_image(file).sum()), files))
    assert sums == sums[:5] * 40


def test_a_file_that_is_replaced_is_opened_anew(cohort, packed, tmp_path):
    read_image(f"{packed}#0")
    other = pack_dataset(read_manifest(cohort)[::-1].reset_index(drop=True), tmp_path / "other.h5")
    last = read_image(f"{packed}#4")
    other.replace(packed)
    np.testing.assert_array_equal(read_image(f"{packed}#0"), last)


def test_progress_is_shown(cohort, tmp_path):
    progress = Counted()
    pack_dataset(read_manifest(cohort), tmp_path / "c.h5", progress=progress)
    assert progress.seen[0] == (5, "packing images")
    assert sum(progress.seen[1:]) == 5


def test_bad_images_leave_no_file_unless_they_may_be_skipped(cohort, tmp_path, caplog):
    (cohort / "images" / "b.jpg").write_bytes(b"GIF89a")
    manifest, to = read_manifest(cohort), tmp_path / "new" / "c.h5"
    to.parent.mkdir()
    with pytest.raises(BadImagesError, match="leave them out with --skip-bad"):
        pack_dataset(manifest, to)
    assert list(to.parent.iterdir()) == []
    pack_dataset(manifest, to, skip_bad=True)
    assert read_manifest(to)["path"].tolist() == [path for path in manifest["path"] if "b.jpg" not in path]
    assert "left out 1 unreadable images: images/b.jpg (content is GIF" in caplog.text
    assert str(tmp_path) not in caplog.text


def test_a_place_that_cannot_be_is_refused(cohort, packed, tmp_path):
    manifest = read_manifest(cohort)
    assert "exists already. Choose another name" in refuse(lambda: pack_dataset(manifest, packed), OutputError)
    assert "Call it c.h5" in refuse(lambda: pack_dataset(manifest, tmp_path / "c.zip"), OutputError)
    text = refuse(lambda: pack_dataset(manifest, tmp_path / "no" / "c.h5"), OutputError)
    assert "choose another folder" in text
    text = refuse(lambda: pack_dataset(manifest, tmp_path / "c.h5", size=3), RecipeError)
    assert "at least 16. Give another size" in text


def test_a_foreign_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "theirs.h5", "w") as content:
        content["images"] = np.zeros((3, 4, 4), np.uint8)
    text = refuse(lambda: read_manifest(tmp_path / "theirs.h5"))
    assert "HDF5, but no cohort that fastcxr packed. Pack the images themselves: `fastcxr pack DIR --to FILE`" in text


def test_a_later_version_is_refused(packed):
    with h5py.File(packed, "a") as content:
        content.attrs["version"] = 2
    assert "Update fastcxr, or pack it again" in refuse(lambda: read_manifest(packed))


@pytest.mark.parametrize("size", [0, 20, 4000])
def test_a_truncated_file_is_refused_in_one_line(packed, size):
    packed.write_bytes(packed.read_bytes()[:size])
    assert "a damaged HDF5 file" in refuse(lambda: read_manifest(packed))
    text = refuse(lambda: read_image(f"{packed}#0"), ImageError)
    assert "Copy it again, or pack it again with `fastcxr pack`" in text


@pytest.mark.parametrize("name", ["labels", "classes", "names", "images", "sha256"])
def test_a_file_without_one_of_its_parts_is_refused(packed, name):
    with h5py.File(packed, "a") as content:
        del content[name]
    assert "a damaged HDF5 file" in refuse(lambda: read_manifest(packed))


def test_shapes_that_do_not_fit_are_an_image_error(packed):
    with h5py.File(packed, "a") as content:
        content["shapes"][0] = (81, 96)
    assert "a damaged HDF5 file" in refuse(lambda: read_image(f"{packed}#0"), ImageError)
    assert [error.path for error in check_images([f"{packed}#0", f"{packed}#1"])] == [f"{packed}#0"]


def test_references_to_nothing_are_image_errors(packed, tmp_path):
    assert "holds 5 images, none of that number. Give a number below 5" in refuse(
        lambda: read_image(f"{packed}#5"), ImageError
    )
    assert "no such file. Check the name" in refuse(lambda: read_image(tmp_path / "gone.h5#1"), ImageError)


def test_a_real_file_with_a_number_behind_its_name_is_that_file(tmp_path):
    file = write_image(tmp_path / "scan.png", 1)
    file.rename(tmp_path / "scan.h5#1")
    assert read_image(tmp_path / "scan.h5#1").shape == (80, 96)


def test_another_ending_is_asked_for(packed):
    packed = packed.rename(packed.with_suffix(".data"))
    assert "Rename it to end in .h5" in refuse(lambda: read_manifest(packed))


def test_without_h5py_the_extra_is_named(cohort, packed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    for call in (lambda: read_manifest(packed), lambda: pack_dataset(read_manifest(cohort), tmp_path / "c.h5")):
        assert 'not installed. pip install "fastcxr[hdf5]"' in refuse(call)


def test_coronahack_survives_packing(real_data, tmp_path):
    manifest = read_manifest(real_data / "coronahack", classes=("COVID-19", "Normal")).tail(130).reset_index(drop=True)
    after = read_manifest(pack_dataset(manifest, tmp_path / "c.h5"), filter=("split=train,test",))
    for file, reference in zip(manifest["file"], after["file"], strict=True):
        np.testing.assert_array_equal(read_image(reference), read_image(file))
