"""The command serve: a local page and a JSON API for the model of a run or an export."""

import os
import sys
from pathlib import Path

from fastcxr.cli.app import MODELS, Device, Precision, app
from fastcxr.cli.output import (
    INTERRUPTED_EXIT_CODE,
    end_process,
    is_json,
    print_critical_notices,
    print_line,
    print_result,
)
from fastcxr.cli.suggestions import COMMAND_SYNONYMS
from fastcxr.errors import RecipeError
from fastcxr.io.packages import require_packages

SERVE_PACKAGES = ("starlette", "uvicorn", "python_multipart")


@app.command(group=MODELS, synonym=COMMAND_SYNONYMS["serve"], usage="Usage: fastcxr serve FOLDER [OPTIONS]")
def serve(
    folder: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    allow_host: tuple[str, ...] = (),
    max_waiting: int = 8,
    precision: Precision = "trained",
    device: Device = "auto",
) -> int:
    """Serve a page and a JSON API on this computer, which predict images without storing them.

    Answers POST /predict with the rows of predict --json and POST /saliency with a saliency map; GET / is the page.
    Uploaded images stay in memory, and no file name is logged. Ctrl-C or SIGTERM ends the server with exit code 0 after
    the running requests, a second Ctrl-C at once with exit code 130. A host other than 127.0.0.1, and --allow-host,
    require a token: that of the variable FASTCXR_TOKEN, else a random one in the URL that is printed.

    Parameters
    ----------
    folder
        run folder of the trained model, or folder of an export; or hf://owner/name for a model on the hub
    host
        address to listen at; 0.0.0.0: all networks of this computer
    port
        port to listen at; 0: a free one
    allow_host
        further host name of requests, such as that of the proxy of a notebook; repeatable
    max_waiting
        requests that wait while another one is computed; further ones are rejected with the status 429
    """
    if is_json():
        raise RecipeError("serve has no JSON document", "Leave out --json: the API answers with JSON")
    require_packages(SERVE_PACKAGES, "serve")
    from fastcxr.serve.options import TOKEN_VARIABLE, ServeOptions, choose_token
    from fastcxr.serve.server import open_socket, serve_model
    from fastcxr.workflows.serve import load_served_model

    given_token = os.environ.get(TOKEN_VARIABLE, "")
    token = choose_token(host, allow_host, given_token)
    options = ServeOptions(host=host, port=port, allowed_hosts=allow_host, token=token, max_waiting=max_waiting)
    with open_socket(host, port) as listening:
        model = load_served_model(folder, precision=precision, device=device)
        print_critical_notices(model.notices)

        def show_urls(urls: list[str]) -> None:
            query = f"?token={token}" if token and not given_token else ""
            print_result(f"serving {model.name} at {urls[0]}{query}", None)
            sys.stdout.flush()  # a program that started the server reads the line from a pipe
            if urls[1:]:
                print_line(f"on other computers: {' or '.join(url + query for url in urls[1:])}")
            if given_token:
                print_line(f"Add ?token= and the value of {TOKEN_VARIABLE} to the URL")
            print_line("For research, not for diagnosis. Ctrl-C ends the server")

        stop = serve_model(model, options, listening, show_urls)
    print_line("stopped before the end of a computation" if stop.is_computing else "stopped")
    exit_code = INTERRUPTED_EXIT_CODE if stop.is_forced else 0
    if stop.is_computing:
        end_process(exit_code)
    return exit_code
