"""How many held-out radiographs a gate keeps out by mistake, and how many pictures of anything else it lets through.

    python benchmarks/ood.py --data DIR --weights FILE [--cohen DIR] [--elsewhere DIR]
                              [--strategy linear_probe] [--folds 5]

One model a fold, patients apart; each held-out radiograph is asked as it is, inverted and turned. The other kinds are
asked of every model: crops of the photographs that come with scikit-learn, scikit-image and matplotlib (those that were
looked at while the gate was made apart from the others), faces, noise, gradients, blank pictures, and with --cohen the
lateral radiographs of its metadata.csv, which then also names patients. --elsewhere: radiographs of another place.

A picture counts as kept out where it is given no class, be it by the gate or because it is refused as unreadable.
Intervals are Wilson's, n being different pictures, however many models were asked.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import binomtest

from fastcxr import Recipe, make_learner, make_loaders, predict, read_manifest, train
from fastcxr.data.image_table import make_image_table
from fastcxr.data.imaging.read import read_image
from fastcxr.data.splits import select_fold, split_into_folds
from fastcxr.models.bundle import extract_classifier
from fastcxr.progress.base import Progress

CROPS, SYNTHETIC = 10, 50  # of each photograph, of each kind of noise
# pictures that were looked at while depths and distance were chosen
SEEN = {
    "flower", "china", "astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "grass", "gravel", "ihc",
    "hubble_deep_field", "moon", "page", "retina", "motorcycle_left", "motorcycle_right", "rocket", "text",
    "clock_motion", "microaneurysms", "grace_hopper",
}  # fmt: skip
TURNS = {
    "inverted": lambda picture: 255 - picture,
    "turned by 90 degrees": np.rot90,
    "turned by 180 degrees": lambda picture: np.rot90(picture, 2),
    "turned by 270 degrees": lambda picture: np.rot90(picture, 3),
}


def find_photographs() -> Iterator[Path]:
    """Pictures that come with the packages that are installed."""
    places = {"sklearn": "datasets/images", "skimage": "data", "matplotlib": "mpl-data/sample_data"}
    for package, below in places.items():
        if spec := find_spec(package):
            folder = Path(spec.submodule_search_locations[0]) / below
            yield from sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))


def find_faces() -> np.ndarray:
    """Faces and other cut-outs of photographs that scikit-image brings, uint8, shape (n, 25, 25)."""
    spec = find_spec("skimage")
    path = Path(spec.submodule_search_locations[0]) / "data" / "lfw_subset.npy" if spec else None
    return np.uint8(np.load(path) * 255) if path and path.is_file() else np.zeros((0, 25, 25), np.uint8)


def crop(path: Path, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Crops of all sizes, about square."""
    picture = np.asarray(Image.open(path).convert("L"))
    for _ in range(CROPS):
        height = max(40, int(min(picture.shape) * draw.uniform(0.3, 1)))
        width = min(picture.shape[1], max(40, int(height * draw.uniform(0.8, 1.25))))
        top, left = (
            draw.integers(0, whole - part + 1) for whole, part in zip(picture.shape, (height, width), strict=True)
        )
        yield picture[top : top + height, left : left + width]


def make_noise(draw: np.random.Generator) -> dict[str, Callable[[], np.ndarray]]:
    """Pictures of nothing, by kind."""
    shape = (256, 256)

    def smooth() -> np.ndarray:
        few = Image.fromarray(draw.integers(0, 256, (int(draw.choice([4, 8, 16, 32])),) * 2).astype(np.uint8))
        return np.asarray(few.resize(shape, Image.Resampling.BICUBIC))

    return {
        "blank": lambda: np.full(shape, draw.integers(0, 256)),
        "almost blank": lambda: draw.uniform(0, 255) + draw.normal(0, 1.5, shape),
        "gradient": lambda: np.rot90(np.tile(np.linspace(0, draw.uniform(20, 255), 256), (256, 1)), draw.integers(4)),
        "noise, uniform": lambda: draw.integers(0, 256, shape),
        "noise, normal": lambda: draw.normal(draw.uniform(60, 200), draw.uniform(5, 60), shape),
        "noise, smooth": smooth,
    }


