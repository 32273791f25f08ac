"""Entry point of the command `fastcxr`."""

import sys

from fastcxr.cli import data, models, results, train  # noqa: F401  each adds its commands to the app
from fastcxr.cli.app import app, run_to_exit_code


def main() -> None:
    """Entry point of the command `fastcxr`."""
    sys.exit(
        run_to_exit_code(
            lambda: app(sys.argv[1:], exit_on_error=False, print_error=False, result_action="return_value")
        )
    )
