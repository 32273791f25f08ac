"""Options of the server: address, allowed names, token and limits."""

import ipaddress
import secrets
from dataclasses import dataclass

from fastcxr.errors import RecipeError

LOOPBACK_HOST, DEFAULT_PORT = "127.0.0.1", 8000
TOKEN_VARIABLE = "FASTCXR_TOKEN"
MIN_TOKEN_CHARACTERS, TOKEN_BYTES = 16, 32
MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Options of the server.

    Attributes:
        host: address to listen at.
        port: port to listen at; 0 for a free one.
        allowed_hosts: further host names of requests, such as that of a proxy.
        own_names: names of this computer that requests may also have; see server.list_own_names.
        token: secret that each request must contain; empty: none is needed.
        max_files: files of a request.
        max_file_bytes: bytes of a file.
        max_request_bytes: bytes of a request.
        max_waiting: requests that wait while another one is computed.
        body_seconds: time within which the body of a request must arrive.
        stop_seconds: time within which the running requests must end after a signal.
    """

    host: str = LOOPBACK_HOST
    port: int = DEFAULT_PORT
    allowed_hosts: tuple[str, ...] = ()
    own_names: tuple[str, ...] = ()
    token: str = ""
    max_files: int = 32
    max_file_bytes: int = 64 * MEGABYTE
    max_request_bytes: int = 128 * MEGABYTE
    max_waiting: int = 8
    body_seconds: float = 60.0
    stop_seconds: float = 30.0

    def __post_init__(self):
        if not 0 <= self.port <= 65535:
            raise RecipeError(f"`port={self.port}`, expected a number from 0 to 65535", "Choose another port")
        if self.max_waiting < 0:
            raise RecipeError(f"`max_waiting={self.max_waiting}`, expected 0 or more", "Choose another number")
        for name in self.allowed_hosts:
            if not name or any(character in name for character in "/:*@ "):
                fix = "Pass the name alone, such as hub.example.org, without scheme, port and path"
                raise RecipeError(f"the allowed host {name!r} is not a host name", fix)
        if is_reachable(self.host, self.allowed_hosts) and not self.token:
            problem = "a server that other computers can reach requires a token"
            raise RecipeError(problem, "Pass the result of choose_token(host, allowed_hosts)")
        if self.token and (len(self.token) < MIN_TOKEN_CHARACTERS or not is_plain_text(self.token)):
            problem = f"the token has {len(self.token)} characters, expected at least {MIN_TOKEN_CHARACTERS} of ASCII"
            raise RecipeError(f"{problem} without spaces", f"Set {TOKEN_VARIABLE} to a longer secret, or unset it")


def choose_token(host: str, allowed_hosts: tuple[str, ...], given: str = "") -> str:
    """Return the given token, or a random one if other computers can reach the server, else an empty one."""
    return given or (secrets.token_urlsafe(TOKEN_BYTES) if is_reachable(host, allowed_hosts) else "")


def is_reachable(host: str, allowed_hosts: tuple[str, ...]) -> bool:
    """Return whether other computers can reach the server, directly or through a proxy."""
    return not is_loopback(host) or bool(allowed_hosts)


def is_plain_text(text: str) -> bool:
    """Return whether a text has visible ASCII characters only."""
    return all(33 <= ord(character) <= 126 for character in text)


def is_loopback(name: str) -> bool:
    """Return whether a host name or an IP address means this computer only."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower() == "localhost"


def is_ip_address(name: str) -> bool:
    """Return whether a host is given by its IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
