"""Tests of merging sources and of duplicates, through read_manifest."""

import logging
import os
import shutil

import pandas as pd
import pytest
from PIL import Image
from public_datasets import make_cohen, make_coronahack, make_covidx, write_image
from toy_datasets import PNG, check_message

from fastcxr.data import duplicates
from fastcxr.data.duplicates import is_distinctive_name
from fastcxr.data.manifest import describe_manifest, read_manifest
from fastcxr.data.manifest_file import write_manifest
from fastcxr.data.merge import make_unique_names
from fastcxr.data.pack import pack_dataset
from fastcxr.data.splits import split_by_patient
from fastcxr.errors import DataError, RecipeError


def make_folders(root, first: int, labels=("covid", "normal"), names=("1.png", "2.png")):
    for number, path in enumerate(f"{label}/{name}" for label in labels for name in names):
        write_image(root / path, first + number)
    return root


def catch_error(data, kind=DataError, **choices) -> str:
    with pytest.raises(kind) as caught:
        read_manifest(data, **choices)
    return check_message(caught.value)


def test_two_folders_become_one_manifest_with_two_sources(tmp_path):
    one, two = make_folders(tmp_path / "one", 0), make_folders(tmp_path / "two", 10)
    manifest = read_manifest([one, two])
    assert manifest["source"].tolist() == ["one"] * 4 + ["two"] * 4
    assert isinstance(manifest.index, pd.RangeIndex)
    assert manifest["patient"].is_unique, "equal file names do not identify a patient"
    assert set(manifest["patient_origin"]) == {"image"}


def test_a_list_of_one_dataset_equals_this_dataset(tmp_path):
    folder = make_folders(tmp_path / "one", 0)
    pd.testing.assert_frame_equal(read_manifest([folder]), read_manifest(folder))


def test_sources_with_one_name_are_numbered(tmp_path):
    one, two = make_folders(tmp_path / "a" / "scans", 0), make_folders(tmp_path / "b" / "scans", 10)
    assert list(dict.fromkeys(read_manifest([one, two])["source"])) == ["scans", "scans-2"]
    assert make_unique_names(["x", "x", "x-2", "x"]) == ["x", "x-2", "x-2-2", "x-3"]


def test_a_source_named_by_two_tables_is_numbered_only_if_paths_are_equal(tmp_path):
    for number, source in enumerate("ab"):
        folder = make_folders(tmp_path / source, 20 * number)
        (folder / "t.csv").write_text("path,label,source\ncovid/1.png,c,ward\ncovid/2.png,c,ward\nnormal/1.png,n,ward\n"
                                      "normal/2.png,n,ward\n")  # fmt: skip
    manifest = read_manifest([tmp_path / "a" / "t.csv", tmp_path / "b" / "t.csv"])
    assert manifest["source"].value_counts().to_dict() == {"ward": 4, "ward-2": 4}


def test_equal_identifiers_in_two_sources_are_different_patients(tmp_path, caplog):
    for source, first in (("a", 0), ("b", 20)):
        folder = make_folders(tmp_path / source, first)
        (folder / "t.csv").write_text("path,label,patient\ncovid/1.png,c,13\ncovid/2.png,c,14\nnormal/1.png,n,15\n")
    manifest = read_manifest([tmp_path / "a" / "t.csv", tmp_path / "b" / "t.csv"], filter=("label=c,n",))
    assert manifest["patient"].tolist() == ["t:13", "t:14", "t:15", "t-2:13", "t-2:14", "t-2:15"]
    assert "3 patient identifiers are in more than one dataset (such as 13, 14, 15)" in caplog.text
    assert "If they are the same patients, pass one CSV of all images" in caplog.text


def test_file_names_of_public_collections_identify_a_patient_in_all_sources(tmp_path):
    names = ("00000013_000.png", "person7_virus_1.png")
    one, two = make_folders(tmp_path / "one", 0, names=names), make_folders(tmp_path / "two", 10, names=names)
    assert set(read_manifest([one, two])["patient"]) == {"00000013", "person7"}


def test_folders_of_public_collections_identify_a_patient_in_all_sources(tmp_path):
    names = ("patient00001/study1/view1_frontal.png", "p10/p10000032/s50414267/a.png")
    one = make_folders(tmp_path / "one", 0, names=names[:1])
    two = make_folders(tmp_path / "two", 10, names=names)
    manifest = read_manifest([one, two], data_format="folders")
    assert set(manifest["patient"]) == {"patient00001", "10000032"}
    text = "2 classes, 6 images, 1 patient from CheXpert paths, 1 patient from MIMIC-CXR paths"
    assert describe_manifest(manifest) == text


