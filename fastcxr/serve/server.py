"""Run the web application with uvicorn until a signal, on an address that was opened before."""

import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType

import uvicorn

from fastcxr.errors import OutputError
from fastcxr.serve.app import make_app
from fastcxr.serve.options import DEFAULT_PORT, ServeOptions
from fastcxr.serve.served_model import ServedModel
from fastcxr.serve.worker import Worker

BACKLOG, MAX_CONNECTIONS = 128, 256
KEEP_ALIVE_SECONDS = 15
THREAD_END_SECONDS = 0.3  # of a worker without a computation
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}  # an address that a browser can open


@dataclass(frozen=True)
class Stop:
    """How a server ended.

    Attributes:
        is_forced: whether a second SIGINT ended the running requests.
        is_computing: whether the thread still computes. The libraries in C++ abort a process that exits normally while
            one of their threads runs: use os._exit.
    """

    is_forced: bool = False
    is_computing: bool = False


def serve_model(
    model: ServedModel, options: ServeOptions, listening: socket.socket, show_url: Callable[[str], None]
) -> Stop:
    """Answer requests until SIGINT or SIGTERM, and return how the server ended.

    The running requests end before the function returns, unless a second SIGINT or the time limit
    `options.stop_seconds` ends them with the status 503.

    Args:
        model: the model; a first prediction is made before the server is ready.
        options: address, token and limits.
        listening: the result of `open_socket` for this address.
        show_url: receives the URL of the page when the server is ready.
    """
    options = replace(options, port=listening.getsockname()[1])
    worker = Worker(options.max_waiting)
    try:
        worker.submit(model.warm_up).result()
    except KeyboardInterrupt:
        return Stop(is_forced=True, is_computing=not worker.end(THREAD_END_SECONDS))
    config = uvicorn.Config(
        make_app(model, options, worker), http="h11", ws="none", lifespan="off", log_config=None,
        log_level="critical", access_log=False, server_header=False, proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS, timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(options.stop_seconds),
    )  # fmt: skip
    server = _Server(config, worker, lambda: show_url(format_url(options)))
    server.run([listening])
    return Stop(is_forced=server.force_exit, is_computing=not worker.end(THREAD_END_SECONDS))


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; to be called before a model is loaded, which takes seconds.

    Raises OutputError if the address is in use or is not one of this computer.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        address_text = f"{host}:{port}"
        if error.errno == errno.EADDRINUSE:
            problem, fix = f"the address {address_text} is in use", "Choose another port, or 0 for a free one"
        elif error.errno == errno.EACCES:
            problem, fix = f"no permission to listen at {address_text}", f"Choose a port such as {DEFAULT_PORT}"
        else:
            problem = f"cannot listen at {address_text} ({error.strerror or error})"
            fix = "Choose an address of this computer, such as 127.0.0.1"
        raise OutputError(problem, fix, code="E507") from error


def format_url(options: ServeOptions) -> str:
    """Return the URL of the page, with the token if there is one."""
    host = WILDCARDS.get(options.host) or (f"[{options.host}]" if ":" in options.host else options.host)
    return f"http://{host}:{options.port}/" + (f"?token={options.token}" if options.token else "")


class _Server(uvicorn.Server):
    """Server that ends normally after a signal: uvicorn would raise the signal again."""

    def __init__(self, config: uvicorn.Config, worker: Worker, show_ready: Callable[[], None]):
        super().__init__(config)
        self.worker, self.show_ready = worker, show_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and show the URL."""
        await super().startup(sockets)
        self.show_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop: new requests are rejected; a second SIGINT also ends the running ones."""
        super().handle_exit(sig, frame)
        self.worker.stop()
        if self.force_exit:
            for task in self.server_state.tasks:
                task.cancel()  # SecurityMiddleware responds with the status 503

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals in this block."""
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
