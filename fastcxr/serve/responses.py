"""Responses of the server: security headers, and one JSON document for all errors."""

import json
import logging
import re
import traceback
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fastcxr.errors import FastcxrError
from fastcxr.version import VERSION

log = logging.getLogger("fastcxr")
RESEARCH_WARNING = "For research, not for diagnosis"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
HIDDEN = re.compile(r"[^ -~]")  # possibly: all but visible ASCII
CLIENT_LEFT_STATUS = 499  # of a client that closed the connection: it is logged, and no response is sent
API_FIX = "Use GET for /, /healthz and /model.json, and POST for /predict and /saliency"


class SafeJSONResponse(JSONResponse):
    """JSON in which control characters, bidirectional overrides and other invisible characters are escapes.

    Names of files and labels keep these characters, but a terminal or an editor that shows the text is not disordered.
    """

    def render(self, content: Any) -> bytes:
        """Return the text of the document."""
        return HIDDEN.sub(_escape, super().render(content).decode()).encode()


def _escape(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]


class RequestError(FastcxrError):
    """A request that the server rejects. `status`: HTTP status; `headers`: further headers of the response."""

    def __init__(self, status: int, problem: str, fix: str, *, code: str, headers: Mapping[str, str] | None = None):
        self.status, self.headers = status, dict(headers or {})
        super().__init__(problem, fix, code=code)

    def __reduce__(self):
        return _rebuild_error, (self.status, self.problem, self.fix, self.code, self.headers)


def _rebuild_error(status: int, problem: str, fix: str, code: str, headers: Mapping[str, str]) -> RequestError:
    return RequestError(status, problem, fix, code=code, headers=headers)


def make_error_response(error: RequestError) -> Response:
    """Return the response of a rejected request."""
    return SafeJSONResponse({"error": str(error), "code": error.code}, error.status, error.headers)


async def respond_to_http_error(request: Request, error: Exception) -> Response:
    """Return the response of an unknown page or method."""
    assert isinstance(error, HTTPException)
    problem = "no such page" if error.status_code == 404 else f"the method {request.method[:20]} is not allowed here"
    failure = RequestError(error.status_code, problem, API_FIX, code="E508", headers=error.headers)
    return make_error_response(failure)


def make_unexpected_error(error: BaseException) -> RequestError:
    """Log where an unexpected error was raised, and return the error of the response.

    Its message is not logged: it may contain the name of a file or a value of a DICOM header.
    """
    frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
    log.error("unexpected error of the server (%s %s):\n%s", type(error).__name__, VERSION, frames)
    problem = "unexpected error of the server; the terminal shows where"
    return RequestError(500, problem, "Repeat the request, or report the lines of the terminal", code="E506")
