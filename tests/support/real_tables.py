"""The published label tables that the package torchxrayvision contains; tests that use them need it."""

import importlib.util
import shutil
from pathlib import Path


def real_table(name: str) -> Path:
    """Return a file of the package, which is not imported."""
    spec = importlib.util.find_spec("torchxrayvision")
    return Path(spec.submodule_search_locations[0]) / "data" / name


def copy_real_table(name: str, target: Path) -> Path:
    """Copy a table under its published name; the images are missing."""
    shutil.copy(real_table(name), target)
    return target
