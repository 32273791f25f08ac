"""Write many different gray PNG files into folders, with all cores.

    python benchmarks/random_images.py FOLDER [--images 100000] [--size 64] [--per-folder 1000]

Image number i is FOLDER/<i // per folder>/<i>.png. Existing files are kept, therefore a larger number adds files. An
image of 64 px is a random brightness gradient with noise and takes about 3.6 kB.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

BLOCK_IMAGES = 1000  # written by one task of the pool


def find_image(folder: Path, number: int, per_folder: int = 1000) -> Path:
    """Return the path of an image."""
    return folder / f"{number // per_folder:04d}" / f"{number}.png"


def draw_image(number: int, size: int) -> np.ndarray:
    """Return image number `number`, uint8, shape (size, size)."""
    rng = np.random.default_rng(number)
    low, high = rng.uniform(20, 90), rng.uniform(140, 220)
    gradient = np.linspace(low, high, size)[:, None]
    return (gradient + rng.normal(0, 10, (size, size))).clip(0, 255).astype(np.uint8)


def write_block(start: int, folder: Path, count: int, size: int, per_folder: int) -> None:
    """Write the missing images of one block."""
    for number in range(start, min(start + BLOCK_IMAGES, count)):
        path = find_image(folder, number, per_folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.fromarray(draw_image(number, size)).save(path, compress_level=1)


def write_images(folder: Path, count: int, size: int = 64, per_folder: int = 1000) -> list[str]:
    """Write the images that are missing, and return the paths of all."""
    block = partial(write_block, folder=folder, count=count, size=size, per_folder=per_folder)
    with ProcessPoolExecutor() as pool:
        list(pool.map(block, range(0, count, BLOCK_IMAGES)))
    return [str(find_image(folder, number, per_folder)) for number in range(count)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=64, help="image size [px]")
    parser.add_argument("--per-folder", type=int, default=1000)
    given = parser.parse_args()
    write_images(given.folder, given.images, given.size, given.per_folder)
