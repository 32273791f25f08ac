"""Reader of TBX11K: images of 512 x 512 pixels for tuberculosis, with boxes in COCO's format.

Liu Y, Wu YH, Ban Y, Wang H, Cheng MM. Rethinking Computer-Aided Tuberculosis Diagnosis. IEEE/CVF CVPR, 2020,
pp. 2643-2652.

Access: a form, see https://github.com/yun-liu/Tuberculosis

The label is the folder of an image below imgs/, as in the publication: health is "Healthy", sick is "Sick but Non-TB",
tb is "Tuberculosis". The column `tb_type` names the kinds of tuberculosis that the boxes of an image show: active,
obsolete (healed) or pulmonary, joined by "|". The splits are those of TBX11K_train.json and TBX11K_val.json.

Traps:
- imgs/test has no published labels.
- imgs/extra contains images of other datasets, among them Montgomery and Shenzhen. They are left out: read those
  datasets themselves.
- An image of tb/ may have no box, so a missing box is not a missing disease.
"""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.data.readers.csv_table import reject_rows
from fastcxr.data.readers.file_index import FileIndex
from fastcxr.data.readers.public import DOCUMENTED_COUNTS, PublicDataset, ReaderOptions
from fastcxr.data.readers.tables import assign_images, find_location
from fastcxr.errors import DataError
from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import FRAME_INDEX, TEXT_DTYPE, format_names, to_text

log = logging.getLogger("fastcxr")
LISTS = {split: f"annotations/json/TBX11K_{split}.json" for split in ("train", "val", "trainval")}
SPLITS = {"train": "train", "val": "valid", "trainval": None}
IMAGE_FOLDER, EXTRA_FOLDER = "imgs", "extra"
LABEL_BY_FOLDER = {"health": "Healthy", "sick": "Sick but Non-TB", "tb": "Tuberculosis"}
BOX_COLUMNS = ["x", "y", "width", "height"]
TB_TYPES = {
    "ActiveTuberculosis": "active",
    "ObsoletePulmonaryTuberculosis": "obsolete",
    "PulmonaryTuberculosis": "pulmonary",
}


def read_tbx11k(location: Path, options: ReaderOptions) -> pd.DataFrame:
    """Return one row per image of the lists; see PublicDataset."""
    lists = {split: _read_list(path) for split, path in _find_lists(location).items()}
    images = pd.concat([images.assign(split=SPLITS[split]) for split, (images, _) in lists.items()], ignore_index=True)
    images = images.rename_axis(FRAME_INDEX)
    if images["file_name"].duplicated().any():
        names = images.loc[images["file_name"].duplicated(), "file_name"]
        problem = f"{pluralize(len(names), 'image')} listed twice: {format_names(names, 5)}"
        raise DataError(problem, "Download the lists again", path=location, code="E009")
    folders = images["file_name"].str.partition("/")[0]
    labels = folders.map(LABEL_BY_FOLDER)
    is_unknown = labels.isna() & (folders != EXTRA_FOLDER)
    fix = f"Download the lists again, which name images of {format_names(LABEL_BY_FOLDER)}"
    reject_rows(is_unknown, "name other folders", fix, location, folders)
    rows = pd.DataFrame({
        "name": images["file_name"],
        "label": to_text(labels),
        "split": to_text(images["split"]),
        "tb_type": to_text(images["file_name"].map(_list_tb_types(pd.concat([boxes for _, boxes in lists.values()])))),
    })[labels.notna()]  # fmt: skip
    index = FileIndex(location)
    rows = assign_images(rows, f"{IMAGE_FOLDER}/" + rows["name"], index)
    _log_unlisted(set(rows["path"]), index)
    return rows.drop(columns="name")


def read_tbx11k_boxes(location: Path) -> pd.DataFrame:
    """Return path, finding, x, y, width and height [pixels] of each box."""
    boxes = pd.concat([_read_list(path)[1] for path in _find_lists(location).values()], ignore_index=True)
    rows = assign_images(boxes, f"{IMAGE_FOLDER}/" + boxes["file_name"], FileIndex(location))
    return rows[["path", "finding", *BOX_COLUMNS]]


def _find_lists(location: Path) -> dict[str, Path]:
    """Return the lists of train and val, or only the joint list if these are missing."""
    paths = {split: location / name for split, name in LISTS.items() if (location / name).is_file()}
    return {split: path for split, path in paths.items() if split != "trainval" or len(paths) == 1}


def _read_list(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the images (file_name) and boxes (file_name, finding, x, y, width, height) of a list."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        images = {image["id"]: str(image["file_name"]) for image in content["images"]}
        names = {category["id"]: category["name"] for category in content["categories"]}
        boxes = [
            {"file_name": images[box["image_id"]], "finding": names[box["category_id"]],
             **dict(zip(BOX_COLUMNS, box["bbox"], strict=True))}
            for box in content["annotations"]
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"not a COCO file with images, annotations and categories ({type(error).__name__})"
        raise DataError(problem, "Download the file again", path=path, code="E010") from error
    file_names = pd.DataFrame({"file_name": list(images.values())}, dtype=TEXT_DTYPE)
    return file_names, pd.DataFrame(boxes, columns=["file_name", "finding", *BOX_COLUMNS])


def _list_tb_types(boxes: pd.DataFrame) -> pd.Series:
    """Return the kinds of tuberculosis of each image with boxes."""
    types = boxes["finding"].map(TB_TYPES).dropna()
    return types.groupby(boxes["file_name"]).agg(lambda names: "|".join(sorted(set(names))))


def _log_unlisted(listed: set[str], index: FileIndex) -> None:
    """Log the number of images in each folder that the lists of labels do not name."""
    paths = [path for path in index.paths if path.startswith(f"{IMAGE_FOLDER}/") and path not in listed]
    if paths:
        counts = Counter(path.split("/")[1] for path in paths)
        names = format_names(f"{folder} ({n:,})" for folder, n in sorted(counts.items()))
        log.info("%s: left out %s without a published label in its lists: %s", DATASET.title,
                 pluralize(len(paths), "image"), names)  # fmt: skip


def _detect(path: Path) -> Path | None:
    return find_location(
        path, lambda folder: bool(_find_lists(folder)), tables=LISTS.values(), inner=("annotations", IMAGE_FOLDER)
    )


DATASET = PublicDataset(
    name="tbx11k",
    title="TBX11K",
    required=f"{LISTS['train']} and {LISTS['val']}, or {LISTS['trainval']}",
    detect=_detect,
    read=read_tbx11k,
    labels=", ".join(LABEL_BY_FOLDER.values()),
    n_images=11_200,
    counts_from=DOCUMENTED_COUNTS,
    page="https://github.com/yun-liu/Tuberculosis",
    access="form",
    citation="Liu et al., CVPR, 2020",
    files={
        LISTS["train"]: "training images and their boxes",
        LISTS["val"]: "validation images and their boxes",
        **{f"{IMAGE_FOLDER}/{folder}/*": label for folder, label in LABEL_BY_FOLDER.items()},
    },
    overlaps={
        "shenzhen": f"{IMAGE_FOLDER}/{EXTRA_FOLDER} contains its images",
        "montgomery": f"{IMAGE_FOLDER}/{EXTRA_FOLDER} contains its images",
    },
    read_boxes=read_tbx11k_boxes,
)
