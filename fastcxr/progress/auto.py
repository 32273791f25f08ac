"""Choose the progress display: live in a notebook, silent in a script."""

import sys

from fastcxr.progress.base import Progress


def make_default_progress() -> Progress:
    """Return a live display in a notebook, else a silent one."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "kernel"):
        return Progress()
    from fastcxr.progress.notebook import NotebookProgress

    return NotebookProgress()
