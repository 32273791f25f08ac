"""Tests for signs.py and label_tables.py: folders that are not classes."""

import logging

import pytest
from layouts_class_folders import make_radiography, write_gray, write_mask
from toy_datasets import check_message, write_file, write_files, write_two_classes

from fastcxr.data.manifest import read_manifest
from fastcxr.data.readers.detect import detect_layout, has_class_folders
from fastcxr.data.readers.label_tables import find_tables
from fastcxr.data.readers.name_signs import find_name_sign
from fastcxr.errors import DataError, FastcxrError


def get_error(data, kind: type = DataError) -> str:
    with pytest.raises(FastcxrError) as caught:
        read_manifest(data)
    assert isinstance(caught.value, kind)
    return check_message(caught.value)


def write_folders(root, *names: str):
    """Write two images into each folder."""
    return write_files(root, *(f"{name}/{name.replace('/', '_')}_{i}.png" for name in names for i in range(2)))


@pytest.mark.parametrize(
    ("names", "sign"),
    [
        (("images_001", "images_002"), "'images_001', 'images_002' differ only in a number"),
        (("p10", "p11", "p9"), "differ only in a number"),
        (("patient00001", "patient00002"), "differ only in a number"),
        (("0", "1"), "'0', '1' differ only in a number"),
        (("1.2.840.1", "1.2.840.27"), "differ only in a number"),
        (("images_001", "normal"), "'images_001' is a name of files, parts or patients"),
        (("Patient 1", "p2", "other"), "'Patient 1', 'p2' are names of files"),
        (("images", "labels"), "'images', 'labels' are names of files"),
        (("JPEGImages", "x"), "'JPEGImages' is a name of files, parts or patients"),
        (("XRays", "TBs"), "'XRays' is a name"),
        (("stage_2_train_images", "x"), "'stage_2_train_images' is a name"),
        (("chest_xray", "normal"), "'chest_xray' is a name"),
        (("04b1d7a8-9a5c", "e0a75b91-3f2d"), "are identifiers"),
        ([f"finding {'abcdefghij'[i % 10]}{'x' * i}" for i in range(201)], "there are 201 folders"),
        (("TrainingSet", "ValidationSet"), "are names of files"),
        (("trainset", "testset"), "are names of files"),
        (("trainA", "testB"), "are names of files"),
        (("development", "evaluation"), "are names of files"),
        (("labeled", "unlabelled"), "are names of files"),
        (("part_one", "part_two"), "are names of files"),
        (("images_a", "images_b"), "are names of files"),
        (("first_batch", "second_batch"), "are names of files"),
        (("set_a", "set_b"), "are names of files"),
        (("Site A", "Site B"), "are names of files"),
        (("Patient_A", "Patient_B"), "are names of files"),
        (("normal", "bounding boxes", "Grad-CAM", "overlays"), "'Grad-CAM', 'bounding boxes', 'overlays' are names"),
        (("normal", "normal_augmented"), "'normal_augmented' is a name of other versions of the images of 'normal'"),
        (("covid", "covid_seg"), "'covid_seg' is a name of other versions"),
        (("A001", "B002", "C003"), "are identifiers"),
        (("P1-M45", "P2-F33"), "are names of files"),
        (("12-AB", "7-XY"), "are identifiers"),
        (("normal", "heat" + "maps"), "is a name of files"),
        (("Infection Segmentation Data", "Lung Segmentation Data"), "are names of datasets"),
        (("ChinaSet_AllFiles", "Montgomery"), "'ChinaSet_AllFiles' is a name of datasets"),
        (("Covid-19", "Normal"), None),
        (("COVID-19", "Viral Pneumonia", "Lung_Opacity"), None),
        (("TB", "benign"), None),
        (("0_normal", "1_covid"), None),
        (("no_1", "tb_1"), None),
        (("normal data", "covid data"), None),
        (("patients", "controls"), None),
        (("gesund", "krank"), None),
        (("Covid-19", "No_findings", "Pneumonia"), None),
        (("images of covid", "images of normal"), None),
        (("virus 1", "virus 2", "normal"), None),
        (("x", "y"), None),
        (("лёгкие", "норма"), None),
        (("face", "deadbeefcafe"), None),
    ],
)
def test_names_of_parts_kinds_and_patients_are_recognised(names, sign):
    found = find_name_sign(names)
    assert found is None if sign is None else sign in str(found)


