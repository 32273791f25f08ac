"""Reading a cohort again from the store of pictures, beside decoding it again.

    python benchmarks/image_cache.py --data DIR [--size 224] [--images 1000] [--runs 3]

The files of DIR are repeated in a temporary folder until there are as many as asked, each with a few bytes of its own
behind its picture, so that every one has a square of its own. The store is one of its own too, and goes afterwards.
Both read shuffled batches of 32 and alternate, so that a busy machine slows both; the table gives medians. The store
reads on one thread and compares every square with its checksum; decoding is timed on one thread and on all cores.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.imaging.read import check_images, fit_square, read_image
from fastcxr.io.cpus import count_cpus

BATCH = 32


def repeat_files(data: Path, folder: Path, count: int) -> list[str]:
    """So many copies of the images in `data`, each with content of its own."""
    originals = sorted(path for path in data.rglob("*") if path.is_file())
    unreadable = {error.path for error in check_images(originals)}
    files = []
    for number, path in enumerate(islice(cycle(path for path in originals if str(path) not in unreadable), count)):
        copy = folder / f"{number}{path.suffix}"
        copy.write_bytes(path.read_bytes() + f"copy {number}".encode())  # decoders stop at the end of the picture
        files.append(str(copy))
    return files


def measure(read: Callable[[np.ndarray], np.ndarray], count: int, run: int) -> float:
    """Seconds to read every image once, in shuffled batches."""
    rows = np.random.default_rng(run).permutation(count)
    started = time.perf_counter()
    for start in range(0, count, BATCH):
        read(rows[start : start + BATCH])
    return time.perf_counter() - started


def compare(files: list[str], size: int, runs: int) -> dict[str, list[float]]:
    """Seconds of each run of each road."""
    cores = count_cpus()
    seconds = {"filling the store, once": [], "opening it again": []}
    for words in seconds:
        started = time.perf_counter()
        pictures = open_image_cache(files, size)
        seconds[words].append(time.perf_counter() - started)
    with ThreadPoolExecutor(cores) as pool:

        def decode(row: int) -> np.ndarray:
            return fit_square(read_image(files[row]), size)

        roads = {
            "decoding, one thread": lambda rows: np.stack([decode(row) for row in rows]),
            f"decoding, {cores} threads": lambda rows: np.stack(list(pool.map(decode, rows))),
            "from the store, one thread": pictures.read,
        }
        for run in range(runs):
            for words, read in roads.items():
                seconds.setdefault(words, []).append(measure(read, len(files), run))
    return seconds


def show(seconds: dict[str, list[float]], count: int) -> None:
    """One row a road; the ratio is how many times sooner the store has it."""
    medians = {words: statistics.median(times) for words, times in seconds.items()}
    store = medians["from the store, one thread"]
    print(f"{'':<28} {'seconds':>9} {'images/s':>10} {'store is':>10}")
    for words, median in medians.items():
        ratio = f"{median / store:>8.1f} x" if words.startswith("decoding") else ""
        print(f"{words:<28} {median:>9.3f} {count / median:>10,.0f} {ratio:>10}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        files = repeat_files(words.data, Path(folder), words.images)
        time.sleep(3)  # a file that was written just now is read once more: its times may hide a change
        show(compare(files, words.size, words.runs), len(files))
