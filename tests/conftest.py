"""Small cohorts that every room can test on, and the real ones where somebody has them."""

import tempfile
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
from synthetic_run import build_run
from toy_images import write_toys

from fastcxr.data.cache.quota import make_temporary_dir
from fastcxr.data.manifest import read_manifest

pytest_plugins = ["conditions"]


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """No test reads or fills the cache of the person who runs it; of fonts alone, for they take long to list."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def without_figures():
    """Reports of this module have no figures, which take longer to draw than a small network takes to train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcxr.report.run_page.make_run_figures", lambda record, metrics: {})
        yield


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where this one test finds room for temporary files, empty."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    make_temporary_dir.cache_clear()
    yield tmp_path / "temporary"
    make_temporary_dir.cache_clear()


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
            "patient_origin": "nih",
            "split": ("train", "train", "train", "valid", "test")[number // 2 % 5],
            "split_origin": "patient",
            "file": str(file),
        })  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def many_toys(tmp_path_factory) -> pd.DataFrame:
    """Sixty patients of two toys each, 20 of them valid: enough for a gate."""
    folder = write_toys(tmp_path_factory.mktemp("many") / "toys", per_class=40)
    table = read_manifest(folder)
    places = (table["patient"].astype(int) % 3).map({0: "valid", 1: "train", 2: "test"})
    return table.assign(split=places, split_origin="patient")


@pytest.fixture(scope="module")
def few_draws():
    """Intervals of this module come from 200 draws and not from 2,000: their width is not what it tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcxr.metrics.bootstrap.N_DRAWS", 200)
        patch.setattr("fastcxr.metrics.intervals.MIN_DEFINED_DRAWS", 100)
        yield


@pytest.fixture
def run_folder(tmp_path):
    """A complete run folder."""
    return build_run(tmp_path / "run")
