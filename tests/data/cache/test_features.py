"""Tests for features.py."""

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
        os.utime(find_file(name), (time.time() - ago,) * 2)


def find_file(name: str) -> Path:
    return next(file for file in list_feature_files() if file.name.startswith(f"{name}-"))


def names() -> list[str]:
    return [file.stem.partition("-")[0] for file in list_feature_files()]


def test_a_filled_array_is_read_from_the_cache():
    fill()
    with open_feature_array("a", SHAPE) as (array, is_new):
        assert not is_new
        assert array.dtype == np.float32
        assert np.array_equal(array, np.arange(60).reshape(SHAPE))
    with open_feature_array("b", SHAPE) as (_, is_new):
        assert is_new


def test_an_interrupted_block_stores_nothing():
    with pytest.raises(KeyboardInterrupt), open_feature_array("a", SHAPE):
        raise KeyboardInterrupt
    assert list(find_feature_cache_dir().iterdir()) == []


def test_an_incomplete_array_is_not_listed():
    with open_feature_array("a", SHAPE):
        assert list_feature_files() == []
    assert names() == ["a"]


@pytest.mark.parametrize(
    "content",
    [b"", b"noise", b"\x93NUMPY\x01\x00", b"PK\x03\x04zip", b"\x80\x04pickle", "cut", "half", "double", "one bit"],
)
def test_a_damaged_file_is_replaced(content):
    fill()
    file = find_file("a")
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
    assert names() == ["a"], "the damaged file is removed"


def assert_not_cached(caplog, text: str, level: str = "WARNING") -> None:
    assert [(r.levelname, "features are not cached" in r.message) for r in caplog.records][:1] == [(level, True)]
    assert text in caplog.text
    assert not find_feature_cache_dir().is_dir() or list(find_feature_cache_dir().iterdir()) == []


def assert_temporary(caplog, temporary: Path, text: str, level: str = "WARNING") -> None:
    caplog.set_level(logging.INFO, "fastcxr")
    fill()
    assert len(caplog.records) == 1
    assert_not_cached(caplog, text, level)
    with open_feature_array("a", SHAPE) as (array, is_new):
        assert not is_new and array[-1, -1, -1] == 59
    assert len(list(temporary.glob("fastcxr-*/features/a-*.npy"))) == 1


def assert_in_memory(caplog, temporary: Path, text: str) -> None:
    with open_feature_array("a", SHAPE) as (array, is_new):
        assert is_new and array.shape == SHAPE and array.dtype == np.float32
        assert not isinstance(array, np.memmap)
        array[:] = 1
    assert_not_cached(caplog, text)
    assert [r.levelname for r in caplog.records] == ["WARNING", "WARNING"] and "are kept in memory" in caplog.text
    assert list(temporary.glob("*/features/*")) == []


def test_with_a_limit_of_0_the_array_is_temporary(caplog, monkeypatch, temporary):
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0")
    assert_temporary(caplog, temporary, "FASTCXR_CACHE_GB is 0", "INFO")


def test_an_array_over_the_limit_is_temporary_with_a_warning(caplog, monkeypatch, temporary):
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0.00000001")
    assert_temporary(caplog, temporary, "are available")


def test_without_a_cache_folder_the_array_is_temporary_with_a_warning(caplog, cache, temporary):
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file instead of a folder")
    assert_temporary(caplog, temporary, "Not a directory" if os.name == "posix" else "")


def test_without_any_writable_folder_the_array_is_in_memory_with_a_warning(caplog, monkeypatch, temporary):
    def fail(*_, **__):
        raise PermissionError(13, "Permission denied")

    find_feature_cache_dir().mkdir(parents=True)
    monkeypatch.setattr(np.lib.format, "open_memmap", fail)
    assert_in_memory(caplog, temporary, "Permission denied")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_detected_before_the_array_is_filled(caplog, monkeypatch, temporary, number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    assert_in_memory(caplog, temporary, os.strerror(number))


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="a call of POSIX")
def test_the_blocks_of_an_array_are_allocated_before_it_is_mapped():
    with open_feature_array("a", (1, 1000, 300)) as (array, _):
        assert os.stat(array.filename).st_blocks * 512 >= array.nbytes


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, None])
def test_arrays_are_cached_on_systems_without_block_allocation(caplog, monkeypatch, number):
    def fail(*_):
        raise OSError(number, "not supported")

    if number:
        monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    else:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    fill()
    assert names() == ["a"] and caplog.text == ""


