"""Tests for image_file.py and index.py: several processes, damage, memory."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from image_caches import COUNT, SIZE, assert_images_match_files, count_stored_images, flip_byte, query_index
from sample_images import make_reference, save_image

from fastcxr.data.cache import blocks, fill, image_file, index
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.cache.quota import find_store_dir, list_cache_entries

pytestmark = pytest.mark.usefixtures("cache")


def test_an_unused_cache_releases_its_lock_without_a_warning(files):
    image_cache = open_image_cache(files, SIZE)
    lock_file = image_cache.mapped.lock_file
    del image_cache
    assert lock_file.closed


BUILD = """
import sys, hashlib
from fastcxr.data.cache import blocks, fill, image_file, images
blocks.WRITE_BATCH_BYTES = 2 * {size} ** 2
{patch}
image_cache = images.open_image_cache(sys.argv[1:], {size})
print(hashlib.sha256(image_cache.read(range(len(image_cache.files))).tobytes()).hexdigest())
"""


def start(files, patch="") -> subprocess.Popen:
    code = BUILD.format(size=SIZE, patch=patch)
    return subprocess.Popen([sys.executable, "-c", code, *files], stdout=subprocess.PIPE, text=True)


def test_an_image_decoded_by_two_processes_is_stored_once(files):
    folder = find_store_dir(SIZE)
    with image_file.ImageStoreWriter(folder, SIZE) as one, image_file.ImageStoreWriter(folder, SIZE) as other:
        decoded = [[index.decode(file, SIZE, each.is_known) for file in files] for each in (one, other)]
        assert all(file.image is not None for file in decoded[1])
        assert one.add(decoded[0]) == other.add(decoded[1])
    assert count_stored_images() == COUNT


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a signal of POSIX")
def test_a_killed_process_leaves_a_usable_cache(files, decoded):
    kill = """
