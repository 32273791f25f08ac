"""Tests for images.py and index.py"""

import os
import pickle
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from image_caches import COUNT, SIZE, assert_images_match_files, count_stored_images, query_index
from recording_progress import Counted
from sample_images import make_dicom, make_reference, save_dicom, save_image

from fastcxr.data.cache import images
from fastcxr.data.cache import index as contents
from fastcxr.data.cache import quota as room
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.cache.quota import find_store_dir
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.errors import ImageError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("size", [17, 64, 225])
def test_squares_are_those_of_the_files_bit_for_bit(tmp_path, files, size):
    files.append(str(save_dicom(tmp_path / "a.dcm", make_dicom(make_reference(), WindowCenter=90, WindowWidth=60))))
    assert_images_match_files(open_image_cache(files, size), files, size)
    assert_images_match_files(open_image_cache(files, size), files, size)


@pytest.mark.needs("h5py")
def test_images_of_a_packed_cohort_are_kept_like_others(tmp_path, files, old, monkeypatch):
    from fastcxr.data.manifest import read_manifest
    from fastcxr.data.pack import pack_dataset

    for number, file in enumerate(files):
        (tmp_path / "radiographs" / "ab"[number % 2]).mkdir(exist_ok=True)
        shutil.move(file, tmp_path / "radiographs" / "ab"[number % 2])
    pack_dataset(read_manifest(tmp_path / "radiographs"), tmp_path / "cohort.h5")
    packed = [f"{tmp_path}/cohort.h5#{number}" for number in range(COUNT)]
    assert_images_match_files(open_image_cache(packed, SIZE), packed)
    expected = open_image_cache(packed, SIZE).read(range(COUNT))
    monkeypatch.setattr(contents, "read_image", None)
    assert np.array_equal(open_image_cache(packed, SIZE).read(range(COUNT)), expected)


@pytest.mark.needs("h5py")
def test_a_packed_cohort_that_was_replaced_is_read_again(tmp_path, files):
    from fastcxr.data.manifest import read_manifest
    from fastcxr.data.pack import pack_dataset

    for seed, name in enumerate("ab"):
        for number in range(4):
            (tmp_path / name / "cd"[number % 2]).mkdir(parents=True, exist_ok=True)
            save_image(make_reference(seed=10 * seed + number), tmp_path / name / "cd"[number % 2] / f"{number}.png")
        pack_dataset(read_manifest(tmp_path / name), tmp_path / f"{name}.h5")
    reference = [f"{tmp_path}/a.h5#{number}" for number in range(4)]
    assert_images_match_files(open_image_cache(reference, SIZE), reference)
    (tmp_path / "b.h5").replace(tmp_path / "a.h5")
    assert_images_match_files(open_image_cache(reference, SIZE), reference)


def test_rows_come_in_the_order_asked_and_as_often(files):
    pictures = open_image_cache(files, SIZE)
    expected = pictures.read(range(COUNT))
    for rows in ([4, 0, 4], np.array([1], np.uint8), [], [-1]):
        assert np.array_equal(pictures.read(rows), expected[np.asarray(rows, int)])
    with pytest.raises(IndexError):
        pictures.read([COUNT])
    with pytest.raises(TypeError, match="whole numbers"):
        pictures.read(np.array([True, False]))


def test_no_files_are_no_pictures():
    assert open_image_cache([], SIZE).read([]).shape == (0, SIZE, SIZE)


def test_a_worker_that_gets_the_pictures_by_pickle_maps_them(files):
    pictures = open_image_cache(files, 225)
    words = pickle.dumps(pictures)
    assert len(words) < 225**2
    assert_images_match_files(pickle.loads(words), files, 225)  # noqa: S301  our own


def test_a_bad_image_is_an_error_that_names_it(tmp_path, files):
    bad = tmp_path / "page.png"
    bad.write_bytes(b"<html>")
    with pytest.raises(ImageError, match="page.png.*web page"):
        open_image_cache([*files, str(bad)], SIZE)
    with pytest.raises(ImageError, match="gone.png.*[Rr]estore"):
        open_image_cache([*files, str(tmp_path / "gone.png")], SIZE)
    assert_images_match_files(open_image_cache(files, SIZE), files)


def test_a_name_may_decide_what_content_alone_does_not(tmp_path, files):
    open_image_cache(files, SIZE)
    shutil.copy(files[0], tmp_path / "wrong.dcm")
    with pytest.raises(ImageError, match="wrong.dcm.*rename it"):
        open_image_cache([str(tmp_path / "wrong.dcm")], SIZE)


def test_the_second_time_nothing_is_decoded(files, decoded):
    open_image_cache(files, SIZE)
    assert sorted(decoded) == files
    assert_images_match_files(open_image_cache(files[::-1], SIZE), files[::-1])
    assert len(decoded) == COUNT


def test_an_unchanged_file_is_not_even_opened(files, old, monkeypatch):
    open_image_cache(files, SIZE)
    monkeypatch.setattr(contents, "open_file", None)
    assert_images_match_files(open_image_cache(files, SIZE), files)


def test_a_file_that_was_just_written_is_not_known_by_its_times(files):
    open_image_cache(files, SIZE)
    assert query_index(find_store_dir(SIZE), "SELECT count(*) FROM files") == [(0,)]


