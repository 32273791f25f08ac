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
from fastcxr.serve.options import DEFAULT_PORT, ServeOptions, is_loopback
from fastcxr.serve.served_model import ServedModel
from fastcxr.serve.worker import Worker

BACKLOG, MAX_CONNECTIONS = 128, 256
KEEP_ALIVE_SECONDS = 15
THREAD_END_SECONDS = 0.3  # of a worker without a computation
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # an address that a browser can open
# of documentation: a UDP socket that is connected to it sends nothing, and has the address of this computer
OUTSIDE_ADDRESSES = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


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
    model: ServedModel, options: ServeOptions, listening: socket.socket, show_urls: Callable[[list[str]], None]
) -> Stop:
    """Answer requests until SIGINT or SIGTERM, and return how the server ended.

    The running requests end before the function returns, unless a second SIGINT or the time limit
    `options.stop_seconds` ends them with the status 503.

    Args:
        model: the model; a first prediction is made before the server is ready.
        options: address, token and limits.
        listening: the result of `open_socket` for this address.
        show_urls: receives the URLs of the page, without token, when the server is ready; the first one is for this
            computer, the others are for other computers.
    """
    own_names = list_own_names(options.host)
    options = replace(options, port=listening.getsockname()[1], own_names=own_names)
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
    server = _Server(config, worker, lambda: show_urls(list_urls(options)))
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


def list_urls(options: ServeOptions) -> list[str]:
    """Return the URLs of the page: for this computer, and for others if the server listens in all networks."""
    hosts = [WILDCARDS.get(options.host, options.host)]
    if options.host in WILDCARDS:
        hosts += filter(None, [find_network_address(options.host), *options.own_names[:1]])
    shown = [f"[{host}]" if ":" in host else host for host in dict.fromkeys(hosts)]
    return [f"http://{host}:{options.port}/" for host in shown]


def list_own_names(host: str) -> tuple[str, ...]:
    """Return the names of this computer for a server that listens at `host`; none if only this computer reaches it."""
    if is_loopback(host):
        return ()
    return tuple(dict.fromkeys(name for name in (socket.gethostname(), socket.getfqdn()) if name))


def find_network_address(host: str) -> str | None:
    """Return the address of this computer in its network, of the family of a wildcard address; None without one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as udp:
            udp.connect((OUTSIDE_ADDRESSES[family], 9))
            address = udp.getsockname()[0]
    except OSError:
        return None
    return None if is_loopback(address) else address


class _Server(uvicorn.Server):
    """Server that ends normally after a signal: uvicorn would raise the signal again."""

    def __init__(self, config: uvicorn.Config, worker: Worker, show_ready: Callable[[], None]):
        super().__init__(config)
        self.worker, self.show_ready = worker, show_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and show the URLs."""
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
