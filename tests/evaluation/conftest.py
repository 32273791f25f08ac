"""A complete run folder, made up."""

import pytest
from made_up import build_run


@pytest.fixture
def run_folder(tmp_path):
    """A complete run folder."""
    return build_run(tmp_path / "run")
