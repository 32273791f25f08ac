"""Tests for sniff.py."""

import logging
import os
import socket
import threading
import warnings
from pathlib import Path

import pytest

from fastcxr.data.imaging import sniff
from fastcxr.data.imaging.sniff import (
    Remarks,
    detect_foreign_content,
    detect_format,
    format_remarks,
    make_content_error,
    may_be_dicom,
    open_file,
    suppress_decoder_warnings,
    warn_once,
)
from fastcxr.errors import ImageError


def read_error(path) -> ImageError:
    with pytest.raises(ImageError) as caught, open_file(path):
        pass
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_fifo_is_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    error = read_error(tmp_path / "x.png")
    assert error.code == "E112"
    assert "a FIFO, not a file. Remove it from the list" in str(error)


def test_a_folder_a_device_and_a_socket_are_refused(tmp_path, monkeypatch):
    assert "a folder, not a file" in str(read_error(tmp_path))
    assert "a device, not a file" in str(read_error("/dev/zero"))
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most about 100 characters
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("x.png")
        assert "a socket, not a file" in str(read_error("x.png"))


def test_missing_files_and_broken_links_are_refused(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path / "link.png", tmp_path / "gone.png", tmp_path / "file" / "a.png", "a\0b.png"):
        error = read_error(path)
        assert error.code == "E113"
        assert "Check the name" in str(error)


def test_circular_links_and_long_names_are_refused(tmp_path):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert "Check the disk and the name" in str(read_error(tmp_path / "loop.png"))
    assert read_error(tmp_path / ("x" * 300)).code == "E113"


def test_the_error_for_a_file_without_permission_states_the_fix(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"x")

    def deny(self, *_):  # root has all permissions
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)
    assert "no permission to read it. Grant the read permission (chmod +r)" in str(read_error(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"GIF89a\x10\0", "GIF"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP"),
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"\0\0\0\x18ftypmp42", "video"),
        (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
        (b"PK\x03\x04\x14\0", "ZIP"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x5c\x01\0\0" + bytes(340) + b"n+1\0", "NIfTI"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><html>", "HTML"),
        (b"<!-- saved --><html lang=en>", "HTML"),
        (b"<?xml version='1.0'?>\n<svg xmlns=", "SVG"),
        (b"<?xml version='1.0'?>\n<a/>", "XML"),
        (b"path,label\na.png,covid\n", "text"),
        ("Größe".encode(), "text"),
        ("Größe".encode()[:3], "text"),
        ("text".encode("utf-16"), "text"),
        (bytes(64), "nothing but zeros"),
        (b"\x01\x02\x03\xff\xfe\x07", None),
    ],
)
def test_the_format_of_foreign_content_is_detected(head, name):
    assert detect_foreign_content(head) == name
    assert detect_format(head) is None


def test_dicom_is_detected_behind_a_tiff_header():
    assert detect_format(b"II*\0" + bytes(124) + b"DICM") == "DICOM"


def test_a_file_without_signature_may_be_dicom_only_with_a_suitable_name():
    old = b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100"
    assert may_be_dicom("a.dcm", old)
    assert may_be_dicom("1.2.840.113619.2.5", old)
    assert may_be_dicom("IM0001", old)
    assert not may_be_dicom("a.png", old)
    assert not may_be_dicom("IM0001", b"some text")
    assert not may_be_dicom("IM0001", b"")


def test_warnings_of_decoders_are_suppressed_in_all_threads_and_others_are_not():
    before = list(warnings.filters)
    both = threading.Barrier(2, timeout=10)

    def decode():
        with suppress_decoder_warnings():
            both.wait()
            warnings.warn_explicit("patient ZZTESTNAME", UserWarning, "reader.py", 1, module="pydicom.values")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(target=decode)
        thread.start()
        decode()
        thread.join()
        warnings.warn_explicit("own warning", UserWarning, "a.py", 1, module="fastcxr.data")
    assert [str(warning.message) for warning in caught] == ["own warning"]
    assert warnings.filters == before
    assert not logging.getLogger("pydicom").disabled


def test_warn_once_logs_only_the_first_file(monkeypatch, caplog):
    monkeypatch.setattr(sniff, "_warned_codes", set())
    for name in ("a.png", "b\n.png"):
        warn_once("W202", name, "only black and white pixels")
    assert len(caplog.records) == 1
    assert "FCX-W202 'a.png'" in caplog.text


def test_remarks_are_the_code_and_the_first_clause_of_each_warning_in_one_cell():
    texts = {
        "W211": "the file states no bit depth; read with 12 bits",
        "W202": "only black. Use the original",
        "W1": "a.",
    }
    cell = format_remarks(Remarks(texts))
    assert cell == "FCX-W1 a; FCX-W202 only black; FCX-W211 the file states no bit depth"
    assert format_remarks(Remarks()) == ""


def test_an_unknown_suffix_is_not_quoted_because_it_may_be_a_name():
    assert "(the file name has an unknown suffix)" in make_content_error("ZZDOE.ZZJOHN", b"text").problem
    assert "(the file name ends in .jpg)" in make_content_error("a.jpg", b"text").problem
    assert "(the file name has no suffix)" in make_content_error("a", b"text").problem
