"""Multipart requests: limits, malformed bodies, damaged files, and no file on the disk."""

import gc
import random
import tempfile
import time

import pytest
from mutated_files import IDENTITY, draw_mutants
from served_models import make_client, make_fields, make_png_bytes, make_served_model

from fastcxr.data.imaging.memory import FileInMemory
from fastcxr.serve.uploads import UploadReader, shorten_name

PNG = make_png_bytes()
FILE = ("a.png", PNG)
BOUNDARY = "multipart/form-data; boundary=x"


def make_part(name: str = "files", content: bytes = PNG, disposition: str | None = None) -> bytes:
    """Return a part of a multipart body with the boundary x."""
    disposition = disposition or f'form-data; name="{name}"; filename="a.png"'
    return b"--x\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


def get_error(answer) -> str:
    assert "\n" not in answer.json()["error"]
    return answer.json()["error"]


@pytest.mark.parametrize(
    ("files", "limits", "status", "text"),
    [
        ([FILE, FILE], {"max_files": 2}, 200, ""),
        ([FILE, FILE, FILE], {"max_files": 2}, 413, "more than 2 files"),
        ([FILE], {"max_file_bytes": len(PNG)}, 200, ""),
        ([FILE], {"max_file_bytes": len(PNG) - 1}, 413, "the file has more than"),
        ([("a.png", bytes(5000))], {"max_request_bytes": 5000}, 413, "the request has more than 0.005 MB"),
    ],
)
def test_a_request_beyond_a_limit_is_rejected(files, limits, status, text):
    answer = make_client(**limits).post("/predict", files=make_fields(*files))
    assert answer.status_code == status
    assert status == 200 or (text in get_error(answer) and answer.json()["code"] == "E503")


def test_the_stated_length_is_checked_before_the_body_is_parsed():
    headers = {"Content-Type": BOUNDARY, "Content-Length": "999999999999"}
    answer = make_client().post("/predict", content=b"--x", headers=headers)
    assert answer.status_code == 413


def test_the_bytes_of_a_body_without_length_are_counted():
    def send():
        yield make_part(content=b"")[:-2]
        for _ in range(100):
            yield bytes(1000)

    answer = make_client(max_request_bytes=50_000).post("/predict", content=send(), headers={"Content-Type": BOUNDARY})
    assert answer.status_code == 413 and "more than 0.05 MB" in get_error(answer)


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/x-www-form-urlencoded", "text/plain", "", "image/png"]
)
def test_another_content_type_is_rejected(content_type):
    answer = make_client().post("/predict", content=PNG, headers={"Content-Type": content_type})
    assert answer.status_code == 415 and "expected 'multipart/form-data'" in get_error(answer)


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        ("multipart/form-data", make_part(), "no boundary"),
        ("multipart/form-data; boundary=" + "x" * 500, make_part(), "boundary"),
        (BOUNDARY, b"", "incomplete"),
        (BOUNDARY, b"not multipart", "not valid multipart"),
        (BOUNDARY, make_part(), "incomplete"),
        (BOUNDARY, make_part()[:40], "incomplete"),
        (BOUNDARY, b"--x--\r\n", "no file in the field 'files'"),
        (
            BOUNDARY,
            make_part(disposition='form-data; name="files"; filename=""', content=b"") + b"--x--\r\n",
            "no file in",
        ),
        (BOUNDARY, make_part("file") + b"--x--\r\n", "the file field 'file' is unknown"),
        (BOUNDARY, make_part(disposition='form-data; name="files"') + b"--x--\r\n", "the text field 'files'"),
        (BOUNDARY, make_part(disposition='form-data; filename="a.png"') + b"--x--\r\n", "a part of the request has no"),
        (BOUNDARY, make_part(disposition="attachment") + b"--x--\r\n", "a part of the request has no name"),
        (BOUNDARY, b"--x\r\n\r\nabc\r\n--x--\r\n", "a part of the request has no name"),
        (BOUNDARY, b"--x\r\n" + b"A" * 100_000 + b": 1\r\n\r\n\r\n--x--\r\n", "not valid multipart"),
        (BOUNDARY, b"--x\r\n" + b"A: 1\r\n" * 10_000 + b"\r\n\r\n--x--\r\n", "not valid multipart"),
    ],
)
def test_a_malformed_request_is_rejected_in_one_line(content_type, body, text):
    answer = make_client().post("/predict", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == 400, answer.text
    assert text in get_error(answer) and answer.json()["code"] == "E504"


def test_a_text_field_has_a_limit():
    answer = make_client().post("/saliency", files=make_fields(FILE), data={"label": "x" * 2000})
    assert answer.status_code == 413 and "more than 1,000 bytes" in get_error(answer)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("../../etc/passwd", "passwd"),
        (r"C:\scans\a.dcm", "a.dcm"),
        ("/a.png", "a.png"),
        ("x" * 300 + ".png", "x" * 251 + ".png"),
        ("Thorax ä.png", "Thorax ä.png"),
        ("folder/", ""),
    ],
)
def test_a_name_has_no_folders(given, expected):
    assert shorten_name(given) == expected


