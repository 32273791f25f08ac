"""Feature vectors of images with their patients and labels, and the files that store them: parquet and npz."""

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.data.findings import BLANK_AS_ABSENT, FINDING_PREFIX, is_multi_label, list_findings
from fastcxr.errors import ImageError, OutputError, RecipeError
from fastcxr.io.files import atomic_file, validate_writable

TEXT_COLUMNS = ("path", "patient", "label", "source")
VECTOR_COLUMN, METADATA_KEY = "vector", "fastcxr"
BATCH_ROWS = 4096  # of a parquet file, in memory at once


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Feature vectors of n images.

    Attributes:
        table: path, patient, label and source of each image; of images with findings also a column per finding
            (finding_Edema: 1 present, 0 absent, -1 uncertain, missing unknown).
        vectors: float32, shape (n, d).
        metadata: network, weights and preprocessing, as plain values.
        errors: the unreadable images, which have no row.
    """

    table: pd.DataFrame
    vectors: np.ndarray = field(repr=False)
    metadata: dict[str, Any]
    errors: list[ImageError] = field(default_factory=list)


def make_embedding_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of a table of embeddings from a manifest, or from images without patients and labels."""
    columns = {name: rows[name].fillna("").astype(str) if name in rows else "" for name in TEXT_COLUMNS}
    finding_columns = [FINDING_PREFIX + name for name in list_findings(rows)]
    findings = {name: rows[name].replace(BLANK_AS_ABSENT, 0) for name in finding_columns}
    return pd.DataFrame(columns | findings, index=rows.index).reset_index(drop=True)


def validate_embedding_file(path: str | Path) -> None:
    """Raise unless the file can be written: RecipeError for its suffix, OutputError for its folder or without pyarrow.

    An existing file is replaced.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise RecipeError(f"the file name {path.name!r} does not end in .parquet or .npz", "Choose one of both")
    if not path.parent.is_dir():
        raise OutputError("this folder does not exist", "Create it, or choose another file", path=path.parent)
    validate_writable(path)
    if path.suffix.lower() == ".parquet":
        import_pyarrow()


def write_embeddings(embeddings: Embeddings, path: str | Path) -> None:
    """Write a .parquet or .npz file, and replace an existing one.

    parquet: the columns of the table and `vector`, a list of float32, with the metadata as JSON under the key `fastcxr`
    of the file. npz: the arrays path, patient, label, source, `vector`, shape (n, d), and `metadata` (JSON); of images
    with findings also `findings`, shape (n, k), NaN for an unknown one.

    Raises RecipeError for another suffix, and OutputError if the file cannot be written or pyarrow is missing.
    """
    validate_embedding_file(path)
    with atomic_file(path, overwrite=True) as temporary_path:
        WRITERS[Path(path).suffix.lower()](embeddings, temporary_path)


def import_pyarrow() -> Any:
    """Import pyarrow.parquet, of an optional package. Raise OutputError if it is not installed."""
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        problem = "parquet files need the package pyarrow, which is not installed"
        raise OutputError(
            problem, "Run `pip install 'fastcxr[parquet]'`, or write an .npz file", code="E203"
        ) from error


def _write_npz(embeddings: Embeddings, path: Path) -> None:
    table, metadata = embeddings.table, embeddings.metadata
    arrays = {name: table[name].to_numpy(str) for name in TEXT_COLUMNS}
    if is_multi_label(table):
        columns = [FINDING_PREFIX + name for name in list_findings(table)]
        arrays["findings"] = table[columns].to_numpy(np.float32, na_value=np.nan)
    arrays[VECTOR_COLUMN], arrays["metadata"] = embeddings.vectors, np.array(json.dumps(metadata, ensure_ascii=False))
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _write_parquet(embeddings: Embeddings, path: Path) -> None:
    parquet, pyarrow = import_pyarrow(), importlib.import_module("pyarrow")
    table, vectors = embeddings.table, embeddings.vectors
    types = {name: pyarrow.string() if name in TEXT_COLUMNS else pyarrow.int8() for name in table.columns}
    schema = pyarrow.schema(
        [*types.items(), (VECTOR_COLUMN, pyarrow.list_(pyarrow.float32()))],
        metadata={METADATA_KEY: json.dumps(embeddings.metadata, ensure_ascii=False)},
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(table), BATCH_ROWS):
            rows, values = table[start : start + BATCH_ROWS], np.ascontiguousarray(vectors[start : start + BATCH_ROWS])
            offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
            columns = [pyarrow.array(rows[name], type_, from_pandas=True) for name, type_ in types.items()]
            columns.append(pyarrow.ListArray.from_arrays(offsets, values.reshape(-1)))
            writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))


WRITERS = {".parquet": _write_parquet, ".npz": _write_npz}
