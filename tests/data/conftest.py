"""Fixtures for the image cache."""

from pathlib import Path

import pytest
from image_caches import COUNT
from sample_images import make_reference, save_image

from fastcxr.data.cache import index


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The empty image cache folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTCXR_CACHE_GB", raising=False)
    return tmp_path / "cache" / "fastcxr" / "images"


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Files of different radiographs."""
    (tmp_path / "radiographs").mkdir()
    return [str(save_image(make_reference(seed=n), tmp_path / "radiographs" / f"{n}.png")) for n in range(COUNT)]


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the decoded files, one entry per decoding."""
    names, read = [], index.read_open_image

    def counted(file, path, depth=None):
        names.append(path)
        return read(file, path, depth)

    monkeypatch.setattr(index, "read_open_image", counted)
    return names


@pytest.fixture
def old(monkeypatch):
    """Files that tests have just written count as written long ago."""
    monkeypatch.setattr(index, "MIN_FILE_AGE_SECONDS", -1)
