"""Compute hashes that identify a dataset with its splits.

The expensive hash is needed only if the cheap one matches: `manifest_fingerprint` reads the sizes of files,
`content_fingerprint` reads every byte.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from fastcxr.data.duplicates import compute_file_checksum
from fastcxr.data.findings import encode_labels
from fastcxr.data.readers.hdf5 import parse_reference
from fastcxr.io.cpus import count_cpus
from fastcxr.version import VERSION

IMAGE_KEY = ["source", "path"]


def manifest_fingerprint(manifest: pd.DataFrame) -> str:
    """Return a hash of images, labels, splits, patients and file sizes, and of the fastcxr version.

    The version is included because later versions have more checks. The order of rows and the names of patients do not
    change the hash; the assignment of images to patients does.
    """
    rows = manifest.sort_values(IMAGE_KEY)
    patient_codes, _ = pd.factorize(rows["patient"])
    columns = [rows[name].tolist() for name in (*IMAGE_KEY, "split")] + [encode_labels(rows).tolist()]
    sizes = [0 if parse_reference(file) else Path(file).stat().st_size for file in rows["file"]]
    return _hash_json([VERSION, *columns, patient_codes.tolist(), sizes])


def content_fingerprint(manifest: pd.DataFrame) -> str:
    """Return a hash of the bytes of every file, or of the original file of a packed image."""
    files = manifest.sort_values(IMAGE_KEY)["file"]
    with ThreadPoolExecutor(count_cpus()) as pool:
        return _hash_json(list(pool.map(compute_file_checksum, files)))


def _hash_json(value: list) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
