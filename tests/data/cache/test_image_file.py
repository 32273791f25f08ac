"""Tests for image_file.py and index.py: several processes, damage, memory"""

import hashlib
import os
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

from fastcxr.data.cache import image_file as shelf
from fastcxr.data.cache import images
from fastcxr.data.cache import index as contents
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.cache.quota import find_store_dir, list_cache_entries

pytestmark = pytest.mark.usefixtures("cache")


def test_a_shelf_that_nobody_reads_any_more_is_let_go_without_a_warning(files):
    pictures = open_image_cache(files, SIZE)
    held = pictures.mapped.lock_file
    del pictures
    assert held.closed


BUILD = """
import sys, hashlib
from fastcxr.data.cache import image_file, images
images.WRITE_BATCH_BYTES = 2 * {size} ** 2
{meddle}
pictures = images.open_image_cache(sys.argv[1:], {size})
print(hashlib.sha256(pictures.read(range(len(pictures.files))).tobytes()).hexdigest())
"""


def start(files, meddle="") -> subprocess.Popen:
    code = BUILD.format(size=SIZE, meddle=meddle)
    return subprocess.Popen([sys.executable, "-c", code, *files], stdout=subprocess.PIPE, text=True)


def test_two_processes_that_build_at_once_end_with_the_same_squares(tmp_path, files):
    # each waits until the other has begun, so that they write side by side
    meet = f"""
import os, pathlib, time
pathlib.Path({str(tmp_path)!r}, f"here-{{os.getpid()}}").touch()
while len(list(pathlib.Path({str(tmp_path)!r}).glob("here-*"))) < 2: time.sleep(0.01)
"""
    files = files * 5
    both = [start(files, meet), start(files, meet)]
    said = {process.communicate(timeout=60)[0].strip() for process in both}
    pictures = open_image_cache(files, SIZE)
    assert_images_match_files(pictures, files)
    assert said == {hashlib.sha256(pictures.read(range(len(files))).tobytes()).hexdigest()}
    assert count_stored_images() == COUNT


def test_of_two_who_decoded_the_same_one_stores_it(files):
    folder = find_store_dir(SIZE)
    with shelf.ImageStoreWriter(folder, SIZE) as one, shelf.ImageStoreWriter(folder, SIZE) as other:
        looks = [[contents.decode(file, SIZE, each.is_known) for file in files] for each in (one, other)]
        assert all(look.image is not None for look in looks[1])
        assert one.add(looks[0]) == other.add(looks[1])
    assert count_stored_images() == COUNT


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a signal of POSIX")
def test_a_builder_that_was_killed_leaves_a_store_that_can_be_used(files, decoded):
    die = """
import os, signal
write, written = image_file._write_image, []
def half(file, slot, square):
    written.append(slot)
    if len(written) == 4:
        file.seek(slot * square.size)
        file.write(square.tobytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    write(file, slot, square)
image_file._write_image = half
"""
    killed = start(files, die)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert sorted(decoded) == files[2:]  # the first batch of two was complete
    assert count_stored_images() == COUNT


def test_a_square_is_in_the_index_only_after_its_bytes_are_written(files, monkeypatch):
    seen, write = [], shelf._write_image

    def look_at(file, slot, square):
        write(file, slot, square)
        seen.append(count_stored_images())

    monkeypatch.setattr(shelf, "_write_image", look_at)
    open_image_cache(files, SIZE)
    assert seen == [0] * COUNT
    assert count_stored_images() == COUNT


def test_a_flipped_byte_is_noticed_and_repaired(files, caplog):
    pictures = open_image_cache(files, SIZE)
    flip_byte(3)
    assert_images_match_files(pictures, files)
    assert "1 kept pictures were damaged" in caplog.text
    caplog.clear()
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert caplog.text == ""


def test_a_damaged_square_whose_file_has_changed_is_forgotten(files, decoded):
    pictures = open_image_cache(files, SIZE)
    slot = int(pictures.locations[2, 0])
    flip_byte(slot)
    save_image(make_reference(seed=50), Path(files[2]))
    assert_images_match_files(pictures, files)
    assert query_index(find_store_dir(SIZE), f"SELECT * FROM images WHERE slot = {slot}") == []
    again = open_image_cache(files, SIZE)
    assert_images_match_files(again, files)
    assert slot not in again.locations[:, 0]