def test_a_size_and_a_reader_have_squares_of_their_own(files, decoded, monkeypatch):
    open_image_cache(files, SIZE)
    open_image_cache(files, SIZE + 1)
    assert len(decoded) == 2 * COUNT
    monkeypatch.setattr(room, "READER_VERSION", 1000)
    open_image_cache(files, SIZE)
    assert len(decoded) == 3 * COUNT
    monkeypatch.setattr(room.metadata, "version", lambda name: "of another year")
    open_image_cache(files, SIZE)
    assert len(decoded) == 4 * COUNT


def test_a_file_with_other_content_is_decoded_again(files, old):
    before = open_image_cache(files, SIZE).read([2])
    save_image(make_reference(seed=77), Path(files[2]))
    after = open_image_cache(files, SIZE)
    assert_images_match_files(after, files)
    assert not np.array_equal(after.read([2]), before)


def test_a_bmp_of_the_same_length_and_time_is_decoded_again(tmp_path, old):
    file = save_image(make_reference(seed=1), tmp_path / "a.bmp")
    status = file.stat()
    before = open_image_cache([str(file)], SIZE).read([0])
    save_image(make_reference(seed=2), file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    after = open_image_cache([str(file)], SIZE)
    assert_images_match_files(after, [str(file)])
    assert not np.array_equal(after.read([0]), before)


def test_new_times_alone_decode_nothing(files, old, decoded):
    open_image_cache(files, SIZE)
    os.utime(files[0], (1, 1))
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert len(decoded) == COUNT


@pytest.mark.parametrize("told_by", ["times", "content"])
def test_a_file_that_changes_between_checksum_and_decoding_is_read_once_more(files, monkeypatch, told_by):
    if told_by == "times":
        monkeypatch.setattr(contents, "MIN_FILE_AGE_SECONDS", -1)
    else:
        monkeypatch.setattr(contents, "_hash_status", lambda *_: b"the same")
    read, times = contents.read_open_image, []

    def meddle(file, path, depth):
        if not times:
            Path(path).write_bytes(Path(files[1]).read_bytes())
        times.append(path)
        file.seek(0)
        return read(file, path, depth)

    monkeypatch.setattr(contents, "read_open_image", meddle)
    found = contents.decode(files[0], SIZE, lambda content: False)
    assert len(times) == 2
    assert np.array_equal(found.image, fit_square(read_image(files[1]), SIZE))
    assert found.content_hash == contents.decode(files[1], SIZE, lambda content: True).content_hash


@pytest.mark.parametrize("told_by", ["times", "age"])
def test_a_packed_cohort_that_changes_while_it_is_read_is_not_known_by_its_times(tmp_path, monkeypatch, told_by):
    container = tmp_path / "a.h5"
    container.touch()

    def read(_):
        if told_by == "times":
            container.write_bytes(b"other")
        return make_reference()

    monkeypatch.setattr(contents, "read_image", read)
    monkeypatch.setattr(contents, "MIN_FILE_AGE_SECONDS", -1 if told_by == "times" else 60)
    assert contents.decode(f"{container}#0", SIZE, lambda content: False).signature is None


def test_a_disk_that_fails_is_an_error_that_names_the_file(files, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(contents.hashlib, "file_digest", fail)
    with pytest.raises(ImageError, match="0.png: cannot be read .Input/output error.. Check the disk"):
        open_image_cache(files[:1], SIZE)


def test_a_file_that_never_stops_changing_is_an_error(files, monkeypatch):
    monkeypatch.setattr(contents, "_decode_file", lambda *_: None)
    with pytest.raises(ImageError, match="0.png.*Wait until it is written"):
        open_image_cache(files[:1], SIZE)


def test_the_same_content_under_two_names_takes_one_slot(tmp_path, files, decoded):
    shutil.copy(files[0], tmp_path / "copy.png")
    both = [files[0], str(tmp_path / "copy.png"), files[0]]
    assert_images_match_files(open_image_cache(both, SIZE), both)
    assert count_stored_images() == 1
    moved = [str(Path(files[0]).rename(tmp_path / "moved.png"))]
    decoded.clear()
    assert_images_match_files(open_image_cache(moved, SIZE), moved)
    assert decoded == []


def test_progress_counts_what_is_decoded_and_no_more(files):
    progress = Counted()
    open_image_cache(files, SIZE, progress)
    assert progress.seen == [(COUNT, "reading images")] + [1] * COUNT


def test_files_are_read_by_several_threads(files, monkeypatch):
    monkeypatch.setattr(images, "count_cpus", lambda: 3)
    threads, look = set(), images.decode

    def slow(*words):
        threads.add(threading.get_ident())
        time.sleep(0.01)
        return look(*words)

    monkeypatch.setattr(images, "decode", slow)
    open_image_cache(files, SIZE)
    assert len(threads) > 1


def test_nothing_in_the_store_tells_whose_pictures_these_are(cache, files, old):
    open_image_cache(files, SIZE)
    assert cache.stat().st_mode & 0o077 == 0
    assert b"radiographs" not in (find_store_dir(SIZE) / "index.sqlite").read_bytes()
