"""Errors of the Hugging Face hub as one line each: the address, what the server answered, and what to do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastcxr.errors import FastcxrError, HubError, HubUnreachableError, InputMissingError

HTTP_PACKAGES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")  # of versions of huggingface_hub
TOKEN_FIX = "Run `hf auth login`, or set HF_TOKEN, with a token that has write access"
REPEAT_FIX = "Repeat the command later: nothing is published before the last request, and finished files are kept"
NOT_FOUND, UNAUTHORIZED, FORBIDDEN, PAYMENT, CONFLICT, PRECONDITION, BUSY = 404, 401, 403, 402, 409, 412, 429


def find_endpoint() -> str:
    """Return the address of the hub: HF_ENDPOINT, or that of huggingface_hub."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Return whether the environment forbids requests to the hub."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


@contextmanager
def convert_hub_errors(repo: str, *, writes: bool = False) -> Iterator[None]:
    """Raise one HubError or InputMissingError for an error of huggingface_hub or of its requests in the block.

    Args:
        repo: owner/name.
        writes: whether the block sends files, for which a token is needed.
    """
    try:
        yield
    except FastcxrError:
        raise
    except Exception as error:
        if (converted := _convert(error, repo, writes)) is None:
            raise
        raise converted from error


def _convert(error: BaseException, repo: str, writes: bool) -> FastcxrError | None:
    from huggingface_hub import errors

    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # of a thread that sends a file
        error = error.__cause__
    if isinstance(error, errors.LocalTokenNotFoundError):
        return make_token_error(repo)
    if isinstance(error, errors.OfflineModeIsEnabled):
        problem = f"{repo}: HF_HUB_OFFLINE forbids requests to the hub"
        return HubUnreachableError(problem, "Unset HF_HUB_OFFLINE", code="E703")
    response: Any = getattr(error, "response", None)
    if isinstance(error, errors.HfHubHTTPError) and response is not None:
        return _convert_status(error, response.status_code, repo, writes)
    if isinstance(error, errors.LocalEntryNotFoundError) or _is_transport_error(error):
        problem = f"{repo}: the hub at {find_endpoint()} cannot be reached ({_find_reason(error)})"
        fix = REPEAT_FIX if writes else "Check the network, the proxy and HF_ENDPOINT"
        return HubUnreachableError(problem, fix, code="E703")
    if isinstance(error, ValueError) and "README.md" in str(error):
        reason = " ".join(str(error).split()).rstrip(".")
        return HubError(f"{repo}: the hub rejects the model card ({reason})", "Pass another `licence`", code="E703")
    return None


def _convert_status(error: Any, status: int, repo: str, writes: bool) -> FastcxrError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        fix = f"Accept the terms at {find_endpoint()}/{repo}, and run `hf auth login`"
        return HubError(f"{repo}: access needs the consent of its owner", fix, code="E702")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputMissingError(f"{repo} has no such branch, tag or commit", "Check its name", code="E704")
    if isinstance(error, errors.EntryNotFoundError):
        return InputMissingError(f"{repo} has no {_find_file(error)}", "Check the name", code="E704")
    if isinstance(error, errors.RepositoryNotFoundError) or status == NOT_FOUND:
        problem = f"{repo}: the hub has no such model, or it is private and the token in use may not read it"
        return InputMissingError(problem, "Check the name, and run `hf auth login`", code="E704")
    if status == UNAUTHORIZED:
        return HubError(f"{repo}: the hub does not accept the token (401)", TOKEN_FIX, code="E702")
    if status in (FORBIDDEN, PAYMENT):
        action = "write to it" if writes else "read it"
        return HubError(f"{repo}: the owner of the token may not {action} ({status})", TOKEN_FIX, code="E702")
    if status in (CONFLICT, PRECONDITION):
        problem = f"{repo} has changed in the meantime ({status})"
        return HubError(problem, "Check the newest commit, and repeat the command", code="E703")
    reason = " ".join(str(error.server_message or "").split())[:200].rstrip(".")
    problem = f"{repo}: the hub answers with {status}{f' ({reason})' if reason else ''}"
    error_class = HubUnreachableError if status >= 500 or status == BUSY else HubError
    return error_class(problem, REPEAT_FIX if writes else "Repeat the command later", code="E703")


def make_token_error(repo: str) -> HubError:
    """Return the error for a missing token."""
    return HubError(f"{repo}: no token of the hub is found", TOKEN_FIX, code="E702")


def _is_transport_error(error: BaseException) -> bool:
    is_of_requests = any(cls.__module__.partition(".")[0] in HTTP_PACKAGES for cls in type(error).__mro__)
    return is_of_requests or isinstance(error, ConnectionError | TimeoutError)


def _find_reason(error: BaseException) -> str:
    while error.__cause__ is not None and not _is_transport_error(error):
        error = error.__cause__
    return (str(error).splitlines() or [""])[0][:120].rstrip(".") or type(error).__name__


def _find_file(error: Any) -> str:
    return str(error.response.url).split("?")[0].rpartition("/")[2]
