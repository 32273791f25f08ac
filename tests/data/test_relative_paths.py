"""Tests of the replacement of absolute image paths."""

import pandas as pd
import pytest
from toy_datasets import write_file, write_files, write_two_classes

from fastcxr.data.image_table import make_image_table
from fastcxr.data.manifest import read_manifest
from fastcxr.data.relative_paths import make_paths_relative
from fastcxr.errors import RecipeError


def relativize(paths: list[str], *roots) -> list[str]:
    return make_paths_relative(pd.DataFrame({"path": paths}), *roots)["path"].tolist()


def test_an_absolute_path_becomes_relative_to_the_folder_of_the_table():
    assert relativize(["/data/mine/a/1.png", "b/2.png", "/data/mine//a/./3.png"], "/data/mine") == [
        "a/1.png", "b/2.png", "a/3.png",
    ]  # fmt: skip


def test_other_paths_become_relative_to_their_common_folder():
    assert relativize(["/vol/images/a/1.png", "/vol/images/b/1.png", "c/1.png"], "/data") == [
        "a/1.png",
        "b/1.png",
        "c/1.png",
    ]
    assert relativize(["/vol/images/a/1.png"]) == ["1.png"]


def test_folders_above_the_images_of_two_disks_are_removed():
    assert relativize(["/disk/ZZTESTNAME/x/1.png", "/mount/ZZTESTNAME/y/2.png"]) == ["1.png", "2.png"]


def test_relative_paths_are_unique():
    paths = ["1.png", "/vol/x/1.png", "/other/y/1.png", "/other/y/z/2.png"]
    assert relativize(paths) == ["1.png", "x/1.png", "y/1.png", "y/z/2.png"]
    assert relativize(["1.png", "x/1.png", "x-2/1.png", "/vol/x/1.png"]) == [
        "1.png",
        "x/1.png",
        "x-2/1.png",
        "x-3/1.png",
    ]


def test_windows_paths_are_absolute_on_all_systems():
    assert relativize(["C:\\Users\\ZZTESTNAME\\a\\1.png", "C:/Users/ZZTESTNAME/b/2.png"]) == ["a/1.png", "b/2.png"]


def test_parent_folders_after_a_symbolic_link_are_resolved_on_disk(tmp_path):
    write_files(tmp_path, "real/inner/x.png", "real/a.png", "data/a.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "real" / "inner")
    assert relativize(["a.png", f"{tmp_path}/data/link/../a.png"], tmp_path / "data") == ["a.png", "real/a.png"]


def test_a_patient_named_by_an_absolute_path_is_renamed():
    rows = pd.DataFrame({"path": ["/vol/1.png", "/vol/2.png", "/vol/3.png"], "source": ["s"] * 3,
                         "patient": ["image:/vol/1.png", "image:s//vol/1.png", "p"]})  # fmt: skip
    assert make_paths_relative(rows)["patient"].tolist() == ["image:1.png", "image:1.png", "p"]


@pytest.fixture
def listed(tmp_path):
    """A table in one folder with absolute paths of images in another folder."""
    images = write_two_classes(tmp_path / "ZZTESTNAME" / "images")
    (tmp_path / "tables").mkdir()
    rows = [f"{images}/{path},{path[0]}" for path in ("covid/a.png", "covid/b.png", "normal/c.png", "normal/d.png")]
    return write_file(tmp_path / "tables" / "mine.csv", "\n".join(["path,label", *rows]) + "\n")


def test_a_manifest_has_paths_relative_to_the_common_folder(listed, tmp_path):
    manifest = read_manifest(listed)
    assert manifest["path"].tolist() == ["covid/a.png", "covid/b.png", "normal/c.png", "normal/d.png"]
    assert manifest["file"].tolist() == [str(tmp_path / "ZZTESTNAME" / "images" / path) for path in manifest["path"]]
    assert not manifest.drop(columns="file").map(lambda cell: "ZZTESTNAME" in str(cell)).any(axis=None)


def test_a_patient_table_may_list_absolute_paths(listed, tmp_path):
    names = read_manifest(listed)["file"]
    write_files(tmp_path, "ZZTESTNAME/images/normal/a.png")
    patients = write_file(tmp_path / "p.csv", "filename,patient\n" + "".join(f"{n},{k}\n" for k, n in enumerate(names)))
    assert read_manifest(listed, patient_table=patients)["patient"].tolist() == ["0", "1", "2", "3"]


def test_absolute_paths_in_a_packed_dataset_are_read_as_relative_paths(tmp_path):
    h5py = pytest.importorskip("h5py", reason="packed datasets are an extra: pip install 'fastcxr[hdf5]'")
    from public_datasets import make_cohen

    from fastcxr.data.pack import pack_dataset

    manifest = read_manifest(make_cohen(tmp_path / "cohen"))
    packed = pack_dataset(manifest.assign(path="/home/ZZTESTNAME/" + manifest["path"]), tmp_path / "old.h5")
    with h5py.File(packed) as content:
        assert content["names"].asstr()[0].startswith("/home/ZZTESTNAME/")
    assert read_manifest(packed)["path"].tolist() == manifest["path"].str.removeprefix("images/").tolist()
    assert make_image_table([packed])["path"].tolist() == read_manifest(packed)["path"].tolist()


def list_paths(*images) -> list[str]:
    return make_image_table(images)["path"].tolist()


def test_a_new_image_has_the_path_below_one_folder_or_the_path_as_given(tmp_path, monkeypatch):
    write_files(tmp_path, "a/x/1.png", "b/x/1.png")
    monkeypatch.chdir(tmp_path)
    assert list_paths("a") == ["x/1.png"]
    assert list_paths("a/x/1.png") == ["a/x/1.png"]
    assert list_paths("a/x/1.png", "./b/x/1.png") == ["a/x/1.png", "b/x/1.png"]
    assert list_paths("a", "b/") == ["a/x/1.png", "b/x/1.png"]


def test_an_absolute_argument_is_shortened_and_stays_unique(tmp_path, monkeypatch):
    write_files(tmp_path, "a/x/1.png", "b/x/1.png", "b/x/2.png")
    monkeypatch.chdir(tmp_path)
    folders = tmp_path / "a", tmp_path / "b"
    assert list_paths(folders[0]) == ["x/1.png"]
    assert list_paths(folders[0] / "x" / "1.png") == ["1.png"]
    assert list_paths(*folders) == ["a/x/1.png", "b/x/1.png", "b/x/2.png"]
    mixed = list_paths("a/x/1.png", folders[1] / "x" / "1.png", folders[1] / "x" / "2.png")
    assert mixed == ["a/x/1.png", "1.png", "2.png"]


def test_a_file_that_is_named_twice_has_one_row(tmp_path, monkeypatch):
    write_files(tmp_path, "a/1.png", "a/2.png")
    monkeypatch.chdir(tmp_path)
    assert list_paths("a", "a/1.png", tmp_path / "a") == ["a/1.png", "a/2.png"]


def test_an_empty_argument_is_an_error_and_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(write_two_classes(tmp_path / "data"))
    with pytest.raises(RecipeError, match=r"an image argument is empty\. Pass a file or a folder"):
        make_image_table(["covid", ""])
    assert len(list_paths(".")) == 4
