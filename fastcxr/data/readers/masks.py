"""Recognise masks and other drawings by their names: folders beside the images, and files beside their images."""

import logging
import re
from collections.abc import Iterable
from functools import cache

from fastcxr.io.formatting import pluralize
from fastcxr.io.tables import format_names

log = logging.getLogger("fastcxr")
MASK_WORDS = r"masks?|segmentations?|annotations?"
MASK_FOLDER = re.compile(rf"(.*[ _-])?({MASK_WORDS}|thumbnails?)", re.IGNORECASE)
MASK_STEM = re.compile(  # image_mask, image_mask_1 or mask_image
    rf"(?P<image>.+)[ _-]({MASK_WORDS}|seg|gt|label)([ _-]?\d+)?|mask[ _-](?P<named>.+)", re.IGNORECASE
)
MAX_FOLDERS = 2  # named in a message


@cache  # called for each file of a dataset
def is_mask_folder(name: str) -> bool:
    """Return whether a folder name is that of masks, annotations or thumbnails, which belong to other images."""
    return MASK_FOLDER.fullmatch(name) is not None


def find_masks(names: Iterable[str]) -> set[str]:
    """Return the files of one folder that are masks of another image in it, such as `a_mask.png` beside `a.png`."""
    stem_by_name = {name: name.rpartition(".")[0] or name for name in names}
    stems = set(stem_by_name.values())
    matches = {name: MASK_STEM.fullmatch(stem) for name, stem in stem_by_name.items()}
    return {name for name, match in matches.items() if match and (match["image"] or match["named"]) in stems}


def log_masks(n_files: int, folders: Iterable[str]) -> None:
    """Log the number of files in mask folders, and two of the folders."""
    log.info("left out %s in mask folders: %s", pluralize(n_files, "file"), format_names(sorted(folders), MAX_FOLDERS))


def log_masks_beside_images(names: Iterable[str]) -> None:
    """Log the number of masks that are in the folders of their images, and two of them."""
    names = sorted(names)
    log.info("left out %s beside their images: %s", pluralize(len(names), "mask"), format_names(names, MAX_FOLDERS))
