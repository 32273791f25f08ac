"""Small copies of the tuberculosis datasets TBX11K, Shenzhen and Montgomery; all images differ."""

import json
from pathlib import Path

from public_datasets import write_image

CATEGORIES = [
    {"id": number, "name": name, "supercategory": "Tuberculosis"}
    for number, name in enumerate(["ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "PulmonaryTuberculosis"], 1)
]


def make_tbx11k(root: Path) -> Path:
    """Write the lists of train (5 images) and val (3), and unlisted images of test and extra."""
    lists = {
        "train": ["health/h0001.png", "health/h0002.png", "sick/s0001.png", "tb/tb0001.png", "tb/tb0002.png"],
        "val": ["health/h0003.png", "sick/s0002.png", "tb/tb0003.png"],
    }
    lists["trainval"] = lists["train"] + lists["val"]
    boxes = {"tb/tb0001.png": [1], "tb/tb0002.png": [2, 1]}  # categories; tb0003 has none
    (root / "annotations" / "json").mkdir(parents=True, exist_ok=True)
    for part, names in lists.items():
        images = [{"id": i, "file_name": name, "width": 512, "height": 512} for i, name in enumerate(names, 1)]
        annotations = [
            {"id": 10 * image["id"] + category, "image_id": image["id"], "category_id": category,
             "bbox": [214.5, 120.5, 99.0, 40.0], "area": 3960.0}
            for image in images for category in boxes.get(image["file_name"], ())
        ]  # fmt: skip
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / "annotations" / "json" / f"TBX11K_{part}.json").write_text(json.dumps(content))
    unlisted = ["test/t0001.png", "test/t0002.png", "extra/mc+shenzhen/train/CHNCXR_0001_0.png"]
    for number, name in enumerate([*lists["trainval"], *unlisted], 400):
        write_image(root / "imgs" / name, number)
    return root


SHENZHEN_READINGS = {
    "CHNCXR_0001_0": "male 45yrs\nnormal",
    "CHNCXR_0002_0": "femal 32yrs\nnormal",
    "CHNCXR_0003_0": "female24yrs\nnormal",
    "CHNCXR_0004_1": "male , 29yrs  \t\nPTB in the left upper field",
    "CHNCXR_0005_1": "Female, 28yrs\nbilateral PTB",
    "CHNCXR_0006_1": "male 16month\nright PTB",
    "CHNCXR_0007_1": "female 64days\nright PTB",
    "CHNCXR_0008_1": "male 93yrs\nright PTB",
}
MONTGOMERY_READINGS = {
    "MCUCXR_0001_0": "Patient's Sex: F \nPatient's Age: 027Y\nnormal",
    "MCUCXR_0002_0": "Patient's Sex: O \nPatient's Age: 005Y\nnormal",
    "MCUCXR_0113_1": "Patient's Sex: M \nPatient's Age: 084Y\nold disease, new film requested",
    "MCUCXR_0117_1": "Patient's Sex: M \nPatient's Age: 085Y\nstable CXR (same pt as MCUCXR_0113_1)",
    "MCUCXR_0162_1": "Patient's Sex: M \nPatient's Age: 049Y\nactive disease",
    "MCUCXR_0166_1": "Patient's Sex: M \nPatient's Age: 049Y\nNO REPORT (same pt as MCUCXR_0162_1)",
}


def make_shenzhen(root: Path) -> Path:
    """Write ChinaSet_AllFiles with masks of the same names, and a thumbnail database."""
    folder = _write_nlm(root / "ChinaSet_AllFiles", SHENZHEN_READINGS, 500)
    write_image(folder / "mask" / "CHNCXR_0001_0_mask.png", 590)
    (folder / "CXR_png" / "Thumbs.db").write_bytes(b"x")
    return root


def make_montgomery(root: Path) -> Path:
    """Write MontgomerySet with left and right masks of the same names."""
    folder = _write_nlm(root / "MontgomerySet", MONTGOMERY_READINGS, 600)
    for side in ("leftMask", "rightMask"):
        write_image(folder / "ManualMask" / side / "MCUCXR_0001_0.png", 690 + len(side))
    return root


def _write_nlm(folder: Path, readings: dict[str, str], first: int) -> Path:
    for number, (name, text) in enumerate(readings.items(), first):
        write_image(folder / "CXR_png" / f"{name}.png", number)
        (folder / "ClinicalReadings").mkdir(exist_ok=True)
        (folder / "ClinicalReadings" / f"{name}.txt").write_text(text)
    return folder
