"""Reading images from the image cache, compared with decoding them again.

    python benchmarks/image_cache.py --data DIR [--size 224] [--images 1000] [--runs 3]

The files of DIR are repeated in a temporary folder up to the number of images. A few different bytes are appended to
each file, so that each has its own entry in the cache, which is temporary as well. All variants read shuffled batches
of 32 and alternate; the table contains medians. The cache is read by one thread, which compares every image with its
checksum; decoding is timed with one thread and with one per core.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from common import make_parser

from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.imaging.read import check_images, fit_square, read_image
from fastcxr.io.cpus import count_cpus

BATCH_SIZE = 32
FROM_CACHE = "from the cache, one thread"


def repeat_files(data: Path, folder: Path, count: int) -> list[str]:
    """Write `count` different files from the readable images in `data`."""
    originals = sorted(path for path in data.rglob("*") if path.is_file())
    unreadable = {error.path for error in check_images(originals)}
    files = []
    for number, path in enumerate(islice(cycle(path for path in originals if str(path) not in unreadable), count)):
        repeated = folder / f"{number}{path.suffix}"
        repeated.write_bytes(path.read_bytes() + f"file {number}".encode())  # decoders ignore bytes after the image
        files.append(str(repeated))
    return files


def time_batches(read: Callable[[np.ndarray], np.ndarray], count: int, seed: int) -> float:
    """Return the seconds to read every image once, in shuffled batches."""
    rows = np.random.default_rng(seed).permutation(count)
    started = time.perf_counter()
    for start in range(0, count, BATCH_SIZE):
        read(rows[start : start + BATCH_SIZE])
    return time.perf_counter() - started


def measure(files: list[str], size: int, runs: int) -> dict[str, list[float]]:
    """Return the seconds of each run of each variant."""
    n_cores, seconds = count_cpus(), {}
    for name in ("filling the cache, once", "opening the cache again"):
        started = time.perf_counter()
        image_cache = open_image_cache(files, size)
        seconds[name] = [time.perf_counter() - started]
    with ThreadPoolExecutor(n_cores) as pool:

        def decode(row: int) -> np.ndarray:
            return fit_square(read_image(files[row]), size)

        variants = {
            "decoding, one thread": lambda rows: np.stack([decode(row) for row in rows]),
            f"decoding, {n_cores} threads": lambda rows: np.stack(list(pool.map(decode, rows))),
            FROM_CACHE: image_cache.read,
        }
        for seed in range(runs):
            for name, read in variants.items():
                seconds.setdefault(name, []).append(time_batches(read, len(files), seed))
    return seconds


def print_table(seconds: dict[str, list[float]], count: int) -> None:
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{'':<28} {'seconds':>9} {'images/s':>10} {'the cache is':>16}")
    for name, median in medians.items():
        ratio = f"{median / medians[FROM_CACHE]:.1f} x faster" if name.startswith("decoding") else ""
        print(f"{name:<28} {median:>9.3f} {count / median:>10,.0f} {ratio:>16}")


if __name__ == "__main__":
    parser = make_parser(__doc__, ["data"])
    parser.add_argument("--size", type=int, default=224, help="image size [px]")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        files = repeat_files(Path(given.data), Path(folder), given.images)
        time.sleep(3)  # the cache reads new files again: their time stamps may hide a change
        print_table(measure(files, given.size, given.runs), len(files))
