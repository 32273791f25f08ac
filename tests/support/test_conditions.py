"""Tests skipped for missing optional packages are counted in the last line, others are not."""

import pytest
from conditions import NOT_SET, count_missing, escape_surrogates, require, require_real


def reason_of(skip, *words, **named) -> str:
    with pytest.raises(pytest.skip.Exception) as skipped:
        skip(*words, **named)
    return str(skipped.value)


def test_missing_packages_and_programs_are_counted_by_name():
    package = reason_of(require, "pytest", "no_such_package")
    program = reason_of(require, program="no-such-program")
    assert "pip install no_such_package" in package
    line = count_missing([package, package, program, NOT_SET.format("FASTCXR_REAL_DATA")])
    assert line == "3 skipped for missing optional programs: no-such-program (1), no_such_package (2)"


def test_the_line_is_printed_if_nothing_is_missing():
    assert count_missing(["no CUDA device"]) == "0 skipped for missing optional programs"


def test_installed_packages_are_no_reason_to_skip():
    require("pytest", program="python3")


def test_the_skip_reason_names_the_variable_of_real_data(monkeypatch):
    monkeypatch.delenv("FASTCXR_REAL_DATA", raising=False)
    assert "FASTCXR_REAL_DATA is not set" in reason_of(require_real, "real_data")


def test_a_failure_with_a_file_name_that_is_not_utf_8_is_escaped():
    assert escape_surrogates({"longrepr": ["a\udc80.png", ("\udc80", 1)]}) == {
        "longrepr": ["a\\udc80.png", ("\\udc80", 1)]
    }
