"""Atomic writes, strict JSON and checksums."""

import errno
import os
import stat
from contextlib import nullcontext

import pytest

from fastcxr.errors import OutputError, StorageError
from fastcxr.io.files import (
    atomic_file,
    atomic_folder,
    atomic_write,
    compute_sha256,
    read_json,
    validate_writable,
    write_json,
)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_file(tmp_path, monkeypatch):
    atomic_write(tmp_path / "a.txt", "old")
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(StorageError, match="No space left on device.*Free disk space"):
        atomic_write(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_file_that_cannot_be_written_is_found_without_writing_it(tmp_path, monkeypatch):
    atomic_write(tmp_path / "a.npz", "old")
    validate_writable(tmp_path / "a.npz")
    validate_writable(tmp_path / "new.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"] and (tmp_path / "a.npz").read_text() == "old"
    error = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr("pathlib.Path.touch", lambda *args, **kwargs: (_ for _ in ()).throw(error))
    with pytest.raises(OutputError, match=r"a.npz: cannot be written \(Permission denied\). Free disk space"):
        validate_writable(tmp_path / "a.npz")


def test_json_over_the_size_limit_is_not_read(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", list(range(100)))
    monkeypatch.setattr("fastcxr.io.files.MAX_JSON_BYTES", 99)
    with pytest.raises(ValueError, match="over the limit of 99"):
        read_json(tmp_path / "a.json")


def test_a_missing_folder_is_an_error_with_its_name(tmp_path):
    with pytest.raises(OutputError, match="nowhere"):
        atomic_write(tmp_path / "nowhere" / "a.txt", "new")


def test_a_temporary_file_is_renamed_only_if_the_block_succeeds(tmp_path):
    with atomic_file(tmp_path / "a.h5") as temporary:
        temporary.write_bytes(b"all")
        assert not (tmp_path / "a.h5").exists()
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.h5", b"all")]
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "b.h5"):
        raise KeyboardInterrupt
    with pytest.raises(StorageError, match="No space left.*Free disk space"), atomic_file(tmp_path / "b.h5"):
        raise OSError(28, "No space left on device")
    with pytest.raises(OutputError, match="exists already. Choose another name"), atomic_file(tmp_path / "a.h5"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_a_folder_appears_only_if_the_block_succeeds(tmp_path):
    with atomic_folder(tmp_path / "above" / "a") as temporary:
        (temporary / "file").touch()
        assert not (tmp_path / "above" / "a").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["above", "a", "file"]
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "b" / "c"):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["above"], "folders above it are removed too"
    with pytest.raises(StorageError, match="No space left.*Free disk space"), atomic_folder(tmp_path / "b"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not (tmp_path / "b").exists()


def test_an_empty_folder_is_replaced_and_a_folder_with_files_is_kept(tmp_path):
    (tmp_path / "empty").mkdir()
    with atomic_folder(tmp_path / "empty") as temporary:
        (temporary / "file").touch()
    assert (tmp_path / "empty" / "file").is_file()
    with pytest.raises(OutputError, match="not empty. Choose another `folder`"), atomic_folder(tmp_path / "empty"):
        pass
    with pytest.raises(OutputError, match="a file, expected a new folder"), atomic_folder(tmp_path / "empty" / "file"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["empty", "file"]


def write_large(path, content):
    with atomic_file(path) as temporary:
        temporary.write_text(content)


@pytest.mark.parametrize("write", [atomic_write, write_large])
def test_a_file_has_the_mode_of_a_new_file_and_the_umask_never_changes(tmp_path, monkeypatch, write):
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr("os.umask", None)
            write(tmp_path / "a.txt", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


@pytest.mark.parametrize("write", [atomic_write, write_large])
def test_the_folder_is_flushed_to_disk_after_the_file_is_renamed(tmp_path, monkeypatch, write):
    synced, fsync = [], os.fsync

    def record(handle):
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        synced.append((is_folder, (tmp_path / "a.txt").exists()))
        fsync(handle)

    monkeypatch.setattr("os.fsync", record)
    write(tmp_path / "a.txt", "new")
    assert synced == [(False, False), (True, True)]


@pytest.mark.parametrize(("error", "is_reported"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_without_folder_sync_is_accepted_and_a_disk_error_is_reported(
    tmp_path, monkeypatch, error, is_reported
):
    def fail(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(StorageError) if is_reported else nullcontext():
        atomic_write(tmp_path / "a.txt", "new")


def test_write_json_rejects_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"auroc": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_compute_sha256_returns_the_checksum_of_the_content(tmp_path):
    atomic_write(tmp_path / "a", b"abc")
    assert compute_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
