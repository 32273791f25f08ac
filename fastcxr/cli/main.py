"""Entry point of the command `fastcxr`."""

import atexit
import gc
import sys
from typing import Annotated

from cyclopts import Parameter

# importing adds the commands to the app
from fastcxr.cli import (  # noqa: F401
    data,
    datasets,
    exports,
    models,
    pieces,
    publishing,
    results,
    serving,
    tracking,
    train,
    tuning,
)
from fastcxr.cli.app import app
from fastcxr.cli.output import OutputOptions, run_to_exit_code, use_output_options

# torch and timm create half a million permanent objects on import, which frequent collections would scan again
GC_THRESHOLDS = (10_000, 10, 10)


RETURN_TO_CALLER = {"exit_on_error": False, "print_error": False, "result_action": "return_value"}


@app.meta.default
def run_command(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    output: OutputOptions = OutputOptions(),  # noqa: B008  it is frozen
) -> int | None:
    """Run a command with the output options, which all commands have; return its exit code."""
    use_output_options(output)
    return app(tokens, **RETURN_TO_CALLER)


def main() -> None:
    """Run the command line and exit with its code."""
    gc.set_threshold(*GC_THRESHOLDS)
    atexit.register(gc.freeze)  # without freeze the last collection takes a second
    sys.exit(run_to_exit_code(lambda: app.meta(sys.argv[1:], **RETURN_TO_CALLER)))
