"""Where nothing can be kept for the next run, a temporary folder takes its place for as long as this process lives.

One for the whole process: all folds of a cross-validation, and the reading before each, share what is in it.
"""

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path


@cache
def passing_folder() -> Path:
    """The temporary folder of this process, made when it is first asked for. Raises OSError."""
    folder = Path(tempfile.mkdtemp(prefix="fastcxr-"))
    atexit.register(_remove_own, folder, os.getpid())
    return folder


def _remove_own(folder: Path, process: int) -> None:
    if os.getpid() == process:  # a forked worker ends before its parent does
        shutil.rmtree(folder, ignore_errors=True)
