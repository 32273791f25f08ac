"""Run folders of version 0.1, as they stand in tests/fixtures: their models are read, their recipes are not."""

import shutil
from pathlib import Path

import pytest
import tiny_network  # noqa: F401  registers the network of these runs

from fastcxr.config.recipe import read_recipe
from fastcxr.errors import FastcxrError
from fastcxr.io.files import compute_sha256, read_checksums
from fastcxr.models.bundle import load_model
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.workflows.run_state import is_finished, is_unfinished

FINISHED = Path(__file__).parent / "fixtures" / "run_0_1"
UNFINISHED = FINISHED.with_name("run_0_1_unfinished")


def test_the_files_of_the_finished_run_are_whole():
    assert is_finished(FINISHED)
    sums = read_checksums(FINISHED)
    assert len(sums) > 50
    assert {name: compute_sha256(FINISHED / name) for name in sums} == sums


@pytest.mark.parametrize("recipe", [FINISHED / "recipe.json", UNFINISHED / "state" / "recipe.json"])
def test_a_recipe_of_that_version_is_refused_in_one_line(recipe):
    with pytest.raises(FastcxrError, match="no option called 'layout'") as refused:
        read_recipe(recipe)
    assert "\n" not in str(refused.value)


def test_the_model_of_the_finished_run_is_loaded():
    assert load_model(FINISHED, device="cpu").labels == ("bilateral_haze", "clear_lungs", "lobar_opacity")


def test_the_unfinished_run_has_its_states(tmp_path):
    assert is_unfinished(UNFINISHED) and not is_finished(UNFINISHED)
    folder = shutil.copytree(UNFINISHED, tmp_path / "run")
    assert Checkpoints(folder / "state").has_states()


@pytest.mark.parametrize("folder", [FINISHED, UNFINISHED], ids=lambda folder: folder.name)
def test_no_path_of_a_machine_and_no_picture_of_size_is_in_a_run(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [word for word in (b"/tmp", b"/home", b"/Users", b"/root") if word in content], path
            assert path.suffix != ".jpg" or len(content) < 3000, path