def write_strangers(folder: Path) -> None:
    """A folder for each kind of picture that has nothing to do with any cohort."""
    draw = np.random.default_rng(0)
    for path in find_photographs():
        kind = "photographs, seen before" if path.stem in SEEN else "photographs, others"
        for number, picture in enumerate(crop(path, draw)):
            write(folder / kind / f"{path.stem}-{number}.png", picture)
    for number, picture in enumerate(find_faces()):
        write(folder / "faces and cut-outs" / f"{number}.png", picture)
    for kind, make in make_noise(draw).items():
        for number in range(SYNTHETIC):
            write(folder / kind / f"{number}.png", make())


def write(path: Path, picture: np.ndarray) -> None:
    """A gray PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(picture).clip(0, 255).astype(np.uint8)).save(path)


def list_others(given: argparse.Namespace, folder: Path) -> dict[str, pd.DataFrame]:
    """A table of files for each kind that every model is asked of."""
    write_strangers(folder)
    tables = {place.name: make_image_table([place]) for place in sorted(folder.iterdir())}
    if given.cohen:
        known = pd.read_csv(Path(given.cohen) / "metadata.csv")
        files = known.loc[known["view"] == "L", "filename"]
        tables["lateral radiographs"] = make_image_table([Path(given.cohen) / "images" / file for file in files])
    if given.elsewhere:
        tables["radiographs from elsewhere"] = read_manifest(given.elsewhere)[["source", "path", "file"]]
    return tables


def turn(table: pd.DataFrame, kind: str, folder: Path) -> pd.DataFrame:
    """The same rows, their pictures turned or inverted."""
    files = [folder / kind / f"{row}.png" for row in table.index]
    for file, path in zip(table["file"], files, strict=True):
        write(path, TURNS[kind](read_image(file)))
    return table.assign(file=[str(path) for path in files])


def show(kind: str, kept_out: pd.DataFrame) -> None:
    """One row of the table."""
    share, pictures = kept_out["open"].mean(), kept_out["path"].nunique()
    low, high = binomtest(round(share * pictures), pictures).proportion_ci(method="wilson")
    print(f"{kind:<28} {pictures:>6} {len(kept_out):>8} {share:>8.3f}  {low:.3f} to {high:.3f}", flush=True)


def main() -> None:
    """One row for each kind of picture."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "weights"):
        words.add_argument(f"--{name}", required=True)
    words.add_argument("--cohen")
    words.add_argument("--elsewhere")
    words.add_argument("--strategy", default="linear_probe")
    words.add_argument("--epochs", type=int, default=1)
    words.add_argument("--image-size", type=int, default=224)
    words.add_argument("--folds", type=int, default=5)
    words.add_argument("--only", type=int, help="how many of the folds")
    given = words.parse_args()
    recipe = Recipe("mobilenetv2_100", weights=given.weights, strategy=given.strategy, epochs=given.epochs)
    recipe = recipe.replace(image_size=given.image_size)
    patients = Path(given.cohen) / "metadata.csv" if given.cohen else None
    manifest = split_into_folds(read_manifest(given.data, patient_table=patients), given.folds)
    found: dict[str, list[pd.DataFrame]] = {}
    with tempfile.TemporaryDirectory() as place:
        others = list_others(given, Path(place) / "others")
        for fold in range(1, (given.only or given.folds) + 1):
            table = select_fold(manifest, fold)
            learner = make_learner(make_loaders(table, recipe), recipe)
            train(learner, recipe, Progress())
            started, test = time.perf_counter(), table[table["split"] == "test"]
            asked = {"held-out radiographs": test} | {kind: turn(test, kind, Path(place)) for kind in TURNS} | others
            for kind, rows in asked.items():
                predicted = predict(extract_classifier(learner), rows, splits=None, progress=Progress()).table
                found.setdefault(kind, []).append(predicted.assign(open=predicted["predicted"] == ""))
            print(f"fold {fold}: {learner.fastcxr.ood_detector.images} validation images set the limit; asked in "
                  f"{time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
    print(f"{'kept out':<28} {'images':>6} {'asked':>8} {'share':>8}  95 % interval")
    for kind, tables in found.items():
        show(kind, pd.concat(tables))


if __name__ == "__main__":
    main()
