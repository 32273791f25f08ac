"""A server of `fastcxr serve` in a process, and a browser for its page that accepts no error and no other host."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 120


@contextmanager
def start_server(folder: Path, log: Path, *words: str, token: str = "") -> Iterator[str]:
    """Serve a model on a free port in this block; the value is the URL of the page."""
    command = [sys.executable, "-m", "fastcxr", "serve", str(folder), "--port", "0", *words]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | ({"FASTCXR_TOKEN": token} if token else {})
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    try:
        url = wait_for_url(process, log)
        yield f"{url}?token={token}" if token else url
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for_url(process: subprocess.Popen, log: Path) -> str:
    """Return the URL that a server prints when it is ready."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("serving ") and "http://" in line:
                return line[line.index("http://") :].strip()
        time.sleep(0.1)
    raise AssertionError(f"the server did not start:\n{log.read_text()}")


def drop_files(page, paths: list[Path]) -> None:
    """Drag files and folders from the desktop over the page, and drop them, as the browser itself reports it."""
    page.locator("#drop").scroll_into_view_if_needed()
    box = page.locator("#drop").bounding_box()
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": box["x"] + 20, "y": box["y"] + 20, "data": data}
        session.send("Input.dispatchDragEvent", event)


class Watch:
    """What a page must not do: errors of scripts and of the content security policy, and requests to other hosts."""

    def __init__(self, page, url: str):
        self.problems: list[str] = []
        self.expected: tuple[str, ...] = ()  # parts of messages that a test provokes
        self.origin = url.split("?")[0].rstrip("/")
        page.on("console", self._note_message)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.context.route("**/*", self._allow_own_host)

    def _note_message(self, message) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"{message.type}: {message.text}")

    def _allow_own_host(self, route) -> None:
        if route.request.url.startswith((f"{self.origin}/", "blob:", "data:")):
            route.continue_()
        else:
            self.problems.append(f"request to another host: {route.request.url}")
            route.abort()

    def check(self) -> None:
        """Fail if the page did what it must not do."""
        assert [text for text in self.problems if not any(part in text for part in self.expected)] == []
