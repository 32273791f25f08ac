"""False alarms of the out-of-distribution detector on held-out radiographs, and detection of other images.

    python benchmarks/ood.py --data DIR --weights FILE [--cohen DIR] [--external DIR]
                             [--strategy linear_probe] [--folds 5]

One model is trained per fold, grouped by patient. It scores its held-out radiographs as they are, inverted and rotated.
Every model scores the other images: crops of photographs of scikit-learn, scikit-image and matplotlib (those that were
used in the development of the detector in a separate row), faces, noise, gradients and blank images. --cohen adds the
lateral radiographs of its metadata.csv, which also identifies patients. --external adds radiographs of an external
dataset.

An image is rejected if it has no predicted class, because of the detector or because it is unreadable. Intervals are
Wilson's; n is the number of different images, for any number of models.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from common import format_proportion, make_parser
from PIL import Image

from fastcxr import Recipe, make_learner, make_loaders, predict, read_manifest, train
from fastcxr.data.image_table import make_image_table
from fastcxr.data.imaging.read import read_image
from fastcxr.data.splits import select_fold, split_into_folds
from fastcxr.models.bundle import extract_classifier
from fastcxr.progress.base import Progress

N_CROPS, N_SYNTHETIC = 10, 50  # images per photograph, and per type of noise
DEVELOPMENT_PHOTOGRAPHS = {  # layers, distance and limit were selected on these
    "flower", "china", "astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "grass", "gravel", "ihc",
    "hubble_deep_field", "moon", "page", "retina", "motorcycle_left", "motorcycle_right", "rocket", "text",
    "clock_motion", "microaneurysms", "grace_hopper",
}  # fmt: skip
CHANGES = {
    "inverted": lambda image: 255 - image,
    "rotated by 90 degrees": np.rot90,
    "rotated by 180 degrees": lambda image: np.rot90(image, 2),
    "rotated by 270 degrees": lambda image: np.rot90(image, 3),
}


def list_photographs() -> Iterator[Path]:
    """Yield the photographs of the installed packages."""
    folders = {"sklearn": "datasets/images", "skimage": "data", "matplotlib": "mpl-data/sample_data"}
    for package, subfolder in folders.items():
        if spec := find_spec(package):
            folder = Path(spec.submodule_search_locations[0]) / subfolder
            yield from sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))


def read_faces() -> np.ndarray:
    """Return faces and parts of photographs of scikit-image, uint8, shape (n, 25, 25)."""
    spec = find_spec("skimage")
    path = Path(spec.submodule_search_locations[0]) / "data" / "lfw_subset.npy" if spec else None
    return np.uint8(np.load(path) * 255) if path and path.is_file() else np.zeros((0, 25, 25), np.uint8)


def crop(path: Path, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield crops of random size, with an aspect ratio from 0.8 to 1.25."""
    image = np.asarray(Image.open(path).convert("L"))
    for _ in range(N_CROPS):
        height = max(40, int(min(image.shape) * rng.uniform(0.3, 1)))
        width = min(image.shape[1], max(40, int(height * rng.uniform(0.8, 1.25))))
        top, left = (rng.integers(0, n - part + 1) for n, part in zip(image.shape, (height, width), strict=True))
        yield image[top : top + height, left : left + width]


def make_noise(rng: np.random.Generator) -> dict[str, Callable[[], np.ndarray]]:
    """Return a function for each type of synthetic image."""
    shape = (256, 256)

    def smooth() -> np.ndarray:
        coarse = Image.fromarray(rng.integers(0, 256, (int(rng.choice([4, 8, 16, 32])),) * 2).astype(np.uint8))
        return np.asarray(coarse.resize(shape, Image.Resampling.BICUBIC))

    return {
        "blank": lambda: np.full(shape, rng.integers(0, 256)),
        "almost blank": lambda: rng.uniform(0, 255) + rng.normal(0, 1.5, shape),
        "gradient": lambda: np.rot90(np.tile(np.linspace(0, rng.uniform(20, 255), 256), (256, 1)), rng.integers(4)),
        "noise, uniform": lambda: rng.integers(0, 256, shape),
        "noise, normal": lambda: rng.normal(rng.uniform(60, 200), rng.uniform(5, 60), shape),
        "noise, smooth": smooth,
    }


