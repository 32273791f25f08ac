"""A finished run that many tests read and none changes, and the command within this process."""

import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import TRAIN, fastcxr
from toy_images import write_toys

from fastcxr.cli.main import main


@pytest.fixture
def call(monkeypatch, capfd):
    """The command within this process, which has paid for importing torch already."""

    def calling(*words, where: Path | None = None) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["fastcxr", *map(str, words)])
        if where:
            monkeypatch.chdir(where)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(words, ended.value.code, *capfd.readouterr())

    return calling


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run, its data folder, and what the terminal said."""
    place = tmp_path_factory.mktemp("finished")
    data = write_toys(place / "toys", per_class=20)
    done = fastcxr(*TRAIN, "--data", "toys", "--out", "run", "--predict-train", "--batch-size", "8", where=place)
    assert done.returncode == 0, done.stderr
    return place / "run", data, done