@pytest.mark.parametrize("is_same", [True, False])
def test_viewer_file_names_identify_a_patient_in_two_sources_only_if_the_images_are_equal(tmp_path, caplog, is_same):
    names = [f"IM-000{number}-0001.png" for number in range(1, 5)]
    for number, name in enumerate(names):
        label = ("covid", "normal")[number % 2]
        write_image(tmp_path / "one" / label / name, number)
        write_image(tmp_path / "two" / label / name.replace("png", "jpg"), number if is_same else 10 + number)
    manifest = read_manifest([tmp_path / "one", tmp_path / "two"])
    assert manifest["patient"].nunique() == (4 if is_same else 8)
    assert ("do not identify patients across these datasets" in caplog.text) == (not is_same)


def test_a_patient_column_that_repeats_the_file_name_is_valid_in_all_sources(tmp_path):
    patients = ("IM-0001", "NORMAL2-IM-0002", "person1", "person1", "person2", "person3", "cohen1", "cohen2")
    hack = make_coronahack(tmp_path / "hack", patients=patients)
    other = make_folders(tmp_path / "kids", 40, ("Normal", "Virus"), ("person2_virus_9.png", "person9_virus_8.png"))
    manifest = read_manifest([hack, other]).set_index("path")
    assert manifest["patient"]["train/person2_virus_4.jpeg"] == manifest["patient"]["Virus/person2_virus_9.png"]
    assert manifest["patient"]["test/kjr-21-e24-g001-l-a.jpg"] == "hack:cohen2"


def test_a_patient_table_is_valid_for_all_sources(tmp_path):
    one, two = make_folders(tmp_path / "one", 0), make_folders(tmp_path / "two", 10, names=("3.png", "4.png"))
    (tmp_path / "p.csv").write_text("filename,patient\ncovid/1.png,9\ncovid/3.png,9\n")
    manifest = read_manifest([one, two], patient_table=tmp_path / "p.csv").set_index("path")
    assert manifest["patient"]["covid/1.png"] == manifest["patient"]["covid/3.png"] == "9"


def test_exact_duplicates_are_dropped_and_counted_and_their_patients_become_one(tmp_path, caplog):
    cohen = make_cohen(tmp_path / "cohen")
    other = make_folders(tmp_path / "other", 0, ("COVID-19", "SARS"))
    shutil.copy(cohen / "images" / "b.jpg", other / "COVID-19" / "copied.jpg")
    (other / "COVID-19" / "again.jpg").write_bytes((other / "COVID-19" / "1.png").read_bytes())
    with caplog.at_level(logging.INFO, "fastcxr"):
        manifest = read_manifest([other, cohen])
    assert "merged: other 6 images, cohen 5 images; searching for duplicates" in caplog.text
    assert "left out 2 exact duplicates: 1 within other, 1 of cohen that are also in other" in caplog.text
    assert len(manifest) == 9
    assert (
        manifest.set_index("path")["patient"][["COVID-19/copied.jpg", "images/a one.png"]].tolist() == ["cohen:2"] * 2
    )


def test_exact_duplicates_in_one_source_are_kept_without_deduplicate(tmp_path):
    folder = make_folders(tmp_path / "one", 0)
    shutil.copy(folder / "covid" / "1.png", folder / "covid" / "3.png")
    assert len(read_manifest(folder)) == 5
    manifest = read_manifest(folder, deduplicate=True)
    assert manifest["path"].tolist() == ["covid/1.png", "covid/2.png", "normal/1.png", "normal/2.png"]
    assert set(manifest["patient_origin"]) == {"image"}


def test_files_of_unique_size_are_not_opened_to_find_duplicates(tmp_path, monkeypatch):
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(bytes(2**20 + number))
    sizes = tmp_path.glob("*.png")
    monkeypatch.setattr(duplicates, "_read_ends", lambda file: pytest.fail(file))
    monkeypatch.setattr(duplicates, "compute_file_checksum", lambda file: pytest.fail(file))
    assert duplicates.group_exact_duplicates(pd.Series(map(str, sizes))) == []


