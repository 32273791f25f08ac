"""Tests of verify: a changed digit in any file is found, for metrics and models even with updated checksums."""

import json
import shutil

import pytest
from tiny_network import NAME

from fastcxr.config.recipe import Recipe
from fastcxr.errors import InputMissingError, OutputError
from fastcxr.io.files import CHECKSUMS_FILE, list_files, read_checksums, write_checksums
from fastcxr.report.run_page import write_run_report
from fastcxr.workflows.cross_validate import cross_validate
from fastcxr.workflows.train import run
from fastcxr.workflows.verify import find_differences, verify

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")


@pytest.fixture(scope="module")
def finished(toy_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify") / "run"
    recipe = Recipe(NAME, data=str(toy_folder), weights="none", image_size=64, epochs=1, batch_size=8)
    run(recipe.replace(strategy="full"), folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_an_unchanged_run_has_no_faults_and_all_files_are_counted(folder):
    faults, count = verify(folder)
    assert faults == []
    assert count == len(list_files(folder)) == len(read_checksums(folder)) > 20


def change_a_digit(path):
    content = bytearray(path.read_bytes())
    position = next((i for i in range(len(content) // 2, len(content)) if chr(content[i]).isdigit()), len(content) - 1)
    content[position] ^= 1
    path.write_bytes(content)


def test_a_changed_digit_in_any_file_is_found(folder):
    names = list_files(folder)
    before = {name: (folder / name).read_bytes() for name in names}
    for part in (names[::2], names[1::2]):  # the other half is found to be unchanged
        for name in part:
            change_a_digit(folder / name)
        found = {str(fault.path) for fault in verify(folder)[0] if "checksum" in fault.problem}
        assert found == {str(folder / name) for name in part}
        for name in part:
            (folder / name).write_bytes(before[name])
    assert verify(folder)[0] == []


def test_a_changed_checksum_is_found(folder):
    change_a_digit(folder / CHECKSUMS_FILE)
    assert verify(folder)[0]
    (folder / CHECKSUMS_FILE).write_text("no checksum\n")
    with pytest.raises(OutputError, match="line 1 is not a checksum and a name"):
        verify(folder)


def test_a_changed_metric_is_found_despite_an_updated_checksum(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    computed = metrics["test"]["accuracy"]
    metrics["test"]["accuracy"] = 0.999
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_checksums(folder)
    (fault,) = verify(folder)[0]
    assert fault.problem == f"test.accuracy is 0.999, expected {computed} from predictions.csv"


def test_a_changed_model_is_found_despite_an_updated_checksum(folder):
    change_a_digit(folder / "model.safetensors")
    write_checksums(folder)
    assert [fault.problem for fault in verify(folder)[0]] == ["differs from its checksum in model.json"]


def test_missing_and_added_files_are_found(folder):
    (folder / "history.csv").unlink()
    (folder / "notes.txt").write_text("mine")
    assert {(fault.path.name, fault.problem) for fault in verify(folder)[0]} >= {
        ("history.csv", "is missing"), ("notes.txt", "is not in SHA256SUMS"),
    }  # fmt: skip


def test_writing_the_report_again_updates_only_the_checksums_of_its_files(folder):
    change_a_digit(folder / "manifest.csv")
    write_run_report(folder)
    assert "manifest.csv" in {fault.path.name for fault in verify(folder)[0]}


def test_folds_are_verified_too(toy_folder, tmp_path):
    recipe = Recipe(NAME, data=str(toy_folder), weights="none", image_size=64, strategy="linear_probe", folds=2)
    cross_validate(recipe, tmp_path / "folds")
    assert verify(tmp_path / "folds")[0] == []
    change_a_digit(tmp_path / "folds" / "fold-2" / "predictions.csv")
    assert "predictions.csv" in {fault.path.name for fault in verify(tmp_path / "folds")[0]}


def test_a_folder_without_checksums_is_rejected(tmp_path):
    with pytest.raises(InputMissingError, match="no SHA256SUMS"):
        verify(tmp_path)


def test_find_differences_ignores_rounding():
    assert list(find_differences({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}, "c": None})) == [("a.b[1]", 2, 3)]
    assert list(find_differences(0.1 + 0.2, 0.3)) == []
    assert list(find_differences({"a": 1}, {})) == [("a", 1, None)]


def test_another_wording_of_a_reason_is_no_fault(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["test"]["reasons"]["auroc.macro"] = "the wording of another version"
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_checksums(folder)
    assert verify(folder)[0] == []
