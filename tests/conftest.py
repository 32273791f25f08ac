"""Small cohorts that every room can test on, and the real ones where somebody has them."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

LABELS = ("clear", "haze", "opacity")


def draw_toy(label: str, number: int, size: int = 72) -> np.ndarray:
    """A gray picture that a network can tell from those of other labels after a step or two."""
    noise = np.random.default_rng([LABELS.index(label), number])
    picture = noise.normal(110, 20, (size, size + number % 3 * 4))
    if label == "haze":
        picture[:, ::4] += 60
    if label == "opacity":
        picture[size // 4 : size // 2, size // 4 : size // 2] += 90
    return picture.clip(0, 255).astype(np.uint8)


def write_toys(folder: Path, per_class: int = 10, labels: tuple[str, ...] = LABELS) -> Path:
    """Class folders of toy radiographs, two images a patient, named as NIH names them."""
    for k, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for number in range(per_class):
            name = f"{k * 1000 + number // 2:08d}_{number % 2:03d}.png"
            Image.fromarray(draw_toy(label, number)).save(folder / label / name)
    return folder


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    """Class folders of toy radiographs that no test changes."""
    return write_toys(tmp_path_factory.mktemp("toys") / "toys")


@pytest.fixture(scope="session")
def toy_manifest(toy_folder) -> pd.DataFrame:
    """The toys as a split manifest: of each ten images six teach, two choose, two test."""
    rows = []
    for file in sorted(toy_folder.glob("*/*.png")):
        number = len([row for row in rows if row["label"] == file.parent.name])
        rows.append({
            "source": "toys",
            "path": file.relative_to(toy_folder).as_posix(),
            "label": file.parent.name,
            "patient": file.name[:8],
            "patient_from": "nih",
            "split": ("train", "train", "train", "valid", "test")[number // 2 % 5],
            "split_from": "patient",
            "file": str(file),
        })  # fmt: skip
    return pd.DataFrame(rows)


def real(variable: str) -> Path:
    """The path in an environment variable, or a skip that says why."""
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is not set: it names real radiographs or weights, which are not part of the project")
    return Path(os.environ[variable])


@pytest.fixture
def real_data() -> Path:
    """The folder with the real collections."""
    return real("FASTCXR_REAL_DATA")


@pytest.fixture
def real_weights() -> Path:
    """An ImageNet weights file for mobilenetv2_100."""
    return real("FASTCXR_REAL_WEIGHTS")
