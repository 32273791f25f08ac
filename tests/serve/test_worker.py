"""The thread that computes, the limit of waiting requests, clients that leave, and the stop."""

import asyncio
import threading
import weakref

import httpx
import pytest
from served_models import ORIGIN, make_fields, make_png_bytes, make_served_model

from fastcxr.serve.app import make_app
from fastcxr.serve.options import ServeOptions
from fastcxr.serve.responses import RequestError
from fastcxr.serve.security import CLIENT_LEFT_STATUS
from fastcxr.serve.worker import ClientLeft, Worker

FILES = make_fields(("a.png", make_png_bytes()))


def run_with_client(use_client, *, is_blocked=True, **options):
    """Run `use_client(client, model, worker)` with a client of a server whose model waits if `is_blocked`."""
    model = make_served_model()
    options = ServeOptions(**options)
    worker = Worker(options.max_waiting)
    if is_blocked:
        model.scorer.may_score.clear()

    async def run():
        transport = httpx.ASGITransport(make_app(model, options, worker))
        async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:
            return await use_client(client, model, worker)

    try:
        return asyncio.run(run())
    finally:
        model.scorer.may_score.set()
        worker.stop()


async def wait_until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def test_requests_beyond_the_limit_are_rejected_and_the_others_are_answered():
    async def use_client(client, model, worker):
        tasks = [asyncio.create_task(client.post("/predict", files=FILES)) for _ in range(3)]
        await wait_until(lambda: worker.n_places == 3)
        rejected = await client.post("/predict", files=FILES)
        health = await client.get("/healthz")  # it responds during a prediction
        model.scorer.may_score.set()
        return rejected, health, [task.status_code for task in await asyncio.gather(*tasks)], worker.n_places

    rejected, health, codes, n_places = run_with_client(use_client, max_waiting=2)
    assert "3 requests are being computed or waiting" in rejected.json()["error"]
    assert rejected.status_code == 429 and int(rejected.headers["retry-after"]) > 0
    assert rejected.json()["code"] == "E505"
    assert health.json() == {"status": "ok", "version": health.json()["version"], "requests": 3}
    assert codes == [200, 200, 200] and n_places == 0


def test_a_slow_body_is_rejected_and_releases_its_place():
    async def send():
        yield b"--x\r\n"
        await asyncio.sleep(30)

    async def use_client(client, model, worker):
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        return await client.post("/predict", content=send(), headers=headers), worker.n_places

    answer, n_places = run_with_client(use_client, body_seconds=0.05)
    assert answer.status_code == 408 and answer.json()["code"] == "E503" and n_places == 0


def test_a_stop_rejects_waiting_and_new_requests_and_the_running_one_ends():
    async def use_client(client, model, worker):
        running = asyncio.create_task(client.post("/predict", files=FILES))
        await wait_until(lambda: worker.jobs.empty() and worker.n_places == 1)
        waiting = asyncio.create_task(client.post("/predict", files=FILES))
        await wait_until(lambda: not worker.jobs.empty())
        worker.stop()
        waiting, new, health = await waiting, await client.post("/predict", files=FILES), await client.get("/healthz")
        model.scorer.may_score.set()
        return await running, waiting, new, health

    running, waiting, new, health = run_with_client(use_client)
    assert [running.status_code, waiting.status_code, new.status_code] == [200, 503, 503]
    assert new.json()["code"] == "E505" and health.json()["status"] == "stopping"


@pytest.mark.parametrize("length", ["1000", str(10**12)])  # of a body that is read, and that is discarded
def test_a_stop_answers_a_request_whose_body_is_incomplete(length):
    async def send():
        yield b"--x\r\n"
        await asyncio.sleep(30)

    async def use_client(client, model, worker):
        headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": length}
        task = asyncio.create_task(client.post("/predict", content=send(), headers=headers))
        await asyncio.sleep(0.05)
        task.cancel()
        return await task

    answer = run_with_client(use_client)
    assert (answer.status_code, answer.json()["code"]) == ((503, "E505") if length == "1000" else (413, "E503"))


def test_a_client_that_leaves_while_it_waits_is_not_computed():
    worker, may_end, computed = Worker(5), threading.Event(), []

    async def leave():
        return

    async def stay():
        await asyncio.sleep(30)

    class Files:
        """What a request holds in memory."""

    async def run():
        running = asyncio.create_task(worker.compute(lambda: may_end.wait(20), stay))
        await asyncio.sleep(0)
        files = Files()
        with pytest.raises(ClientLeft):
            await worker.compute(lambda files=files: computed.append(files), leave)
        reference = weakref.ref(files)
        del files
        assert reference() is None, "the files stay in memory as long as another request is computed"
        may_end.set()
        await running
        return await worker.compute(lambda: "next", stay)

    assert asyncio.run(run()) == "next" and computed == []
    worker.stop()


def test_a_client_that_leaves_gets_no_response_and_a_log_line(caplog):
    """A client that closes the connection during the body."""
    sent, messages = [], iter([{"type": "http.request", "body": b"--x\r\n", "more_body": True}])

    async def receive():
        return next(messages, {"type": "http.disconnect"})

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
    with caplog.at_level("INFO", "fastcxr"):
        asyncio.run(make_app(make_served_model(), ServeOptions())(scope, receive, send))
    assert sent == []
    assert f"POST /predict {CLIENT_LEFT_STATUS}" in caplog.text


def test_the_number_of_one_request_is_singular():
    worker = Worker(0)
    with worker.hold_place(), pytest.raises(RequestError, match="busy: 1 request is being"), worker.hold_place():
        pass
    worker.stop()


def test_an_error_of_a_computation_does_not_end_the_thread():
    worker = Worker(0)
    with pytest.raises(ZeroDivisionError):
        worker.submit(lambda: 1 / 0).result(10)
    assert worker.submit(lambda: 7).result(10) == 7
    worker.stop()
    with pytest.raises(RequestError, match="the server is stopping"), worker.hold_place():
        pass
