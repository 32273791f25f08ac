"""A split manifest comes in; what the very same cohort is known by again goes out.

Two words, so that the dear one is asked for only where the cheap one agrees: `sign_rows` needs the sizes of files,
`sign_contents` every byte of them.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from fastcxr.data.duplicates import find_checksum
from fastcxr.data.readers.hdf5 import read_reference
from fastcxr.io.cpus import count_cpus
from fastcxr.version import VERSION

KEY = ["source", "path"]


def sign_rows(manifest: pd.DataFrame) -> str:
    """Of which images, labels, splits and patients, in files of which sizes; and of which fastcxr, whose checks grow.

    The order of the rows does not count, nor what patients are called: only whose images belong together.
    """
    rows = manifest.sort_values(KEY)
    patient, _ = pd.factorize(rows["patient"])
    columns = [rows[name].tolist() for name in (*KEY, "label", "split")]
    return _sign([VERSION, *columns, patient.tolist(), rows["file"].map(_size).tolist()])


def sign_contents(manifest: pd.DataFrame) -> str:
    """Of the bytes of every file, or of the file that a packed image was."""
    files = manifest.sort_values(KEY)["file"]
    with ThreadPoolExecutor(count_cpus()) as pool:
        return _sign(list(pool.map(find_checksum, files)))


def _size(file: str) -> int:
    return 0 if read_reference(file) else Path(file).stat().st_size


def _sign(value: list) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
