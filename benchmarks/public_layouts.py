"""Write NIH ChestX-ray14, CheXpert and PadChest in their published layouts, with random pixels in a file for each row.

    python benchmarks/public_layouts.py FOLDER [--dataset nih chexpert padchest] [--rows 1000] [--processes 2]

The tables are those of the package torchxrayvision: 112,120, 223,414 and 160,861 rows, in all 496,395. FOLDER gets
nih/, chexpert/ and padchest/. Every row has a file with other pixels, gray, 64 px: PNG of 8 bits (NIH), JPEG (CheXpert)
or PNG of 16 bits (PadChest). A second call draws only the missing images. The package has no official lists of NIH:
every fifth patient is in test_list.txt.
"""

import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from common import make_parser
from PIL import Image

NIH_PARTS = 12  # images_001 to images_012
PATIENTS_PER_TEST_PATIENT = 5
LIST_NAMES = {False: "train_val_list.txt", True: "test_list.txt"}
N_ROWS = {"nih": 112_120, "chexpert": 223_414, "padchest": 160_861}
PADCHEST_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
SIZE_PIXELS = 64
MAX_GRAY = 64  # a PNG then takes less than a block of 4 KiB
IMAGES_PER_TASK = 2000
SEEDS = {"nih": 0, "chexpert": 1 << 20, "padchest": 2 << 20}  # that of the first image


def read_real_table(name: str, rows: int | None) -> pd.DataFrame:
    """Return the first rows of a table of torchxrayvision as text."""
    spec = importlib.util.find_spec("torchxrayvision")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("torchxrayvision is not installed: pip install torchxrayvision")
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    return pd.read_csv(path, dtype=str, keep_default_na=False, nrows=rows)


def make_images(
    root: Path, paths: list[str], processes: int, source: Path | None, *, seed: int, is_16_bit: bool = False
) -> None:
    """Write a gray image of random pixels for each path without a file, or link to that in the folder `source`.

    `seed`: of the first image.
    """
    for folder in {(root / path).parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    if source:
        for path in paths:
            if not (root / path).exists():
                os.link(source / path, root / path)
        return
    starts = range(0, len(paths), IMAGES_PER_TASK)
    tasks = [(root, paths[start : start + IMAGES_PER_TASK], seed + start, is_16_bit) for start in starts]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        list(pool.map(_draw_some, *zip(*tasks, strict=True)))


def _draw_some(root: Path, paths: list[str], seed: int, is_16_bit: bool) -> None:
    for number, path in enumerate(paths, seed):
        if not (root / path).exists():
            pixels = np.random.default_rng(number).integers(0, MAX_GRAY, (SIZE_PIXELS, SIZE_PIXELS), np.uint8)
            image = Image.fromarray(pixels.astype(np.uint16) << 8 if is_16_bit else pixels)
            image.save(root / path, quality=75, compress_level=1)  # each format uses one of the two


def write_nih(root: Path, rows: int | None, processes: int, source: Path | None = None) -> None:
    """Write the table, the official lists and the images of NIH."""
    table = read_real_table("Data_Entry_2017_v2020.csv.gz", rows)
    names = table["Image Index"]
    paths = [f"images_{1 + i % NIH_PARTS:03d}/images/{name}" for i, name in enumerate(names)]
    make_images(root, paths, processes, source, seed=SEEDS["nih"])
    table.to_csv(root / "Data_Entry_2017_v2020.csv", index=False)
    is_test = table["Patient ID"].astype(int) % PATIENTS_PER_TEST_PATIENT == 0
    for in_test, list_name in LIST_NAMES.items():
        (root / list_name).write_text("\n".join(names[is_test == in_test]))


def write_chexpert(root: Path, rows: int | None, processes: int, source: Path | None = None) -> None:
    """Write train.csv and the images of CheXpert."""
    table = read_real_table("chexpert_train.csv.gz", rows)
    paths = [path.partition("/")[2] for path in table["Path"]]
    make_images(root, paths, processes, source, seed=SEEDS["chexpert"])
    table.to_csv(root / "train.csv", index=False)


def write_padchest(root: Path, rows: int | None, processes: int, source: Path | None = None) -> None:
    """Write the table and the images of PadChest."""
    table = read_real_table(f"{PADCHEST_TABLE}.gz", rows)
    paths = (table["ImageDir"].str.strip() + "/" + table["ImageID"].str.strip()).tolist()
    make_images(root, paths, processes, source, seed=SEEDS["padchest"], is_16_bit=True)
    table.to_csv(root / PADCHEST_TABLE, index=False)


WRITERS: dict[str, Callable[[Path, int | None, int, Path | None], None]] = {
    "nih": write_nih,
    "chexpert": write_chexpert,
    "padchest": write_padchest,
}


def main() -> None:
    """Write the datasets."""
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of the datasets")
    parser.add_argument("--dataset", nargs="+", choices=WRITERS, default=list(WRITERS))
    parser.add_argument("--rows", type=int, help="first rows of each table; default: all")
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    for name in given.dataset:
        WRITERS[name](given.folder / name, given.rows, given.processes, None)


if __name__ == "__main__":
    main()
