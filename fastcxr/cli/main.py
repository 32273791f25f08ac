"""Entry point of the command `fastcxr`."""

import atexit
import gc
import sys

from fastcxr.cli import data, models, results, train  # noqa: F401  importing adds the commands to the app
from fastcxr.cli.app import app, run_to_exit_code

# torch and timm create half a million permanent objects on import, which frequent collections would scan again
GC_THRESHOLDS = (10_000, 10, 10)


def main() -> None:
    """Run the command line and exit with its code."""
    gc.set_threshold(*GC_THRESHOLDS)
    atexit.register(gc.freeze)  # without freeze the last collection takes a second
    sys.exit(
        run_to_exit_code(
            lambda: app(sys.argv[1:], exit_on_error=False, print_error=False, result_action="return_value")
        )
    )
