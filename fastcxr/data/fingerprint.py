"""A split manifest comes in; what the very same cohort is known by again goes out.

Two hashes; the expensive one is computed only if the cheap one matches: `manifest_fingerprint` needs the sizes of
files, `content_fingerprint` every byte of them.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from fastcxr.data.duplicates import compute_file_checksum
from fastcxr.data.readers.hdf5 import parse_reference
from fastcxr.io.cpus import count_cpus
from fastcxr.version import VERSION

IMAGE_KEY = ["source", "path"]


def manifest_fingerprint(manifest: pd.DataFrame) -> str:
    """Of which images, labels, splits and patients, in files of which sizes; and of which fastcxr, whose checks grow.

    The order of the rows does not count, nor what patients are called: only whose images belong together.
    """
    rows = manifest.sort_values(IMAGE_KEY)
    patient_codes, _ = pd.factorize(rows["patient"])
    columns = [rows[name].tolist() for name in (*IMAGE_KEY, "label", "split")]
    return _hash_json([VERSION, *columns, patient_codes.tolist(), rows["file"].map(_read_file_size).tolist()])


def content_fingerprint(manifest: pd.DataFrame) -> str:
    """Of the bytes of every file, or of the file that a packed image was."""
    files = manifest.sort_values(IMAGE_KEY)["file"]
    with ThreadPoolExecutor(count_cpus()) as pool:
        return _hash_json(list(pool.map(compute_file_checksum, files)))


def _read_file_size(file: str) -> int:
    return 0 if parse_reference(file) else Path(file).stat().st_size


def _hash_json(value: list) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
