"""Time and memory of reading a cohort and of one pass of a frozen network over it, as the cohort grows.

    python benchmarks/growth.py [--images 1000 10000 100000] [--size 64]

Radiograph-like PNG files of `size` pixels are drawn into a temporary folder, with a cache of its own. Each cohort is
read in a process of its own: decoding into the store, then a bank of features of mobilenetv2_050 with random weights
(one pass, no mirror images). Memory is the most that the process had for itself (RssAnon) and the most of files that it
had mapped (RssFile), which the system takes back when somebody else needs it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd
from PIL import Image

PER_FOLDER = 10_000


def draw_images(folder: Path, count: int, size: int) -> None:
    """So many gray PNG files, each of its own content."""
    rng = np.random.default_rng(0)
    slope = np.linspace(60, 180, size)[:, None]
    for number in range(count):
        place = folder / str(number // PER_FOLDER)
        place.mkdir(exist_ok=True)
        picture = slope + rng.normal(0, 12, (size, size))
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(place / f"{number}.png", compress_level=1)


class Memory(threading.Thread):
    """Looks ten times a second how much memory this process has."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most = {"RssAnon": 0, "RssFile": 0}

    def run(self) -> None:
        """Until the process ends."""
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in self.most:
                    self.most[name] = max(self.most[name], int(value.split()[0]))
            time.sleep(0.1)


def measure(folder: Path, count: int, size: int) -> None:
    """Print seconds of store and pass, and the most memory in MB, of the first `count` files."""
    memory = Memory()
    memory.start()
    from fastcxr import Recipe, make_learner, make_loaders
    from fastcxr.progress import Progress
    from fastcxr.training.bank import make_bank

    recipe = Recipe("mobilenetv2_050", weights="none", image_size=size, strategy="probe", mirror_images=False)
    rows = [(f"{i // PER_FOLDER}/{i}.png", ("a", "b")[i % 2], str(i)) for i in range(count)]
    table = pd.DataFrame(rows, columns=["path", "label", "patient"])
    table = table.assign(source="", file=[str(folder / path) for path in table["path"]])
    table["split"] = np.where(table.index % 10 < 8, "train", "valid")
    started = time.perf_counter()
    loaders = make_loaders(table, recipe)
    read = time.perf_counter()
    learner = make_learner(loaders, recipe)
    built = time.perf_counter()
    make_bank(learner, recipe, Progress())
    ended = time.perf_counter()
    most = [memory.most[name] / 1024 for name in ("RssAnon", "RssFile")]
    print(f"{count:>9,} {read - started:>9.1f} {ended - built:>9.1f} {most[0]:>12,.0f} {most[1]:>12,.0f}", flush=True)


def main() -> None:
    """Draw the largest cohort, then measure each in a process of its own."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    words.add_argument("--size", type=int, default=64)
    words.add_argument("--folder", type=Path, help="files that are there already: measure this many, and end")
    given = words.parse_args()
    if given.folder:
        measure(given.folder, given.images[0], given.size)
        return
    print(f"{'images':>9} {'store, s':>9} {'pass, s':>9} {'own, MB':>12} {'mapped, MB':>12}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        draw_images(Path(folder), max(given.images), given.size)
        for count in given.images:
            with tempfile.TemporaryDirectory() as cache:
                command = [sys.executable, __file__, "--folder", folder, "--size", str(given.size)]
                environment = os.environ | {"XDG_CACHE_HOME": cache, "FASTCXR_CACHE_LIMIT": "30"}
                subprocess.run([*command, "--images", str(count)], env=environment, check=True)


if __name__ == "__main__":
    main()
