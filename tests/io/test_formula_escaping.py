"""Escaping of CSV cells against formula injection."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_run import build_description

from fastcxr.data.manifest_file import read_written_manifest, write_manifest
from fastcxr.io.formulas import escape_cell, escape_formulas, unescape_cell, unescape_formulas
from fastcxr.report.run_reader import read_dataset_record
from fastcxr.workflows.run_dir import write_table

CELLS = st.one_of(st.text("'=+-@\t\r1.e5a", max_size=6), st.text(max_size=6), st.none(), st.floats(allow_nan=False))


@pytest.mark.parametrize("cell", ["=cmd|' /C calc'!A0", "+1+1", "-x", "@SUM(1)", "\t=1", "\r=1", "'=1"])
def test_a_formula_is_prefixed_with_an_apostrophe(cell):
    assert escape_cell(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["a=b", "-1.5", "+3", "-2e-7", "'quoted", "", None, -3.0])
def test_other_cells_are_unchanged(cell):
    assert escape_cell(cell) == cell


@given(CELLS)
def test_unescape_reverses_escape(cell):
    assert unescape_cell(escape_cell(cell)) == cell


@given(st.lists(st.text("'=+-@x", max_size=3), min_size=2, max_size=4, unique=True), CELLS)
@settings(deadline=None)
def test_column_names_are_escaped_and_types_are_kept(names, cell):
    table = pd.DataFrame({name: pd.Series([cell, cell], dtype=object) for name in names})
    table[names[0]] = [-1.0, 2.0]
    pd.testing.assert_frame_equal(unescape_formulas(escape_formulas(table)), table)


def test_every_written_table_is_escaped_and_read_unescaped(tmp_path):
    folder = build_description(tmp_path / "described", thumbnails=False)
    skipped = pd.DataFrame({"path": ["=cmd.png"], "code": ["E101"], "reason": ["-"]})
    write_table(folder / "skipped.csv", skipped)
    manifest = read_written_manifest(folder / "manifest.csv")
    write_manifest(manifest.assign(path="@" + manifest["path"]), folder / "manifest.csv")
    assert (folder / "skipped.csv").read_text().splitlines()[1] == "'=cmd.png,E101,'-"
    assert ",'@" in (folder / "manifest.csv").read_text().splitlines()[1]
    record = read_dataset_record(folder)
    assert record.skipped["path"].tolist() == ["=cmd.png"]
    assert record.manifest["path"].tolist() == ("@" + manifest["path"]).tolist()


@pytest.mark.parametrize("dtype", [object, "str"])
def test_a_column_is_escaped_as_its_cells_are(dtype):
    cells = ["plain", "=1+1", "-5", "'quoted", "''-x", "@home", "+1.5e3", "a=b", "", "\tx", None]
    table = pd.DataFrame({"cell": pd.Series(cells, [1] * len(cells), dtype)})  # a repeated index is no problem
    for convert, convert_cell in ((escape_formulas, escape_cell), (unescape_formulas, unescape_cell)):
        converted = convert(table)
        expected = pd.Series([convert_cell(cell) for cell in table["cell"]], table.index, table["cell"].dtype)
        pd.testing.assert_series_equal(converted["cell"], expected, check_names=False)
    assert escape_formulas(pd.DataFrame({"mixed": ["=a", 1, 2.5, None]}))["mixed"].tolist()[:3] == ["'=a", 1, 2.5]


def test_equal_cells_are_converted_once(monkeypatch):
    converted = []
    monkeypatch.setattr("fastcxr.io.formulas.unescape_cell", lambda cell: converted.append(cell) or cell)
    unescape_formulas(pd.DataFrame({"finding": ["-1", "-2", ""] * 50}))
    assert sorted(converted) == ["-1", "-2", "finding"]
