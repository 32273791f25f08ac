"""A finished run that many tests read, and the command line in the process of the tests."""

import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import TRAIN_WITH_FIGURES, fastcxr
from toy_images import write_toys

from fastcxr.cli.main import main


@pytest.fixture
def call(monkeypatch, capfd):
    """Run the command in this process, which has imported torch already."""

    def run_command(*words, where: Path | None = None) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["fastcxr", *map(str, words)])
        if where:
            monkeypatch.chdir(where)
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main()
        return subprocess.CompletedProcess(words, exit_info.value.code, *capfd.readouterr())

    return run_command


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run with figures and saliency maps, its data folder, and the completed command."""
    folder = tmp_path_factory.mktemp("finished")
    data = write_toys(folder / "toys", per_class=20)
    words = [*TRAIN_WITH_FIGURES, "--data", "toys", "--out", "run", "--predict-train", "--batch-size", "8"]
    done = fastcxr(*words, where=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", data, done
