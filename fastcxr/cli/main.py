"""Entry point of the command `fastcxr`."""

import sys

from fastcxr.cli import data, models, results, train  # noqa: F401  each adds its commands to the app
from fastcxr.cli.app import answer_with, app


def main() -> None:
    """Entry point of the command `fastcxr`."""
    sys.exit(
        answer_with(lambda: app(sys.argv[1:], exit_on_error=False, print_error=False, result_action="return_value"))
    )
