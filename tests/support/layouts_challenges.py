"""Small copies of the challenges with DICOM images: RSNA, SIIM-ACR, VinDr-CXR and VinBigData; all images differ."""

from pathlib import Path

import numpy as np
from sample_images import make_dicom, save_dicom


def write_dicom(file: Path, number: int, **tags) -> Path:
    """Write a random image of 64 by 64 pixels that is different for each number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    stored = np.random.default_rng(number).integers(0, 256, (64, 64), np.uint8)
    return save_dicom(file, make_dicom(stored, **tags))


def write_csv(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    return file


RSNA_CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
RSNA_NAME = "{:08x}-aaaa-4bbb-8ccc-0123456789ab"


def make_rsna(root: Path, per_class: int = 4, n_test: int = 2) -> Path:
    """Write both tables and the images; each second image with an opacity has two boxes, and so two rows per table."""
    boxes, classes = ["patientId,x,y,width,height,Target"], ["patientId,class"]
    for number in range(3 * per_class):
        name, label = RSNA_NAME.format(number), RSNA_CLASSES[number % 3]
        write_dicom(root / "stage_2_train_images" / f"{name}.dcm", number, PatientID=name, PatientSex="MF"[number % 2])
        for box in range(1 + number % 2 if label == "Lung Opacity" else 1):
            boxes.append(f"{name},{264.0 + box},152.0,213.0,379.0,1" if label == "Lung Opacity" else f"{name},,,,,0")
            classes.append(f"{name},{label}")
    for number in range(n_test):
        write_dicom(root / "stage_2_test_images" / f"{RSNA_NAME.format(900 + number)}.dcm", 900 + number)
    write_csv(root / "stage_2_train_labels.csv", *boxes)
    write_csv(root / "stage_2_detailed_class_info.csv", *classes)
    write_csv(root / "stage_2_sample_submission.csv", "patientId,PredictionString", "f0000000,0.5 0 0 100 100")
    return root


def make_siim_acr(root: Path, n_images: int = 6, n_test: int = 1) -> Path:
    """Write the table and the images, each in two folders; each third image has two masks."""
    lines = ["ImageId, EncodedPixels"]
    for number in range(n_images):
        study, name = f"1.2.276.0.{number}", f"1.2.276.0.7230010.3.1.4.{number}.850819"
        masks = ([" -1"], [" 557374 2 1015 8"], [" 557374 2 1015 8", " 312 5 7 9"])[number % 3]
        lines += [f"{name},{mask}" for mask in masks]
        write_dicom(root / "dicom-images-train" / study / f"{study}.1" / f"{name}.dcm", number, PatientID=name)
    for number in range(n_test):
        write_dicom(root / "dicom-images-test" / "1.2.9" / "1.2.9.1" / f"1.2.9.{number}.dcm", 900 + number)
    write_csv(root / "train-rle.csv", *lines)
    return root


CLASS_IDS = {"Cardiomegaly": 3, "ILD": 5, "No finding": 14}
READERS = ("R8", "R9", "R10")
VOTES = {  # findings of the three readers for each image
    "0" * 32: ("No finding", "No finding", "No finding"),
    "1" * 32: ("Cardiomegaly", "Cardiomegaly", "Cardiomegaly"),
    "2" * 32: ("Cardiomegaly", "Cardiomegaly", "No finding"),
    "3" * 32: ("No finding", "Cardiomegaly", "No finding"),
    "4" * 32: ("Cardiomegaly", "ILD", "No finding"),
    "5" * 32: ("Cardiomegaly+ILD", "ILD", "Cardiomegaly+ILD"),
}


def make_vinbigdata(root: Path) -> Path:
    """Write train.csv, with a row per box, its images, and one test image."""
    lines = ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"]
    for number, (image, votes) in enumerate(VOTES.items()):
        write_dicom(root / "train" / f"{image}.dicom", number, PatientID="")
        for reader, vote in zip(READERS, votes, strict=True):
            for name in vote.split("+"):
                box = ",,," if name == "No finding" else "10.0,20.0,40.0,60.0"
                lines.append(f"{image},{name},{CLASS_IDS[name]},{reader},{box}")
    lines.append(lines[-1].replace("10.0", "11.0"))  # a second box of the same reader and finding
    write_dicom(root / "test" / f"{'f' * 32}.dicom", 900, PatientID="")
    write_csv(root / "train.csv", *lines)
    return root


def make_vindr_cxr(root: Path, version: str = "1.0.0") -> Path:
    """Write the label and box tables of both parts, and the images; the two test images have one consensus."""
    folder = root / version
    train = ["image_id,rad_id,Cardiomegaly,ILD,Other diseases,No finding"]
    boxes = ["image_id,rad_id,class_name,x_min,y_min,x_max,y_max"]
    for number, (image, votes) in enumerate(VOTES.items()):
        write_dicom(folder / "train" / f"{image}.dicom", number, PatientID="")
        for reader, vote in zip(READERS, votes, strict=True):
            cells = [int(name in vote.split("+")) for name in ("Cardiomegaly", "ILD", "Other diseases", "No finding")]
            train.append(",".join([image, reader, *map(str, cells)]))
            boxes.append(f"{image},{reader},{vote.split('+')[0]}," + (",,," if vote == "No finding" else "1,2,11,32"))
    write_csv(folder / "annotations" / "image_labels_train.csv", *train)
    write_csv(folder / "annotations" / "annotations_train.csv", *boxes)
    test = [f"{'a' * 32},1,0,0,0", f"{'b' * 32},0,0,1,0", f"{'c' * 32},0,0,0,1"]
    header = "image_id,Cardiomegaly,ILD,Other disease,No finding"
    write_csv(folder / "annotations" / "image_labels_test.csv", header, *test)
    for number, row in enumerate(test, 800):
        write_dicom(folder / "test" / f"{row[:32]}.dicom", number, PatientID="")
    return root
