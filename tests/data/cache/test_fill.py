"""Tests for fill.py: several processes that fill one cache share the work."""

import io
import json
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from image_caches import COUNT, SIZE, assert_images_match_files, count_stored_images
from recording_progress import Counted

from fastcxr.data.cache import blocks, fill, index
from fastcxr.data.cache.blocks import BlockTask, ImageList
from fastcxr.data.cache.decoding_process import DecodingProcess, serve
from fastcxr.data.cache.image_file import ImageStoreWriter
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.cache.quota import CannotStoreError, find_store_dir, lock_now
from fastcxr.errors import ImageError

pytestmark = pytest.mark.usefixtures("cache")
SHARE = """
import json, pathlib, sys, time
from fastcxr.data.cache import blocks, fill, index, images
folder, count, *files = sys.argv[1:]
fill.BLOCK_FILES, index.MIN_FILE_AGE_SECONDS, names, read = 1, -1, [], index.read_open_image
def read_slowly(file, path, depth=None):
    names.append(path)
    time.sleep(0.02)
    return read(file, path, depth)
index.read_open_image = read_slowly
pathlib.Path(folder, f"ready-{time.time_ns()}").touch()
while len(list(pathlib.Path(folder).glob("ready-*"))) < int(count): time.sleep(0.01)
images.open_image_cache(files, 32)
print(json.dumps(names))
"""


@pytest.fixture
def single_file_blocks(monkeypatch):
    monkeypatch.setattr(fill, "BLOCK_FILES", 1)


def lock_block(files, number):
    """Claim a block as another process does; return the open lock file."""
    folder = find_store_dir(SIZE)
    folder.mkdir(parents=True, exist_ok=True)
    name = ImageList((files[number],), (None,)).compute_hash()
    return lock_now(folder / (blocks.CLAIM_PREFIX + name))


def test_processes_that_fill_a_cache_at_once_decode_each_file_once(tmp_path, files):
    command = [sys.executable, "-c", SHARE, str(tmp_path), "2", *files]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    names = [json.loads(process.communicate(timeout=60)[0]) for process in both]
    assert sorted(names[0] + names[1]) == sorted(files)
    assert all(names), "both processes decode files"
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert count_stored_images() == COUNT


def test_a_block_of_another_process_is_awaited_and_not_decoded(files, single_file_blocks, old, decoded):
    progress, opened, claimed = Counted(), [], lock_block(files, 2)
    thread = threading.Thread(target=lambda: opened.append(open_image_cache(files, SIZE, progress)))
    thread.start()
    while len(decoded) < COUNT - 1:
        time.sleep(0.01)
    with ImageStoreWriter(find_store_dir(SIZE), SIZE) as other:
        other.add([index.decode(files[2], SIZE, other.is_known)])
    claimed.close()
    thread.join(timeout=30)
    assert_images_match_files(opened[0], files)
    assert sorted(decoded) == sorted(files), "the third file is decoded by the other process only"
    assert sum(progress.seen[1:]) == COUNT


def test_a_block_whose_process_ended_without_storing_it_is_decoded(files, single_file_blocks, decoded, monkeypatch):
    claimed, waited = lock_block(files, 0), []

    def end_other_process(seconds):
        waited.append(seconds)
        claimed.close()

    monkeypatch.setattr(fill.time, "sleep", end_other_process)
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert waited == [fill.WAIT_SECONDS], "after all other blocks"
    assert sorted(decoded) == sorted(files)


def test_no_lock_of_a_block_remains(files):
    open_image_cache(files, SIZE)
    assert list(find_store_dir(SIZE).glob("claim-*")) == []