def test_the_error_names_the_sign_the_table_and_the_data_format(tmp_path):
    write_folders(tmp_path, "images_001/images", "images_002/images")
    text = get_error(tmp_path)
    assert text.endswith("path and label, or `data_format='folders'` if the folders are the classes")
    rows = "Image Index,Finding Labels\nimages_001_images_0.png,Mass\nimages_002_images_1.png,Hernia\n"
    table = write_file(tmp_path / "Data_Entry_2017.csv", rows)
    text = get_error(tmp_path)
    assert f"FCX-E041 {tmp_path}: the folders may not be classes: 'images_001', 'images_002' differ" in text
    assert "; the table Data_Entry_2017.csv names these images. " in text
    assert f"Pass `data='{table}'`, or `data_format='folders'` if" in text


def test_the_tables_of_predict_are_no_label_tables(tmp_path):
    write_folders(tmp_path, "images_001/images", "images_002/images")
    rows = "path,source,prob_Mass,prob_Hernia,predicted,in_distribution\nimages_001_images_0.png,x,0.9,0.1,Mass,yes\n"
    for name in ("p1.csv", "p2.csv"):
        write_file(tmp_path / name, rows)
    assert "p1.csv" not in get_error(tmp_path) and find_tables(tmp_path, ["images_001_images_0.png"]) == []


@pytest.mark.parametrize(
    ("named", "kind"), [("images_001", "only one class"), ("images_001/images", "0 images in class folders")]
)
def test_an_image_folder_named_alone_is_an_error_that_names_the_table_above(tmp_path, named, kind):
    write_folders(tmp_path, "images_001/images", "images_002/images")
    write_file(tmp_path / "boxes.csv", "Image Index,x\nimages_001_images_0.png,1\n")
    table = write_file(tmp_path / "entries.csv", "Image Index,Finding Labels\nimages_001_images_0.png,Mass\n")
    write_file(tmp_path / "other.csv", "Image Index,Finding Labels\nanother.png,Mass\n")
    text = get_error(tmp_path / named, FastcxrError)
    assert kind in text
    assert "; the tables entries.csv, boxes.csv name these images. " in text
    assert f"Pass `data='{table}'`" in text


def test_folders_of_studies_below_one_folder_are_never_classes(tmp_path):
    write_folders(tmp_path, "files/p10/s50414267", "files/p10/s50414268", "files/p11/s50414269")
    text = get_error(tmp_path)
    assert f"{tmp_path}/files: the folders may not be classes: 'p10', 'p11' differ only in a number" in text
    assert "files'`" not in text
    assert "'p10', 'p11' differ only in a number" in get_error(tmp_path / "files")
    write_folders(tmp_path / "one class", "covid/p10", "covid/p11")
    assert "only one class, the folder 'covid', with subfolders ('p10', 'p11')" in get_error(tmp_path / "one class")


def test_split_folders_with_words_around_the_split_are_read_as_splits(tmp_path):
    names = [f"{split}/{label}" for split in ("train_images", "test_images") for label in ("normal", "pneumonia")]
    manifest = read_manifest(write_folders(tmp_path, *names))
    assert manifest.groupby(["split", "label"]).size().to_dict() == {
        (split, label): 2 for split in ("test", "train") for label in ("normal", "pneumonia")
    }
    assert has_class_folders(tmp_path)


@pytest.mark.parametrize("names", [("xrays-train", "xrays-val"), ("Train data", "Test data"), ("validation", "TRAIN")])
def test_the_split_may_be_the_first_or_the_last_word(tmp_path, names):
    dataset = detect_layout(write_folders(tmp_path, *(f"{name}/{label}" for name in names for label in "ab")))
    assert {folder.label for folder in dataset.folders} == {"a", "b"}
    assert len({folder.split for folder in dataset.folders}) == 2


def test_split_folders_with_other_classes_or_without_classes_are_an_error(tmp_path):
    write_folders(tmp_path / "other", "train_images/a", "train_images/b", "test_images/a")
    assert "the folders below 'test_images', 'train_images' differ" in get_error(tmp_path / "other")
    write_folders(tmp_path / "none", "train_images", "test_images")
    assert "no class folders inside 'test_images', 'train_images'" in get_error(tmp_path / "none")


