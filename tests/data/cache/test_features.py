"""Tests for features.py"""

import errno
import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from fastcxr.data.cache import features
from fastcxr.data.cache.features import (
    clear_feature_cache,
    find_feature_cache_dir,
    list_feature_files,
    open_feature_array,
)
from fastcxr.data.cache.quota import IMAGE_QUOTA_FRACTION

pytestmark = pytest.mark.usefixtures("cache")
SHAPE = (2, 10, 3)


def fill(name: str = "a", shape: tuple[int, ...] = SHAPE, ago: float = 0.0) -> None:
    with open_feature_array(name, shape) as (array, is_new):
        assert is_new
        array[:] = np.arange(array.size).reshape(shape)
    if ago:
        os.utime(file_of(name), (time.time() - ago,) * 2)


def file_of(name: str) -> Path:
    return next(file for file in list_feature_files() if file.name.startswith(f"{name}-"))


def names() -> list[str]:
    return [bank.stem.partition("-")[0] for bank in list_feature_files()]


def test_a_bank_that_was_filled_is_there_the_next_time():
    fill()
    with open_feature_array("a", SHAPE) as (array, is_new):
        assert not is_new
        assert array.dtype == np.float32
        assert np.array_equal(array, np.arange(60).reshape(SHAPE))
    with open_feature_array("b", SHAPE) as (_, is_new):
        assert is_new


def test_a_block_that_does_not_end_well_keeps_nothing():
    with pytest.raises(KeyboardInterrupt), open_feature_array("a", SHAPE):
        raise KeyboardInterrupt
    assert list(find_feature_cache_dir().iterdir()) == []


def test_nobody_sees_a_bank_before_it_is_full():
    with open_feature_array("a", SHAPE):
        assert list_feature_files() == []
    assert names() == ["a"]


@pytest.mark.parametrize(
    "content",
    [b"", b"noise", b"\x93NUMPY\x01\x00", b"PK\x03\x04zip", b"\x80\x04pickle", "cut", "half", "double", "one bit"],
)
def test_a_file_that_is_no_such_bank_is_made_anew(content):
    fill()
    file = file_of("a")
    if content == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif content == "half":
        np.save(file, np.zeros((2, 5, 3), np.float32))
    elif content == "double":
        np.save(file, np.zeros(SHAPE))
    elif content == "one bit":
        changed = bytearray(file.read_bytes())
        changed[-2] ^= 1
        file.write_bytes(changed)
    else:
        file.write_bytes(content)
    fill()
    with open_feature_array("a", SHAPE) as (array, is_new):
        assert not is_new and array[-1, -1, -1] == 59
    assert names() == ["a"], "the damaged one is gone"


def assert_not_kept(caplog, words: str, level: str = "WARNING") -> None:
    assert [(r.levelname, "features are not cached" in r.message) for r in caplog.records][:1] == [(level, True)]
    assert words in caplog.text
    assert not find_feature_cache_dir().is_dir() or list(find_feature_cache_dir().iterdir()) == []


def assert_passing(caplog, temporary: Path, words: str, level: str = "WARNING") -> None:
    caplog.set_level(logging.INFO, "fastcxr")
    fill()
    assert len(caplog.records) == 1
    assert_not_kept(caplog, words, level)
    with open_feature_array("a", SHAPE) as (array, is_new):
        assert not is_new and array[-1, -1, -1] == 59
    assert len(list(temporary.glob("fastcxr-*/features/a-*.npy"))) == 1


def assert_in_memory(caplog, temporary: Path, words: str) -> None:
    with open_feature_array("a", SHAPE) as (array, is_new):
        assert is_new and array.shape == SHAPE and array.dtype == np.float32
        assert not isinstance(array, np.memmap)
        array[:] = 1
    assert_not_kept(caplog, words)
    assert [r.levelname for r in caplog.records] == ["WARNING", "WARNING"] and "are in memory" in caplog.text
    assert list(temporary.glob("*/features/*")) == []


def test_with_a_limit_of_nothing_the_bank_goes_with_the_process(caplog, monkeypatch, temporary):
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0")
    assert_passing(caplog, temporary, "FASTCXR_CACHE_GB is 0", "INFO")


def test_a_bank_over_the_limit_goes_with_the_process_which_is_said(caplog, monkeypatch, temporary):
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0.00000001")
    assert_passing(caplog, temporary, "may be used")


def test_where_the_folder_cannot_be_made_the_bank_goes_with_the_process_which_is_said(caplog, cache, temporary):
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file in its place")
    assert_passing(caplog, temporary, "Not a directory" if os.name == "posix" else "")