def test_each_file_is_examined_once_by_one_stat(tmp_path, monkeypatch):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(PNG + bytes(number))
    files, seen, stat = sorted(map(str, tmp_path.glob("*.png"))), [], os.stat
    monkeypatch.setattr(os, "stat", lambda file, **options: seen.append(str(file)) or stat(file, **options))
    assert duplicates.hash_files(pd.Series([*files, str(tmp_path), str(tmp_path / "x"), "zero\0byte"])).isna().all()
    assert [seen.count(file) for file in files] == [1, 1, 1]


def test_files_of_one_size_with_different_ends_are_not_hashed(tmp_path, monkeypatch):
    content = [PNG + bytes(2**16) + bytes([n]) for n in (1, 2, 2, 3)] + [PNG + b"x" + bytes(2**16)]
    files = [tmp_path / f"{number}.png" for number in range(len(content))]
    for file, text in zip(files, content, strict=True):
        file.write_bytes(text)
    read, hashed = duplicates.compute_file_checksum, []
    monkeypatch.setattr(duplicates, "compute_file_checksum", lambda file: hashed.append(file) or read(file))
    assert duplicates.group_exact_duplicates(pd.Series(map(str, files))) == [[1, 2]]
    assert sorted(hashed) == [str(files[1]), str(files[2])]


def test_files_that_are_not_images_are_not_duplicates(tmp_path):
    one, two = make_folders(tmp_path / "one", 0), make_folders(tmp_path / "two", 10)
    for source in (one / "covid", one / "normal", two / "covid", two / "normal"):
        (source / "empty.png").touch()
        (source / "page.png").write_text("<html>not found</html>")
    manifest = read_manifest([one, two])
    assert len(manifest) == 16
    assert manifest["patient"].is_unique


def test_the_duplicate_in_test_is_kept(tmp_path):
    hack = make_coronahack(tmp_path / "hack")
    extra = make_folders(tmp_path / "extra", 0, ("COVID-19", "Normal"))
    shutil.copy(hack / "test" / "kjr-21-e24-g001-l-a.jpg", extra / "COVID-19" / "x.jpg")
    manifest = read_manifest([extra, hack]).set_index("path")
    assert manifest["split"]["test/kjr-21-e24-g001-l-a.jpg"] == "test"
    assert "COVID-19/x.jpg" not in manifest.index


def test_duplicates_with_two_labels_are_rejected_with_names_and_a_fix(tmp_path):
    one, two = make_folders(tmp_path / "one", 0), make_folders(tmp_path / "two", 10, ("sick", "normal"))
    shutil.copy(one / "covid" / "1.png", two / "sick" / "3.png")
    text = catch_error([one, two])
    assert text.startswith("FCX-E008")
    assert "one/covid/1.png 'covid' = two/sick/3.png 'sick'" in text
    assert "Keep one of each pair, or pass `relabel=['sick=covid']` if both labels mean the same" in text
    assert len(read_manifest([one, two], relabel=("sick=covid",))) == 8


@pytest.mark.parametrize(
    "choices", [{"classes": ("covid", "normal")}, {"filter": ("view=PA",)}, {}], ids=["label", "column", "copy"]
)
def test_a_source_without_remaining_images_causes_a_warning(tmp_path, caplog, choices):
    one = make_folders(tmp_path / "one", 0)
    other = tmp_path / "other"
    if choices:
        table = make_cohen(other) / "metadata.csv"
        table.write_text(table.read_text().replace(",PA,", ",AP,").replace(",L,", ",AP,"))
    else:
        shutil.copytree(one, other)
    if "filter" in choices:
        rows = (f"{label}/{number}.png,{label},PA" for label in ("covid", "normal") for number in (1, 2))
        (one / "t.csv").write_text("\n".join(["path,label,view", *rows]))
        one = one / "t.csv"
    assert len(read_manifest([one, other], **choices))
    assert "no image of other is left: all of its rows are excluded" in caplog.text


def test_sources_with_remaining_images_cause_no_warning(tmp_path, caplog):
    read_manifest([make_folders(tmp_path / "one", 0), make_folders(tmp_path / "two", 10)])
    assert "no image of" not in caplog.text


def test_classes_with_different_spelling_are_rejected_with_the_relabel_option(tmp_path):
    one, two = make_folders(tmp_path / "one", 0), make_folders(tmp_path / "two", 10, ("Covid", "NORMAL"))
    three = make_folders(tmp_path / "three", 20, ("covid", "Normal"))
    text = catch_error([one, two, three])
    assert "FCX-E006" in text
    assert "`relabel=['Covid=covid', 'NORMAL=normal', 'Normal=normal']`" in text
    renamed = read_manifest([one, two, three], relabel=["Covid=covid", "NORMAL=normal", "Normal=normal"])
    assert set(renamed["label"]) == {"covid", "normal"}


