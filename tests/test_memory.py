"""A large cohort is measured and audited in the memory of a small computer."""

import subprocess
import sys
from pathlib import Path

import pytest

GROWTH = Path(__file__).parents[1] / "benchmarks" / "growth.py"
MOST_MB = 2000


@pytest.mark.slow
@pytest.mark.parametrize("step", ["metrics", "audit"])
def test_a_hundred_classes_and_a_hundred_thousand_images_take_less_than_two_gigabytes(step):
    command = [sys.executable, GROWTH, "--step", step, "--images", "100000", "--classes", "100"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    peak = int(printed.split()[-1].replace(",", ""))  # the last column: of allocated and mapped memory together
    assert peak < MOST_MB
