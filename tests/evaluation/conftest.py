"""A complete run folder, made up, and intervals of few draws."""

import pytest
from made_up import build_run


@pytest.fixture(scope="module")
def few_draws():
    """Intervals of this module come from 200 draws and not from 2,000: their width is not what it tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcxr.evaluation.resampling.DRAWS", 200)
        patch.setattr("fastcxr.evaluation.intervals.FEWEST_DRAWS", 100)
        yield


@pytest.fixture
def run_folder(tmp_path):
    """A complete run folder."""
    return build_run(tmp_path / "run")
