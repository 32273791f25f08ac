"""Tests for rsna.py."""

import logging
import zipfile

import pytest
from detection import check_detection, check_no_detection
from layouts_challenges import RSNA_NAME, make_rsna, write_csv
from real_tables import find_real_table
from toy_datasets import check_message

from fastcxr.data.imaging.read import read_image
from fastcxr.data.readers.public import ReaderOptions
from fastcxr.data.readers.rsna import DATASET, read_rsna, read_rsna_boxes
from fastcxr.errors import DataError, InputMissingError, RecipeError

BOXES = ReaderOptions(label_variant="boxes")
FIRST = RSNA_NAME.format(0)


@pytest.fixture
def rsna(tmp_path):
    return make_rsna(tmp_path / "rsna")


def test_repeated_rows_are_joined_and_test_images_left_out_with_a_count(rsna, caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        rows = read_rsna(rsna, ReaderOptions())
    assert rows["label"].value_counts().to_dict() == {
        "Normal": 4, "No Lung Opacity / Not Normal": 4, "Lung Opacity": 4,
    }  # fmt: skip
    assert rows["path"].is_unique
    assert rows["path"].str.startswith("stage_2_train_images/").all()
    assert rows["split"].isna().all()
    assert "patient" not in rows, "patientId names an image"
    assert (rows.index.name, *rows.index[:5]) == ("line", 2, 3, 4, 5, 6)
    assert read_image(rows["file"].iloc[-1]).shape == (64, 64)
    assert "left out 2 images of stage_2_test_images/, which have no published labels" in caplog.text
    warning = "patientId names one image, so images of a patient may be in both train and test"
    assert [warning in record.message for record in caplog.records if record.levelno == logging.WARNING] == [True]


def test_two_classes_come_from_the_boxes(rsna):
    (rsna / "stage_2_detailed_class_info.csv").unlink()
    rows = read_rsna(rsna, BOXES)
    assert rows["label"].value_counts().to_dict() == {"No Pneumonia": 8, "Pneumonia": 4}
    assert set(rows.loc[rows["path"].str.contains("00000002-"), "label"]) == {"Pneumonia"}


def test_a_missing_class_table_names_the_file_and_the_other_variant(rsna):
    (rsna / "stage_2_detailed_class_info.csv").unlink()
    with pytest.raises(InputMissingError) as caught:
        read_rsna(rsna, ReaderOptions())
    message = check_message(caught.value)
    assert "stage_2_detailed_class_info.csv: no such file" in message
    assert "choose two classes with `label_variant='boxes'`" in message


def test_an_unknown_variant_is_an_error(rsna):
    with pytest.raises(RecipeError, match="no label variant called 'box'.*classes or boxes"):
        read_rsna(rsna, ReaderOptions(label_variant="box"))


def test_images_of_another_format_and_missing_images_are_read(rsna):
    images = sorted((rsna / "stage_2_train_images").iterdir())
    images[0].rename(images[0].with_suffix(".png"))
    images[1].unlink()
    rows = read_rsna(rsna, ReaderOptions())
    assert rows["path"].iloc[0] == f"stage_2_train_images/{images[0].stem}.png"
    assert rows["file"].isna().tolist() == [False, True, *[False] * 10]
    assert rows["path"].iloc[1] == images[1].name


def test_boxes_are_read_in_pixels(rsna):
    boxes = read_rsna_boxes(rsna)
    assert boxes.columns.tolist() == ["path", "finding", "x", "y", "width", "height"]
    assert len(boxes) == 6, "4 images, of which 2 have two boxes"
    assert boxes.iloc[0, 1:].tolist() == ["Lung Opacity", 264.0, 152.0, 213.0, 379.0]
    assert set(boxes["path"]) <= set(read_rsna(rsna, ReaderOptions())["path"])


@pytest.mark.parametrize(
    ("table", "edit", "message"),
    [
        ("train_labels", lambda text: text.replace(f"{FIRST},,,,,0", f"{FIRST},,,,,2"),
         "1 rows have another Target than 0 or 1: '2' .line 2"),
        ("train_labels", lambda text: text + f"{FIRST},1,2,3,4,1\n", "2 rows give one image several values of Target"),
        ("detailed_class_info", lambda text: text + f"{FIRST},Lung Opacity\n",
         "2 rows give one image several values of class"),
        ("detailed_class_info", lambda text: text.replace(f"{FIRST},Normal", f"{FIRST},Lung Opacity"),
         "1 rows contradict Target of stage_2_train_labels.csv"),
    ],
)  # fmt: skip
def test_contradictions_and_unknown_values_are_errors(rsna, table, edit, message):
    path = rsna / f"stage_2_{table}.csv"
    path.write_text(edit(path.read_text()))
    with pytest.raises(DataError, match=message) as caught:
        read_rsna(rsna, ReaderOptions())
    check_message(caught.value)


def test_the_dataset_is_found_from_each_path_a_user_may_name(rsna):
    tables = ("stage_2_train_labels.csv", "stage_2_detailed_class_info.csv")
    check_detection(DATASET, rsna, "stage_2_train_images", "stage_2_test_images", *tables)


def test_other_data_is_not_the_dataset(rsna, tmp_path):
    other = write_csv(tmp_path / "own" / "stage_2_train_labels.csv", "path,label", "a.png,x")
    image = next((rsna / "stage_2_train_images").iterdir())
    check_no_detection(DATASET, other, other.parent, image, tmp_path / "absent", rsna / "stage_2_sample_submission.csv")


@pytest.mark.needs("torchxrayvision")
def test_the_real_table_has_26684_images(tmp_path):
    with zipfile.ZipFile(find_real_table("kaggle_stage_2_train_labels.csv.zip")) as archive:
        archive.extractall(tmp_path)
    assert DATASET.detect(tmp_path) == tmp_path
    rows = read_rsna(tmp_path, BOXES)
    assert rows["label"].value_counts().to_dict() == {"No Pneumonia": 20_672, "Pneumonia": 6_012}
    assert len(rows) == DATASET.n_images
    assert len(read_rsna_boxes(tmp_path)) == 9_555
