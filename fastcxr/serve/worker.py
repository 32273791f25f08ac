"""One thread that computes predictions, and the number of requests that may wait for it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from fastcxr.io.formatting import pluralize
from fastcxr.serve.responses import RequestError

Result = TypeVar("Result")
RETRY_SECONDS = 2  # after which a rejected client may repeat its request


class ClientLeft(Exception):
    """The client closed the connection before its response."""


class _Job:
    """A computation in the queue, with its future result."""

    def __init__(self, function: Callable[[], Any]):
        self.function: Callable[[], Any] | None = function
        self.future: Future[Any] = Future()

    def cancel(self) -> None:
        """Drop the computation, unless it runs: it refers to the files of its request."""
        if self.future.cancel():
            self.function = None

    def compute(self) -> None:
        """Compute the result, unless the job is cancelled."""
        function, self.function = self.function, None
        if not self.future.set_running_or_notify_cancel() or function is None:
            return
        try:
            self.future.set_result(function())
        except BaseException as error:  # it belongs to the request: the thread must not end
            self.future.set_exception(error)
            del self  # the error refers to this frame


class Worker:
    """A thread for one computation at a time. A request holds a place from its first byte to its response.

    Args:
        max_waiting: requests besides the one that is computed.
    """

    def __init__(self, max_waiting: int):
        self.max_places, self.n_places, self.is_stopping = max_waiting + 1, 0, False
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # a daemon: a computation that exceeds the time of a stop does not keep the process
        self.thread = threading.Thread(target=self._compute_jobs, name="fastcxr-worker", daemon=True)
        self.thread.start()

    def submit(self, function: Callable[[], Result]) -> "Future[Result]":
        """Return the future result of a computation."""
        return self._add(function).future

    def _add(self, function: Callable[[], Any]) -> _Job:
        job = _Job(function)
        self.jobs.put(job)
        return job

    @contextmanager
    def hold_place(self) -> Iterator[None]:
        """Hold a place for a request. Raises RequestError if all are taken, or the server stops."""
        if self.is_stopping:
            raise make_stopping_error()
        if self.n_places >= self.max_places:
            number = pluralize(self.n_places, "request is", "requests are")
            problem = f"the server is busy: {number} being computed or waiting"
            headers = {"Retry-After": str(RETRY_SECONDS)}
            raise RequestError(429, problem, "Repeat the request later", code="E505", headers=headers)
        self.n_places += 1
        try:
            yield
        finally:
            self.n_places -= 1

    async def compute(self, function: Callable[[], Result], wait_for_end: Callable[[], Awaitable[None]]) -> Result:
        """Return the result of a computation in the thread.

        Args:
            function: the computation.
            wait_for_end: returns when the client has left; a computation that has not started is then dropped.

        Raises:
            ClientLeft: the client left before the result.
            RequestError: the server stops, and the computation has not started.
        """
        job = self._add(function)
        result, end = asyncio.wrap_future(job.future), asyncio.ensure_future(wait_for_end())
        try:
            await asyncio.wait({result, end}, return_when=asyncio.FIRST_COMPLETED)
            if result.cancelled():
                raise make_stopping_error()
            if not result.done():
                raise ClientLeft
            return result.result()
        finally:
            end.cancel()
            job.cancel()  # at once: `result` would pass it on later, when the thread may have started it
            result.cancel()  # otherwise asyncio logs an error of a running computation, which nothing awaits
            del job, result, function  # an error refers to this frame: the files of a request would stay in memory

    def stop(self) -> None:
        """Reject new requests and those whose computation has not started; the running one ends."""
        self.is_stopping = True
        with suppress(Empty):
            while job := self.jobs.get_nowait():
                job.cancel()
        self.jobs.put(None)

    def end(self, seconds: float) -> bool:
        """Stop, wait for the running computation at most some seconds, and return whether the thread has ended."""
        self.stop()
        self.thread.join(seconds)
        return not self.thread.is_alive()

    def _compute_jobs(self) -> None:
        while job := self.jobs.get():
            job.compute()
            del job  # otherwise its result stays in memory until the next one


def make_stopping_error() -> RequestError:
    """Return the error of a request while the server stops."""
    return RequestError(503, "the server is stopping", "Start it again, and repeat the request", code="E505")
