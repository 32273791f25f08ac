"""Checks of each request before it is routed: host, origin and token. Headers and log lines of each response.

The host is checked against DNS rebinding: a page of another site, whose name an attacker resolves to 127.0.0.1, sends
its own name. Origin and Sec-Fetch-Site are checked because a browser sends forms of other sites too.
"""

import asyncio
import hmac
import logging
import time
from collections.abc import Container
from http.cookies import SimpleCookie
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastcxr.serve.options import TOKEN_VARIABLE, ServeOptions, is_ip_address, is_loopback
from fastcxr.serve.responses import (
    CLIENT_LEFT_STATUS,
    SECURITY_HEADERS,
    RequestError,
    make_error_response,
    make_unexpected_error,
)
from fastcxr.serve.uploads import discard_body
from fastcxr.serve.worker import ClientLeft, make_stopping_error

log = logging.getLogger("fastcxr")
TOKEN_PARAMETER = "token"
SAFE_METHODS = ("GET", "HEAD")
OWN_FETCH_SITES = ("same-origin", "none")  # none: typed into the browser
N_FILES_KEY = "fastcxr_n_files"  # of the scope: for the log line
SLOW_BODY_STATUS = 408


class SecurityMiddleware:
    """ASGI application that checks each request, and adds headers to each response of the application within.

    Args:
        app: the application.
        options: of the server.
        known_paths: paths that are logged.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions, known_paths: Container[str]):
        self.app, self.options, self.known_paths = app, options, known_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request."""
        if scope["type"] != "http":
            return
        start, status, is_body_read = time.monotonic(), 0, False

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
            await send(message)

        async def receive_body() -> Message:
            nonlocal is_body_read
            message = await receive()
            is_body_read = is_body_read or not message.get("more_body", False)
            return message

        request, response = Request(scope, receive_body), None
        try:
            if (response := check_request(request, self.options)) is None:
                await self.app(scope, receive_body, send_with_headers)
        except ClientLeft:
            status = CLIENT_LEFT_STATUS
        except asyncio.CancelledError:  # a second Ctrl-C, or the time limit of a stop: the rest of a body is not read
            response, is_body_read = make_error_response(make_stopping_error()), True
        except Exception as error:  # no reference is kept: its traceback contains the files of the request
            response = make_error_response(error if isinstance(error, RequestError) else make_unexpected_error(error))
        if response is not None and not status:
            if not is_body_read and request.method not in SAFE_METHODS and response.status_code != SLOW_BODY_STATUS:
                await discard_body(Request(scope, receive_body).stream())
            await response(scope, receive_body, send_with_headers)
        milliseconds = 1000 * (time.monotonic() - start)
        path = scope["path"] if scope["path"] in self.known_paths else "(unknown path)"  # it may contain a name
        n_files = scope.get(N_FILES_KEY)
        files = "" if n_files is None else f", {n_files} file{'s' * (n_files != 1)}"
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        log.info("%s %s %s %d%s, %.0f ms", now, scope["method"], path, status, files, milliseconds)


def check_request(request: Request, options: ServeOptions) -> Response | None:
    """Return None for an accepted request, or a redirect that stores the token of the URL in a cookie.

    Raises RequestError for another host, another origin, or a missing or wrong token.
    """
    host = check_host(request.headers, options)
    check_origin(request.method, request.headers, host, options)
    return check_token(request, options)


def check_host(headers: Headers, options: ServeOptions) -> str:
    """Return the header Host, lower case. Raises RequestError for a host that is not one of this server."""
    values = headers.getlist("host")
    host = values[0].lower() if len(values) == 1 else ""
    name = _parse_host(host)
    if not name or not is_own_host(name, options):
        fix = f"Open the URL that the terminal shows, or start the server with `--allow-host {name[:100] or 'NAME'}`"
        raise RequestError(400, f"the host {host[:100]!r} is not that of this server", fix, code="E501")
    return host


def is_own_host(name: str, options: ServeOptions) -> bool:
    """Return whether requests may name this host: loopback, an allowed or own name, or the address listened at.

    A server for other computers has one address in each network: any IP address is accepted, which no page of another
    site can have as its name.
    """
    if is_loopback(name) or name in {one.lower() for one in (options.host, *options.allowed_hosts, *options.own_names)}:
        return True
    return is_ip_address(name) and not is_loopback(options.host)


def _parse_host(netloc: str) -> str:
    """Return the name of `name`, `name:port` or `[address]:port`; empty if it is malformed."""
    try:
        parts = urlsplit(f"//{netloc}")
        _ = parts.port  # raises for a port that is not a number
    except ValueError:
        return ""
    is_plain = parts.netloc == netloc and "@" not in netloc and not (parts.path or parts.query or parts.fragment)
    return (parts.hostname or "") if is_plain else ""


def check_origin(method: str, headers: Headers, host: str, options: ServeOptions) -> None:
    """Raise RequestError for a request that a page of another site sends."""
    origin = headers.get("origin")
    if origin is not None and not _is_own_origin(origin.lower(), host, options):
        fix = "Open the page of this server, or start the server with `--allow-host NAME` for a proxy"
        raise RequestError(403, f"the request comes from another site, {origin[:100]!r}", fix, code="E501")
    site = headers.get("sec-fetch-site")
    if method not in SAFE_METHODS and site is not None and site not in OWN_FETCH_SITES:
        problem = f"the request comes from another site (Sec-Fetch-Site is {site[:20]!r})"
        raise RequestError(403, problem, "Open the page of this server", code="E501")


def _is_own_origin(origin: str, host: str, options: ServeOptions) -> bool:
    scheme, _, netloc = origin.partition("://")
    if scheme not in ("http", "https"):  # also `null`
        return False
    return netloc == host or _parse_host(netloc) in {name.lower() for name in options.allowed_hosts}


def check_token(request: Request, options: ServeOptions) -> Response | None:
    """Return None if no token is needed or it is correct, or a redirect that stores that of the URL in a cookie.

    Raises RequestError if the token is missing or wrong.
    """
    if not options.token:
        return None
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and is_equal(bearer.strip(), options.token):
        return None
    if is_equal(request.cookies.get(name_cookie(options), ""), options.token):
        return None
    given = dict(parse_qsl(request.url.query)).get(TOKEN_PARAMETER, "")
    if request.method == "GET" and request.scope["path"] == "/" and is_equal(given, options.token):
        # relative, and a cookie without a path: a proxy may serve the page below a path
        response = RedirectResponse("./", status_code=303)
        is_secure = request.headers.get("x-forwarded-proto", "") == "https"  # it can only restrict the cookie
        response.headers["Set-Cookie"] = _make_cookie(options, is_secure=is_secure)
        return response
    problem = "the token is missing or wrong"
    fix = (
        f"Add ?token= and the token (see the terminal, or {TOKEN_VARIABLE}) to the URL, or send `Authorization: Bearer`"
    )
    raise RequestError(403, problem, fix, code="E502")


def is_equal(given: str, token: str) -> bool:
    """Return whether a token is correct, in a time that does not depend on the number of equal characters."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), token.encode())


def name_cookie(options: ServeOptions) -> str:
    """Return the name of the cookie with the token: a browser sends a cookie to all ports of a host."""
    return f"fastcxr_token_{options.port}"


def _make_cookie(options: ServeOptions, *, is_secure: bool) -> str:
    cookie, name = SimpleCookie(), name_cookie(options)
    cookie[name] = options.token
    for attribute, value in {"httponly": True, "samesite": "Strict", "secure": is_secure}.items():
        cookie[name][attribute] = value
    return cookie.output(header="").strip()
