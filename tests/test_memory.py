"""Tests of the peak memory of metrics and audit on a large dataset."""

import subprocess
import sys
from pathlib import Path

import pytest

GROWTH = Path(__file__).parents[1] / "benchmarks" / "growth.py"
MAX_PEAK_MB = 2000


@pytest.mark.slow
@pytest.mark.parametrize("step", ["metrics", "audit"])
def test_100_classes_and_100_000_images_need_less_than_2_gb(step):
    command = [sys.executable, GROWTH, "--step", step, "--images", "100000", "--classes", "100"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    peak = int(printed.split()[-1].replace(",", ""))  # last column: allocated and mapped memory
    assert peak < MAX_PEAK_MB
