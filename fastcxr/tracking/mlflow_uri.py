"""Check the address of MLflow before its package is used: MLflow repeats a failed connection for minutes."""

import socket
import tempfile
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

EXAMPLES = "http://localhost:5000 or sqlite:///mlflow.db"
DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
CONNECT_SECONDS = 5.0
SQLITE_HEADER = b"SQLite format 3\0"


def hide_credentials(uri: str) -> str:
    """Return a URI without user, password and query."""
    scheme, separator, rest = uri.partition("://")
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}" if separator else uri


def find_uri_fault(uri: str) -> str | None:
    """Return why MLflow cannot use a URI, or None: a folder, a database that cannot be written, a dead server."""
    try:
        parts = urlsplit(uri)
        scheme, port = parts.scheme.partition("+")[0], parts.port
    except ValueError as error:
        return str(error)
    if uri == "databricks":
        return None
    if scheme in ("", "file"):
        return "MLflow does not store runs in folders"
    if scheme == "sqlite":
        return _find_database_fault(parts)
    port = port or DEFAULT_PORTS.get(scheme)
    if port and parts.hostname and not _uses_proxy(scheme, parts.hostname):
        return _find_connection_fault(parts.hostname, port)
    return None


def _uses_proxy(scheme: str, host: str) -> bool:
    return scheme in ("http", "https") and scheme in getproxies() and not proxy_bypass(host)


def _find_connection_fault(host: str, port: int) -> str | None:
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS):
            return None
    except OSError as error:
        return f"no answer from {host}, port {port}: {error.strerror or error}"


def _find_database_fault(parts: SplitResult) -> str | None:
    # sqlite:///relative.db, sqlite:////absolute.db; MLflow unquotes the path
    if not parts.path.strip("/"):
        return None  # in memory
    path = Path(unquote(parts.path.removeprefix("/")))
    try:
        if path.is_file():
            with path.open("r+b") as file:
                is_database = file.read(len(SQLITE_HEADER)) in (b"", SQLITE_HEADER)
            return None if is_database else "the file is no SQLite database"
        if path.exists():
            return "a folder, expected a file"
    except OSError as error:
        return f"the file cannot be written: {error.strerror}"
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            return None
    except OSError as error:
        return f"the folder {path.parent} cannot be written: {error.strerror}"
