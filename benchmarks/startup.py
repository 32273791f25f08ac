"""Seconds until `fastcxr predict` has written the row of one image, with an export and with its run.

    python benchmarks/startup.py --export EXPORT [--run RUN] --image FILE [--repeats 7] [--python PYTHON]

Each command is a new process; the commands alternate. The table has the median and the least of the wall time, and the
median of the processor time, which depends less on other work of the machine. The other rows are parts of the first
one, each in a new process, including the start of Python. PYTHON: interpreter of an environment without torch;
default: this one.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LOAD = "from fastcxr.export.exported_model import load_export; load_export({!r})"


def make_commands(given: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Return the arguments of Python of each row of the table."""
    predict = ["-m", "fastcxr", "predict"]
    last = [given.image, "--csv", str(folder / "predictions.csv"), "--quiet"]
    commands = {"predict with the export": [*predict, given.export, *last]}
    if given.run:
        commands["predict with the run"] = [*predict, given.run, *last]
    return commands | {
        "start of Python": ["-c", ""],
        "command line of fastcxr (--version)": ["-m", "fastcxr", "--version"],
        "numpy": ["-c", "import numpy"],
        "pandas, with numpy": ["-c", "import pandas"],
        "onnxruntime, with numpy": ["-c", "import onnxruntime"],
        "loaded export, with all of these": ["-c", LOAD.format(given.export)],
    }


def measure(words: list[str]) -> tuple[float, float]:
    """Return wall time and processor time of a process in seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure all rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--export", required=True, help="folder of an export")
    parser.add_argument("--run", help="its run folder")
    parser.add_argument("--image", required=True, help="image file")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--python", default=sys.executable, help="interpreter")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = make_commands(given, Path(folder))
        seconds = {name: [] for name in commands}
        for repeat in range(given.repeats + 1):
            for name, words in commands.items():
                pair = measure([given.python, *words])
                seconds[name] += [pair] if repeat else []  # the first process of each reads files from the disk
    print(f"{given.repeats} processes each, load average {os.getloadavg()[0]:.1f}")
    print("| seconds | median | least | processor |\n|---|---|---|---|")
    for name, pairs in seconds.items():
        walls, processor = zip(*pairs, strict=True)
        print(f"| {name} | {statistics.median(walls):.2f} | {min(walls):.2f} | {statistics.median(processor):.2f} |")


if __name__ == "__main__":
    main()
