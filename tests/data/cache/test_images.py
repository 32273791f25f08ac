"""Tests for images.py and index.py."""

import os
import pickle
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from image_caches import COUNT, SIZE, assert_images_match_files, count_stored_images, query_index
from PIL import Image
from recording_progress import Counted
from sample_images import make_dicom, make_reference, save_dicom, save_image

from fastcxr.data.cache import blocks, fill, index, quota
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.cache.quota import find_store_dir
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.errors import ImageError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("size", [17, 64, 225])
def test_cached_images_equal_those_of_the_files(tmp_path, files, size):
    files.append(str(save_dicom(tmp_path / "a.dcm", make_dicom(make_reference(), WindowCenter=90, WindowWidth=60))))
    assert_images_match_files(open_image_cache(files, size), files, size)
    assert_images_match_files(open_image_cache(files, size), files, size)


@pytest.mark.needs("h5py")
def test_images_of_a_packed_dataset_are_cached(tmp_path, files, old, monkeypatch):
    from fastcxr.data.manifest import read_manifest
    from fastcxr.data.pack import pack_dataset

    for number, file in enumerate(files):
        (tmp_path / "radiographs" / "ab"[number % 2]).mkdir(exist_ok=True)
        shutil.move(file, tmp_path / "radiographs" / "ab"[number % 2])
    pack_dataset(read_manifest(tmp_path / "radiographs"), tmp_path / "cohort.h5")
    packed = [f"{tmp_path}/cohort.h5#{number}" for number in range(COUNT)]
    assert_images_match_files(open_image_cache(packed, SIZE), packed)
    expected = open_image_cache(packed, SIZE).read(range(COUNT))
    monkeypatch.setattr(index, "read_image", None)
    assert np.array_equal(open_image_cache(packed, SIZE).read(range(COUNT)), expected)


@pytest.mark.needs("h5py")
def test_a_replaced_packed_dataset_is_read_again(tmp_path, files):
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


def test_rows_are_returned_in_the_requested_order_with_repeats(files):
    image_cache = open_image_cache(files, SIZE)
    expected = image_cache.read(range(COUNT))
    for rows in ([4, 0, 4], np.array([1], np.uint8), [], [-1]):
        assert np.array_equal(image_cache.read(rows), expected[np.asarray(rows, int)])
    with pytest.raises(IndexError):
        image_cache.read([COUNT])
    with pytest.raises(TypeError, match="must be integers"):
        image_cache.read(np.array([True, False]))


def test_rows_of_files_are_found_and_selected(files):
    image_cache = open_image_cache(files, SIZE)
    assert image_cache.find_rows([files[4], files[0]]).tolist() == [4, 0]
    assert image_cache.find_rows([files[4], "other.png"]) is None
    assert image_cache.select(files, SIZE) is image_cache, "not a second list of all files"
    assert_images_match_files(image_cache.select(files[3:1:-1], SIZE), files[3:1:-1])
    assert image_cache.select([*files, "other.png"], SIZE) is None
    assert image_cache.select(files, SIZE + 1) is None
    assert open_image_cache([*files, files[0]], SIZE).select(files, SIZE) is None, "with two bit depths"


def test_equal_remarks_of_images_are_one_object(tmp_path):
    files = []
    for number in range(4):
        pixels = make_reference().astype(np.uint16) * 16  # 12 bits
        pixels[0, 0] = number
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(pixels).save(files[-1])
    remarks = open_image_cache(files, SIZE).remarks
    assert list(remarks) == [0, 1, 2, 3] and remarks[0].peak > 255
    assert len({id(one) for one in remarks.values()}) == 1


def test_no_files_return_no_images():
    assert open_image_cache([], SIZE).read([]).shape == (0, SIZE, SIZE)


def test_an_unpickled_cache_maps_the_images(files):
    image_cache = open_image_cache(files, 225)
    pickled = pickle.dumps(image_cache)
    assert len(pickled) < 225**2
    assert_images_match_files(pickle.loads(pickled), files, 225)  # noqa: S301  written above


def test_the_error_for_a_bad_image_names_it(tmp_path, files):
    bad = tmp_path / "page.png"
    bad.write_bytes(b"<html>")
    with pytest.raises(ImageError, match="page.png.*web page"):
        open_image_cache([*files, str(bad)], SIZE)
    with pytest.raises(ImageError, match="gone.png.*[Rr]estore"):
        open_image_cache([*files, str(tmp_path / "gone.png")], SIZE)
    assert_images_match_files(open_image_cache(files, SIZE), files)


def test_a_cached_image_under_a_wrong_suffix_is_refused(tmp_path, files):
    open_image_cache(files, SIZE)
    shutil.copy(files[0], tmp_path / "wrong.dcm")
    with pytest.raises(ImageError, match="wrong.dcm.*rename it"):
        open_image_cache([str(tmp_path / "wrong.dcm")], SIZE)


def test_cached_images_are_not_decoded_again(files, decoded):
    open_image_cache(files, SIZE)
    assert sorted(decoded) == files
    assert_images_match_files(open_image_cache(files[::-1], SIZE), files[::-1])
    assert len(decoded) == COUNT


def test_an_unchanged_file_is_not_opened(files, old, monkeypatch):
    open_image_cache(files, SIZE)
    monkeypatch.setattr(index, "open_file", None)
    assert_images_match_files(open_image_cache(files, SIZE), files)


