"""Time and memory of reading and splitting the real tables of NIH ChestX-ray14 and CheXpert, with a file for each row.

    python benchmarks/public_tables.py FOLDER [--dataset nih chexpert draws] [--rows 1000] [--draws 1000]

FOLDER gets nih/ and chexpert/ as public_layouts.py writes them.

nih, chexpert: read_manifest, then split_by_patient. Memory: peak of the process (ru_maxrss).
draws: random splits of NIH's patients, and how many of them have a patient in two splits; and images whose split is not
that of the official lists.

Each step is measured in a separate process.
"""

import argparse
import resource
import time
from pathlib import Path
from typing import Any

from common import make_parser, parse_or_measure, run_in_subprocess
from public_layouts import LIST_NAMES, WRITERS

DATASETS = ("nih", "chexpert")


def measure_reading(folder: Path) -> dict[str, Any]:
    """Return images, patients, seconds of reading and of splitting, and peak memory [MB]."""
    from fastcxr import read_manifest, split_by_patient

    started = time.perf_counter()
    manifest = read_manifest(folder)
    read = time.perf_counter()
    manifest = split_by_patient(manifest)
    done = time.perf_counter()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    counts = {"images": len(manifest), "patients": manifest["patient"].nunique()}
    return counts | {"read, s": read - started, "split, s": done - read, "peak, MB": memory}


def measure_draws(folder: Path, draws: int) -> dict[str, Any]:
    """Return the draws with a patient in two splits, and the images whose split differs from the official lists."""
    from fastcxr import read_manifest, split_by_patient

    manifest = read_manifest(folder).drop(columns="file")  # otherwise each draw searches for exact duplicates
    is_divided = 0
    for seed in range(draws):
        drawn = split_by_patient(manifest, seed=seed, ignore_given_splits=True)
        is_divided += bool((drawn.groupby("patient")["split"].nunique() > 1).any())
    official = split_by_patient(manifest)
    names = official["path"].str.rpartition("/")[2]
    listed = {
        name: in_test for in_test, path in LIST_NAMES.items() for name in (folder / path).read_text().splitlines()
    }
    differs = names.map(listed) != (official["split"] == "test")
    return {"draws": draws, "with a patient in two splits": is_divided, "not as listed": int(differs.sum())}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return the values of one step."""
    if given.variant == "draws":
        return measure_draws(given.folder / "nih", given.draws)
    return measure_reading(given.folder / given.variant)


def main() -> None:
    """Write the datasets, then measure each step in a separate process."""
    steps = [*DATASETS, "draws"]
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of the datasets, which are kept")
    parser.add_argument("--dataset", nargs="+", choices=steps, default=steps, help="steps to measure")
    parser.add_argument("--rows", type=int, help="first rows of each table; default: all")
    parser.add_argument("--draws", type=int, default=1000, help="random splits")
    given = parse_or_measure(parser, steps, measure)
    for name in DATASETS:
        if name in given.dataset or (name == "nih" and "draws" in given.dataset):
            WRITERS[name](given.folder / name, given.rows, 2, None)
    for step in given.dataset:
        values = run_in_subprocess(step)
        print(f"{step:>10} " + ", ".join(f"{name} {value:,.6g}" for name, value in values.items()), flush=True)


if __name__ == "__main__":
    main()
