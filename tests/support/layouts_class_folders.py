"""Small copies of public datasets in class folders: layout of the download, synthetic images."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from public_layouts import write_gray

RADIOGRAPHY_LABELS = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
KERMANY_IMAGES = {"train": 6, "val": 2, "test": 3}  # of each class


def write_mask(file: Path, number: int) -> Path:
    """Write a mask of 0 and 255 with a rectangle that differs for each number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((64, 64), np.uint8)
    mask[8 : 20 + number % 32, 8:40] = 255
    Image.fromarray(mask).save(file)
    return file


def make_radiography(root: Path, n: int = 5) -> Path:
    """Write the COVID-19 Radiography Database with n images a class, each with a mask of the same name."""
    for k, label in enumerate(RADIOGRAPHY_LABELS):
        for i in range(n):
            write_gray(root / label / "images" / f"{label}-{i + 1}.png", 100 * k + i)
            write_mask(root / label / "masks" / f"{label}-{i + 1}.png", i)
        (root / f"{label}.metadata.xlsx").write_bytes(b"PK\x03\x04")
    return root


def make_kermany(root: Path) -> Path:
    """Write chest_xray with the inner copy and the files of macOS, as Kaggle's archive contains them."""
    number = 0
    for split, n in KERMANY_IMAGES.items():
        for i in range(n):
            number += 1
            write_gray(root / split / "NORMAL" / f"IM-{number:04d}-0001.jpeg", number)
            write_gray(root / split / "PNEUMONIA" / f"person{number}_virus_{i}.jpeg", 1000 + number)
        (root / split / "NORMAL/.DS_Store").write_bytes(b"\0\0\0\1Bud1")
    shutil.copytree(root, root.parent / "copy")
    shutil.move(root.parent / "copy", root / "chest_xray")
    hidden = root / "__MACOSX/chest_xray/train/NORMAL/._IM-0001.jpeg"
    hidden.parent.mkdir(parents=True)
    hidden.write_bytes(b"\0\5\x16\7")
    return root