@pytest.mark.parametrize("name", ["ä 中文.png", "a\x1b[31m.png", "a\x00.png", "cohort.h5#17", "1.2.840.113619", "."])
def test_any_name_of_a_valid_file_is_accepted(name):
    content = make_part(disposition=f'form-data; name="files"; filename="{name}"') + b"--x--\r\n"
    answer = make_client().post("/predict", content=content, headers={"Content-Type": BOUNDARY})
    assert answer.status_code == 200
    assert [(row["path"], row["error"]) for row in answer.json()["predictions"]] == [(name, "")]


def test_a_name_that_is_not_utf_8_is_read_as_latin_1():
    content = make_part().replace(b"a.png", b"\xe4.png") + b"--x--\r\n"
    answer = make_client().post("/predict", content=content, headers={"Content-Type": BOUNDARY})
    assert answer.json()["predictions"][0]["path"] == "ä.png"


@pytest.fixture
def no_disk(temporary, monkeypatch):
    """Fail if a temporary file is made, and return the folder of temporary files."""

    def fail(*arguments, **options):
        raise AssertionError("a temporary file was made")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp", "mkdtemp"):
        monkeypatch.setattr(tempfile, name, fail)
    return temporary


def test_large_uploads_are_not_written_to_a_disk(no_disk, monkeypatch):
    written, client, large = [], make_client(), PNG + bytes(3_000_000)

    def record(file, mode="r", *arguments, _open=open, **options):
        written.extend([file] if set(mode) & set("wax+") else [])
        return _open(file, mode, *arguments, **options)

    monkeypatch.setattr("builtins.open", record)
    monkeypatch.setattr("io.open", record)
    answer = client.post("/predict", files=make_fields(("a.png", large), ("b.dcm", large), ("c.png", PNG)))
    assert answer.json()["n_unreadable"] == 1  # b.dcm is no DICOM file
    assert written == [] and list(no_disk.iterdir()) == []


def test_no_upload_stays_in_memory_after_its_request():
    model = make_served_model()
    client = make_client(model, max_files=2)
    part = make_part(content=PNG + bytes(100_000))
    bodies = [part + b"--x--\r\n", part + b"--x- damaged", part, part * 3 + b"--x--\r\n"]
    codes = []
    gc.collect()
    gc.disable()  # the collector runs rarely in the command
    try:
        for path in ("/predict", "/saliency"):
            codes += [
                client.post(path, content=body, headers={"Content-Type": BOUNDARY}).status_code for body in bodies
            ]
        model.scorer.score = lambda images: 1 / 0
        codes.append(client.post("/predict", content=bodies[0], headers={"Content-Type": BOUNDARY}).status_code)
        for _ in range(100):  # the thread drops a job after the answer: on a busy machine a moment later
            found = [one for one in gc.get_objects() if type(one) in (FileInMemory, UploadReader)]
            if not found:
                break
            time.sleep(0.02)
    finally:
        gc.enable()
    assert codes == [200, 400, 400, 413, 200, 400, 400, 413, 500]
    assert found == []


def test_damaged_files_are_rows_and_the_server_keeps_working(tmp_path, no_disk):
    client, dice = make_client(make_served_model()), random.Random(5)
    (tmp_path / "mutants").mkdir()
    files = [(path.name, path.read_bytes()) for path in draw_mutants(tmp_path / "mutants", 40, seed=3)]
    first = client.post("/predict", files=make_fields(FILE)).json()
    n_unreadable = 0
    for start in range(0, len(files), 10):
        answer = client.post("/predict", files=make_fields(*files[start : start + 10]))
        assert answer.status_code == 200 and IDENTITY not in answer.text
        rows = answer.json()["predictions"]
        n_unreadable += sum(row["error"] != "" for row in rows)
        assert all(row["error"] == "" or row["error"].startswith("FCX-E1") for row in rows)
    assert 10 < n_unreadable < 40
    body = b"".join(make_part(content=content) for _, content in files[:5]) + b"--x--\r\n"
    for _ in range(30):  # damage to the body itself
        start = dice.randrange(len(body))
        changed = body[:start] + dice.randbytes(dice.choice([0, 1, 8])) + body[start + dice.choice([0, 1, 64, 5000]) :]
        answer = client.post("/predict", content=changed, headers={"Content-Type": BOUNDARY})
        assert answer.status_code in (200, 400), answer.text
    assert client.post("/predict", files=make_fields(FILE)).json() == first
    assert list(no_disk.iterdir()) == []