def test_the_same_data_twice_is_rejected(tmp_path, monkeypatch):
    make_folders(tmp_path / "one", 0)
    monkeypatch.chdir(tmp_path)
    text = catch_error(["one", "../" + tmp_path.name + "/one"], RecipeError)
    assert "the same data is named twice in one, ../" in text
    assert "Name each dataset once" in text
    assert "Pass a folder, a CSV or a packed dataset" in catch_error([], RecipeError)


def test_a_crop_with_a_distinctive_name_is_linked_to_the_patient_of_the_original(tmp_path, caplog):
    cohen = make_cohen(tmp_path / "cohen", "9,SARS,PA,X-ray,nejmc2001573_f1a.png,images")
    other = make_folders(tmp_path / "other", 0, ("COVID-19", "SARS"))
    Image.open(cohen / "images" / "nejmc2001573_f1a.png").crop((4, 4, 90, 70)).save(
        other / "SARS" / "nejmc2001573_F1a.jpg"
    )
    manifest = read_manifest([other, cohen]).set_index("path")
    assert manifest["patient"]["SARS/nejmc2001573_F1a.jpg"] == "cohen:9"
    assert "the same file name and image (cropped, resized or re-encoded) in cohen and other (1)" in caplog.text
    assert "both images are kept, and are treated as images of one patient" in caplog.text


def test_a_resized_image_is_linked_even_if_its_name_is_a_counter(tmp_path):
    one, two = make_folders(tmp_path / "one", 0), make_folders(tmp_path / "two", 10)
    Image.open(one / "covid" / "1.png").resize((120, 100)).save(two / "covid" / "1.png")
    manifest = read_manifest([one, two])
    shared = manifest[manifest["patient"].duplicated(keep=False)]
    assert shared["path"].tolist() == ["covid/1.png", "covid/1.png"]
    assert set(shared["patient_origin"]) == {"copy"}
    assert "1 patient from duplicate images" in describe_manifest(manifest)


@pytest.mark.parametrize("name", ["img1.png", "view1_frontal.jpg"])
def test_a_name_that_repeats_within_a_source_links_no_patients(tmp_path, name):
    for number, (source, label, patient) in enumerate(
        (source, label, patient) for source in ("one", "two") for label in ("covid", "normal") for patient in range(5)
    ):
        write_image(tmp_path / source / label / f"p{patient}" / name, number)
    manifest = read_manifest([tmp_path / "one", tmp_path / "two"], patient_regex="^([^/]+/[^/]+)/")
    assert manifest["patient"].nunique() == len(manifest) == 20


@pytest.mark.parametrize("name", ["img1.png", "view1_frontal.jpg"])
def test_a_unique_name_links_no_patients_whose_images_differ(tmp_path, name):
    one, two = (make_folders(tmp_path / source, first) for source, first in (("one", 0), ("two", 10)))
    write_image(one / "covid" / name, 20)
    write_image(two / "covid" / name, 21)
    assert read_manifest([one, two])["patient"].is_unique


def test_files_with_one_name_are_decoded_only_once(tmp_path, monkeypatch):
    names = [f"scan_a{number}b.png" for number in range(6)]
    one, two = (make_folders(tmp_path / source, first, names=names) for source, first in (("one", 0), ("two", 20)))
    decoded, read = [], duplicates.read_with_remarks
    monkeypatch.setattr(duplicates, "read_with_remarks", lambda file: decoded.append(file) or read(file))
    read_manifest([one, two])
    assert len(decoded) == len(set(decoded)) == 24


@pytest.mark.parametrize("name", ["1", "0001", "image_12", "COVID-19 (12)", "IM-0001-0001", "scan"])
def test_a_word_with_numbers_is_not_distinctive(name):
    assert not is_distinctive_name(name)


@pytest.mark.parametrize("name", ["nejmc2001573_f1a", "covid-19-pneumonia-19", "7D2CF6CE-F529", "20200312093000"])
def test_other_names_are_distinctive(name):
    assert is_distinctive_name(name)


