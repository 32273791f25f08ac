"""A file is written whole or not at all."""

import errno
import os
import stat
from contextlib import nullcontext

import pytest

from fastcxr.errors import OutputError, StorageError
from fastcxr.io.files import atomic_file, atomic_write, compute_sha256, read_json, write_json


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    atomic_write(tmp_path / "a.txt", "old")
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="No space left on device.*Free some room"):
        atomic_write(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_json_that_is_too_long_is_not_even_read(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", list(range(100)))
    monkeypatch.setattr("fastcxr.io.files.MAX_JSON_BYTES", 99)
    with pytest.raises(ValueError, match="over the limit of 99"):
        read_json(tmp_path / "a.json")


def test_a_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        atomic_write(tmp_path / "nowhere" / "a.txt", "new")


def test_a_draft_takes_its_place_only_when_the_block_ends_well(tmp_path):
    with atomic_file(tmp_path / "a.h5") as draft:
        draft.write_bytes(b"all")
        assert not (tmp_path / "a.h5").exists()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.h5", b"all")]
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "b.h5"):
        raise KeyboardInterrupt
    with pytest.raises(StorageError, match="No space left.*Free some room"), atomic_file(tmp_path / "b.h5"):
        raise OSError(28, "No space left on device")
    with pytest.raises(OutputError, match="there already. Choose another name"), atomic_file(tmp_path / "a.h5"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def write_large(path, content):
    with atomic_file(path) as draft:
        draft.write_text(content)


@pytest.mark.parametrize("write", [atomic_write, write_large])
def test_a_file_has_the_mode_of_any_new_file_and_the_umask_of_the_process_never_changes(tmp_path, monkeypatch, write):
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr("os.umask", None)
            write(tmp_path / "a.txt", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


@pytest.mark.parametrize("write", [atomic_write, write_large])
def test_the_folder_is_written_to_disk_once_the_file_has_its_name(tmp_path, monkeypatch, write):
    synced, fsync = [], os.fsync

    def record(handle):
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        synced.append((is_folder, (tmp_path / "a.txt").exists()))
        fsync(handle)

    monkeypatch.setattr("os.fsync", record)
    write(tmp_path / "a.txt", "new")
    assert synced == [(False, False), (True, True)]


@pytest.mark.parametrize(("error", "is_reported"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_cannot_sync_folders_is_no_error_and_a_failing_disk_is(
    tmp_path, monkeypatch, error, is_reported
):
    def fail(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StorageError) if is_reported else nullcontext():
        atomic_write(tmp_path / "a.txt", "new")


def test_json_refuses_what_is_no_number(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"auroc": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_checksum_is_that_of_the_bytes(tmp_path):
    atomic_write(tmp_path / "a", b"abc")
    assert compute_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