def test_a_damaged_square_of_a_store_that_somebody_removed_is_decoded(files, cache):
    pictures = open_image_cache(files, SIZE)
    flip_byte(3)
    shutil.rmtree(cache)
    assert_images_match_files(pictures, files)
    assert not cache.exists()


def test_a_slot_that_is_not_there_is_not_as_it_was_stored(files):
    slots = open_image_cache(files, SIZE).mapped
    places = np.array([[0, 0], [slots.n_slots, 0], [1000, 0]])
    assert not slots.copy_images(places, np.empty((3, SIZE, SIZE), np.uint8)).any()


def test_a_square_that_was_forgotten_while_its_file_was_looked_at_has_no_slot(files):
    with shelf.ImageStoreWriter(find_store_dir(SIZE), SIZE) as kept:
        assert kept.add([contents.decode(files[0], SIZE, lambda content: True)]) == [(0, 0)]


def test_a_number_is_never_given_to_a_second_square(files):
    pictures = open_image_cache(files, SIZE)
    last = int(pictures.locations[:, 0].max())
    row = int(pictures.locations[:, 0].argmax())
    pictures.mapped.repair(last, 0, np.zeros((SIZE, SIZE), np.uint8))  # forgets it
    assert open_image_cache(files, SIZE).locations[row, 0] == last + 1


def test_a_file_of_squares_that_was_cut_is_filled_again(files, decoded):
    open_image_cache(files, SIZE)
    os.truncate(find_store_dir(SIZE) / "images", 3 * SIZE**2 + 5)
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert len(decoded) == 2 * COUNT - 2


def test_a_damaged_index_is_built_anew_aloud(files, caplog):
    open_image_cache(files, SIZE)
    (find_store_dir(SIZE) / "index.sqlite").write_bytes(b"no database " * 1000)
    assert [kept.n_images for kept in list_cache_entries()] == [None]
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert "decoding again" in caplog.text
    assert count_stored_images() == COUNT


def write_big_store(folder: Path, size: int, count: int) -> shelf.MappedImages:
    """A store of any size that takes no room: a file of holes."""
    folder.mkdir(parents=True)
    with (folder / "images").open("wb") as file:
        file.truncate(count * size**2)
    return shelf.MappedImages(folder, size)


def test_a_store_larger_than_memory_is_opened_and_read(tmp_path):
    slots = write_big_store(tmp_path / "big", 1000, 1_000_000)
    out = np.ones((2, 1000, 1000), np.uint8)
    slots.copy_images(np.array([[5, 0], [999_999, 0]]), out)
    assert not out.any()


def resident() -> int:
    """Bytes of this process that are in memory, of mapped files too."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells what is in memory")
def test_what_was_read_does_not_stay_in_memory(tmp_path):
    slots = write_big_store(tmp_path / "big", 1000, 101)
    with (tmp_path / "big" / "images").open("r+b") as file:
        for _ in range(101):
            file.write(bytes([7]) * 1_000_000)
    out = np.empty((1, 1000, 1000), np.uint8)
    slots.copy_images(np.array([[1, 0]]), out)
    before = resident()
    for slot in range(1, 101):
        slots.copy_images(np.array([[slot, 0]]), out)
    assert resident() - before < 50_000_000


def test_squares_wait_for_the_disk_in_bounded_number(files, monkeypatch):
    monkeypatch.setattr(images, "count_cpus", lambda: 2)
    begun, most = [], []
    look, add = images.decode, shelf.ImageStoreWriter.add

    def counted(*words):
        begun.append(1)
        return look(*words)

    def measured(self, looks):
        most.append(len(begun) - sum(most_kept))
        most_kept.append(len(looks))
        return add(self, looks)

    most_kept = []
    monkeypatch.setattr(images, "decode", counted)
    monkeypatch.setattr(shelf.ImageStoreWriter, "add", measured)
    monkeypatch.setattr(images, "WRITE_BATCH_BYTES", 4 * SIZE**2)
    open_image_cache(files * 10, SIZE)
    assert sum(most_kept) == 10 * COUNT
    assert max(most) <= 4 + images.FILES_AHEAD_PER_THREAD * 2 + 1


def test_threads_may_read_at_once(files):
    pictures = open_image_cache(files, SIZE)
    expected = pictures.read(range(COUNT))
    with ThreadPoolExecutor(4) as pool:
        for row, square in enumerate(pool.map(lambda row: pictures.read([row % COUNT])[0], range(200))):
            assert np.array_equal(square, expected[row % COUNT])
