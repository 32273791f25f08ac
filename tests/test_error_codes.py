"""Each error and warning code has one meaning and one row in docs/error-codes.md, with the modules that use it."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from fastcxr import errors
from fastcxr.cli import output

ROOT = Path(__file__).parent.parent
PACKAGE, LIST = ROOT / "fastcxr", ROOT / "docs" / "error-codes.md"
CODE = re.compile(r"[EW]\d{3}")
RANGES = {
    "E0": "data, tables",
    "E1": "images",
    "E2": "weights",
    "E3": "models",
    "E4": "outputs",
    "E5": "server",
    "E6": "several processes and parts",
    "E7": "publishing, DICOM results, tracking and tuning",
    "W2": "Warnings",
}


def read_rows() -> list[tuple[str, str, str, str]]:
    """Return code, meaning, fix and modules of each row of the list."""
    lines = LIST.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if CODE.match(line[2:6])]
    assert all(len(row) == 4 for row in rows)
    return [tuple(row) for row in rows]


def find_codes(source: str) -> set[str]:
    """Return the string constants of a module that are codes; a docstring that mentions a code is not one."""
    constants = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return {value for value in constants if isinstance(value, str) and CODE.fullmatch(value)}


def find_codes_by_module() -> dict[str, set[str]]:
    found = {}
    for file in PACKAGE.rglob("*.py"):
        module = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        for code in find_codes(file.read_text(encoding="utf-8")):
            found.setdefault(code, set()).add(module)
    return found


ROWS, USED = read_rows(), find_codes_by_module()


def test_no_code_is_listed_twice_and_no_meaning_has_two_codes():
    for column in (0, 1):
        values = [row[column] for row in ROWS]
        assert sorted(values) == sorted(set(values))


def test_the_listed_codes_are_those_of_the_source():
    assert {row[0] for row in ROWS} == set(USED)


@pytest.mark.parametrize(("code", "modules"), [(row[0], row[3]) for row in ROWS])
def test_a_code_is_used_in_the_listed_modules_only(code, modules):
    assert set(modules.split(", ")) == USED.get(code, set()), f"{code}: does it still have one meaning?"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_code_has_a_meaning_and_a_fix_and_is_in_the_section_of_its_range(row):
    code, meaning, fix, _ = row
    assert meaning.endswith(".") and fix.endswith(".")
    before = LIST.read_text(encoding="utf-8").split(f"| {code} |")[0]
    assert RANGES[code[:2]] in before.rsplit("\n## ", 1)[1].splitlines()[0]


def test_the_search_finds_a_code_in_a_call_and_not_in_a_docstring():
    assert find_codes('"""Raises (E001)."""\nraise DataError("a", "b", code="E002")\nwarn_once("W203", path)') == {
        "E002", "W203",
    }  # fmt: skip


def test_the_codes_in_docstrings_and_messages_are_listed():
    listed = {row[0] for row in ROWS}
    for file in PACKAGE.rglob("*.py"):
        assert set(re.findall(r"\b[EW]\d{3}\b", file.read_text(encoding="utf-8"))) <= listed, file


def test_every_exit_code_is_listed_with_its_classes():
    section = LIST.read_text(encoding="utf-8").split("## Exit codes")[1].split("\n## ")[0]
    texts = dict(re.findall(r"^\| (\d+) \| (.*) \|$", section, re.MULTILINE))
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.FastcxrError)]
    for cls in classes:
        assert str(cls.exit_code) in texts
        assert cls is errors.FastcxrError or f"`{cls.__name__}`" in texts[str(cls.exit_code)]
    assert {str(output.PARTIAL_EXIT_CODE), str(output.DATA_ERROR_EXIT_CODE)} <= set(texts)
    assert str(output.INTERRUPTED_EXIT_CODE) in section
