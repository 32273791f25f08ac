"""Small copies of MIMIC-CXR-JPG, PadChest and BRAX: layout and column names of the download, made-up rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from public_layouts import write_gray, write_table

REPORT = "ZZREPORT opacidad basal izquierda"  # no output, error or message may contain it
PADCHEST_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
PADCHEST_HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,ReportID,Report,MethodLabel,Labels"
)
PADCHEST_LABELS = (  # of each image: the cell, and the projection
    ("['normal']", "PA"),
    ("['pneumonia', ' pleural effusion']", "L"),
    ("['pneumonia', '', 'unchanged']", "AP_horizontal"),
    ("['unchanged']", "AP"),
    ("['suboptimal study', ' normal']", "COSTAL"),
    ("[' exclude']", "EXCLUDE"),
    ("['']", "UNK"),
    ("", "PA"),
    ("nan", "PA"),
    ("['scoliosis', 'scoliosis ']", "PA"),
)
CHEXPERT_HEADER = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
    "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)


def make_labels(**values: str) -> list[str]:
    """Return the 14 cells of CheXpert's labels, blank if not given; names have "_" for spaces."""
    by_name = {name.replace("_", " "): value for name, value in values.items()}
    assert by_name.keys() <= set(CHEXPERT_HEADER.split(","))
    return [by_name.get(name, "") for name in CHEXPERT_HEADER.split(",")]


def make_padchest(root: Path, labels: Sequence[tuple[str, str]] = PADCHEST_LABELS, suffix: str = "") -> Path:
    """Write PadChest: 16-bit PNG files in the folders 0 and 1, and the table; two images per patient."""
    rows = []
    for i, (cell, projection) in enumerate(labels):
        name, patient, birth = f"{10**30 + i}_{i:06d}.png", 10**38 + i // 2, f"{1920 + 10 * i}.0" if i < 9 else ""
        write_gray(root / str(i % 2) / name, i, np.uint16)
        rows.append([i, name, i % 2, "20140915", 10**20 + i, patient, birth, "MFO"[i % 3], "", projection,
                     "Manual review of DICOM fields", "No", 4_000_000 + i, f"{REPORT} {i}", ["Physician", "RNN_model"][i % 2], cell])  # fmt: skip  # noqa: E501
    write_table(root / (PADCHEST_TABLE + suffix), PADCHEST_HEADER, rows)
    return root


MIMIC_STUDIES = (  # subject, study, split, labels by CheXpert's labeler (None: no row)
    (10000032, 50414267, "train", make_labels(No_Finding="1.0")),
    (10000032, 50414268, "train", make_labels(Edema="0.0", Pneumonia="1.0", Lung_Opacity="1.0")),
    (10000764, 57375967, "train", make_labels(Pneumonia="-1.0")),
    (10000898, 50771383, "validate", None),
    (11000935, 50578979, "test", make_labels(Pneumonia="1.0")),
    (11000980, 54577367, "test", make_labels(No_Finding="1.0")),
)
MIMIC_VIEWS = ("PA", "LATERAL", "AP", "LL", "", "AP AXIAL")
MIMIC_METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime"
)


def name_dicom(number: int) -> str:
    """Return an identifier as in MIMIC-CXR: five groups of eight digits."""
    return "-".join(f"{number:08x}" for _ in range(5))


def make_mimic(root: Path, suffix: str = ".gz", version: str = "2.0.0") -> Path:
    """Write MIMIC-CXR-JPG: two images per study, the split, the metadata and both tables of labels."""
    splits, metadata, labels = [], [], []
    for k, (subject, study, split, cells) in enumerate(MIMIC_STUDIES):
        for number in (2 * k, 2 * k + 1):
            dicom, view = name_dicom(number), MIMIC_VIEWS[number % 6]
            write_gray(root / f"files/p{subject // 10**6}/p{subject}/s{study}/{dicom}.jpg", number)
            splits.append([dicom, study, subject, split])
            metadata.append([dicom, subject, study, "CHEST (PA AND LAT)", view, 20, 24, f"{2180 + k}0506", "213014.5"])
        if cells is not None:
            labels.append([subject, study, *cells])
    for kind, header, rows in (
        ("split", "dicom_id,study_id,subject_id,split", splits),
        ("metadata", MIMIC_METADATA, metadata[::-1]),  # another order than in the split
        ("chexpert", f"subject_id,study_id,{CHEXPERT_HEADER}", labels),
        ("negbio", f"subject_id,study_id,{CHEXPERT_HEADER}", [[*row[:2], *make_labels(Edema="1.0")] for row in labels]),
    ):
        write_table(root / f"mimic-cxr-{version}-{kind}.csv{suffix}", header, rows)
    return root


def write_radiologist_labels(root: Path, *studies: tuple[int, list[str]]) -> Path:
    """Write the table of the test studies, without subject_id and with its name of Lung Opacity."""
    header = "study_id," + CHEXPERT_HEADER.replace("Lung Opacity", "Airspace Opacity")
    return write_table(root / "mimic-cxr-2.1.0-test-set-labeled.csv", header, [[s, *cells] for s, cells in studies])


BRAX_TABLE = "master_spreadsheet_update.csv"
BRAX_HEADER = (
    "Unnamed: 0,DicomPath,PngPath,PatientID,PatientSex,PatientAge,AccessionNumber,StudyDate,"
    f"{CHEXPERT_HEADER},ViewPosition,Rows,Columns,Manufacturer"
)


def make_brax(root: Path) -> Path:
    """Write BRAX: PNG files below images/ and the table; the last image is a thin strip."""
    rows = []
    for i, (age, view, labels) in enumerate(
        (
            ("85 or more", "L", make_labels(No_Finding="1.0")),
            ("60.0", "PA", make_labels(Pneumonia="-1.0", Edema="0.0")),
            ("35", "", make_labels(Pneumonia="1.0")),
            ("35", "AP", make_labels(Pneumonia="1.0")),
        )
    ):
        folder = f"id_{i // 2:04x}/Study_{i}/Series_1"
        name = f"images/{folder}/image-{i}.png"
        write_gray(root / name, i)
        size = (4000, 100) if i == 3 else (20, 24)
        rows.append([i, f"Anonymized_DICOMs/{folder}/image-{i}.dcm", name, f"id_{i // 2:04x}", "MF"[i % 2], age,
                     f"acc{i}", "20100101", *labels, view, *size, "Vendor"])  # fmt: skip
    write_table(root / BRAX_TABLE, BRAX_HEADER, rows)
    return root