def test_a_read_only_array_is_read(monkeypatch, caplog):
    def fail(*_, **__):
        raise PermissionError(13, "Permission denied")

    fill()
    monkeypatch.setattr(Path, "touch", fail)
    with open_feature_array("a", SHAPE) as (array, is_new):
        assert not is_new and array[0, 0, 1] == 1
    assert caplog.text == ""


def test_an_error_in_the_block_is_raised():
    fill()
    for name in ("a", "b"):
        with pytest.raises(OSError, match="of the block"), open_feature_array(name, SHAPE):
            raise OSError("of the block")


def test_the_least_recently_used_arrays_are_evicted(monkeypatch):
    for name, ago in (("a", 300), ("b", 100), ("c", 200)):
        fill(name, ago=ago)
    each = list_feature_files()[0].stat().st_size
    monkeypatch.setenv("FASTCXR_CACHE_GB", str(3.5 * each / (1 - IMAGE_QUOTA_FRACTION) / 1e9))
    fill("d", ago=50)
    assert names() == ["d", "b", "c"]
    with open_feature_array("c", SHAPE):
        pass
    assert names()[0] == "c", "opening counts as use"
    fill("e")
    assert sorted(names()) == ["c", "d", "e"]


def test_cached_arrays_count_as_free_disk_space(monkeypatch):
    fill("a")
    size = list_feature_files()[0].stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10 * size, 0, 3 * size))
    fill("b")
    assert sorted(names()) == ["a", "b"]


def test_at_most_half_of_the_free_disk_is_used(monkeypatch, caplog, temporary):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 600, 400))
    assert_in_memory(caplog, temporary, "are available")


def test_abandoned_temporary_files_are_removed_and_recent_ones_kept():
    fill()
    for name, ago in (("a.killed", 2 * features.ABANDONED_SECONDS), ("a.busy", 60)):
        (find_feature_cache_dir() / name).write_bytes(b"draft")
        os.utime(find_feature_cache_dir() / name, (time.time() - ago,) * 2)
    os.utime(find_file("a"), (1, 1))
    fill("b")
    assert names() == ["b", "a"]
    assert [file.name for file in find_feature_cache_dir().iterdir() if file not in list_feature_files()] == ["a.busy"]


def test_clearing_returns_the_freed_bytes_and_open_arrays_remain_valid():
    fill()
    size = list_feature_files()[0].stat().st_size
    with open_feature_array("a", SHAPE) as (array, _):
        assert clear_feature_cache() == size
        assert array[-1, -1, -1] == 59
    assert list_feature_files() == []
    assert clear_feature_cache() == 0


def test_an_array_cleared_while_it_is_filled_remains_usable(caplog):
    caplog.set_level(logging.WARNING, "fastcxr")
    with open_feature_array("a", SHAPE) as (array, _):
        clear_feature_cache()
        array[:] = 7
    assert (array == 7).all()
    assert "features are not cached for the next run" in caplog.text


def test_arrays_are_readable_only_by_their_owner():
    fill()
    assert find_feature_cache_dir().stat().st_mode & 0o077 == 0


def test_features_of_another_format_are_not_read_but_listed_and_cleared(monkeypatch):
    fill()
    monkeypatch.setattr(features, "FEATURE_CACHE_FORMAT", 99)
    fill()  # the other format does not read the first array
    old = find_feature_cache_dir() / f"{'0' * 32}-{'0' * 8}.npy"  # a name of version 0.1
    np.save(old, np.zeros(SHAPE, np.float32))
    assert len(list_feature_files()) == 3
    assert clear_feature_cache() > 0
    assert list_feature_files() == []
