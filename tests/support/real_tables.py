"""Real label tables of public datasets, which the package torchxrayvision contains."""

import importlib.util
import shutil
from pathlib import Path


def find_real_table(name: str) -> Path:
    """Return the path of a table; tests that call this need torchxrayvision."""
    spec = importlib.util.find_spec("torchxrayvision")
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "data" / name


def copy_real_table(name: str, target: Path) -> Path:
    """Copy a table under its published name; the images are missing."""
    shutil.copy(find_real_table(name), target)
    return target