def write_other_images(folder: Path) -> None:
    """Write a folder of images for each type that does not depend on the data."""
    rng = np.random.default_rng(0)
    for path in list_photographs():
        name = "photographs, development" if path.stem in DEVELOPMENT_PHOTOGRAPHS else "photographs, other"
        for number, image in enumerate(crop(path, rng)):
            write_png(folder / name / f"{path.stem}-{number}.png", image)
    for number, image in enumerate(read_faces()):
        write_png(folder / "faces, parts of photographs" / f"{number}.png", image)
    for name, make in make_noise(rng).items():
        for number in range(N_SYNTHETIC):
            write_png(folder / name / f"{number}.png", make())


def write_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(image).clip(0, 255).astype(np.uint8)).save(path)


def list_other_images(given: argparse.Namespace, folder: Path) -> dict[str, pd.DataFrame]:
    """Return a table of files for each type of image that every model scores."""
    write_other_images(folder)
    tables = {subfolder.name: make_image_table([subfolder]) for subfolder in sorted(folder.iterdir())}
    if given.cohen:
        metadata = pd.read_csv(Path(given.cohen) / "metadata.csv")
        names = metadata.loc[metadata["view"] == "L", "filename"]
        tables["lateral radiographs"] = make_image_table([Path(given.cohen) / "images" / name for name in names])
    if given.external:
        tables["external radiographs"] = read_manifest(given.external)[["source", "path", "file"]]
    return tables


def change_images(table: pd.DataFrame, name: str, folder: Path) -> pd.DataFrame:
    """Return the table with files of inverted or rotated images."""
    files = [folder / name / f"{row}.png" for row in table.index]
    for file, path in zip(table["file"], files, strict=True):
        write_png(path, CHANGES[name](read_image(file)))
    return table.assign(file=[str(path) for path in files])


def main() -> None:
    """Print one row for each type of image."""
    parser = make_parser(__doc__, ["data", "weights"])
    parser.add_argument("--cohen", help="folder of the collection of Cohen et al., with images/ and metadata.csv")
    parser.add_argument("--external", help="folder of an external dataset")
    parser.add_argument("--strategy", default="linear_probe")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, help="number of folds that are run; without it, all")
    given = parser.parse_args()
    recipe = Recipe(weights=given.weights, strategy=given.strategy, epochs=given.epochs, image_size=given.image_size)
    patients = Path(given.cohen) / "metadata.csv" if given.cohen else None
    manifest = split_into_folds(read_manifest(given.data, patient_table=patients), given.folds)
    scored: dict[str, list[pd.DataFrame]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        others = list_other_images(given, folder / "others")
        for fold in range(1, (given.only or given.folds) + 1):
            table = select_fold(manifest, fold)
            learner = make_learner(make_loaders(table, recipe), recipe)
            train(learner, recipe, Progress())
            started, test = time.perf_counter(), table[table["split"] == "test"]
            changed = {name: change_images(test, name, folder) for name in CHANGES}
            for name, rows in ({"held-out radiographs": test} | changed | others).items():
                predicted = predict(extract_classifier(learner), rows, splits=None, progress=Progress()).table
                scored.setdefault(name, []).append(predicted.assign(rejected=predicted["predicted"] == ""))
            print(f"fold {fold}: limit from {learner.fastcxr.ood_detector.images} validation images, prediction in "
                  f"{time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
    print(f"{'':<28} {'images':>6} {'scored':>8}  rejected (95 % interval)")
    for name, tables in scored.items():
        rows = pd.concat(tables)
        n_images = rows["path"].nunique()
        print(f"{name:<28} {n_images:>6} {len(rows):>8}  {format_proportion(rows['rejected'].mean(), n_images)}")


if __name__ == "__main__":
    main()
