"""Reading of CSV files: separators, encodings, line numbers in errors."""

import zipfile

import numpy as np
import pandas as pd
import pytest
from recording_progress import peak_memory
from toy_datasets import check_message, write_file

from fastcxr.errors import DataError, InputMissingError
from fastcxr.io.tables import (
    find_column,
    find_table_stem,
    format_line_numbers,
    format_names,
    is_table_name,
    read_header,
    read_lines,
    read_table,
    to_json_rows,
)


def catch_error(path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_table(path)
    return caught.value


@pytest.mark.parametrize(
    "content",
    [
        "path,label\na.png,00000013\nb c.png,1.0\n",
        "path;label\r\na.png;00000013\r\nb c.png;1.0",
        "path\tlabel\ra.png\t00000013\rb c.png\t1.0\r",
        b"\xef\xbb\xbf" + b"path,label\n\n,\na.png,00000013\nb c.png,1.0\n",
        "path\tlabel\na.png\t00000013\nb c.png\t1.0\n".encode("utf-16"),
        " path , label ,,\na.png,00000013,,\nb c.png,1.0,,\n",
    ],
)
def test_separators_line_ends_and_byte_order_marks_are_detected(tmp_path, content):
    table = read_table(write_file(tmp_path / "a.csv", content))
    assert table.columns.tolist() == ["path", "label"]
    assert table["label"].tolist() == ["00000013", "1.0"]
    assert table["path"].tolist() == ["a.png", "b c.png"]


def test_the_index_is_the_line_on_which_a_row_starts(tmp_path):
    table = read_table(write_file(tmp_path / "a.csv", 'path,label\n"a\n\nb.png",x\n\nc.png,y\n'))
    assert table.index.tolist() == [2, 6]
    assert table["path"].tolist() == ["a\n\nb.png", "c.png"]


def test_only_the_columns_named_are_read(tmp_path, caplog):
    file = write_file(tmp_path / "a.csv", ",path,report,label\n0,a.png,text,x\n")
    table = read_table(file, ["label", "path", "view"])
    assert table.to_dict("list") == {"path": ["a.png"], "label": ["x"]}
    assert caplog.text == ""


def test_all_rows_with_a_wrong_number_of_cells_are_listed(tmp_path):
    body = "a,b\n" * 3 + "a\n" * 25 + "a,b,c\n"
    text = check_message(catch_error(write_file(tmp_path / "a.csv", "path,label\n" + body)))
    assert "FCX-E010" in text
    assert "26 rows do not have 2 cells, as the header has (lines 5, 6, 7" in text
    assert "24 and 6 more). Give every row as many cells" in text


def test_characters_in_another_encoding_are_listed_by_line(tmp_path):
    text = check_message(catch_error(write_file(tmp_path / "a.csv", "path,label\na,ok\nb,für\n".encode("latin-1"))))
    assert "not UTF-8 (line 3). Save it as UTF-8 (in Excel: 'CSV UTF-8')" in text


def test_an_excel_workbook_an_empty_file_and_open_quotes_are_errors_with_a_fix(tmp_path):
    workbooks = [
        write_zip(tmp_path / "a.csv", **{"[Content_Types]__xml": "x", "xl/workbook__xml": "x"}),
        write_file(tmp_path / "a.xls", b"\xd0\xcf\x11\xe0.."),
    ]
    for path in workbooks:
        assert "an Excel workbook, not a CSV. Save it as" in check_message(catch_error(path))
    damaged = write_file(tmp_path / "a.csv.zip", b"PK\x03\x04..")
    assert "cannot be read (File is not a zip file)" in check_message(catch_error(damaged))
    assert "an empty table. Write a header line" in check_message(catch_error(write_file(tmp_path / "b.csv", "\n\n")))
    text = check_message(catch_error(write_file(tmp_path / "c.csv", 'path,label\na,b\n"c,d\n')))
    assert "line 3 cannot be read" in text
    assert "Quote a cell as" in text


def test_two_columns_of_the_same_name_are_rejected(tmp_path):
    text = check_message(catch_error(write_file(tmp_path / "a.csv", "Path,path,label\n")))
    assert "several columns are called 'path'. Give each column a different name" in text


def test_the_error_of_a_missing_table_suggests_a_similar_name(tmp_path):
    write_file(tmp_path / "labels.csv", "a,b\n")
    with pytest.raises(InputMissingError, match="no such file .did you mean '.*labels.csv'.*Check the name"):
        read_table(tmp_path / "label.csv")
    assert "Give a CSV file" in check_message(catch_error(tmp_path))


def test_a_header_is_read_without_the_rows(tmp_path):
    assert read_header(write_file(tmp_path / "a.csv", "path;label\n\xff")) == ["path", "label"]
    assert read_header(write_file(tmp_path / "b.csv", b"\xff\xfe\xff")) == []
    assert read_header(tmp_path / "none.csv") == []


def test_columns_are_found_ignoring_case_and_underscores():
    assert find_column(["Image Index", "Patient ID"], ["patient", "patientid"]) == "Patient ID"
    assert find_column(["x"], ["path"]) is None


def test_lists_of_names_are_truncated_and_on_one_line():
    assert format_line_numbers([3]) == "line 3"
    assert format_line_numbers([5, 3]) == "lines 3, 5"
    assert format_names(["a\nb", "c\x1b"], 1) == "a\\nb and 1 more"


def write_zip(path, **members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "."), text)
    return path


