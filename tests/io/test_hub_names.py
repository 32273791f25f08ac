"""Names of models on the hub, and the files of a published model."""

from pathlib import Path, PureWindowsPath

import pytest

from fastcxr.errors import InputMissingError, RecipeError
from fastcxr.io.hub_names import get_model_name, is_hub_name, is_model_file, parse_hub_name
from fastcxr.io.run_folders import require_run_file


@pytest.mark.parametrize(
    "text", ["hf://me/model", Path("hf://me/model"), PureWindowsPath("hf://me/model"), "hf:/me/model", "hf:\\me\\model"]
)
def test_a_name_is_read_as_text_and_as_a_path(text):
    assert is_hub_name(text)
    assert str(parse_hub_name(text)) == "hf://me/model"


def test_a_revision_follows_the_name_or_is_given():
    assert parse_hub_name("me/model@v1.0/a").revision == "v1.0/a"
    assert parse_hub_name("me/model", "v1") == parse_hub_name("hf://me/model@v1")
    with pytest.raises(RecipeError, match="two revisions: v1 and v2"):
        parse_hub_name("me/model@v1", "v2")


@pytest.mark.parametrize(
    "text", ["me", "me/a/b", "me/..", "-me/a", "me/a--b", "me/a b", "me/a@", "https://hub/me/a", ""]
)
def test_another_text_is_no_name(text):
    assert not is_hub_name(text)
    with pytest.raises(RecipeError, match="no name of a model on the hub, expected owner/name") as error:
        parse_hub_name(text)
    assert error.value.code == "E701"


def test_only_files_of_a_published_model_are_downloaded():
    for name in ("model.safetensors", "fold-1/model.json", "fold-12/ood.safetensors", "README.md", "SHA256SUMS"):
        assert is_model_file(name)
    for name in (
        "report.html", "report-no-images.html", "model.pkl", "fold-0/model.json", "fold-1/README.md", "a/model.json",
        "fold-1/a/model.json", "../model.json", "/model.json", "MODEL.JSON", "predictions.csv", "fold-1/../model.json",
    ):  # fmt: skip
        assert not is_model_file(name)


def test_the_name_of_a_model_is_that_of_its_folder_or_repository(tmp_path):
    snapshot = tmp_path / "models--me--model" / "snapshots" / ("ab" * 20)
    assert get_model_name(snapshot) == get_model_name("hf://me/model@main") == "model"
    assert get_model_name(tmp_path / "runs" / "first") == "first"


def test_a_missing_folder_with_the_form_of_a_name_suggests_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputMissingError, match="a model on the hub is hf://me/model"):
        require_run_file("me/model", "model.json")
    with pytest.raises(InputMissingError) as error:
        require_run_file("model", "model.json")
    assert "hub" not in str(error.value)
