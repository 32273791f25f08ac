"""Tests for features.py."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastcxr.data.cache import features
from fastcxr.data.cache.features import (
    clear_feature_cache,
    find_feature_cache_dir,
    list_feature_files,
    list_unfinished_files,
    open_feature_array,
)
from fastcxr.data.cache.quota import IMAGE_QUOTA_FRACTION

pytestmark = pytest.mark.usefixtures("cache")
SHAPE = (20, 3)


def fill(name: str = "a", shape: tuple[int, int] = SHAPE, ago: float = 0.0, first: int = 0) -> None:
    """Compute the rows from `first`, which must be the first missing one."""
    with open_feature_array(name, shape) as array:
        assert array.n_finished == first
        array.values[first:] = np.arange(array.values.size).reshape(shape)[first:]
        array.finish_rows(len(array.values))
    if ago:
        os.utime(find_file(name), (time.time() - ago,) * 2)


def find_file(name: str) -> Path:
    return next(file for file in list_feature_files() if file.name.startswith(f"{name}-"))


def names() -> list[str]:
    return [file.stem.partition("-")[0] for file in list_feature_files()]


def test_a_filled_array_is_read_from_the_cache():
    fill()
    check_complete()
    with open_feature_array("b", SHAPE) as array:
        assert not array.is_complete and array.n_finished == 0


def check_complete() -> None:
    with open_feature_array("a", SHAPE) as array:
        assert array.is_complete and array.values.dtype == np.float32
        assert np.array_equal(array.values, np.arange(60).reshape(SHAPE))
    assert names() == ["a"]


def compute_and_raise(first: int, stop: int, n_finished: int, interruption: type[BaseException]) -> None:
    with open_feature_array("a", SHAPE) as array:
        assert array.n_finished == first
        array.values[first:stop] = np.arange(60).reshape(SHAPE)[first:stop]
        array.finish_rows(n_finished)
        raise interruption


def interrupt(stop: int, *, first: int = 0, n_finished: int | None = None, interruption=KeyboardInterrupt) -> None:
    """Compute rows up to `stop`, state that `n_finished` rows are finished, by default all, and interrupt."""
    with pytest.raises(interruption):
        compute_and_raise(first, stop, stop if n_finished is None else n_finished, interruption)


def test_an_interrupted_block_without_finished_rows_stores_nothing():
    interrupt(5, n_finished=0)
    assert list(find_feature_cache_dir().iterdir()) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_the_next_block_continues_after_the_finished_rows(interruption):
    interrupt(9, n_finished=7, interruption=interruption)
    assert names() == [] and len(list_unfinished_files()) == 1
    interrupt(12, first=7)
    fill(first=12)
    check_complete()
    assert [path.suffix for path in find_feature_cache_dir().iterdir()] == [".npy"]


def test_a_killed_process_loses_the_rows_since_its_last_record(monkeypatch):
    folder, copy = find_feature_cache_dir(), find_feature_cache_dir().with_name("copy")
    with open_feature_array("a", SHAPE) as array:
        array.values[:] = np.arange(60).reshape(SHAPE)
        monkeypatch.setattr(features, "RECORD_SECONDS", 0.0)
        array.finish_rows(8)
        monkeypatch.setattr(features, "RECORD_SECONDS", 1000.0)
        array.finish_rows(20)
        shutil.copytree(folder, copy)  # the files that a killed process leaves
    shutil.rmtree(folder)
    copy.rename(folder)
    fill(first=8)
    check_complete()


@pytest.mark.parametrize(
    "damage", ["row", "cut", "shape", "no array", "no JSON", "too many rows", "negative rows", "list"]
)
def test_damaged_finished_rows_are_computed_again_with_a_warning(damage, caplog):
    interrupt(7)
    file = list_unfinished_files()[0]
    record = file.with_name("rows.json")
    content = json.loads(record.read_text())
    if damage == "row":
        values = np.load(file)
        values[6, 2] += 1
        np.save(file, values)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "shape":
        np.save(file, np.load(file).reshape(10, 6))
    elif damage == "no array":
        file.unlink()
    else:
        texts = {"no JSON": "{", "list": "[7]"}
        changed = content | {"rows": 21 if damage == "too many rows" else -1}
        record.write_text(texts.get(damage, json.dumps(changed)))
    fill()
    check_complete()
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "are damaged" in caplog.text


def test_rows_after_the_finished_ones_may_have_any_content():
    interrupt(7)
    values = np.load(list_unfinished_files()[0], mmap_mode="r+")
    values[7:] = np.nan
    values.flush()
    fill(first=7)
    check_complete()


def test_an_array_that_is_complete_at_the_interruption_is_cached():
    interrupt(7)
    interrupt(20, first=7)
    check_complete()


def test_an_array_that_another_process_fills_is_neither_read_nor_changed(caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    interrupt(7)
    file = list_unfinished_files()[0]
    before = file.read_bytes(), file.with_name("rows.json").read_bytes()
    code = (
        "import sys, pathlib; from fastcxr.io.lock import directory_lock\n"
        "with directory_lock(pathlib.Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, file.parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        fill()
        assert "another process" in caplog.text
        assert (file.read_bytes(), file.with_name("rows.json").read_bytes()) == before
        os.utime(file.parent, (1, 1))
        clear_feature_cache()
        fill("b")
        assert file.is_file(), "neither cleared nor removed as abandoned"
        other.communicate()
    assert len(list_unfinished_files()) == 1


def test_finished_rows_of_a_second_process_are_not_kept():
    with open_feature_array("a", SHAPE):
        interrupt(7)
    assert list(find_feature_cache_dir().iterdir()) == []


def test_an_incomplete_array_is_not_listed_as_complete():
    with open_feature_array("a", SHAPE) as array:
        assert list_feature_files() == [] and list_unfinished_files() == [array.path]
        array.finish_rows(20)
    assert names() == ["a"] and list_unfinished_files() == []


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
        np.save(file, np.zeros((10, 3), np.float32))
    elif content == "double":
        np.save(file, np.zeros(SHAPE))
    elif content == "one bit":
        changed = bytearray(file.read_bytes())
        changed[-2] ^= 1
        file.write_bytes(changed)
    else:
        file.write_bytes(content)
    fill()
    check_complete()  # the damaged file is removed


def assert_not_cached(caplog, text: str, level: str = "WARNING") -> None:
    assert [(r.levelname, "features are not cached" in r.message) for r in caplog.records][:1] == [(level, True)]
    assert text in caplog.text
    assert not find_feature_cache_dir().is_dir() or list(find_feature_cache_dir().iterdir()) == []


def assert_temporary(caplog, temporary: Path, text: str, level: str = "WARNING") -> None:
    caplog.set_level(logging.INFO, "fastcxr")
    fill()
    assert len(caplog.records) == 1
    assert_not_cached(caplog, text, level)
    with open_feature_array("a", SHAPE) as array:
        assert array.is_complete and array.values[-1, -1] == 59
    assert len(list(temporary.glob("fastcxr-*/features/a-*.npy"))) == 1


def assert_in_memory(caplog, temporary: Path, text: str) -> None:
    with open_feature_array("a", SHAPE) as array:
        assert array.n_finished == 0 and array.values.shape == SHAPE and array.values.dtype == np.float32
        assert not isinstance(array.values, np.memmap)
        array.values[:] = 1
        array.finish_rows(20)
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
    with open_feature_array("a", (1000, 300)) as array:
        assert os.stat(array.path).st_blocks * 512 >= array.values.nbytes


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
    with open_feature_array("a", SHAPE) as array:
        assert array.is_complete and array.values[0, 1] == 1
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


def test_arrays_in_use_are_not_evicted(monkeypatch, caplog):
    fill("a")
    each = list_feature_files()[0].stat().st_size
    monkeypatch.setenv("FASTCXR_CACHE_GB", str(1.5 * each / (1 - IMAGE_QUOTA_FRACTION) / 1e9))
    with open_feature_array("a", SHAPE) as first, open_feature_array("b", SHAPE, in_use=[first.path]) as second:
        assert names() == ["a"] and not second.path.is_relative_to(find_feature_cache_dir())
    assert "are available" in caplog.text
    with open_feature_array("b", SHAPE), open_feature_array("c", SHAPE) as other:
        assert not other.path.is_relative_to(find_feature_cache_dir()), "an array that is being filled counts"
    assert names() == []


def test_unfinished_arrays_are_evicted_like_complete_ones(monkeypatch):
    interrupt(7)
    os.utime(list_unfinished_files()[0].parent, (time.time() - 100,) * 2)
    fill("b", ago=200)
    each = list_feature_files()[0].stat().st_size
    monkeypatch.setenv("FASTCXR_CACHE_GB", str(2.5 * each / (1 - IMAGE_QUOTA_FRACTION) / 1e9))
    fill("c", ago=50)
    assert names() == ["c"] and len(list_unfinished_files()) == 1
    fill("d")
    assert names() == ["d", "c"] and list_unfinished_files() == []


@pytest.mark.parametrize("days", [6, 8])
def test_unfinished_arrays_are_removed_after_a_week(days):
    interrupt(7)
    os.utime(list_unfinished_files()[0].parent, (time.time() - days * 86400,) * 2)
    fill("b")
    assert len(list_unfinished_files()) == (days < 7)


def test_abandoned_temporary_files_are_removed_and_recent_ones_kept():
    fill()
    for name, days in (("a.killed", 2), ("a.busy", 0.1), ("b.private", 2), ("c.private", 0.1)):
        path = find_feature_cache_dir() / name
        path.mkdir() if path.suffix == ".private" else path.write_bytes(b"draft")
        os.utime(path, (time.time() - days * 86400,) * 2)
    os.utime(find_file("a"), (1, 1))
    fill("b")
    assert names() == ["b", "a"]
    others = sorted(path.name for path in set(find_feature_cache_dir().iterdir()) - set(list_feature_files()))
    assert others == ["a.busy", "c.private"]


def test_clearing_returns_the_freed_bytes_and_open_arrays_remain_valid():
    fill()
    size = list_feature_files()[0].stat().st_size
    with open_feature_array("a", SHAPE) as array:
        assert clear_feature_cache() == size
        assert array.values[-1, -1] == 59
    assert list_feature_files() == []
    interrupt(7)
    assert clear_feature_cache() == size and not find_feature_cache_dir().exists()
    assert clear_feature_cache() == 0


def test_an_array_that_is_being_filled_is_not_cleared():
    with open_feature_array("a", SHAPE) as array:
        assert clear_feature_cache() == 0
        array.values[:] = np.arange(60).reshape(SHAPE)
        array.finish_rows(20)
    check_complete()


def test_an_array_whose_folder_is_removed_while_it_is_filled_remains_usable(caplog, monkeypatch):
    monkeypatch.setattr(features, "RECORD_SECONDS", 0.0)
    with open_feature_array("a", SHAPE) as array:
        shutil.rmtree(find_feature_cache_dir())
        array.values[:] = 7
        array.finish_rows(10)
        array.finish_rows(20)
    assert (array.values == 7).all()
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
