"""DICOM radiographs with a patient and a study, and the programs that validate and print DICOM results."""

import subprocess
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComprehensiveSRStorage, ComputedRadiographyImageStorage, ExplicitVRLittleEndian
from sample_images import make_dicom, save_dicom

from fastcxr.export.dicom_attributes import make_uid
from fastcxr.export.image_results import Algorithm, ImageResult, LabelResult

ROOT = "1.2.826.0.1.3680043.8.498"  # the root of pydicom
NEVER_COPIED = {"InstitutionName": "ZZHOSPITAL", "OperatorsName": "ZZOPERATOR", "StudyDescription": "ZZSTUDY"}
PATIENT = {"PatientName": "Müller^Ana", "PatientID": "ZZTESTID", "PatientAge": "62", "PatientSex": "F"}
ALGORITHM = Algorithm(
    name="fastcxr timm:resnet50",
    checksum="5f" * 32,
    parameters=("sha256 of model.json: " + "5f" * 32,),
    version="0.1",
    notices=("Confounded: do not use these metrics",),
)


def make_radiograph(number: int = 0, level: int = 120, **tags) -> Dataset:
    """Return a radiograph of study `number` with the mean gray level `level`; tags are set, or removed if None."""
    pixels = np.full((64, 64), level, np.uint8)
    pixels[:, :8] = (level + 128) % 256  # an image of one gray level is rejected
    usual = {"SpecificCharacterSet": "ISO_IR 100", **PATIENT, **NEVER_COPIED, "StudyDate": "20200102", "StudyID": "7"}
    usual |= {f"{unit}InstanceUID": f"{ROOT}.{number}.{k}" for k, unit in enumerate(("Study", "Series", "SOP"), 1)}
    usual |= {"SOPClassUID": ComputedRadiographyImageStorage, "Modality": "CR"}
    dataset = make_dicom(pixels)
    with disable_value_validation():
        for name, value in (usual | tags).items():
            if value is not None:
                setattr(dataset, name, value)
            elif name in dataset:
                delattr(dataset, name)
    return dataset


def write_radiographs(folder: Path, n_images: int, broken: int | None = None) -> Path:
    """Write radiographs from dark to bright; the one with the number `broken` has half of its pixels."""
    folder.mkdir(exist_ok=True)
    for number in range(n_images):
        dataset = make_radiograph(number, 20 + number * 180 // max(1, n_images - 1))
        path = save_dicom(folder / f"{number:02d}.dcm", dataset)
        if number == broken:
            path.write_bytes(path.read_bytes()[:-2048])
    return folder


def make_result(*labels: str, is_multi_label: bool = False, is_ood: bool = False, **changes) -> ImageResult:
    """Return the result of an image with these labels, of which the last one has no threshold."""
    labels = labels or ("Pneumonia", "Covid-19", "no finding")
    values = [(label, 0.9 / 3**k, 0.5 if k < len(labels) - 1 else None) for k, label in enumerate(labels)]
    results = tuple(
        LabelResult(label=name, probability=p, threshold=t, is_reached=None if is_ood or t is None else p >= t)
        for name, p, t in values
    )
    usual = {"ood_score": 1.5 if is_ood else 0.5, "is_uncertain": None if is_multi_label else is_ood}
    usual |= {"predicted": "" if is_multi_label or is_ood else labels[0]}
    return ImageResult(labels=results, is_multi_label=is_multi_label, is_ood=is_ood, **usual | changes)


def make_plain_report(source, result, algorithm, instance) -> Dataset:
    """Return a small dataset in place of the structured report of make_sr, which takes 40 ms, for tests of files."""
    report = Dataset()
    report.StudyInstanceUID, report.SOPInstanceUID = source.StudyInstanceUID, instance.uid
    report.SeriesInstanceUID, report.SOPClassUID = make_uid(source.StudyInstanceUID), ComprehensiveSRStorage
    report.preamble, report.file_meta = bytes(128), FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return report


def list_problems(path: Path) -> list[str]:
    """Return the errors and warnings of dciodvfy, except those on private codes and on an empty StudyID."""
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    is_expected = ("Coding Scheme Designator", "DICOMDIR")
    return [line for line in lines if line.startswith(("Error", "Warning")) and not any(w in line for w in is_expected)]


def print_report(path: Path) -> str:
    """Return the text of dsrdump."""
    done = subprocess.run(["dsrdump", "+Pl", str(path)], capture_output=True, text=True, check=True)
    return done.stdout
