"""Lock of an output folder: one owner at a time, and the lock file is removed, also on Windows."""

import errno
import os
import threading
from pathlib import Path

import pytest

from fastcxr.errors import BusyError, OutputError
from fastcxr.io import lock
from fastcxr.io.lock import LOCK_FILE_NAME, directory_lock, is_locked


@pytest.fixture
def windows(monkeypatch):
    """Raise the errors of Windows for removing an open file, and for reading the first byte of a locked one."""
    unlink, read = Path.unlink, os.read

    def unlink_closed(path, missing_ok=False):
        if str(path.resolve()) in open_files():
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))
        unlink(path, missing_ok)

    def read_unlocked(descriptor, count):
        if os.lseek(descriptor, 0, os.SEEK_CUR) == 0:
            raise PermissionError(errno.EACCES, "another process has locked a portion of the file")
        return read(descriptor, count)

    monkeypatch.setattr(Path, "unlink", unlink_closed)
    monkeypatch.setattr(os, "read", read_unlocked)
    monkeypatch.setattr(lock, "PAUSE_SECONDS", 0)


def open_files() -> set[str]:
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    return {os.readlink(link) for link in links if os.path.lexists(link)}


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the open files are listed in /proc")


@needs_proc
def test_the_lock_file_is_removed_if_open_files_cannot_be_removed(tmp_path, windows):
    with directory_lock(tmp_path):
        assert is_locked(tmp_path)
    assert not list(tmp_path.iterdir())


@needs_proc
def test_the_owner_is_named_if_the_locked_byte_cannot_be_read(tmp_path, windows):
    with (
        directory_lock(tmp_path),
        pytest.raises(BusyError, match=f"process {os.getpid()} is writing into this folder. Wait until it ends"),
        directory_lock(tmp_path),
    ):
        pass


@needs_proc
def test_the_lock_file_of_the_next_owner_is_kept_if_open_files_cannot_be_removed(tmp_path, windows, monkeypatch):
    close, next_locks = os.close, []

    def close_and_lock_again(descriptor):
        close(descriptor)
        monkeypatch.setattr(os, "close", close)
        next_locks.append(directory_lock(tmp_path))
        next_locks[0].__enter__()

    with directory_lock(tmp_path):
        monkeypatch.setattr(os, "close", close_and_lock_again)
    assert is_locked(tmp_path)
    next_locks[0].__exit__(None, None, None)
    assert not list(tmp_path.iterdir())


def test_a_lock_file_removed_by_its_owner_before_it_is_locked_is_ignored(tmp_path, monkeypatch):
    owner, try_lock = directory_lock(tmp_path), lock._lock
    owner.__enter__()

    def lock_after_release(descriptor):
        monkeypatch.setattr(lock, "_lock", try_lock)
        owner.__exit__(None, None, None)
        return try_lock(descriptor)

    monkeypatch.setattr(lock, "_lock", lock_after_release)
    with directory_lock(tmp_path):
        assert is_locked(tmp_path)
    assert not list(tmp_path.iterdir())


def test_competing_threads_own_the_folder_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PAUSE_SECONDS", 0)
    owners, n_owners = [], []

    def compete(number):
        done = 0
        while done < 30:
            try:
                with directory_lock(tmp_path):
                    owners.append(number)
                    n_owners.append(len(owners))
                    owners.remove(number)
                    done += 1
            except BusyError:
                continue

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert n_owners == [1] * 120
    assert not list(tmp_path.iterdir())


def test_is_locked_leaves_no_file_in_a_free_folder(tmp_path):
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "missing")
    (tmp_path / LOCK_FILE_NAME).touch()  # of a killed process
    assert not is_locked(tmp_path)
    with directory_lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_is_locked_does_not_warn_on_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.lock_descriptor", refuse)
    with directory_lock(tmp_path):
        assert not is_locked(tmp_path)
    assert len(caplog.records) == 1
    assert not list(tmp_path.iterdir())


def test_a_short_lock_by_is_locked_of_another_process_is_not_an_error(tmp_path, monkeypatch):
    answers = [False, True]
    monkeypatch.setattr("filelock.lock_descriptor", lambda *_, **__: answers.pop(0))
    with directory_lock(tmp_path):
        assert not answers


def test_a_missing_or_write_protected_folder_is_an_error_of_one_line(tmp_path):
    with pytest.raises(OutputError, match="missing: this folder cannot be written to .+ Choose another `folder`"):
        directory_lock(tmp_path / "missing").__enter__()
