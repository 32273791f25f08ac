"""Reader of packed datasets, HDF5 files with images, labels and patients.

Content of a file, format version 1 (row i of every array is image i):

- images   n gray 8-bit images: flat rows of different lengths with height and width in `shapes`, or one array
           (n, size, size) if packed with a size
- labels   n indices into `classes`, the list of class names
- names    n paths below the packed folder; patients, sources, splits ("" for none) and sha256 of the files
- columns  a group of further columns with n texts each ("" for none). `patient_origin` and `split_origin` state how
           patients and splits were determined; older files have none. `bit_depth` is the depth used to read an image
           whose file does not state it

An image is addressed by the file name and its index: `cohort.h5#17`.
"""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.data.imaging.intensity import validate_size
from fastcxr.data.readers.finding_columns import find_written_columns, parse_written_columns
from fastcxr.errors import DataError, ImageError
from fastcxr.io.tables import to_text

FORMAT_NAME, FORMAT_VERSION = "fastcxr cohort", 1
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
HDF5_SUFFIXES = (".h5", ".hdf5")
REFERENCE_PATTERN = re.compile(r"(.+\.(?:h5|hdf5))#(\d+)", re.IGNORECASE)
TEXT_DATASETS = ("names", "patients", "sources", "splits", "sha256")
DAMAGED_FILE_FIX = "Copy the file again, or create it again with `fastcxr pack`"
H5PY_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, IndexError, AttributeError)


def import_h5py() -> Any:
    """Import h5py, an optional package. Raise DataError if it is not installed."""
    try:
        import h5py
    except ImportError as error:
        fix = 'Run `pip install "fastcxr[hdf5]"`'
        raise DataError("packed datasets need the package h5py, which is not installed", fix, code="E203") from error
    return h5py


def is_hdf5(path: str | Path) -> bool:
    """Return whether a file is HDF5 by its signature or by its suffix."""
    try:
        if not Path(path).is_file():  # opening a FIFO would block
            return False
        with Path(path).open("rb") as file:
            return file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE or Path(path).suffix.casefold() in HDF5_SUFFIXES
    except OSError:
        return False


def parse_reference(file: str | Path) -> tuple[str, int] | None:
    """Split `cohort.h5#17` into the HDF5 file and the index; return None for any other path."""
    match = REFERENCE_PATTERN.fullmatch(str(file))
    return (match[1], int(match[2])) if match and not Path(file).exists() else None


def read_packed_manifest(path: Path) -> pd.DataFrame:
    """Return path, label, patient, source, split and file of each image, and all further columns.

    Raises:
        DataError: The file is damaged, or was not created by fastcxr.
    """
    import_h5py()
    if path.suffix.casefold() not in HDF5_SUFFIXES:
        problem = "the name of the HDF5 file does not end in .h5 or .hdf5"
        raise DataError(problem, "Rename it to end in .h5", path=path, code="E021")
    with _lock:
        try:
            rows = _read_rows(_open_cached(str(path)))
        except DataError:
            raise
        except H5PY_ERRORS as error:
            problem = f"the HDF5 file is damaged ({_format_error(error)})"
            raise DataError(problem, DAMAGED_FILE_FIX, path=path, code="E021") from error
    if finding_columns := find_written_columns(rows):
        findings = parse_written_columns(rows, finding_columns, path)
        rows[findings.columns] = findings
    return rows.assign(file=[f"{path.absolute()}#{number}" for number in range(len(rows))])


def _read_rows(file: Any) -> pd.DataFrame:
    _reject_foreign_file(file)
    names = {name: file[name].asstr()[:] for name in TEXT_DATASETS}
    classes, labels = file["classes"].asstr()[:], file["labels"][:]
    if len({len(labels), len(file["images"]), *map(len, names.values())}) > 1:
        raise ValueError("columns of different lengths")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError("labels without a class")
    table = {"path": names["names"], "label": classes[labels], "patient": names["patients"]}
    table |= {"source": names["sources"], "split": names["splits"]}
    table |= {name: file["columns"][name].asstr()[:] for name in file["columns"]}
    columns = {name: pd.Series(cells, dtype="object") for name, cells in table.items()}
    return pd.DataFrame({name: to_text(cells.where(cells != "", None)) for name, cells in columns.items()})


def _reject_foreign_file(file: Any) -> None:
    if file.attrs.get("format") != FORMAT_NAME:
        fix = "Pack the images themselves: `fastcxr pack DIR --to FILE`"
        raise DataError("the HDF5 file was not created by fastcxr", fix, path=file.filename, code="E021")
    if int(version := file.attrs["version"]) > FORMAT_VERSION:
        problem = f"packed by a newer fastcxr: got format version {version}, expected at most {FORMAT_VERSION}"
        raise DataError(problem, "Update fastcxr, or pack the images again", path=file.filename, code="E021")


def read_packed_image(file: str | Path) -> np.ndarray:
    """Return the image that `cohort.h5#17` addresses: uint8, shape (height, width). Raise ImageError if damaged."""
    return _read_entry(file, _read_image)


def read_packed_checksum(file: str | Path) -> str:
    """Return the sha256 of the file that the image was packed from."""
    return _read_entry(file, lambda content, number, _: content["sha256"].asstr()[number])


def _read_entry(file: str | Path, read_value: Callable[[Any, int, str], Any]) -> Any:
    reference = parse_reference(file)
    if reference is None:
        raise ValueError(f"got {file}, expected a reference such as cohort.h5#17")
    path, number = reference
    import_h5py()
    with _lock:
        try:
            return read_value(_open_cached(path), number, str(file))
        except ImageError:
            raise
        except FileNotFoundError as error:
            raise ImageError("no such file", "Check the name, or restore the file", path=file, code="E113") from error
        except (DataError, *H5PY_ERRORS) as error:
            problem = f"the HDF5 file is damaged ({_format_error(error)})"
            raise ImageError(problem, DAMAGED_FILE_FIX, path=file, code="E104") from error


def _read_image(content: Any, number: int, name: str) -> np.ndarray:
    images = content["images"]
    if number >= len(images):
        problem = f"got image {number}, expected 0 to {len(images) - 1}"
        raise ImageError(problem, f"Use a number below {len(images)}", path=name, code="E113")
    image = np.asarray(images[number])
    if images.ndim == 1:
        height, width = (int(side) for side in content["shapes"][number])
        validate_size(name, width, height)
        image = image.reshape(height, width)
    if image.dtype != np.uint8 or image.ndim != 2:
        raise ValueError("images that are not 8-bit gray")
    return image


def _format_error(error: Exception) -> str:
    return " ".join(str(getattr(error, "problem", error)).split()).strip("'\"").rstrip(".")


# h5py is not thread-safe: the lock allows one call at a time. Opening a file is slower than reading an image, so open
# files are kept; a worker process opens its own, and a replaced file is opened again.
_lock = threading.RLock()
_open_files: dict[str, tuple[tuple[int, ...], Any]] = {}
MAX_OPEN_FILES = 8


def _open_cached(path: str) -> Any:
    status = Path(path).stat()
    identity = (os.getpid(), status.st_ino, status.st_size, status.st_mtime_ns)
    if path in _open_files and _open_files[path][0] == identity:
        return _open_files[path][1]
    if len(_open_files) >= MAX_OPEN_FILES:
        _open_files.pop(next(iter(_open_files)))[1].close()
    # no locking: the file may be on a read-only disk, and a finished file is never written to
    _open_files[path] = (identity, import_h5py().File(path, "r", locking=False))
    return _open_files[path][1]


if hasattr(os, "register_at_fork"):  # else a forked worker could inherit a lock that no thread releases
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
