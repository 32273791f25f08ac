"""Fixtures of several test files."""

import pytest

from fastcxr.training import feature_cache


@pytest.fixture
def passes(monkeypatch, tmp_path) -> list[int]:
    """Number of rows that each pass adds to the feature cache, in a private cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counts, fill = [], feature_cache.fill_feature_cache

    def fill_and_count(arrays, *arguments):
        counts.append(sum(len(array.values) - array.n_finished for array in arrays))
        fill(arrays, *arguments)

    monkeypatch.setattr(feature_cache, "fill_feature_cache", fill_and_count)
    return counts
