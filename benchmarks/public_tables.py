"""Time and memory of reading and splitting the real tables of NIH ChestX-ray14 and CheXpert, with a file for each row.

    python benchmarks/public_tables.py FOLDER [--dataset nih chexpert draws] [--rows 1000] [--draws 1000]

The tables are those of the package torchxrayvision. FOLDER gets nih/ and chexpert/ with their layouts and a gray image
of random pixels for each row (NIH: PNG of 64 px, CheXpert: JPEG of 16 px). The images are drawn once; a second call
adds those that are missing. The package has no official lists of NIH: every fifth patient is in test_list.txt.

nih, chexpert: read_manifest, then split_by_patient. Memory: peak of the process (ru_maxrss).
draws: random splits of NIH's patients, and how many of them have a patient in two splits; and images whose split is not
that of the official lists.

Each step is measured in a separate process.
"""

import argparse
import importlib.util
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import make_parser, parse_or_measure, run_in_subprocess
from PIL import Image

NIH_PARTS = 12  # images_001 to images_012
PATIENTS_PER_TEST_PATIENT = 5
LIST_NAMES = {False: "train_val_list.txt", True: "test_list.txt"}


def read_real_table(name: str, rows: int | None) -> pd.DataFrame:
    """Return the first rows of a table of torchxrayvision as text."""
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("torchxrayvision is not installed: pip install torchxrayvision")
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    return pd.read_csv(path, dtype=str, keep_default_na=False, nrows=rows)


def draw_images(root: Path, paths: list[str], size: int) -> None:
    """Write a gray image of random pixels for each path without a file."""
    for folder in {(root / path).parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths):
        if not (root / path).exists():
            pixels = np.random.default_rng(number).integers(0, 256, (size, size), np.uint8)
            Image.fromarray(pixels).save(root / path)


def write_nih(root: Path, rows: int | None) -> None:
    """Write the table, the official lists and the images of NIH."""
    table = read_real_table("Data_Entry_2017_v2020.csv.gz", rows)
    names = table["Image Index"]
    draw_images(root, [f"images_{1 + i % NIH_PARTS:03d}/images/{name}" for i, name in enumerate(names)], 64)
    table.to_csv(root / "Data_Entry_2017_v2020.csv", index=False)
    is_test = table["Patient ID"].astype(int) % PATIENTS_PER_TEST_PATIENT == 0
    for in_test, list_name in LIST_NAMES.items():
        (root / list_name).write_text("\n".join(names[is_test == in_test]))


def write_chexpert(root: Path, rows: int | None) -> None:
    """Write train.csv and the images of CheXpert."""
    table = read_real_table("chexpert_train.csv.gz", rows)
    draw_images(root, [path.partition("/")[2] for path in table["Path"]], 16)
    table.to_csv(root / "train.csv", index=False)


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


WRITERS: dict[str, Callable[[Path, int | None], None]] = {"nih": write_nih, "chexpert": write_chexpert}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return the values of one step."""
    if given.variant == "draws":
        return measure_draws(given.folder / "nih", given.draws)
    return measure_reading(given.folder / given.variant)


def main() -> None:
    """Write the datasets, then measure each step in a separate process."""
    steps = [*WRITERS, "draws"]
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of the datasets, which are kept")
    parser.add_argument("--dataset", nargs="+", choices=steps, default=steps, help="steps to measure")
    parser.add_argument("--rows", type=int, help="first rows of each table; default: all")
    parser.add_argument("--draws", type=int, default=1000, help="random splits")
    given = parse_or_measure(parser, steps, measure)
    for name, write in WRITERS.items():
        if name in given.dataset or (name == "nih" and "draws" in given.dataset):
            write(given.folder / name, given.rows)
    for step in given.dataset:
        values = run_in_subprocess(step)
        print(f"{step:>10} " + ", ".join(f"{name} {value:,.6g}" for name, value in values.items()), flush=True)


if __name__ == "__main__":
    main()