import os, signal
write, written = image_file._write_image, []
def write_half(file, slot, image):
    written.append(slot)
    if len(written) == 4:
        file.seek(slot * image.size)
        file.write(image.tobytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    write(file, slot, image)
image_file._write_image = write_half
"""
    killed = start(files, kill)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert sorted(decoded) == files[2:]  # the first batch of two was complete
    assert count_stored_images() == COUNT


def test_an_image_is_in_the_index_only_after_its_bytes_are_written(files, monkeypatch):
    counts, write = [], image_file._write_image

    def count_after_writing(file, slot, image):
        write(file, slot, image)
        counts.append(count_stored_images())

    monkeypatch.setattr(image_file, "_write_image", count_after_writing)
    open_image_cache(files, SIZE)
    assert counts == [0] * COUNT
    assert count_stored_images() == COUNT


def test_a_changed_byte_is_detected_and_repaired(files, caplog):
    image_cache = open_image_cache(files, SIZE)
    flip_byte(3)
    assert_images_match_files(image_cache, files)
    assert "1 cached images are damaged" in caplog.text
    caplog.clear()
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert caplog.text == ""


def test_a_damaged_image_whose_file_has_changed_is_deleted(files, decoded):
    image_cache = open_image_cache(files, SIZE)
    slot = int(image_cache.locations[2, 0])
    flip_byte(slot)
    save_image(make_reference(seed=50), Path(files[2]))
    assert_images_match_files(image_cache, files)
    assert query_index(find_store_dir(SIZE), f"SELECT * FROM images WHERE slot = {slot}") == []
    again = open_image_cache(files, SIZE)
    assert_images_match_files(again, files)
    assert slot not in again.locations[:, 0]


def test_a_damaged_image_of_a_removed_cache_is_decoded(files, cache):
    image_cache = open_image_cache(files, SIZE)
    flip_byte(3)
    shutil.rmtree(cache)
    assert_images_match_files(image_cache, files)
    assert not cache.exists()


@pytest.fixture
def small_files(monkeypatch):
    """At most two images in each file of a cache."""
    monkeypatch.setattr(image_file, "MAX_FILE_BYTES", 3 * SIZE**2 - 1)


def test_the_images_of_a_size_are_in_several_files(files, small_files):
    image_cache = open_image_cache(files, SIZE)
    assert_images_match_files(image_cache, files)
    paths = sorted(find_store_dir(SIZE).glob("images-*"))
    assert [path.name for path in paths] == [f"images-{number:04d}" for number in range(4)]
    assert [path.stat().st_size // SIZE**2 for path in paths] == [2, 2, 2, 1], "slot 0 is not used"
    image_cache.read([5, 0, 3])
    assert_images_match_files(pickle.loads(pickle.dumps(image_cache)), files)  # noqa: S301  written above


def test_only_the_files_with_requested_images_are_mapped(files, small_files):
    image_cache = open_image_cache(files, SIZE)
    assert image_cache.mapped.maps == {}
    image_cache.read([0])
    assert list(image_cache.mapped.maps) == [0]


@pytest.mark.parametrize("damage", ["truncated", "missing", "overwritten"])
def test_a_damaged_file_costs_only_its_images(files, small_files, old, decoded, damage, caplog):
    locations, path = open_image_cache(files, SIZE).locations, find_store_dir(SIZE) / "images-0001"
    decoded.clear()
    if damage == "truncated":
        os.truncate(path, SIZE**2 + 5)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(bytes(2 * SIZE**2))
    image_cache = open_image_cache(files, SIZE)
    assert_images_match_files(image_cache, files)
    lost = [file for file, slot in zip(files, locations[:, 0], strict=True) if slot in (2, 3)]
    if damage == "overwritten":  # found by the checksums when the images are read
        assert decoded == [] and "2 cached images are damaged" in caplog.text
    else:
        assert sorted(decoded) == sorted(lost[1:] if damage == "truncated" else lost)
    caplog.clear()
    decoded.clear()
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert decoded == [] and caplog.text == ""


def test_a_missing_slot_counts_as_damaged(files):
    mapped = open_image_cache(files, SIZE).mapped
    locations = np.array([[0, 0], [COUNT + 1, 0], [1000, 0], [1 << 40, 0]])
    assert not mapped.copy_images(locations, np.empty((4, SIZE, SIZE), np.uint8)).any()


def test_an_image_deleted_while_its_file_is_read_has_no_slot(files):
    with image_file.ImageStoreWriter(find_store_dir(SIZE), SIZE) as writer:
        assert writer.add([index.decode(files[0], SIZE, lambda content: True)]) == [(0, 0)]


def test_a_slot_number_is_never_used_twice(files):
    image_cache = open_image_cache(files, SIZE)
    last = int(image_cache.locations[:, 0].max())
    row = int(image_cache.locations[:, 0].argmax())
    image_cache.mapped.repair(last, 0, np.zeros((SIZE, SIZE), np.uint8))  # deletes it
    assert open_image_cache(files, SIZE).locations[row, 0] == last + 1


def test_a_truncated_image_file_is_filled_again(files, decoded):
    open_image_cache(files, SIZE)
    os.truncate(find_store_dir(SIZE) / "images-0000", 3 * SIZE**2 + 5)
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert len(decoded) == 2 * COUNT - 2


def test_a_damaged_index_is_rebuilt_with_a_warning(files, caplog):
    open_image_cache(files, SIZE)
    (find_store_dir(SIZE) / "index.sqlite").write_bytes(b"no database " * 1000)
    assert [entry.n_images for entry in list_cache_entries()] == [None]
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert "decoding again" in caplog.text
    assert count_stored_images() == COUNT


def write_sparse_cache(folder: Path, size: int, count: int) -> image_file.MappedImages:
    """Create a cache of any size from sparse files."""
    folder.mkdir(parents=True)
    per_file = image_file.count_file_slots(size)
    for number, first in enumerate(range(0, count, per_file)):
        with (folder / image_file.name_image_file(number)).open("wb") as file:
            file.truncate(min(per_file, count - first) * size**2)
    return image_file.MappedImages(folder, size)


def test_a_cache_larger_than_memory_is_read(tmp_path):
    mapped = write_sparse_cache(tmp_path / "big", 1000, 1_000_000)
    out = np.ones((2, 1000, 1000), np.uint8)
    mapped.copy_images(np.array([[5, 0], [999_999, 0]]), out)
    assert not out.any()


def measure_resident_bytes() -> int:
    """Return the resident memory of this process, with mapped files."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="/proc of Linux")
def test_images_that_were_read_do_not_remain_in_memory(tmp_path):
    mapped = write_sparse_cache(tmp_path / "big", 1000, 101)
    with (tmp_path / "big" / "images-0000").open("r+b") as file:
        for _ in range(101):
            file.write(bytes([7]) * 1_000_000)
    out = np.empty((1, 1000, 1000), np.uint8)
    mapped.copy_images(np.array([[1, 0]]), out)
    before = measure_resident_bytes()
    for slot in range(1, 101):
        mapped.copy_images(np.array([[slot, 0]]), out)
    assert measure_resident_bytes() - before < 50_000_000


def test_a_limited_number_of_images_waits_for_the_disk(files, monkeypatch):
    monkeypatch.setattr(fill, "count_cpus", lambda: 2)
    started, n_waiting, n_stored = [], [], []
    decode, add = blocks.decode, image_file.ImageStoreWriter.add

    def count_and_decode(*args):
        started.append(1)
        return decode(*args)

    def measure_and_add(self, decoded_files):
        n_waiting.append(len(started) - sum(n_stored))
        n_stored.append(len(decoded_files))
        return add(self, decoded_files)

    monkeypatch.setattr(blocks, "decode", count_and_decode)
    monkeypatch.setattr(image_file.ImageStoreWriter, "add", measure_and_add)
    monkeypatch.setattr(blocks, "WRITE_BATCH_BYTES", 4 * SIZE**2)
    open_image_cache(files * 10, SIZE)
    assert sum(n_stored) == 10 * COUNT
    assert max(n_waiting) <= 4 + blocks.FILES_AHEAD_PER_THREAD * 2 + 1


def test_several_threads_read_at_once(files):
    image_cache = open_image_cache(files, SIZE)
    expected = image_cache.read(range(COUNT))
    with ThreadPoolExecutor(4) as pool:
        for row, image in enumerate(pool.map(lambda row: image_cache.read([row % COUNT])[0], range(200))):
            assert np.array_equal(image, expected[row % COUNT])
