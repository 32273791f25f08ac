"""Small copies of public datasets: layout and column names of the download, made-up rows, synthetic images."""

import csv
import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
NIH_BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
CHEXPERT_FINDINGS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)  # fmt: skip
CHEXPERT_HEADER = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", *CHEXPERT_FINDINGS)


def write_gray(file: Path, number: int, dtype: type = np.uint8, size: tuple[int, int] = (24, 20)) -> Path:
    """Write a gray image (width, height) [pixels] of random pixels that differ for each number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    highest = np.iinfo(dtype).max
    pixels = np.random.default_rng(number).integers(0, highest, (height, width), dtype, endpoint=True)
    Image.fromarray(pixels).save(file)
    return file


def write_table(path: Path, header: str | Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a CSV file, compressed if the name ends in .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(",") if isinstance(header, str) else header)
        writer.writerows(rows)
    return path


def make_nih_rows(n: int = 60) -> list[list[object]]:
    """Return rows of NIH's table, two or more images a patient: No Finding, Pneumonia, and one with two findings."""
    rows = []
    for i in range(n):
        patient, follow_up = 1 + i // 2, i % 2
        label = "No Finding" if i < n // 2 else "Infiltration|Pneumonia" if i % 3 == 0 else "Pneumonia"
        name = f"{patient:08d}_{follow_up:03d}.png"
        age, sex, view = 30 + patient % 40, "MF"[patient % 2], ("PA", "AP")[i % 2]
        rows.append([name, label, follow_up, patient, age, sex, view, 2682, 2749, 0.143, 0.143, ""])
    return rows


def make_nih(root: Path, n: int = 60, table: str = "Data_Entry_2017.csv") -> Path:
    """Write NIH ChestX-ray14: images_00N/images/, the table, the boxes and the official lists."""
    rows = make_nih_rows(n)
    for i, (name, *_) in enumerate(rows):
        write_gray(root / f"images_{1 + i % 3:03d}" / "images" / name, i)
    write_table(root / table, NIH_HEADER, rows)
    write_nih_lists(root, rows)
    boxes = [[row[0], "Pneumonia", 225.0 + i, 547.0, 86.8, 79.2, "", "", ""] for i, row in enumerate(rows[-6:])]
    write_table(root / "BBox_List_2017.csv", NIH_BOX_HEADER, boxes)
    (root / "README_CHESTXRAY.pdf").write_bytes(b"%PDF-1.4")
    return root


def write_nih_lists(root: Path, rows: Sequence[Sequence], suffix: str = "") -> None:
    """Write train_val_list.txt and test_list.txt; every third patient is in test."""
    for part, in_test in (("train_val", False), ("test", True)):
        names = [row[0] for row in rows if (row[3] % 3 == 0) is in_test]
        (root / f"{part}_list{suffix}.txt").write_text("\n".join(names))


def make_nih_224(root: Path, n: int = 60) -> Path:
    """Write Kaggle's 224 px copy of NIH: images-224/images-224/, the table and the lists with other names."""
    rows = make_nih_rows(n)
    for i, (name, *_) in enumerate(rows):
        write_gray(root / "images-224" / "images-224" / name, i)
    write_table(root / "Data_Entry_2017.csv", NIH_HEADER, rows)
    write_nih_lists(root, rows, "_NIH")
    return root


def make_chexpert_rows(part: str, folder: str = "CheXpert-v1.0-small") -> list[list[str]]:
    """Return 50 rows of train.csv or 20 of valid.csv, with other patients and neither blanks nor -1."""
    n, first_patient = (50, 0) if part == "train" else (20, 64540)
    rows = []
    for i in range(n):
        patient = first_patient + 1 + i // 2
        is_lateral = i % 5 == 4
        view = "view2_lateral" if is_lateral else "view1_frontal"
        path = f"{folder}/{part}/patient{patient:05d}/study{i % 2 + 1}/{view}.jpg"
        values = dict.fromkeys(("No Finding", *CHEXPERT_FINDINGS), "")
        if i < n // 2:
            values |= {"No Finding": "1.0"}
        else:
            values |= {"Pneumonia": "1.0" if i % 4 else "-1.0", "Lung Opacity": "1.0" if i % 3 == 0 else ""}
            values |= {"Pleural Effusion": "0.0" if i % 2 else "-1.0"}
        if part == "valid":
            values = {name: "1.0" if value == "1.0" else "0.0" for name, value in values.items()}
        sex = ("Male", "Female")[patient % 2]
        position = "" if is_lateral else ("AP", "PA")[i % 2]
        rows.append(
            [path, sex, str(40 + patient % 40), "Lateral" if is_lateral else "Frontal", position, *values.values()]
        )
    return rows


def make_chexpert(root: Path, folder: str = "CheXpert-v1.0-small") -> Path:
    """Write CheXpert in `root`/`folder`: train.csv, valid.csv, and images below train/ and valid/."""
    for first, part in ((0, "train"), (1000, "valid")):
        rows = make_chexpert_rows(part, folder)
        for i, (path, *_) in enumerate(rows, first):
            write_gray(root / path, i)
        write_table(root / folder / f"{part}.csv", CHEXPERT_HEADER, rows)
    return root


def make_chexlocalize(root: Path, folder: str = "CheXpert") -> Path:
    """Write CheXlocalize in `root`/`folder`: val_labels.csv, test_labels.csv (without people) and images."""
    for first, part, label_part, n in ((0, "val", "valid", 12), (100, "test", "test", 8)):
        rows = []
        for i in range(n):
            below = f"patient{64541 + first + i // 2}/study1/view{1 + i % 2}_{('frontal', 'lateral')[i % 2]}.jpg"
            write_gray(root / folder / part / below, first + i)
            values = {name: "1.0" if name == "Edema" and i < n // 2 else "0.0" for name in CHEXPERT_FINDINGS}
            people = ["Male", "60", ("Frontal", "Lateral")[i % 2], ("AP", "")[i % 2]] if part == "val" else []
            no_finding = "0.0" if i < n // 2 else "1.0"
            rows.append([f"CheXpert-v1.0/{label_part}/{below}", *people, no_finding, *values.values()])
        header = CHEXPERT_HEADER if part == "val" else ("Path", *CHEXPERT_HEADER[5:])
        write_table(root / folder / f"{part}_labels.csv", header, rows)
        (root / folder / f"gt_segmentations_{part}.json").write_text("{}")
    return root