def test_where_no_folder_can_be_written_the_bank_is_in_memory_which_is_said(caplog, monkeypatch, temporary):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    find_feature_cache_dir().mkdir(parents=True)
    monkeypatch.setattr(np.lib.format, "open_memmap", refuse)
    assert_in_memory(caplog, temporary, "Permission denied")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_is_found_before_the_bank_is_filled(caplog, monkeypatch, temporary, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    assert_in_memory(caplog, temporary, os.strerror(number))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="a call of POSIX")
def test_a_bank_has_its_room_on_the_disk_before_it_is_mapped():
    with open_feature_array("a", (1, 1000, 300)) as (array, _):
        assert os.stat(array.filename).st_blocks * 512 >= array.nbytes


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_a_system_that_cannot_take_room_beforehand_keeps_banks_all_the_same(caplog, monkeypatch, number):
    def lack(*_):
        raise OSError(number, "not here")

    if number:
        monkeypatch.setattr(os, "posix_fallocate", lack, raising=False)
    else:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    fill()
    assert names() == ["a"] and caplog.text == ""


def test_a_bank_that_may_only_be_read_is_read(monkeypatch, caplog):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    fill()
    monkeypatch.setattr(Path, "touch", refuse)
    with open_feature_array("a", SHAPE) as (array, is_new):
        assert not is_new and array[0, 0, 1] == 1
    assert caplog.text == ""


def test_an_error_in_the_block_is_the_blocks_own():
    fill()
    for name in ("a", "b"):
        with pytest.raises(OSError, match="of the block"), open_feature_array(name, SHAPE):
            raise OSError("of the block")


def test_the_banks_used_longest_ago_make_room(monkeypatch):
    for name, ago in (("a", 300), ("b", 100), ("c", 200)):
        fill(name, ago=ago)
    each = list_feature_files()[0].stat().st_size
    monkeypatch.setenv("FASTCXR_CACHE_GB", str(3.5 * each / (1 - IMAGE_QUOTA_FRACTION) / 1e9))
    fill("d", ago=50)
    assert names() == ["d", "b", "c"]
    with open_feature_array("c", SHAPE):
        pass
    assert names()[0] == "c", "opening is using"
    fill("e")
    assert sorted(names()) == ["c", "d", "e"]


def test_what_others_keep_does_not_count_against_the_free_disk(monkeypatch):
    fill("a")
    size = list_feature_files()[0].stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10 * size, 0, 3 * size))
    fill("b")
    assert sorted(names()) == ["a", "b"]


def test_half_of_the_free_disk_is_the_most(monkeypatch, caplog, temporary):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 600, 400))
    assert_in_memory(caplog, temporary, "may be used")


def test_what_a_killed_process_left_half_filled_is_removed_and_what_is_being_filled_stays():
    fill()
    for name, ago in (("a.killed", 2 * features.ABANDONED_SECONDS), ("a.busy", 60)):
        (find_feature_cache_dir() / name).write_bytes(b"draft")
        os.utime(find_feature_cache_dir() / name, (time.time() - ago,) * 2)
    os.utime(file_of("a"), (1, 1))
    fill("b")
    assert names() == ["b", "a"]
    assert [file.name for file in find_feature_cache_dir().iterdir() if file not in list_feature_files()] == ["a.busy"]


def test_clearing_says_what_it_freed_and_who_has_one_open_keeps_it():
    fill()
    size = list_feature_files()[0].stat().st_size
    with open_feature_array("a", SHAPE) as (array, _):
        assert clear_feature_cache() == size
        assert array[-1, -1, -1] == 59
    assert list_feature_files() == []
    assert clear_feature_cache() == 0


def test_a_bank_cleared_while_it_is_filled_serves_whoever_fills_it(caplog):
    caplog.set_level(logging.WARNING, "fastcxr")
    with open_feature_array("a", SHAPE) as (array, _):
        clear_feature_cache()
        array[:] = 7
    assert (array == 7).all()
    assert "features are not cached for the next run" in caplog.text


def test_banks_are_for_their_owner_alone():
    fill()
    assert find_feature_cache_dir().stat().st_mode & 0o077 == 0


def test_features_of_another_format_are_not_read_but_listed_and_cleared(monkeypatch):
    fill()
    monkeypatch.setattr(features, "FEATURE_CACHE_FORMAT", 99)
    fill()  # they are new to the other format
    old = find_feature_cache_dir() / f"{'0' * 32}-{'0' * 8}.npy"  # a name of version 0.1
    np.save(old, np.zeros(SHAPE, np.float32))
    assert len(list_feature_files()) == 3
    assert clear_feature_cache() > 0
    assert list_feature_files() == []
