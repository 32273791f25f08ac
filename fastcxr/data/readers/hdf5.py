"""A packed cohort, one HDF5 file of images, labels and patients, comes in; its rows, or one image of it, go out.

What a file holds, version 1 (rows of one index belong together):

- images   n pictures, 8-bit gray: each with its own size, as a flat row whose height and width are in `shapes`; or,
           packed with a size, one array (n, size, size)
- labels   n numbers, each a place in `classes`, the list of class names
- names    n paths, below the folder that was packed; patients, sources, splits ("" is none) and sha256 of the files
- columns  a group of further columns, n texts each ("" is none); `patient_origin` and `split_origin` say where patients
           and splits were read, and are not in files of earlier releases; `bit_depth` is that with which an image was
           read, where its file stated none

An image is named as a file is, with its number behind it: `cohort.h5#17`.
"""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fastcxr.data.imaging.intensity import validate_size
from fastcxr.errors import DataError, ImageError
from fastcxr.io.tables import to_text

if TYPE_CHECKING:
    import h5py

FORMAT_NAME, FORMAT_VERSION = "fastcxr cohort", 1
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
HDF5_SUFFIXES = (".h5", ".hdf5")
REFERENCE_PATTERN = re.compile(r"(.+\.(?:h5|hdf5))#(\d+)", re.IGNORECASE)
TEXT_DATASETS = ("names", "patients", "sources", "splits", "sha256")
DAMAGED_FILE_FIX = "Copy it again, or pack it again with `fastcxr pack`"
H5PY_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, IndexError, AttributeError)  # from h5py, all


def import_h5py() -> Any:
    """The module h5py, which is an extra."""
    try:
        import h5py
    except ImportError as error:
        fix = 'pip install "fastcxr[hdf5]"'
        raise DataError("packed cohorts need the package h5py, which is not installed", fix, code="E203") from error
    return h5py


def is_hdf5(path: str | Path) -> bool:
    """Whether a file is HDF5, by its first bytes, or says so by its name."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE or Path(path).suffix.casefold() in HDF5_SUFFIXES
    except OSError:
        return False


def parse_reference(file: str | Path) -> tuple[str, int] | None:
    """The HDF5 file and the number that `cohort.h5#17` names; None for anything else."""
    match = REFERENCE_PATTERN.fullmatch(str(file))
    return (match[1], int(match[2])) if match and not Path(file).exists() else None


def read_packed_manifest(path: Path) -> pd.DataFrame:
    """Columns path, label, patient, source, split and file, then the further ones that were packed.

    Raises DataError for a file that is damaged, or that fastcxr did not pack.
    """
    import_h5py()
    if path.suffix.casefold() not in HDF5_SUFFIXES:
        raise DataError("an HDF5 file under another name", "Rename it to end in .h5", path=path, code="E021")
    with _lock:
        try:
            rows = _read_rows(_open_cached(str(path)))
        except DataError:
            raise
        except H5PY_ERRORS as error:
            raise DataError(
                f"a damaged HDF5 file ({_format_error(error)})", DAMAGED_FILE_FIX, path=path, code="E021"
            ) from error
    return rows.assign(file=[f"{path.absolute()}#{number}" for number in range(len(rows))])


def _read_rows(file: "h5py.File") -> pd.DataFrame:
    _reject_foreign_file(file)
    names = {name: file[name].asstr()[:] for name in TEXT_DATASETS}
    classes, labels = file["classes"].asstr()[:], file["labels"][:]
    if len({len(labels), len(file["images"]), *map(len, names.values())}) > 1:
        raise ValueError("columns of several lengths")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError("labels without a class")
    table = {"path": names["names"], "label": classes[labels], "patient": names["patients"]}
    table |= {"source": names["sources"], "split": names["splits"]}
    table |= {name: file["columns"][name].asstr()[:] for name in file["columns"]}
    columns = {name: pd.Series(cells, dtype="object") for name, cells in table.items()}
    return pd.DataFrame({name: to_text(cells.where(cells != "", None)) for name, cells in columns.items()})


def _reject_foreign_file(file: "h5py.File") -> None:
    if file.attrs.get("format") != FORMAT_NAME:
        problem, fix = (
            "HDF5, but no cohort that fastcxr packed",
            "Pack the images themselves: `fastcxr pack DIR --to FILE`",
        )
        raise DataError(problem, fix, path=file.filename, code="E021")
    if int(file.attrs["version"]) > FORMAT_VERSION:
        problem = (
            f"packed by a later fastcxr (version {file.attrs['version']} of the format, this one reads "
            f"{FORMAT_VERSION})"
        )
        raise DataError(problem, "Update fastcxr, or pack it again", path=file.filename, code="E021")


def read_packed_image(file: str | Path) -> np.ndarray:
    """The picture that `cohort.h5#17` names, uint8, shape (height, width). Raises ImageError."""
    return _read_entry(file, _read_image)


def read_packed_checksum(file: str | Path) -> str:
    """The sha256 of the file that the picture was packed from."""
    return _read_entry(file, lambda content, number, _: content["sha256"].asstr()[number])


def _read_entry(file: str | Path, read_value: Callable) -> Any:
    path, number = parse_reference(file)
    import_h5py()
    with _lock:
        try:
            return read_value(_open_cached(path), number, str(file))
        except ImageError:
            raise
        except FileNotFoundError as error:
            raise ImageError("no such file", "Check the name, or restore the file", path=file, code="E113") from error
        except (DataError, *H5PY_ERRORS) as error:
            raise ImageError(
                f"a damaged HDF5 file ({_format_error(error)})", DAMAGED_FILE_FIX, path=file, code="E104"
            ) from error


def _read_image(content: "h5py.File", number: int, name: str) -> np.ndarray:
    images = content["images"]
    if number >= len(images):
        problem = f"the file holds {len(images):,} images, none of that number"
        raise ImageError(problem, f"Give a number below {len(images)}", path=name, code="E113")
    image = np.asarray(images[number])
    if images.ndim == 1:
        height, width = (int(side) for side in content["shapes"][number])
        validate_size(name, width, height)
        image = image.reshape(height, width)
    if image.dtype != np.uint8 or image.ndim != 2:
        raise ValueError("pictures that are not 8-bit gray")
    return image


def _format_error(error: Exception) -> str:
    return " ".join(str(getattr(error, "problem", error)).split()).strip("'\"").rstrip(".")


# HDF5 is not made for threads: h5py takes one call at a time, so an image costs a copy under this lock.
# A file stays open, for opening costs more than reading; a worker process opens its own, and so does who finds the
# file replaced.
_lock = threading.RLock()
_open_files: dict[str, tuple[tuple, "h5py.File"]] = {}
MAX_OPEN_FILES = 8


def _open_cached(path: str) -> "h5py.File":
    status = Path(path).stat()
    identity = (os.getpid(), status.st_ino, status.st_size, status.st_mtime_ns)
    if path in _open_files and _open_files[path][0] == identity:
        return _open_files[path][1]
    if len(_open_files) >= MAX_OPEN_FILES:
        _open_files.pop(next(iter(_open_files)))[1].close()
    # no locking: cohorts lie on read-only disks too, and nobody writes into a finished one
    _open_files[path] = (identity, import_h5py().File(path, "r", locking=False))
    return _open_files[path][1]


if hasattr(os, "register_at_fork"):  # a forked worker must not inherit a lock that another thread holds for ever
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