def test_a_recent_file_is_not_identified_by_its_times(files):
    open_image_cache(files, SIZE)
    assert query_index(find_store_dir(SIZE), "SELECT count(*) FROM files") == [(0,)]


def test_each_size_reader_and_decoder_version_has_its_own_images(files, decoded, monkeypatch):
    open_image_cache(files, SIZE)
    open_image_cache(files, SIZE + 1)
    assert len(decoded) == 2 * COUNT
    monkeypatch.setattr(quota, "READER_VERSION", 1000)
    open_image_cache(files, SIZE)
    assert len(decoded) == 3 * COUNT
    monkeypatch.setattr(quota.metadata, "version", lambda name: "another version")
    open_image_cache(files, SIZE)
    assert len(decoded) == 4 * COUNT


def test_a_changed_file_is_decoded_again(files, old):
    before = open_image_cache(files, SIZE).read([2])
    save_image(make_reference(seed=77), Path(files[2]))
    after = open_image_cache(files, SIZE)
    assert_images_match_files(after, files)
    assert not np.array_equal(after.read([2]), before)


def test_a_changed_file_of_the_same_size_and_time_is_decoded_again(tmp_path, old):
    file = save_image(make_reference(seed=1), tmp_path / "a.bmp")
    status = file.stat()
    before = open_image_cache([str(file)], SIZE).read([0])
    save_image(make_reference(seed=2), file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    after = open_image_cache([str(file)], SIZE)
    assert_images_match_files(after, [str(file)])
    assert not np.array_equal(after.read([0]), before)


def test_a_file_with_a_new_time_and_the_same_content_is_not_decoded(files, old, decoded):
    open_image_cache(files, SIZE)
    os.utime(files[0], (1, 1))
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert len(decoded) == COUNT


@pytest.mark.parametrize("detected_by", ["times", "content"])
def test_a_file_that_changes_between_hashing_and_decoding_is_read_again(files, monkeypatch, detected_by):
    if detected_by == "times":
        monkeypatch.setattr(index, "MIN_FILE_AGE_SECONDS", -1)
    else:
        monkeypatch.setattr(index, "_hash_status", lambda *_: b"equal")
    read, times = index.read_open_image, []

    def change_and_read(file, path, depth):
        if not times:
            Path(path).write_bytes(Path(files[1]).read_bytes())
        times.append(path)
        file.seek(0)
        return read(file, path, depth)

    monkeypatch.setattr(index, "read_open_image", change_and_read)
    found = index.decode(files[0], SIZE, lambda content: False)
    assert len(times) == 2
    assert np.array_equal(found.image, fit_square(read_image(files[1]), SIZE))
    assert found.content_hash == index.decode(files[1], SIZE, lambda content: True).content_hash


@pytest.mark.parametrize("detected_by", ["times", "age"])
def test_a_packed_dataset_that_changes_while_it_is_read_has_no_signature(tmp_path, monkeypatch, detected_by):
    container = tmp_path / "a.h5"
    container.touch()

    def read(_):
        if detected_by == "times":
            container.write_bytes(b"other")
        return make_reference()

    monkeypatch.setattr(index, "read_image", read)
    monkeypatch.setattr(index, "MIN_FILE_AGE_SECONDS", -1 if detected_by == "times" else 60)
    assert index.decode(f"{container}#0", SIZE, lambda content: False).signature is None


def test_the_error_for_a_failing_disk_names_the_file(files, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(index.hashlib, "file_digest", fail)
    with pytest.raises(ImageError, match="0.png: cannot be read .Input/output error.. Check the disk"):
        open_image_cache(files[:1], SIZE)


def test_a_file_that_keeps_changing_is_refused(files, monkeypatch):
    monkeypatch.setattr(index, "_decode_file", lambda *_: None)
    with pytest.raises(ImageError, match="0.png.*Wait until it is written"):
        open_image_cache(files[:1], SIZE)


def test_the_same_content_under_two_names_uses_one_slot(tmp_path, files, decoded):
    shutil.copy(files[0], tmp_path / "copy.png")
    both = [files[0], str(tmp_path / "copy.png"), files[0]]
    assert_images_match_files(open_image_cache(both, SIZE), both)
    assert count_stored_images() == 1
    moved = [str(Path(files[0]).rename(tmp_path / "moved.png"))]
    decoded.clear()
    assert_images_match_files(open_image_cache(moved, SIZE), moved)
    assert decoded == []


def test_progress_counts_the_decoded_files(files):
    progress = Counted()
    open_image_cache(files, SIZE, progress)
    assert progress.seen == [(COUNT, "reading images")] + [1] * COUNT


def test_files_are_decoded_by_several_threads(files, monkeypatch):
    monkeypatch.setattr(fill, "count_cpus", lambda: 3)
    threads, decode = set(), blocks.decode

    def decode_slowly(*args):
        threads.add(threading.get_ident())
        time.sleep(0.01)
        return decode(*args)

    monkeypatch.setattr(blocks, "decode", decode_slowly)
    open_image_cache(files, SIZE)
    assert len(threads) > 1


def test_the_cache_contains_no_file_names_and_is_private(cache, files, old):
    open_image_cache(files, SIZE)
    assert cache.stat().st_mode & 0o077 == 0
    assert b"radiographs" not in (find_store_dir(SIZE) / "index.sqlite").read_bytes()
