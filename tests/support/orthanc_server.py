"""Orthanc as a PACS on this computer for one test: DICOMweb (STOW-RS, QIDO-RS, WADO-RS) and a DICOM port for storescu.

Orthanc listens on all addresses, and refuses requests from other computers: RemoteAccessAllowed is false for HTTP, and
DicomCheckModalityHost is true for DICOM. It reads no file of /etc/orthanc.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPResponse
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

import pytest

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
HOST, AET, CLIENT_AET = "127.0.0.1", "ORTHANC", "FASTCXR"
START_SECONDS, STOP_SECONDS = 60, 20
OPEN = build_opener(ProxyHandler({})).open  # without the proxy of the user


@dataclass(frozen=True)
class Orthanc:
    """A running server.

    url: of its REST API, which ends with the port; DICOMweb is below /dicom-web.
    dicom_port: of its DICOM server, which accepts the application entity CLIENT_AET from this computer.
    """

    url: str
    dicom_port: int

    def store(self, contents: list[bytes]) -> dict:
        """Store DICOM files in one STOW-RS request; return its answer in DICOM JSON."""
        boundary = uuid.uuid4().hex
        parts = [f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode() + c + b"\r\n" for c in contents]
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        body = b"".join(parts) + f"--{boundary}--\r\n".encode()
        with self._request("studies", headers, body) as answer:
            return json.loads(answer.read())

    def find(self, query: str) -> list[dict]:
        """Return the answer to a QIDO-RS query, such as `instances?Modality=SR`, as DICOM JSON."""
        with self._request(query, {"Accept": "application/dicom+json"}) as answer:
            return json.loads(answer.read())

    def retrieve(self, study: str) -> list[bytes]:
        """Return all DICOM files of a study by WADO-RS, in the transfer syntax in which they were stored."""
        accepted = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        with self._request(f"studies/{study}", {"Accept": accepted}) as answer:
            return split_parts(answer.headers, answer.read())

    def _request(self, path: str, headers: dict[str, str], body: bytes | None = None) -> HTTPResponse:
        return OPEN(Request(f"{self.url}/dicom-web/{path}", body, headers), timeout=60)


def split_parts(headers: Message, body: bytes) -> list[bytes]:
    """Return the parts of a multipart answer without their headers."""
    boundary = b"--" + str(headers.get_param("boundary")).encode()
    parts = body.split(boundary)[1:-1]
    return [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts]


def find_orthanc() -> str:
    """Return the path of the program; skip the test if it or its DICOMweb plugin is not installed."""
    program = shutil.which("Orthanc", path=SEARCH_PATH)
    if program is None:
        pytest.skip("optional program Orthanc is not installed")
    if not PLUGIN.is_file():
        pytest.skip("optional package orthanc-dicomweb is not installed")
    return program


@contextmanager
def start_orthanc(folder: Path) -> Iterator[Orthanc]:
    """Run Orthanc in this block, with all of its files in an empty folder."""
    program, (http_port, dicom_port) = find_orthanc(), find_free_ports(2)
    (folder / "orthanc.json").write_text(json.dumps(make_configuration(folder, http_port, dicom_port)))
    log = folder / "log.txt"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [program, str(folder / "orthanc.json")], stdout=stream, stderr=stream, cwd=folder, start_new_session=True
        )
    try:
        server = Orthanc(f"http://{HOST}:{http_port}", dicom_port)
        wait_for_answer(server, process, log)
        yield server
    finally:
        stop_group(process)


def make_configuration(folder: Path, http_port: int, dicom_port: int) -> dict:
    """Return the configuration: no request from another computer, and all files in the folder."""
    return {
        "Name": "fastcxr test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "TemporaryDirectory": str(folder),
        "HttpPort": http_port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAet": AET,
        "DicomPort": dicom_port,
        "DicomCheckCalledAet": True,
        "DicomCheckModalityHost": True,
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        "DicomModalities": {"client": {"AET": CLIENT_AET, "Host": HOST, "Port": 104}},
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }


def find_free_ports(n_ports: int) -> list[int]:
    """Return different ports that no process uses."""
    sockets = [socket.create_server((HOST, 0)) for _ in range(n_ports)]
    ports = [used.getsockname()[1] for used in sockets]
    for used in sockets:
        used.close()
    return ports


def wait_for_answer(server: Orthanc, process: subprocess.Popen, log: Path) -> None:
    """Wait until the server answers a DICOMweb query."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            server.find("studies")
        except (URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"Orthanc did not start:\n{log.read_text(errors='replace')}")


def stop_group(process: subprocess.Popen) -> None:
    """End the process and those that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:  # it has ended
            process.wait(STOP_SECONDS)
        return
