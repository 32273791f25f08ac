"""What tests of several files here count."""

import pytest

from fastcxr.training import feature_bank


@pytest.fixture
def passes(monkeypatch, tmp_path) -> list[int]:
    """The images of each pass over a cohort, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counts, fill = [], feature_bank.fill_feature_bank

    def counted(found, *others):
        counts.append(found.shape[1])
        fill(found, *others)

    monkeypatch.setattr(feature_bank, "fill_feature_bank", counted)
    return counts
