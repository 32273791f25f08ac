"""Fixtures for all tests: toy datasets, isolated caches, and faster reports."""

import os
import tempfile
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import torch
from hub_server import TOKEN, run_hub
from synthetic_run import build_run
from toy_images import write_toys

from fastcxr.data.cache.quota import make_temporary_dir
from fastcxr.data.manifest import read_manifest

pytest_plugins = ["conditions"]

# oneDNN 3.12 for AVX2 writes beyond its buffer in the backward pass of a 1 x 1 convolution with stride 2 and fewer than
# 8 channels, in channels-last format. The tiny test network has one, known backbones do not. Read at the first use.
if torch.backends.cpu.get_cpu_capability() == "AVX2":
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX")


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """Use a temporary cache instead of the user's, except for the fonts of matplotlib, which take long to list."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def full_precision():
    """Compute float32 in full precision on GPUs, also where a test calls a network itself; torch's default is TF32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # read when the libraries of CUDA are loaded, in subprocesses too
        yield


@pytest.fixture(scope="module")
def without_figures():
    """Write the reports of this module without figures, which take longer than training a small network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcxr.report.run_page.make_run_figures", lambda record, metrics: {})
        patch.setattr("fastcxr.report.pages.make_dataset_figures", lambda record: {})
        yield


@pytest.fixture(scope="module")
def without_pages():
    """Write the reports of this module without the text of report, model card and checklist."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("make_model_card", "make_claim_checklist", "render_report"):
            patch.setattr(f"fastcxr.report.run_page.{name}", lambda *arguments: "")
        yield


@pytest.fixture(scope="module")
def without_maps():
    """Train in this module without saliency maps, which take longer than training a small network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcxr.workflows.result_dir.ResultDir.write_saliency_maps", lambda *arguments: None)
        yield


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """An empty folder for the temporary files of this test."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    make_temporary_dir.cache_clear()
    yield tmp_path / "temporary"
    make_temporary_dir.cache_clear()


@pytest.fixture
def without_pyarrow():
    """Store text as pandas does without pyarrow, which cannot store lone surrogates (names that are not UTF-8)."""
    with pd.option_context("mode.string_storage", "python"):
        yield


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    """Class folders of toy radiographs, shared by all tests."""
    return write_toys(tmp_path_factory.mktemp("toys") / "toys")


@pytest.fixture(scope="session")
def toy_manifest(toy_folder) -> pd.DataFrame:
    """Manifest of the toy images: of ten images of a class, six train, two valid, two test."""
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
    """Manifest of 60 patients with two toy images each, 20 of them valid: enough to fit an OOD detector."""
    folder = write_toys(tmp_path_factory.mktemp("many") / "toys", per_class=40)
    table = read_manifest(folder)
    splits = (table["patient"].astype(int) % 3).map({0: "valid", 1: "train", 2: "test"})
    return table.assign(split=splits, split_origin="patient")


@pytest.fixture(scope="module")
def few_draws():
    """Compute the intervals of this module from 200 bootstrap draws instead of 2,000."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcxr.metrics.bootstrap.N_DRAWS", 200)
        yield


@pytest.fixture(scope="session")
def finding_run(tmp_path_factory):
    """A run trained on findings, without report pages, and the table of its labels."""
    from toy_findings import train_findings, write_finding_toys  # torch takes seconds to import

    folder = tmp_path_factory.mktemp("findings")
    data = write_finding_toys(folder / "toys")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("make_model_card", "make_claim_checklist", "render_report"):
            patch.setattr(f"fastcxr.report.run_page.{name}", lambda *arguments: "")
        patch.setattr("fastcxr.workflows.result_dir.ResultDir.write_saliency_maps", lambda *arguments: None)
        return train_findings(folder / "run", data), data


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A local server in the place of the Hugging Face hub, with an empty cache."""
    with run_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield server


@pytest.fixture
def run_folder(tmp_path):
    """A complete run folder."""
    return build_run(tmp_path / "run")
