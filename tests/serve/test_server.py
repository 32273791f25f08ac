"""A server in its own process: start, requests, signals and exit code; and the address that it listens at."""

import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from served_models import make_fields, make_png_bytes, make_served_model

from fastcxr.errors import OutputError
from fastcxr.serve import server
from fastcxr.serve.options import ServeOptions, is_ip_address, is_loopback
from fastcxr.serve.server import find_network_address, list_own_names, list_urls, open_socket

SUPPORT = Path(__file__).parent.parent / "support"
FILES = make_fields(("a.png", make_png_bytes()))
TOKEN = "correct-horse-battery"
# a server of an exported model needs none of them
HEAVY = {
    "torch", "torchvision", "fastai", "timm", "scipy", "sklearn", "matplotlib", "platformdirs", "filelock", "jinja2",
    "safetensors", "huggingface_hub",
}  # fmt: skip
CODE = """
import os, sys, time
sys.path.insert(0, {support!r})
from served_models import make_served_model
from fastcxr.serve.options import ServeOptions
from fastcxr.serve.server import open_socket, serve_model

model = make_served_model()
score = model.scorer.score
model.scorer.score = lambda images: (images.any() and time.sleep({seconds}), score(images))[1]
with open_socket("127.0.0.1", 0) as listening:
    options = ServeOptions(stop_seconds={stop_seconds})
    stop = serve_model(model, options, listening, lambda urls: print(*urls, flush=True))
if stop.is_computing:
    print(stop, flush=True)
    os._exit(7)
print("stopped", *(sys.modules.keys() & {heavy}), flush=True)
"""


@pytest.fixture
def start_server():
    """Start a server whose model takes some seconds, and return its process and URL."""
    processes = []

    def start(seconds: float = 0, stop_seconds: float = 30) -> tuple[subprocess.Popen, str]:
        code = CODE.format(support=str(SUPPORT), seconds=seconds, stop_seconds=stop_seconds, heavy=HEAVY)
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_server_predicts_and_ends_with_exit_code_0_after_sigterm(start_server):
    process, url = start_server()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
    with httpx.Client(base_url=url) as client:  # its connection stays open during the stop
        answer = client.post("predict", files=FILES)
        assert answer.status_code == 200 and answer.json()["n_classified"] == 1
        assert "server" not in answer.headers
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "stopped\n"), errors
    assert errors == ""


def test_a_client_that_leaves_releases_its_place_and_a_running_request_ends_after_sigint(start_server):
    process, url = start_server(seconds=1)
    with httpx.Client(base_url=url, timeout=30) as client, ThreadPoolExecutor(1) as pool:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + "predict", files=FILES, timeout=0.1)
        while client.get("healthz").json()["requests"]:
            time.sleep(0.01)
        assert client.post("predict", files=FILES).status_code == 200
        running = pool.submit(httpx.post, url + "predict", files=FILES, timeout=30)
        while not client.get("healthz").json()["requests"]:
            time.sleep(0.01)
        time.sleep(0.2)  # a request whose computation has not started is rejected by the stop
        process.send_signal(signal.SIGINT)
        assert running.result(timeout=30).status_code == 200
    process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.parametrize(("n_signals", "stop_seconds"), [(2, 30), (1, 1)])
def test_a_second_sigint_and_the_time_limit_of_a_stop_answer_a_running_request(start_server, n_signals, stop_seconds):
    process, url = start_server(seconds=40, stop_seconds=stop_seconds)
    with httpx.Client(base_url=url, timeout=30) as client, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, "predict", files=FILES)
        while not client.get("healthz").json()["requests"]:
            time.sleep(0.01)
        time.sleep(0.2)
        for _ in range(n_signals):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        answer = running.result(timeout=30)
    output, errors = process.communicate(timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (503, "E505")
    assert output == f"Stop(is_forced={n_signals == 2}, is_computing=True)\n" and process.returncode == 7, errors


def test_an_address_in_use_is_an_error_with_a_fix():
    with open_socket("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(OutputError, match=rf"FCX-E507: the address 127.0.0.1:{port} is in use.*0 for a free one"):
            open_socket("127.0.0.1", port)


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
def test_an_address_of_another_computer_is_an_error_with_a_fix(host):
    with pytest.raises(OutputError, match=r"cannot listen at .*Choose an address of this computer"):
        open_socket(host, 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6_is_supported():
    with open_socket("::1", 0) as listening:
        assert listening.family == socket.AF_INET6


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/"),
        ("::1", "http://[::1]:8000/"),
        ("192.168.1.5", "http://192.168.1.5:8000/"),
    ],
)
def test_the_url_can_be_opened_in_a_browser(host, url):
    assert list_urls(ServeOptions(host=host, token=TOKEN)) == [url]


@pytest.mark.parametrize(
    ("host", "address", "urls"),
    [
        ("0.0.0.0", "192.168.1.5", ["http://127.0.0.1:8000/", "http://192.168.1.5:8000/", "http://reader:8000/"]),
        ("::", "fd00::5", ["http://[::1]:8000/", "http://[fd00::5]:8000/", "http://reader:8000/"]),
        ("0.0.0.0", None, ["http://127.0.0.1:8000/", "http://reader:8000/"]),
    ],
)
def test_a_server_in_all_networks_has_urls_for_other_computers(monkeypatch, host, address, urls):
    monkeypatch.setattr(server, "find_network_address", {host: address}.get)
    options = ServeOptions(host=host, token=TOKEN, own_names=("reader", "reader.example.org"))
    assert list_urls(options) == urls


def test_the_names_and_the_address_of_this_computer_are_found(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "reader")
    monkeypatch.setattr(socket, "getfqdn", lambda: "reader.example.org")
    assert list_own_names("0.0.0.0") == ("reader", "reader.example.org") and list_own_names("127.0.0.1") == ()
    address = find_network_address("0.0.0.0")
    assert address is None or (is_ip_address(address) and not is_loopback(address))
    monkeypatch.setitem(server.OUTSIDE_ADDRESSES, socket.AF_INET, "127.0.0.1")
    assert find_network_address("0.0.0.0") is None, "other computers cannot reach it"


def test_a_server_in_all_networks_is_reached_by_the_name_of_this_computer(monkeypatch):
    monkeypatch.setattr(server, "list_own_names", lambda host: (f"reader-of-{host}",))
    received = []
    monkeypatch.setattr(server, "make_app", lambda model, options, worker: received.append(options))
    monkeypatch.setattr(server._Server, "run", lambda self, sockets: None)
    with open_socket("127.0.0.1", 0) as listening:
        server.serve_model(make_served_model(), ServeOptions(host="0.0.0.0", token=TOKEN), listening, print)
    assert received[0].own_names == ("reader-of-0.0.0.0",)