def test_splits_below_each_class_and_the_same_subfolders_are_an_error(tmp_path):
    names = [f"{label}/{part}" for label in ("ill", "well") for part in ("train", "test")]
    text = get_error(write_folders(tmp_path / "splits", *names))
    assert "'ill' contains the splits 'test', 'train'" in text
    names = [f"{hospital}/{label}" for hospital in ("north", "south") for label in ("ill", "well")]
    text = get_error(write_folders(tmp_path / "hospitals", *names))
    assert "every folder has the subfolders 'ill', 'well'" in text


@pytest.mark.parametrize(
    ("names", "sign"),
    [
        (("north/covid", "south/normal"), "the folders contain class folders: 'covid', 'normal'"),
        (("north/Normal", "north/TB", "south/Healthy", "south/Sick"), "the folders contain class folders: 'Healthy'"),
        (("north/scar", "north/clear", "south/Scar", "south/CLEAR"), "every folder has the subfolders 'clear', 'scar'"),
        (("north/a/train/x", "north/a/test/x", "south/x"), "'north' contains the splits 'test', 'train'"),
        (("anna/2020-01-31", "anna/2021-02-01", "ben/2020-03-05"), "those of dates or studies, such as '2020-01-31'"),
        (("anna/study1", "ben/study2"), "those of dates or studies, such as 'study1'"),
    ],
)
def test_datasets_sites_and_patients_are_recognised_by_their_subfolders(tmp_path, names, sign):
    assert sign in get_error(write_folders(tmp_path, *names))


def test_a_folder_with_a_public_dataset_is_no_class(tmp_path):
    make_radiography(tmp_path / "kaggle")
    write_folders(tmp_path, "own")
    assert "'kaggle' contains COVID-19 Radiography Database" in get_error(tmp_path)


def test_subclasses_and_dates_below_classes_are_no_sign(tmp_path):
    names = ("pneumonia/bacterial", "pneumonia/viral", "normal/2020-01-31")
    assert set(read_manifest(write_folders(tmp_path, *names))["label"]) == {"pneumonia", "normal"}


def test_many_folders_of_few_images_without_a_finding_in_their_names_are_an_error(tmp_path):
    names = ["Doe_Jane", "Roe_Max", "Smith_John", "Wu_Li", "Poe_Ann"]
    assert "none of the 5 folders has more than 2 images" in get_error(write_folders(tmp_path / "patients", *names))
    names[0] = "Viral Pneumonia"
    assert len(detect_layout(write_folders(tmp_path / "classes", *names)).folders) == 5


@pytest.mark.parametrize("subfolders", [("images",), ("p0", "p1", "p2")])
def test_one_common_subfolder_and_numbered_patients_are_no_sign(tmp_path, subfolders):
    names = [f"{label}/{name}" for label in ("ill", "well") for name in subfolders]
    manifest = read_manifest(write_folders(tmp_path, *names))
    assert set(manifest["label"]) == {"ill", "well"}


def test_a_table_with_other_labels_for_the_files_is_an_error(tmp_path):
    data = write_two_classes(tmp_path / "data")
    table = write_file(data / "labels.csv", "file_name,Class\ncovid/a.png,covid\nnormal/c.png,Mass\n")
    text = get_error(data)
    assert "'c.png' is in the folder 'normal', but labels.csv gives it the label 'mass'" in text
    assert f"Pass `data='{table}'`" in text
    table.rename(tmp_path / "labels.csv")
    assert "but labels.csv gives it" in get_error(data)
    write_file(tmp_path / "labels.csv", "file_name,Class\na.png,COVID\nc.png,normal\nother.png,Mass\n")
    assert set(read_manifest(data)["label"]) == {"covid", "normal"}


@pytest.mark.parametrize(
    ("rows", "label"),
    [
        ("filename,Diagnose\na.png,fibrosis\nc.png,normal\n", "fibrosis"),
        ("filename,Edema,Mass\na.png,1,1\nc.png,0,0\n", "edema|mass"),
        ("filename,Edema,Covid\na.png,1,0\nc.png,0,1\n", "edema"),
    ],
)
def test_a_table_of_findings_or_with_another_label_column_is_an_error(tmp_path, rows, label):
    data = write_two_classes(tmp_path)
    table = write_file(data / "meta.csv", rows)
    text = get_error(data)
    assert f"'a.png' is in the folder 'covid', but meta.csv gives it the label '{label}'" in text
    assert f"Pass `data='{table}'`" in text


