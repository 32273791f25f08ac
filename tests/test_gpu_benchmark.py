"""The benchmark of a GPU machine, with tiny networks on a CPU: all rows, and those of a failed measurement."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from toy_images import write_toys

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
TINY = [
    "--weights", "none", "--device", "cpu", "--backbone", "mobilenetv2_035", "--backbones", "mobilenetv2_035",
    "--size", "64", "--batch-size", "4", "--steps", "1", "--epochs", "1",
]  # fmt: skip


@pytest.fixture
def run_benchmark(tmp_path, monkeypatch, capsys):
    """Return a function that runs the script in this process, which has imported torch already."""

    def run(*options: str) -> dict[str, str]:
        """Return the value of each measurement; check that the file has the printed table."""
        words = [str(SCRIPT), "--data", str(write_toys(tmp_path / "toys")), "--out", "table.md", *TINY, *options]
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.syspath_prepend(SCRIPT.parent)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the script may change it
        runpy.run_path(str(SCRIPT), run_name="__main__")
        rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        assert Path("table.md").read_text(encoding="utf-8").splitlines() == rows
        return {cells[1].strip(): cells[2].strip() for cells in (row.split("|") for row in rows)}

    return run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_training_and_scoring_are_measured(run_benchmark):
    values = run_benchmark("--only", "training", "scoring")
    assert "torch " in values["machine"] and "--only training scoring" in values["command"]
    network = "mobilenetv2_035, 64 px, batches of 4"
    speeds = [
        *(f"{network}: {what}, images/s" for what in
          ("bare loop", "network, optimizer of fastcxr", "end to end", "plain fastai")),
        "scoring from the cache, mobilenetv2_035, images/s",
    ]  # fmt: skip
    assert all(int(re.match(r"\d+", values[name])[0]) > 0 for name in speeds)


@pytest.mark.filterwarnings("ignore")
def test_a_measurement_without_time_is_a_row_and_the_next_one_starts(run_benchmark):
    values = run_benchmark("--only", "scoring", "precision", "--minutes", "0")
    for name in ("scoring", "precision"):
        assert values[name] == "failed: TimeoutError: the time of --minutes is over"
