"""Tests that every command rejects the run folders of version 0.1 in tests/fixtures with a one-line error."""

import shutil
import sys
from pathlib import Path

import pytest
import tiny_network  # noqa: F401  registers the network of these runs

from fastcxr.cli.main import main
from fastcxr.config.recipe import Recipe
from fastcxr.errors import FastcxrError
from fastcxr.io.files import compute_sha256, list_files, read_checksums
from fastcxr.io.formats import is_unfinished
from fastcxr.io.run_folders import list_runs
from fastcxr.report.run_reader import read_dataset_record, read_run_record
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.workflows.cross_validate import cross_validate
from fastcxr.workflows.run_state import find_resumable_run, is_finished
from fastcxr.workflows.train import run

FINISHED = Path(__file__).parent / "fixtures" / "run_0_1"
UNFINISHED = FINISHED.with_name("run_0_1_unfinished")
REFUSAL = "made by fastcxr 0.1.0, whose format this version cannot read. Use fastcxr 0.1.0, or train again"
BOTH = pytest.mark.parametrize("fixture", [FINISHED, UNFINISHED], ids=lambda folder: folder.name)
COMMANDS = {
    "predict": "predict {run} {images}",
    "explain": "explain {run} {images}",
    "evaluate": "evaluate {run} --data {images}",
    "report": "report {run}",
    "compare": "compare {run} {run}/../other",
    "verify": "verify {run}",
    "resume": "resume {run}",
    "train": "train tiny_test_resnet --data {images} --weights none --reuse-split {run} --out {run}/../new",
    "describe": "describe --data {images} --reuse-split {run} --out {run}/../new",
    "train into the folder": "train tiny_test_resnet --data {images} --weights none --out {run}",
    "folds into the folder": "train tiny_test_resnet --data {images} --weights none --folds 2 --out {run}",
}


def hash_files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): compute_sha256(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def call(capfd, monkeypatch, tmp_path):
    """Return a function that runs a command in an empty working directory and returns exit code and stderr."""
    monkeypatch.chdir(tmp_path)

    def invoke(line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fastcxr", *line.split()])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capfd.readouterr().err

    return invoke


@BOTH
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_rejects_the_run_in_one_line(command, fixture, call, tmp_path, toy_folder):
    folder = shutil.copytree(fixture, tmp_path / "kept" / fixture.name)
    shutil.copytree(fixture, tmp_path / "kept" / "other")
    before = hash_files(tmp_path / "kept")
    code, written = call(COMMANDS[command].format(run=folder, images=toy_folder))
    assert code
    assert "Traceback" not in written
    assert written.replace("\n", " ").split(f"{folder}: ")[-1].strip() == REFUSAL
    assert hash_files(tmp_path / "kept") == before, "no file is changed or created"


@pytest.mark.parametrize("read", [read_run_record, read_dataset_record])
def test_report_readers_reject_the_run(read):
    with pytest.raises(FastcxrError, match=REFUSAL):
        read(FINISHED)


@pytest.mark.parametrize("recipe", [FINISHED / "recipe.json", UNFINISHED / "state" / "recipe.json"])
def test_its_recipe_is_rejected_with_the_name_of_the_run(recipe):
    with pytest.raises(FastcxrError, match=REFUSAL) as caught:
        Recipe.from_json(recipe)
    assert Path(caught.value.path).name in ("run_0_1", "run_0_1_unfinished")


@BOTH
def test_without_run_json_the_version_is_unknown(fixture, tmp_path):
    folder = shutil.copytree(fixture, tmp_path / "run")
    for content in ("{}", '{"versions": {"fastcxr": "1\\n2"}}', "torn"):
        (folder / "run.json").write_text(content)
        with pytest.raises(
            FastcxrError, match="made by another version of fastcxr, whose .*Use that version, or train"
        ):
            Recipe.from_json(folder / "recipe.json")


def test_resume_skips_an_unfinished_run_with_a_message(call, tmp_path):
    shutil.copytree(UNFINISHED, tmp_path / "runs" / "old")
    code, written = call("resume")
    assert code
    assert f"not resumed: {Path('runs/old')}" in written.replace("FCX-E306 ", "").replace("\n", " ")
    assert "runs/ holds no unfinished run" in written
    assert find_resumable_run(list_runs()) is None


@pytest.mark.parametrize("start", [run, cross_validate])
def test_the_library_neither_resumes_nor_overwrites_the_run(start, tmp_path, toy_folder):
    folder = shutil.copytree(UNFINISHED, tmp_path / "run")
    before = hash_files(folder)
    recipe = Recipe("tiny_test_resnet", data=str(toy_folder), folds=2 if start is cross_validate else 0)
    with pytest.raises(FastcxrError, match=REFUSAL):
        start(recipe, folder)
    assert hash_files(folder) == before


def test_a_mirror_with_such_a_run_is_not_overwritten(tmp_path, toy_folder):
    mirror = shutil.copytree(UNFINISHED, tmp_path / "mirror")
    before = hash_files(mirror)
    with pytest.raises(FastcxrError, match=REFUSAL):
        run(Recipe("tiny_test_resnet", data=str(toy_folder)), tmp_path / "run", mirror=mirror)
    assert hash_files(mirror) == before and not (tmp_path / "run").exists()


def test_a_checkpoint_of_that_version_is_rejected(tmp_path):
    folder = shutil.copytree(UNFINISHED, tmp_path / "run")
    assert Checkpoints(folder / "state").has_states()
    with pytest.raises(FastcxrError, match="no intact checkpoint in this folder"):
        Checkpoints(folder / "state").read()


def test_the_files_of_the_finished_run_match_their_checksums():
    assert is_finished(FINISHED) and is_unfinished(UNFINISHED) and not is_finished(UNFINISHED)
    sums = read_checksums(FINISHED)
    assert len(sums) > 50
    assert {name: compute_sha256(FINISHED / name) for name in sums} == sums
    assert set(list_files(FINISHED)) == set(sums)


@BOTH
def test_the_runs_contain_no_machine_path_and_no_large_image(fixture):
    for path in fixture.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [word for word in (b"/tmp", b"/home", b"/Users", b"/root") if word in content], path
            assert path.suffix != ".jpg" or len(content) < 3000, path
