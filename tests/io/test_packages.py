"""Packages that are not installed: one error with the command that installs them."""

import pytest

from fastcxr.errors import PackageError
from fastcxr.io import packages
from fastcxr.io.packages import find_missing, make_command_package_error, require_packages


def test_missing_packages_have_their_names_for_pip(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda module: None if module in ("sklearn", "jinja2") else object())
    assert find_missing(["numpy", "sklearn", "jinja2"]) == ["scikit-learn", "jinja2"]
    require_packages(["numpy"], "an evaluation")
    with pytest.raises(PackageError) as caught:
        require_packages(["sklearn", "jinja2"], "an evaluation")
    assert str(caught.value) == (
        "FCX-E203: an evaluation needs scikit-learn and jinja2, which are not installed. "
        "Run `pip install scikit-learn jinja2`"
    )


def test_a_package_whose_parent_cannot_be_imported_is_missing():
    assert find_missing(["no_such_package.part", "json"]) == ["no_such_package"]


def test_the_error_of_a_command_names_all_missing_packages_once(monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda module: None if module in ("torch", "filelock") else object())
    error = make_command_package_error("torch.nn")
    assert "this command needs torch and filelock, which are not installed" in str(error)
    assert error.exit_code == 69
