"""Tests for cohen.py."""

import logging

import pytest
from public_datasets import make_cohen
from toy_datasets import check_message

from fastcxr.data.manifest import MANIFEST_COLUMNS, read_manifest
from fastcxr.errors import DataError, RecipeError


def test_findings_become_labels_and_views_are_kept(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fastcxr"):
        manifest = read_manifest(make_cohen(tmp_path / "cohen"))
    assert "data format: Cohen's collection (metadata.csv)" in caplog.text
    assert manifest["label"].tolist() == ["COVID-19"] * 3 + ["SARS"] * 2
    assert manifest["patient"].tolist() == ["2", "2", "3", "4", "5"]
    assert manifest["path"].tolist()[0] == "images/a one.png"
    assert manifest["view"].tolist() == ["PA", "L", "AP", "PA", "PA"]
    assert set(manifest["source"]) == {"cohen"}


def test_the_last_part_of_a_finding_is_the_label_and_is_logged(tmp_path, caplog):
    rows = ("6,Pneumonia/Viral/COVID-19,PA", "7,Pneumonia,PA", "8,Pneumonia,PA")
    make_cohen(tmp_path, *(f"{row},X-ray,{k}.png,images" for k, row in enumerate(rows)))
    with caplog.at_level(logging.INFO, "fastcxr"):
        manifest = read_manifest(tmp_path, classes=("COVID-19", "Pneumonia"))
    assert manifest["label"].value_counts().to_dict() == {"COVID-19": 4, "Pneumonia": 2}
    assert "the label is the last part of each finding: Pneumonia/Viral/COVID-19 as COVID-19" in caplog.text


@pytest.mark.parametrize("header", ["clinical notes", "clinical_notes", "Clinical_Notes", "other_notes"])
def test_clinical_notes_are_not_in_the_manifest_for_any_spelling_of_the_column(tmp_path, header):
    table = make_cohen(tmp_path) / "metadata.csv"
    table.write_text(table.read_text().replace("clinical notes", header))
    manifest = read_manifest(tmp_path)
    assert set(manifest.columns) == {*MANIFEST_COLUMNS, "sex", "age", "view", "file"}
    assert not manifest.map(lambda cell: "coughs" in str(cell)).any(axis=None)
    assert read_manifest(tmp_path, keep_columns=("modality",))["modality"].tolist() == ["X-ray"] * 5
    with pytest.raises(RecipeError, match="may contain free text, judging by its name"):
        read_manifest(tmp_path, keep_columns=(header,))


def test_rows_are_filtered_by_any_column(tmp_path):
    make_cohen(tmp_path, "9,SARS,PA,CT,x.png,images")
    assert len(read_manifest(tmp_path, filter=("modality=X-ray", "clinical notes=coughs"))) == 5


def test_volumes_and_rows_without_a_finding_are_skipped_and_logged(tmp_path, caplog):
    make_cohen(
        tmp_path, "7,COVID-19,Axial,CT,v.nii.gz,volumes", "8,,PA,X-ray,n.png,images", "9,todo,PA,X-ray,t.png,images"
    )
    with caplog.at_level(logging.INFO, "fastcxr"):
        assert len(read_manifest(tmp_path)) == 5
    assert "skipped 1 CT volume" in caplog.text
    assert "skipped 2 rows without a finding: images/n.png, images/t.png" in caplog.text


def test_missing_images_are_listed_in_the_error(tmp_path):
    make_cohen(tmp_path)
    (tmp_path / "images" / "c.png").unlink()
    with pytest.raises(DataError) as caught:
        read_manifest(tmp_path)
    assert "'images/c.png' (line 4). Copy the missing images to the folder" in check_message(caught.value)


def test_a_table_without_findings_is_an_error(tmp_path):
    make_cohen(tmp_path)
    header = (tmp_path / "metadata.csv").read_text().splitlines()[0]
    (tmp_path / "metadata.csv").write_text(header + "\n")
    with pytest.raises(FileNotFoundError, match="0 images with a finding. Pass the metadata.csv of the collection"):
        read_manifest(tmp_path)


def test_frontal_views_of_the_real_collection(real_data):
    manifest = read_manifest(real_data / "cohen", filter=("view=PA,AP,AP Supine",), classes=("COVID-19", "SARS"))
    assert manifest["label"].value_counts().to_dict() == {"COVID-19": 96, "SARS": 11}
    assert set(manifest["view"]) == {"PA", "AP", "AP Supine"}
