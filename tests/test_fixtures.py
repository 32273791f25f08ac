"""Run folders of version 0.1, as they stand in tests/fixtures: this version reads them."""

import shutil
from pathlib import Path

import pytest
from tiny_network import NAME

from fastcxr.inference.bundle import load_model
from fastcxr.recipe import read_recipe
from fastcxr.training.checkpoints import Checkpoints
from fastcxr.unfinished import is_finished, is_unfinished, read_begun
from fastcxr.verify import verify

FINISHED = Path(__file__).parent / "fixtures" / "run_0_1"
UNFINISHED = FINISHED.with_name("run_0_1_unfinished")


def test_the_finished_run_is_whole():
    faults, count = verify(FINISHED)
    assert faults == [] and count > 50
    assert is_finished(FINISHED) and read_recipe(FINISHED / "recipe.json").backbone == NAME


def test_the_model_of_the_finished_run_is_loaded():
    assert load_model(FINISHED, device="cpu").labels == ("bilateral_haze", "clear_lungs", "lobar_opacity")


def test_the_unfinished_run_can_be_gone_on_with(tmp_path):
    assert is_unfinished(UNFINISHED) and not is_finished(UNFINISHED)
    assert read_begun(UNFINISHED).data == "sample"
    folder = shutil.copytree(UNFINISHED, tmp_path / "run")
    assert Checkpoints(folder / "state").exist()


@pytest.mark.parametrize("folder", [FINISHED, UNFINISHED], ids=lambda folder: folder.name)
def test_no_path_of_a_machine_and_no_picture_of_size_is_in_a_run(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [word for word in (b"/tmp", b"/home", b"/Users", b"/root") if word in content], path
            assert path.suffix != ".jpg" or len(content) < 3000, path
