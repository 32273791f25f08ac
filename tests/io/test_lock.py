"""Ownership of an output folder: one owner at a time, no file left behind, on Windows too."""

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
    """Refuse what Windows refuses: to remove an open file, and to read the first byte of a locked one."""
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
def test_the_lock_file_is_removed_where_an_open_file_cannot_be(tmp_path, windows):
    with directory_lock(tmp_path):
        assert is_locked(tmp_path)
    assert not list(tmp_path.iterdir())


@needs_proc
def test_the_owner_is_named_where_a_locked_byte_cannot_be_read(tmp_path, windows):
    with (
        directory_lock(tmp_path),
        pytest.raises(BusyError, match=f"process {os.getpid()} is writing into this folder. Wait until it ends"),
        directory_lock(tmp_path),
    ):
        pass


@needs_proc
def test_the_lock_file_of_the_next_owner_stays_where_an_open_file_cannot_be_removed(tmp_path, windows, monkeypatch):
    close, later = os.close, []

    def close_and_pass_on(descriptor):
        close(descriptor)
        monkeypatch.setattr(os, "close", close)
        later.append(directory_lock(tmp_path))
        later[0].__enter__()

    with directory_lock(tmp_path):
        monkeypatch.setattr(os, "close", close_and_pass_on)
    assert is_locked(tmp_path)
    later[0].__exit__(None, None, None)
    assert not list(tmp_path.iterdir())


def test_a_file_that_its_owner_removed_before_it_was_locked_does_not_count(tmp_path, monkeypatch):
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


def test_many_that_compete_own_the_folder_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PAUSE_SECONDS", 0)
    owners, together = [], []

    def compete(number):
        done = 0
        while done < 30:
            try:
                with directory_lock(tmp_path):
                    owners.append(number)
                    together.append(len(owners))
                    owners.remove(number)
                    done += 1
            except BusyError:
                continue

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1] * 120
    assert not list(tmp_path.iterdir())


def test_a_look_at_a_free_folder_leaves_no_file(tmp_path):
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "missing")
    (tmp_path / LOCK_FILE_NAME).touch()  # of a killed process
    assert not is_locked(tmp_path)
    with directory_lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_look_on_a_disk_without_locks_warns_of_nothing(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.lock_descriptor", refuse)
    with directory_lock(tmp_path):
        assert not is_locked(tmp_path)
    assert len(caplog.records) == 1
    assert not list(tmp_path.iterdir())


def test_a_short_look_of_another_process_does_not_refuse_the_owner(tmp_path, monkeypatch):
    answers = [False, True]
    monkeypatch.setattr("filelock.lock_descriptor", lambda *_, **__: answers.pop(0))
    with directory_lock(tmp_path):
        assert not answers


def test_a_folder_that_is_gone_or_write_protected_is_refused_in_one_line(tmp_path):
    with pytest.raises(OutputError, match="missing: this folder cannot be written to .+ Choose another --out"):
        directory_lock(tmp_path / "missing").__enter__()
