"""Shared code of the benchmarks: command lines, separate processes, alternating timings and Wilson intervals."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from scipy.stats import binomtest


def resolve_weights(value: str) -> str:
    """Return the absolute path of a file of weights, or "none"."""
    return value if value == "none" else str(Path(value).resolve())


OPTIONS: dict[str, dict[str, Any]] = {
    "data": {"help": "folder of images"},
    "weights": {"help": "file of ImageNet weights of the backbone, or none", "type": resolve_weights},
    "patient-table": {"help": "table of patient identifiers"},
    "backbone": {"default": "mobilenetv2_100"},
}


def make_parser(
    usage: str | None, required: Iterable[str] = (), optional: Iterable[str] = ()
) -> argparse.ArgumentParser:
    """Return a parser with these of the shared OPTIONS; its help is the docstring of the script."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in required:
        parser.add_argument(f"--{name}", required=True, **OPTIONS[name])
    for name in optional:
        parser.add_argument(f"--{name}", **OPTIONS[name])
    return parser


def parse_or_measure(
    parser: argparse.ArgumentParser, variants: Iterable[str], measure: Callable[[argparse.Namespace], Any]
) -> argparse.Namespace:
    """Return the parsed options. With --variant, print the result of `measure` as JSON and exit."""
    parser.add_argument("--variant", choices=variants, help="measure this variant once and print JSON")
    given = parser.parse_args()
    if given.variant:
        print("\n" + json.dumps(measure(given)))
        sys.exit()
    return given


def run_in_subprocess(variant: str, **options: Any) -> Any:
    """Call this script with --variant and further options, and return the JSON that it prints last.

    A separate process is needed because fastcxr changes the memory allocation of the C library, from which plain
    fastai would also benefit.
    """
    further = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-W", "ignore", *sys.argv, "--variant", variant, *further]
    environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ  # what `import fastcxr` sets, for all variants
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def get_processor_seconds() -> float:
    """Return the user and system time of this process."""
    return sum(os.times()[:2])


def time_alternately(
    calls: dict[str, Callable[[], object]], runs: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the median seconds of each call. The calls alternate; the first run of each is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs + 1):
        for name, call in calls.items():
            started = clock()
            call()
            seconds[name].append(clock() - started)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def format_proportion(proportion: float, total: int) -> str:
    """Return a proportion of `total` cases with its 95 % Wilson interval."""
    low, high = binomtest(round(proportion * total), total).proportion_ci(method="wilson")
    return f"{proportion:.3f} ({low:.3f} to {high:.3f})"
