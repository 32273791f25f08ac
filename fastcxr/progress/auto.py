"""Choose the progress display: live in a notebook, silent in a script."""

import sys

from fastcxr.progress.base import Progress


def make_default_progress() -> Progress:
    """What a caller gets who named no Progress: a live one in a notebook, a silent one in a script."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None or not hasattr(shell, "kernel"):
        return Progress()
    from fastcxr.progress.notebook import NotebookProgress

    return NotebookProgress()