def test_a_zip_archive_with_one_table_is_read_as_the_table(tmp_path):
    path = write_zip(tmp_path / "labels.csv.zip", labels__csv="path,label\na.png,x\n", readme__txt="text")
    assert read_table(path)["label"].tolist() == ["x"]
    assert read_header(path) == ["path", "label"]


def test_a_zip_archive_without_a_table_or_with_two_is_an_error(tmp_path):
    path = write_zip(tmp_path / "a.csv.zip", a__csv="x\n1\n", b__csv="x\n1\n")
    with pytest.raises(DataError, match="E010 .*a zip archive with 2 tables, expected one. Unpack it"):
        read_table(path)
    with pytest.raises(DataError, match="a zip archive with 0 tables"):
        read_table(write_zip(tmp_path / "b.csv.zip", a__png="x"))


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a/train.csv", "train"),
        ("train.CSV.gz", "train"),
        ("t.v2.tsv.xz", "t.v2"),
        ("metadata.jsonl", "metadata"),
        ("train.gz", None),
        ("train.txt", None),
        ("csv", None),
    ],
)
def test_tables_are_recognised_by_name_also_if_compressed(name, stem):
    assert find_table_stem(name) == stem
    assert is_table_name(name) == (stem is not None)


def test_json_lines_are_a_table_of_text(tmp_path):
    text = '{"file_name": "a.png", "label": ["x", "y"], "age": 7}\n\n{"file_name": "b.png", "sex": null}\n'
    path = write_file(tmp_path / "metadata.jsonl", text)
    table = read_table(path)
    assert table.columns.tolist() == ["file_name", "label", "age", "sex"]
    assert table.index.tolist() == [1, 3]
    assert table.loc[1].tolist() == ["a.png", '["x", "y"]', "7", ""]
    assert table.loc[3].tolist() == ["b.png", "", "", ""]
    assert read_header(path) == ["file_name", "label", "age"]


def test_lines_that_are_no_json_objects_are_an_error_with_their_numbers(tmp_path):
    path = write_file(tmp_path / "metadata.jsonl", '{"a": 1}\n[1]\n{"a"\n')
    with pytest.raises(DataError, match=r"E010 .*2 lines are not JSON objects \(lines 2, 3\). Write one object per"):
        read_table(path)


def test_rows_may_leave_out_the_cells_of_columns_without_a_name_at_the_end(tmp_path):
    table = read_table(write_file(tmp_path / "a.csv", "a,b,,\n1,2\n3,4,,\n"))
    assert table.to_dict("list") == {"a": ["1", "3"], "b": ["2", "4"]}
    error = catch_error(write_file(tmp_path / "b.csv", "a,b,,\n1,2\n3\n"))
    assert "1 rows do not have 4 cells, as the header has (line 3)" in check_message(error)


def test_the_lines_of_a_text_file_are_without_blanks_and_blank_lines(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfa.png\r\n\r\n b.png \r\n")
    assert read_lines(path) == ["a.png", "b.png"]


def test_json_rows_have_plain_values_and_none_for_missing_ones():
    columns = {
        "number": np.array([1.5, np.nan], np.float32), "count": [1, 2], "flag": [True, False], "text": ["a", None],
        "any": np.array([np.float64(0.25), pd.NA], dtype=object), "whole": pd.array([7, None], dtype="Int64"),
        "empty": ["", "b"], "kind": pd.Categorical(["u", None]),
    }  # fmt: skip
    first, second = to_json_rows(pd.DataFrame(columns, index=[5, 5]))
    assert first == {
        "number": 1.5, "count": 1, "flag": True, "text": "a", "any": 0.25, "whole": 7, "empty": "", "kind": "u",
    }  # fmt: skip
    assert [type(value) for value in first.values()] == [float, int, bool, str, float, int, str, str]
    missing = dict.fromkeys(["number", "text", "any", "whole", "kind"])
    assert second == missing | {"count": 2, "flag": False, "empty": "b"}
    assert to_json_rows(pd.DataFrame(columns).iloc[:0]) == []


@pytest.mark.parametrize("rows_per_part", [1, 2, 3])
def test_a_table_read_in_parts_is_that_read_at_once(tmp_path, monkeypatch, rows_per_part):
    path = write_file(tmp_path / "a.csv", 'path,label,\na.png,"two\nlines"\n\nb.png,x,,\nc.png,\n')
    whole = read_table(path)
    ragged = write_file(tmp_path / "b.csv", "path,label\na.png,x,y\nb.png,x\nc.png\nd.png,x\n")
    monkeypatch.setattr("fastcxr.io.tables.ROWS_PER_PART", rows_per_part)
    pd.testing.assert_frame_equal(read_table(path), whole)
    assert whole.index.tolist() == [2, 5, 6]
    assert "2 rows do not have 2 cells, as the header has (lines 2, 4)" in check_message(catch_error(ragged))


def test_a_table_takes_less_memory_than_a_list_of_its_cells(tmp_path, monkeypatch):
    monkeypatch.setattr("fastcxr.io.tables.ROWS_PER_PART", 100)
    n_rows, n_columns = 2000, 300
    header = ",".join(f"c{k}" for k in range(n_columns))
    path = write_file(tmp_path / "a.csv", header + "\n" + ("," * (n_columns - 1) + "1\n") * n_rows)
    read_table(path, ["c0"])  # imports
    assert peak_memory(lambda: read_table(path, ["c0"])) < 8 * n_rows * n_columns
