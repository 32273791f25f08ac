"""Small datasets with the layout of public datasets; all images differ."""

from pathlib import Path

import numpy as np
from PIL import Image

CORONAHACK = ",X_ray_image_name,Label,Dataset_type,Label_2_Virus_category,Label_1_Virus_category"
ROWS = (
    "IM-0001-0001.jpeg,Normal,TRAIN,,",
    "NORMAL2-IM-0002-0001.jpeg,Normal,TEST,,",
    "person1_bacteria_1.jpeg,Pnemonia,TRAIN,,bacteria",
    "person1_bacteria_2.jpeg,Pnemonia,TEST,,bacteria",
    "person2_virus_4.jpeg,Pnemonia,TRAIN,,Virus",
    "person3_virus_6.jpeg,Pnemonia,TEST,,Virus",
    "nejmoa2001191_f1-PA.jpeg,Pnemonia,TRAIN,COVID-19,Virus",
    "kjr-21-e24-g001-l-a.jpg,Pnemonia,TEST,COVID-19,Virus",
)


def write_image(file: Path, number: int) -> Path:
    """Write a smooth image of 80 by 96 pixels that is different for each number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    clouds = np.random.default_rng(number).integers(0, 256, (10, 12), np.uint8)
    Image.fromarray(clouds).resize((96, 80), Image.Resampling.BILINEAR).save(file)
    return file


def make_coronahack(root: Path, *more: str, nest: str = "", patients: tuple[str, ...] = (), first: int = 100) -> Path:
    """Write the table, and its images in train/ and test/ below `nest`; `more` are further rows."""
    rows = [*ROWS, *more]
    header = CORONAHACK + (",patient_id" if patients else "")
    lines = [f"{i},{row}" + (f",{patients[i]}" if patients else "") for i, row in enumerate(rows)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "Chest_xray_Corona_Metadata.csv").write_text("\n".join([header, *lines]) + "\n")
    for number, row in enumerate(rows, first):
        name, _, split, *_ = row.split(",")
        write_image(root / nest / split.lower() / name, number)
    return root


COHEN = "patientid,offset,sex,age,finding,survival,view,modality,date,location,filename,doi,url,license,"
COHEN += "clinical notes,folder"


def make_cohen(root: Path, *more: str, first: int = 200) -> Path:
    """Write metadata.csv and images/; rows: patient, finding, view, modality, filename, folder."""
    rows = [
        "2,COVID-19,PA,X-ray,a one.png,images",
        "2,COVID-19,L,X-ray,b.jpg,images",
        "3,COVID-19,AP,X-ray,c.png,images",
        "4,SARS,PA,X-ray,d.png,images",
        "5,SARS,PA,X-ray,e.png,images",
        *more,
    ]
    lines = [COHEN]
    for number, row in enumerate(rows, first):
        patient, finding, view, modality, name, folder = row.split(",")
        lines.append(f"{patient},,M,65,{finding},Y,{view},{modality},2020,Here,{name},doi,url,,coughs,{folder}")
        if not name.endswith(".gz"):
            write_image(root / folder / name, number)
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


COVIDX = "3 a.png normal rsna\n4 b b.jpg COVID-19 cohen\n5 c.png COVID-19 fig1\n6 d.png normal rsna\n"


def make_covidx(root: Path, lists: str = "labels", images: str = "", train: str = COVIDX) -> Path:
    """Write the label lists in `lists`, and images in train/ and test/ below `images`."""
    for number, name in enumerate(["train/a.png", "train/b b.jpg", "train/c.png", "train/d.png", "test/e.png"]):
        write_image(root / images / name, 300 + number)
    (root / lists).mkdir(parents=True, exist_ok=True)
    (root / lists / "train_COVIDx5.txt").write_text(train)
    (root / lists / "test_COVIDx5.txt").write_text("RSNA 1 e.png normal rsna\n")
    return root
