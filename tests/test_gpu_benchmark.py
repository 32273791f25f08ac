"""The benchmark of a GPU machine, with tiny networks on a CPU: all rows, and those of a failed measurement."""

import re
import subprocess
import sys
from pathlib import Path

from toy_images import write_toys

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
TINY = [
    "--weights", "none", "--device", "cpu", "--backbone", "mobilenetv2_035", "--backbones", "mobilenetv2_035",
    "--size", "64", "--batch-size", "4", "--steps", "1", "--epochs", "1",
]  # fmt: skip


def run_benchmark(folder: Path, *options: str) -> dict[str, str]:
    """Return the value of each measurement; check that the file has the printed table."""
    command = [sys.executable, "-W", "ignore", SCRIPT, "--data", write_toys(folder / "toys"), "--out", "table.md"]
    done = subprocess.run([*command, *TINY, *options], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert (folder / "table.md").read_text(encoding="utf-8").splitlines() == rows
    return {cells[1].strip(): cells[2].strip() for cells in (row.split("|") for row in rows)}


def test_training_and_scoring_are_measured(tmp_path):
    values = run_benchmark(tmp_path, "--only", "training", "scoring")
    assert "torch " in values["machine"] and "--only training scoring" in values["command"]
    network = "mobilenetv2_035, 64 px, batches of 4"
    speeds = [
        *(f"{network}: {what}, images/s" for what in
          ("bare loop", "network, optimizer of fastcxr", "end to end", "plain fastai")),
        "scoring from the cache, mobilenetv2_035, images/s",
    ]  # fmt: skip
    assert all(int(re.match(r"\d+", values[name])[0]) > 0 for name in speeds)


def test_a_measurement_without_time_is_a_row_and_the_next_one_starts(tmp_path):
    values = run_benchmark(tmp_path, "--only", "scoring", "precision", "--minutes", "0")
    for name in ("scoring", "precision"):
        assert values[name] == "failed: TimeoutError: the time of --minutes is over"
