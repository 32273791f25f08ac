"""What tests of several files here count."""

import pytest

from fastcxr.training import bank


@pytest.fixture
def passes(monkeypatch, tmp_path) -> list[int]:
    """The images of each pass over a cohort, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counts, fill = [], bank.fill_bank

    def counted(found, *others):
        counts.append(found.shape[1])
        fill(found, *others)

    monkeypatch.setattr(bank, "fill_bank", counted)
    return counts
