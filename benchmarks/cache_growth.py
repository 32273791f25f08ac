"""Time and memory of the image cache for growing datasets: filling, opening again, reading shuffled batches.

    python benchmarks/cache_growth.py FOLDER [--images 1000 10000 100000] [--size 64]

FOLDER: receives the images of random_images.py that are missing. The cache of each number of images is temporary, and
each step is measured in a separate process. Memory: peak of allocated memory (RssAnon), and of allocated and mapped
memory together (VmHWM); the operating system can reclaim mapped files. cpu: processor seconds of the process
and of those that decode.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from growth import record_peaks
from random_images import find_image, write_images

BATCH_SIZE = 64
STEPS = ("fill", "open", "read")


def read_cpu_seconds() -> float:
    """Return the processor seconds of this process and of its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(step: str, folder: Path, count: int, size: int) -> dict[str, float]:
    """Return the seconds and the peak memory [MB] of one step."""
    from fastcxr.data.cache.images import open_image_cache

    peaks = {"RssAnon": 0, "VmHWM": 0}
    threading.Thread(target=record_peaks, args=[peaks], daemon=True).start()
    files = [str(find_image(folder, number)) for number in range(count)]
    started, cpu_started = time.perf_counter(), read_cpu_seconds()
    image_cache = open_image_cache(files, size)
    if step == "read":
        started, cpu_started, rows = (
            time.perf_counter(),
            read_cpu_seconds(),
            np.random.default_rng(0).permutation(count),
        )
        for first in range(0, count, BATCH_SIZE):
            image_cache.read(rows[first : first + BATCH_SIZE])
    seconds, cpu = time.perf_counter() - started, read_cpu_seconds() - cpu_started
    time.sleep(0.2)  # record_peaks
    return {"seconds": seconds, "cpu": cpu} | {name: kilobytes / 1024 for name, kilobytes in peaks.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--size", type=int, default=64, help="image size [px]")
    parser.add_argument("--step", choices=STEPS, help="measure this step in this process and print JSON")
    given = parser.parse_args()
    if given.step:
        print(json.dumps(measure(given.step, given.folder, given.images[0], given.size)))
        sys.exit()
    print(f"{'images':>8} {'step':>5} {'seconds':>8} {'cpu':>8} {'own MB':>7} {'peak MB':>8}")
    for count in given.images:
        write_images(given.folder, count)
        time.sleep(3)  # the cache reads new files again: their time stamps may hide a change
        with tempfile.TemporaryDirectory() as cache:
            for step in STEPS:
                command = [sys.executable, __file__, str(given.folder), "--images", str(count), "--size"]
                environment = os.environ | {"XDG_CACHE_HOME": cache}
                output = subprocess.run([*command, str(given.size), "--step", step], env=environment, check=True,
                                        stdout=subprocess.PIPE).stdout  # fmt: skip
                found = json.loads(output.splitlines()[-1])
                figures = (
                    f"{found['seconds']:>8.1f} {found['cpu']:>8.1f} {found['RssAnon']:>7.0f} {found['VmHWM']:>8.0f}"
                )
                print(f"{count:>8,} {step:>5} {figures}", flush=True)
