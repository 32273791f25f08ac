"""Tests for orthanc_server.py that need no Orthanc: missing programs, and the parts of an answer."""

from email.message import Message

import pytest
from orthanc_server import find_orthanc, make_configuration, split_parts


@pytest.mark.parametrize("missing", ["Orthanc", "orthanc-dicomweb"])
def test_a_missing_program_skips_the_test_with_the_reason(tmp_path, monkeypatch, missing):
    (tmp_path / "Orthanc").touch(mode=0o755)
    monkeypatch.setattr("orthanc_server.SEARCH_PATH", "" if missing == "Orthanc" else str(tmp_path))
    monkeypatch.setattr("orthanc_server.PLUGIN", tmp_path / "plugin.so")
    with pytest.raises(pytest.skip.Exception, match=f"{missing} is not installed"):
        find_orthanc()


def test_the_parts_of_an_answer_are_its_files():
    headers = Message()
    headers["Content-Type"] = 'multipart/related; type="application/dicom"; boundary=1f'
    files = [b"\r\n\0DICM\r\n", b"--1", b""]
    body = b"".join(b"--1f\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files)
    assert split_parts(headers, body + b"--1f--\r\n") == files


def test_the_server_accepts_this_computer_only(tmp_path):
    configuration = make_configuration(tmp_path, 1, 2)
    assert not configuration["RemoteAccessAllowed"] and configuration["DicomCheckModalityHost"]
    assert not configuration["DicomAlwaysAllowStore"]
    assert [one["Host"] for one in configuration["DicomModalities"].values()] == ["127.0.0.1"]