def test_tables_that_give_the_labels_of_the_folders_or_none_are_no_sign(tmp_path, caplog):
    data = write_two_classes(tmp_path)
    write_file(data / "findings.csv", "filename,Covid,Edema\na.png,1,1\nb.png,1,0\nc.png,0,0\n")
    write_file(data / "patients.csv", "filename,patient,age,class_id\na.png,1,20,0\nc.png,2,30,1\n")
    write_file(data / "boxes.csv", "filename,label,x_min\na.png,Mass,1\nc.png,Edema,2\n")
    write_file(data / "predictions.csv", "path,label,predicted\na.png,,x\nc.png,,y\n")
    write_file(data / "sample_submission.csv", "filename,label\na.png,0\nc.png,1\n")
    assert set(read_manifest(data)["label"]) == {"covid", "normal"}
    assert "findings.csv is ignored although it has the columns filename, Covid, Edema: pass it" in caplog.text


def test_the_suggested_table_has_labels_that_differ(tmp_path):
    write_folders(tmp_path, "images_001", "images_002")
    names = ["images_001_images_001_0.png", "images_002_images_002_0.png"]
    (tmp_path / "images_001/images_001_0.png").rename(tmp_path / "images_001" / names[0])
    for table, header, cells in (
        ("a_submission.csv", "image,label", "01"), ("b_boxes.csv", "image,label,bbox", "01"),
        ("c_same.csv", "image,label", "00"), ("d_other.csv", "image,width", "12"), ("e.csv", "uid,Edema,Mass", "01"),
    ):  # fmt: skip
        rest = ["," + str(i) for i in range(2)] if header.count(",") == 2 else ["", ""]
        rows = "".join(f"{name},{cell}{end}\n" for name, cell, end in zip(names, cells, rest, strict=True))
        write_file(tmp_path / table, f"{header}\n{rows}")
    text = get_error(tmp_path)
    assert "; the tables e.csv, c_same.csv, d_other.csv name these images. " in text
    assert f"Pass `data='{tmp_path / 'e.csv'}'`" in text
    for name in ("c_same.csv", "e.csv"):
        (tmp_path / name).unlink()
    assert "; the table d_other.csv names these images. Pass a CSV with the columns path and label" in get_error(
        tmp_path
    )


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        (("test_list.txt", "BBox_List_2017.csv", "images_001/a.png", "images_002/b.png"),
         "Data_Entry_2017*.csv (labels and patients) of NIH ChestX-ray14"),
        (("stage_2_detailed_class_info.csv", "stage_2_train_images/a.png", "stage_2_test_images/b.png"),
         "stage_2_train_labels.csv (one row per box) of "),
    ],
)  # fmt: skip
def test_the_missing_file_of_a_public_dataset_is_named(tmp_path, files, missing):
    assert f". Add {missing}" in get_error(write_files(tmp_path, *files))


def test_files_of_one_name_in_two_classes_are_matched_by_their_path(tmp_path):
    write_files(tmp_path, *(f"{label}/{i}.png" for label in ("covid", "normal") for i in range(3)))
    rows = "".join(f"{label}/{i}.png,{label}\n" for label in ("covid", "normal") for i in range(3))
    write_file(tmp_path / "labels.csv", "path,label\n" + rows)
    assert detect_layout(tmp_path).layout == "folders"


def test_a_folder_without_an_image_is_an_error(tmp_path):
    write_two_classes(tmp_path)
    write_files(tmp_path, "about/licence.txt")
    assert "'about' contains no image, but e.g. 'licence.txt'" in get_error(tmp_path)


@pytest.mark.parametrize("copy", ["backup", "data/inner/chest"])
def test_a_copy_of_the_class_folders_is_left_out_and_counted(tmp_path, caplog, copy):
    caplog.set_level(logging.INFO, "fastcxr")
    write_folders(tmp_path, "covid", "normal")
    write_files(tmp_path / copy, *(f"{name}/{name}_0.png" for name in ("covid", "normal")))
    name = copy.split("/")[0]
    assert set(read_manifest(tmp_path)["label"]) == {"covid", "normal"}
    assert f"left out 2 files of the folder {name}, a copy of the others" in caplog.text
    (tmp_path / copy / "covid/covid_0.png").write_bytes(b"other")
    text = get_error(tmp_path)
    assert f"the inner folder {copy} differs from the outer one in 1 file (covid/covid_0.png)" in text
    write_files(tmp_path / copy, "normal/more.png")
    assert "differs from the outer one in 2 files" in get_error(tmp_path)
    assert "differ" not in str(read_manifest(tmp_path, data_format="folders"))


