"""Latency, throughput and memory of `fastcxr serve`, after hundreds of damaged uploads, and what it writes to the disk.

    python benchmarks/serve.py FOLDER --images DIR [--hostile 500] [--good 1000] [--clients 8] [--latency 200]

FOLDER is a run or an export, DIR a folder of images. The server is started in its own process. After a first part of
the good uploads, damaged files of every format, damaged multipart bodies and damaged requests are sent, then the good
uploads by several clients at the same time. The probabilities of each answer are compared with `fastcxr predict`.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
from mutated_files import draw_mutants

BOUNDARY = "fastcxr-benchmark"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
N_SETTLED = 100  # good uploads before the memory is measured for the first time


def make_body(name: str, content: bytes) -> bytes:
    """Return a multipart body with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


class Server:
    """A server in its own process, with an empty folder for temporary files."""

    def __init__(self, folder: str, temporary: Path):
        command = [sys.executable, "-W", "ignore", "-m", "fastcxr", "serve", folder, "--port", "0", "--quiet"]
        environment = os.environ | {"TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}  # libtiff prints lines on damaged files
        self.temporary, start = temporary, time.perf_counter()
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self.url = urlsplit(self.process.stdout.readline().split()[-1])
        self.start_seconds = time.perf_counter() - start
        self.names_before, self.bytes_before = self.list_temporary(), self.read_written_bytes()

    def connect(self) -> HTTPConnection:
        return HTTPConnection(self.url.hostname, self.url.port, timeout=120)

    def read_memory(self) -> float:
        """Return the resident memory [MB]."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def read_processor_seconds(self) -> float:
        """Return the processor time of all threads, which depends less on other programs than the latency."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def read_written_bytes(self) -> int:
        """Return the bytes that the process has caused to be written to a disk."""
        return int(Path(f"/proc/{self.process.pid}/io").read_text().split("\nwrite_bytes:")[1].split()[0])

    def list_temporary(self) -> set[str]:
        """Return the files and folders in the folder for temporary files; torch makes an empty one."""
        return {str(path.relative_to(self.temporary)) for path in self.temporary.rglob("*")}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def post(connection: HTTPConnection, body: bytes, content_type: str = CONTENT_TYPE) -> tuple[int, dict]:
    connection.request("POST", "/predict", body, {"Content-Type": content_type})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def read_probabilities(rows: list[dict]) -> np.ndarray:
    return np.array([[row[name] for name in row if name.startswith("prob_")] for row in rows], dtype=float)


def predict_with_command(folder: str, files: list[Path]) -> np.ndarray:
    """Return the probabilities of `fastcxr predict --json`, shape (n, k)."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "fastcxr",
        "predict",
        folder,
        *map(str, files),
        "--json",
        "--quiet",
    ]
    return read_probabilities(
        json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["predictions"]
    )


def draw_hostile_bodies(count: int, good: bytes, seed: int) -> Iterator[tuple[str, bytes, str]]:
    """Yield kind, body and content type: damaged files, damaged multipart bodies, and other content types."""
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(draw_mutants(Path(folder), count, seed)):
            body = make_body(path.name, path.read_bytes())
            if number % 5 < 3:
                yield "file", body, CONTENT_TYPE
            elif number % 5 == 3:
                start = dice.randrange(len(body))
                yield "body", body[:start] + dice.randbytes(8) + body[start + dice.choice([0, 8, 999]) :], CONTENT_TYPE
            else:
                kind = dice.choice(["image/png", "multipart/form-data", "", "multipart/form-data; boundary=other"])
                yield "content type", dice.choice([good, body, b"", bytes(100_000)]), kind


def send_hostile(server: Server, count: int, good: bytes) -> Counter:
    """Send damaged requests, some of them cut off, and return the number of answers by kind and status."""
    counts, dice = Counter(), random.Random(1)
    for kind, body, content_type in draw_hostile_bodies(count, good, seed=11):
        if dice.random() < 0.1:  # the client leaves before the end of the body
            with socket.create_connection((server.url.hostname, server.url.port)) as client:
                head = f"POST /predict HTTP/1.1\r\nHost: {server.url.netloc}\r\nContent-Type: {CONTENT_TYPE}\r\n"
                client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // 2])
            counts[kind, "left"] += 1
            continue
        connection = server.connect()
        try:
            counts[kind, post(connection, body, content_type)[0]] += 1
        except (HTTPException, OSError) as error:
            counts[kind, type(error).__name__] += 1
        connection.close()
    return counts


def send_good(server: Server, bodies: list[bytes], n_uploads: int, n_clients: int) -> tuple[np.ndarray, float]:
    """Return the probabilities, shape (n_uploads, k), and the seconds of all uploads by several clients."""

    def run_client(first: int) -> dict[int, dict]:
        connection, found = server.connect(), {}
        for number in range(first, n_uploads, n_clients):
            status, answer = post(connection, bodies[number % len(bodies)])
            assert status == 200, answer
            found[number] = answer["predictions"][0]
        return found

    start = time.perf_counter()
    with ThreadPoolExecutor(n_clients) as pool:
        rows = {number: row for part in pool.map(run_client, range(n_clients)) for number, row in part.items()}
    seconds = time.perf_counter() - start
    return read_probabilities([rows[number] for number in range(n_uploads)]), seconds


def measure_latency(server: Server, bodies: list[bytes], n_uploads: int) -> np.ndarray:
    """Return the milliseconds of each upload of one client."""
    connection, found = server.connect(), []
    for number in range(n_uploads):
        start = time.perf_counter()
        status, _ = post(connection, bodies[number % len(bodies)])
        found.append(1000 * (time.perf_counter() - start))
        assert status == 200
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--images", type=Path, required=True)
    for name, value in (("hostile", 500), ("good", 1000), ("clients", 8), ("latency", 200)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    files = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    expected = predict_with_command(options.folder, files)
    bodies = [make_body(path.name, path.read_bytes()) for path in files]
    with tempfile.TemporaryDirectory() as temporary:
        server = Server(options.folder, Path(temporary))
        connection = server.connect()
        first = [time.perf_counter(), post(connection, bodies[0]), time.perf_counter()]
        send_good(server, bodies, N_SETTLED, options.clients)
        memory = [server.read_memory()]
        counts = send_hostile(server, options.hostile, bodies[0])
        memory.append(server.read_memory())
        probability, seconds = send_good(server, bodies, options.good, options.clients)
        memory.append(server.read_memory())
        processor_seconds = -server.read_processor_seconds()
        latency = measure_latency(server, bodies, options.latency)
        processor_seconds += server.read_processor_seconds()
        n_written = server.read_written_bytes() - server.bytes_before
        names = server.list_temporary() - server.names_before
        exit_code = server.stop()
    difference = np.abs(probability - expected[np.arange(options.good) % len(files)]).max()
    print(f"start {server.start_seconds:.1f} s, first answer {1000 * (first[2] - first[0]):.0f} ms")
    print("hostile:", ", ".join(f"{kind} {status} {n}" for (kind, status), n in sorted(counts.items(), key=str)))
    print(f"good: {options.good} uploads, largest difference from predict {difference:.1e}")
    print(f"throughput with {options.clients} clients: {options.good / seconds:.1f} images/s")
    print(f"latency of one client [ms]: median {np.median(latency):.0f}, 95 % below {np.quantile(latency, 0.95):.0f}")
    print(f"processor time [ms]: {1000 * processor_seconds / options.latency:.0f} for each upload of one client")
    first_text, hostile_text, good_text = (f"{value:.0f} ({value / memory[0] - 1:+.1%})" for value in memory)
    print(f"memory [MB]: {first_text}; after hostile uploads {hostile_text}; after good uploads {good_text}")
    print(f"temporary files: {names or 'none'}; bytes written to a disk: {n_written}; exit code {exit_code}")


if __name__ == "__main__":
    main()
