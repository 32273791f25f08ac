"""Tests for download_check.py."""

import pytest
from public_layouts import make_nih

from fastcxr.data.readers.download_check import check_download
from fastcxr.data.readers.registry import PUBLIC_DATASETS
from fastcxr.errors import DataError, InputMissingError, RecipeError


def test_a_partial_download_is_described_by_its_missing_images_and_files(tmp_path):
    make_nih(tmp_path)
    for file in (tmp_path / "images_002" / "images").iterdir():
        file.unlink()
    (tmp_path / "BBox_List_2017.csv").unlink()
    check = check_download("nih", tmp_path)
    assert not check.is_complete
    assert (check.n_labelled, check.n_missing) == (60, 20)
    assert sum(check.missing_parts.values()) == 20
    assert "BBox_List_2017.csv" in check.absent_files
    assert len(check.missing_examples) == 5


def test_fewer_images_than_published_are_a_partial_download(tmp_path):
    make_nih(tmp_path)
    check = check_download("nih", tmp_path)
    assert check.n_missing == 0
    assert not check.absent_files
    assert not check.is_complete
    assert PUBLIC_DATASETS["nih"].n_images == 112_120


def test_another_folder_or_name_is_an_error_with_a_fix(tmp_path):
    with pytest.raises(DataError, match="the folder is not CheXpert, expected "):
        check_download("chexpert", tmp_path)
    with pytest.raises(InputMissingError):
        check_download("nih", tmp_path / "missing")
    with pytest.raises(RecipeError, match="no public dataset is called 'chexprt' .did you mean 'chexpert'"):
        check_download("chexprt", tmp_path)