def test_a_source_without_splits_is_assigned_to_train_or_to_the_split_of_its_patients(tmp_path, caplog):
    hack = make_coronahack(tmp_path / "hack", patients=tuple("abcdefgh"))
    cohen = make_cohen(tmp_path / "cohen", "9,COVID-19,PA,X-ray,f.png,images", "9,COVID-19,PA,X-ray,g.png,images")
    shutil.copy(cohen / "images" / "g.png", hack / "test" / "kjr-21-e24-g001-l-a.jpg")
    manifest = read_manifest([hack, cohen], classes=("Normal", "Bacteria", "COVID-19"))
    with caplog.at_level(logging.INFO, "fastcxr"):
        split = split_by_patient(manifest).set_index("path")
    assert split["split"]["images/f.png"] == "test"
    assert "cohen without splits: images assigned 3 to train, 1 to test (split of their patient)" in caplog.text
    assert set(split["split"][["images/a one.png", "images/c.png"]]) <= {"train", "valid"}
    redrawn = split_by_patient(manifest, ignore_given_splits=True)
    assert set(redrawn["split_origin"]) == {"patient"}


def merge_covidx_and_cohen(root):
    """Two datasets with the source `cohen`: the lists of COVIDx give splits, the folder gives none."""
    return read_manifest([make_covidx(root / "covidx"), make_cohen(root / "cohen")], classes=("normal", "COVID-19"))


def test_a_dataset_without_splits_is_assigned_to_train_if_another_gives_splits_of_its_source(tmp_path, caplog):
    manifest = merge_covidx_and_cohen(tmp_path)
    assert set(manifest.loc[manifest["path"].isin(["images/a one.png", "train/b b.jpg"]), "source"]) == {"cohen"}
    with caplog.at_level(logging.INFO, "fastcxr"):
        split = split_by_patient(manifest)
    assert "cohen without splits: images assigned 3 to train" in caplog.text
    assert set(split.loc[split["path"].str.startswith("images/"), "split"]) <= {"train", "valid"}
    assert split.set_index("path")["split"]["test/e.png"] == "test"
    assert set(split["split_origin"]) <= {"given", "patient"}


@pytest.mark.needs("h5py")
def test_packed_sources_get_the_same_splits(tmp_path):
    manifest = merge_covidx_and_cohen(tmp_path)
    again = read_manifest(pack_dataset(manifest, tmp_path / "both.h5"))
    assert split_by_patient(again)["split"].tolist() == split_by_patient(manifest)["split"].tolist()


def test_partly_given_splits_of_one_source_are_rejected_in_a_merge(tmp_path):
    one, two = make_folders(tmp_path / "one", 0), make_folders(tmp_path / "two", 10)
    (one / "t.csv").write_text("path,label,split\ncovid/1.png,covid,train\ncovid/2.png,covid,test\n"
                               "normal/1.png,normal,train\nnormal/2.png,normal,\n")  # fmt: skip
    with pytest.raises(DataError, match="1 of 8 images have no split"):
        split_by_patient(read_manifest([one / "t.csv", two]))


def test_a_written_merged_manifest_contains_no_machine_paths(tmp_path):
    one, two = make_folders(tmp_path / "one", 0), make_folders(tmp_path / "two", 10)
    Image.open(one / "covid" / "1.png").resize((120, 100)).save(two / "covid" / "1.png")
    manifest = read_manifest([one, two])
    write_manifest(manifest, tmp_path / "manifest.csv")
    assert str(tmp_path) not in (tmp_path / "manifest.csv").read_text()


def test_ozturk_and_cohen_share_their_covid_patients(real_data, caplog):
    manifest = read_manifest([real_data / "ozturk", real_data / "cohen"], relabel=("Covid-19=COVID-19",),
                             classes=("COVID-19", "Pneumonia", "No_findings"))  # fmt: skip
    assert "cohen and ozturk (56)" in caplog.text
    covid = manifest[(manifest["label"] == "COVID-19") & (manifest["source"] == "ozturk")]
    assert (covid["patient_origin"] == "column").sum() == 94


def test_coronahack_contains_all_but_eleven_covid_images_of_cohen(real_data):
    manifest = read_manifest([real_data / "coronahack", real_data / "cohen"], classes=("COVID-19", "Normal"))
    assert manifest.groupby(["source", "label"]).size().to_dict() == {
        ("cohen", "COVID-19"): 11, ("kermany", "Normal"): 1164, ("other", "COVID-19"): 96,
    }  # fmt: skip