def test_without_locks_every_block_is_decoded(files, monkeypatch, single_file_blocks):
    def fail(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fastcxr.data.cache.quota.fcntl.flock", fail)
    assert_images_match_files(open_image_cache(files, SIZE), files)


def test_the_errors_of_several_blocks_are_in_the_order_of_the_files(tmp_path, files, single_file_blocks):
    missing = [str(tmp_path / f"missing-{number}.png") for number in range(2)]
    listed, claimed, errors = [missing[0], *files, missing[1]], lock_block([missing[0], *files, missing[1]], 0), []
    threading.Timer(0.3, claimed.close).start()
    image_cache = open_image_cache(listed, SIZE, errors=errors)
    assert [error.path for error in errors] == missing
    assert image_cache.locations[[0, -1]].tolist() == [[0, 0], [0, 0]]
    assert np.count_nonzero(image_cache.locations[:, 0]) == COUNT


def test_the_name_of_a_block_depends_on_its_files_and_depths(files):
    name = ImageList(tuple(files), (None,) * COUNT).compute_hash()
    assert name == ImageList(tuple(files), (None,) * COUNT).compute_hash()
    assert name != ImageList(tuple(files), (12,) * COUNT).compute_hash()
    assert name != ImageList(tuple(reversed(files)), (None,) * COUNT).compute_hash()
    assert Path(files[0]).name not in name


def test_a_large_list_of_files_is_looked_up_in_parts(files, old, monkeypatch):
    expected = open_image_cache(files, SIZE).locations
    monkeypatch.setattr(index, "LOOKUP_ROWS", 4)
    assert np.array_equal(open_image_cache(files, SIZE).locations, expected)


@pytest.fixture
def two_processes(monkeypatch, single_file_blocks):
    monkeypatch.setattr(fill, "count_cpus", lambda: 2)
    monkeypatch.setattr(fill, "MIN_PROCESS_FILES", 3)


@pytest.fixture
def started(monkeypatch) -> list[DecodingProcess]:
    """The processes that were started."""
    processes = []

    class RecordedProcess(DecodingProcess):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            processes.append(self)

    monkeypatch.setattr(fill, "DecodingProcess", RecordedProcess)
    return processes


def test_many_files_are_decoded_by_processes(tmp_path, files, two_processes, started, decoded):
    progress, errors, missing = Counted(), [], str(tmp_path / "missing.png")
    listed = [*files[:2], missing, *files[2:]]
    image_cache = open_image_cache(listed, SIZE, progress, errors)
    assert len(started) == 2 and all(one.process.returncode is not None for one in started)
    assert decoded == [], "by this process"
    assert [error.path for error in errors] == [missing]
    assert sum(progress.seen[1:]) == COUNT + 1
    assert_images_match_files(image_cache.select(files, SIZE), files)
    assert count_stored_images() == COUNT


def test_the_files_of_processes_that_end_are_decoded_by_this_process(
    files, two_processes, decoded, monkeypatch, caplog
):
    start = subprocess.Popen

    def start_and_kill(*arguments, **options):
        process = start(*arguments, **options)
        process.kill()
        process.wait()
        return process

    monkeypatch.setattr("fastcxr.data.cache.decoding_process.subprocess.Popen", start_and_kill)
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert sorted(decoded) == sorted(files)
    assert "ended unexpectedly" in caplog.text


def test_without_further_processes_this_process_decodes(files, two_processes, decoded, monkeypatch):
    def fail(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("fastcxr.data.cache.decoding_process.subprocess.Popen", fail)
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert sorted(decoded) == sorted(files)


def test_few_files_are_decoded_by_threads(files, two_processes, started, decoded):
    open_image_cache(files[:2], SIZE)
    assert started == [] and len(decoded) == 2


def serve_tasks(*tasks) -> list:
    """Return the answers of a decoding process to these tasks."""
    requests, answers = io.BytesIO(), io.BytesIO()
    for message in ((find_store_dir(SIZE), SIZE), *tasks):
        pickle.dump(message, requests)
    requests.seek(0)
    serve(requests, answers)
    end = answers.tell()
    answers.seek(0)
    received = []
    while answers.tell() < end:
        received.append(pickle.load(answers))  # noqa: S301  written above
    return received


def test_a_process_answers_with_progress_result_and_errors(tmp_path, files):
    def make_task(*paths):
        return BlockTask(name="a", images=ImageList(paths, (None,) * len(paths)), strict=True, n_threads=1)

    steps, filled, _, error, last_steps, again = serve_tasks(
        make_task(*files[:2]), make_task(str(tmp_path / "missing.png")), make_task(files[0])
    )
    assert steps == 2 and filled.locations[:, 0].tolist() == [1, 2] and filled.errors == {}
    assert isinstance(error, ImageError) and error.path == str(tmp_path / "missing.png")
    assert last_steps == 1 and again.locations[0].tolist() == filled.locations[0].tolist()


def test_a_process_whose_cache_cannot_be_written_answers_with_the_error(files, cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file instead of a folder")
    task = BlockTask(name="a", images=ImageList((files[0],), (None,)), strict=True, n_threads=1)
    assert isinstance(serve_tasks(task)[-1], CannotStoreError)
