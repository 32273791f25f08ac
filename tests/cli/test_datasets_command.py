"""Tests for fastcxr datasets."""

import json

from public_layouts import make_nih

from fastcxr.data.readers.registry import PUBLIC_DATASETS


def test_the_catalogue_lists_every_public_dataset_once(call):
    result = call("datasets")
    assert result.returncode == 0
    names = [line.partition(":")[0] for line in result.stdout.splitlines()]
    listed = [name for name, dataset in PUBLIC_DATASETS.items() if dataset.citation]
    assert [name for name in names if name in PUBLIC_DATASETS] == listed
    document = json.loads(call("datasets", "--json").stdout)
    assert [dataset["name"] for dataset in document["datasets"]] == listed


def test_the_facts_of_a_dataset_have_the_source_of_their_numbers(call):
    text = call("datasets", "nih").stdout
    assert "112,120 images of 30,805 patients (label table in torchxrayvision" in text
    assert "shares images with" not in text or "rsna" in text
    text = call("datasets", "mimic_cxr_jpg").stdout
    assert "--label-variant chexpert" in text
    assert "the default" in text


def test_the_check_of_a_partial_download_names_what_is_missing(call, tmp_path):
    make_nih(tmp_path)
    next((tmp_path / "images_003" / "images").iterdir()).unlink()
    result = call("datasets", "nih", "--data", tmp_path)
    assert result.returncode == 2
    assert "partial" in result.stdout
    assert "60 images of 112,120 published are listed; 59 of them have a file" in result.stdout
    document = json.loads(call("datasets", "nih", "--data", tmp_path, "--json").stdout)
    assert document["missing_images"] == 1


def test_a_folder_without_a_name_and_an_unknown_name_are_one_line_with_a_fix(call, tmp_path):
    result = call("datasets", "--data", tmp_path)
    assert result.returncode != 0
    assert "datasets with --data needs the name of a dataset. Pass one of nih" in result.stderr
    assert "did you mean 'padchest'" in call("datasets", "padchst").stderr
