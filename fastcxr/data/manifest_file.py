"""Write and read manifest.csv, the manifest in a run folder."""

from pathlib import Path

import pandas as pd

from fastcxr.data.findings import FINDING_PREFIX, parse_finding_columns
from fastcxr.data.manifest import MANIFEST_COLUMNS
from fastcxr.errors import DataError, require_type
from fastcxr.io.files import atomic_write
from fastcxr.io.formulas import escape_formulas
from fastcxr.io.tables import format_names, read_table, to_text

ROWS_AT_A_TIME = 10_000


def write_manifest(manifest: pd.DataFrame, path: str | Path) -> None:
    """Write the manifest without `file` as CSV, atomically."""
    require_type("manifest", manifest, pd.DataFrame)
    table = escape_formulas(manifest.drop(columns="file", errors="ignore"))
    # with this line end, a carriage return in a file name is quoted too; pandas would write 500 rows of 200 findings
    # at a time, which takes twice as long
    atomic_write(path, table.to_csv(index=False, lineterminator="\r\n", chunksize=ROWS_AT_A_TIME))


def read_written_manifest(path: str | Path) -> pd.DataFrame:
    """Return the manifest.csv of an earlier run: text and findings, blank cells missing, no `file`."""
    table = read_table(path).reset_index(drop=True)
    if missing := [name for name in MANIFEST_COLUMNS if name not in table]:
        problem = f"not a manifest of fastcxr: the columns {format_names(map(repr, missing))} are missing"
        raise DataError(problem, "Pass the manifest.csv of a run folder", path=path, code="E011")
    return _parse_cells(table, Path(path))


def _parse_cells(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return the table with findings as numbers, and other blank cells missing. Raises DataError for other numbers.

    The label of an image without a known finding stays an empty text.
    """
    findings = {name: name.removeprefix(FINDING_PREFIX) for name in table.columns if name.startswith(FINDING_PREFIX)}
    values = parse_finding_columns(table, findings, path)
    cells = pd.DataFrame(
        {
            name: values[name] if name in findings else to_text(table[name].where(table[name] != ""))
            for name in table.columns
        }
    )
    return cells.fillna({"label": ""}) if findings else cells