def test_a_copy_of_split_folders_is_left_out(tmp_path):
    names = [f"{split}/{label}" for split in ("train", "test") for label in ("covid", "normal")]
    write_folders(tmp_path, *names)
    write_files(tmp_path / "download", *(f"{name}/{name.replace('/', '_')}_0.png" for name in names))
    assert detect_layout(tmp_path).layout == "split_folders"


def test_as_many_folders_as_images_or_patients_are_an_error(tmp_path):
    assert "every folder contains one image" in get_error(
        write_files(tmp_path / "one", "a/1.png", "b/2.png", "c/3.png")
    )
    names = [
        f"{name}/{patient:08d}_{i:03d}.png" for patient, name in enumerate(("anna", "ben", "eva")) for i in range(3)
    ]
    assert "every folder contains the images of one patient" in get_error(write_files(tmp_path / "patients", *names))


def test_images_of_two_gray_levels_are_an_error(tmp_path):
    for i in range(4):
        write_gray(tmp_path / f"radiographs of all/{i}.png", i)
        write_mask(tmp_path / f"lungs/{i}.jpg", i)
    assert "the images of 'lungs' have two gray levels, as masks have" in get_error(tmp_path)


def test_each_subfolder_of_a_class_is_searched_for_masks(tmp_path):
    for i in range(4):
        write_gray(tmp_path / f"covid/images/{i}.png", i)
        write_mask(tmp_path / f"covid/lung/{i}.png", i)
        write_gray(tmp_path / f"normal/images/{i}.png", i + 4)
    assert "the images of 'covid/lung' have two gray levels, as masks have" in get_error(tmp_path)


def test_masks_beside_their_images_are_left_out_and_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    masks = ("benign (1)_mask.png", "benign (1)_mask_1.png", "b-seg.jpg", "b gt.png", "mask_b.png")
    write_files(tmp_path, *(f"benign/{name}" for name in ("benign (1).png", "b.png", *masks)))
    write_files(tmp_path, "normal/c.png", "normal/d_mask.png", "normal/label.png")
    manifest = read_manifest(tmp_path)
    assert sorted(manifest["path"]) == [
        "benign/b.png", "benign/benign (1).png", "normal/c.png", "normal/d_mask.png", "normal/label.png",
    ]  # fmt: skip
    assert "left out 5 masks beside their images: benign/b gt.png, benign/b-seg.jpg and 3 more" in caplog.text


def test_the_user_confirms_class_folders_with_the_data_format(tmp_path):
    write_folders(tmp_path, "images_001", "images_002")
    assert set(read_manifest(tmp_path, data_format="folders")["label"]) == {"images_001", "images_002"}
    (tmp_path / "images_003").mkdir()
    with pytest.raises(DataError, match="class folders without files: 'images_003'"):
        read_manifest(tmp_path, data_format="folders")


def test_mask_folders_beside_class_folders_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    write_two_classes(tmp_path)
    write_files(tmp_path, "masks/a.png", "lung_segmentations/deep/a.png", "covid/Masks/a.png", "covid/Masks/b.png")
    assert set(read_manifest(tmp_path)["label"]) == {"covid", "normal"}
    assert "left out 2 files in mask folders: lung_segmentations, masks" in caplog.text
    assert "left out 2 files in mask folders: covid/Masks" in caplog.text
    write_files(tmp_path, "normal/a_masks/a.png", "normal/b_masks/a.png")
    read_manifest(tmp_path)
    assert "left out 4 files in mask folders: covid/Masks, normal/a_masks and 1 more" in caplog.text


def test_images_and_masks_with_a_table_are_read_from_the_table(tmp_path):
    write_files(tmp_path, "images/a.png", "images/b.png", "masks/a.png")
    write_file(tmp_path / "labels.csv", "path,label\nimages/a.png,x\nimages/b.png,y\n")
    assert read_manifest(tmp_path, only_test=True)["label"].tolist() == ["x", "y"]


def test_one_class_folder_beside_a_table_is_read_if_the_user_confirms_it(tmp_path):
    write_folders(tmp_path, "data/covid")
    write_file(tmp_path / "labels.csv", "path,label\ndata/covid/data_covid_0.png,covid\n")
    assert "only one class, the folder 'covid'; the table labels.csv names these images" in get_error(tmp_path / "data")
    manifest = read_manifest(tmp_path / "data", data_format="folders", only_test=True)
    assert manifest["label"].tolist() == ["covid", "covid"]
