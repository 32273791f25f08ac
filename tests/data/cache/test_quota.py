"""Tests for quota.py, and for folders that cannot be used."""

import logging
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from image_caches import COUNT, SIZE, assert_images_match_files, count_stored_images
from sample_images import make_reference, save_image

from fastcxr.data.cache import image_file, quota
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.cache.quota import (
    IMAGE_QUOTA_FRACTION,
    CannotStoreError,
    find_image_cache_dir,
    find_store_dir,
    list_cache_entries,
)
from fastcxr.errors import ImageError, OutputError, RecipeError

pytestmark = pytest.mark.usefixtures("cache")


def set_last_use(size: int, ago: float) -> None:
    then = time.time() - ago
    os.utime(find_store_dir(size) / "lock", (then, then))


def sizes() -> set[int]:
    return {entry.size for entry in list_cache_entries()}


def test_the_least_recently_used_sizes_are_evicted(files, monkeypatch):
    for size, ago in ((60, 300), (61, 100), (62, 200)):
        open_image_cache(files, size)
        set_last_use(size, ago)
    bytes_each = max(entry.n_bytes for entry in list_cache_entries())
    monkeypatch.setenv("FASTCXR_CACHE_GB", str(3.5 * bytes_each / IMAGE_QUOTA_FRACTION / 1e9))
    assert_images_match_files(open_image_cache(files, 63), files, 63)
    assert sizes() == {61, 62, 63}
    assert sum(entry.n_bytes for entry in list_cache_entries()) <= 3.5 * bytes_each
    open_image_cache(files, 62)
    assert [entry.size for entry in list_cache_entries()][0] == 62  # opening counts as use


def test_images_that_do_not_fit_leave_no_empty_cache(files, monkeypatch):
    monkeypatch.setenv("FASTCXR_CACHE_GB", "1e-7")
    assert_images_match_files(open_image_cache(files, 61), files, 61)
    assert sizes() == set()


def test_a_size_in_use_is_never_evicted(files, monkeypatch):
    first = open_image_cache(files, 60)
    set_last_use(60, 300)
    open_image_cache(files, 61)
    monkeypatch.setenv("FASTCXR_CACHE_GB", str(2.5 * list_cache_entries()[0].n_bytes / IMAGE_QUOTA_FRACTION / 1e9))
    open_image_cache(files, 62)
    assert sizes() == {60, 62}
    assert_images_match_files(first, files, 60)
    del first
    open_image_cache(files, 63)
    assert sizes() == {62, 63}


def test_a_size_that_is_full_of_other_datasets_is_emptied(tmp_path, files, monkeypatch):
    open_image_cache(files, 200)
    monkeypatch.setenv("FASTCXR_CACHE_GB", str(1.5 * list_cache_entries()[0].n_bytes / IMAGE_QUOTA_FRACTION / 1e9))
    others = [str(save_image(make_reference(seed=100 + n), tmp_path / f"{n}.png")) for n in range(COUNT)]
    assert_images_match_files(open_image_cache(others, 200), others, 200)
    assert count_stored_images(200) == COUNT


def test_a_cache_over_a_reduced_limit_is_still_read(files, old, decoded, monkeypatch):
    open_image_cache(files, 60)
    open_image_cache(files, SIZE)
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0.000001")
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert len(decoded) == 2 * COUNT
    assert sizes() == {SIZE}


def test_a_dataset_over_the_limit_is_not_cached_with_a_warning(files, monkeypatch, caplog):
    open_image_cache(files, SIZE)
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0.0001")
    assert_images_match_files(open_image_cache(files, 200), files, 200)
    assert "not cached for the next run" in caplog.text and "are available" in caplog.text
    assert 200 not in {entry.size for entry in list_cache_entries() if entry.n_images}


def test_the_warning_of_a_dataset_over_the_limit_precedes_decoding_and_has_the_needed_limit(
    files, temporary, decoded, monkeypatch, caplog
):
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0.001")
    n_decoded = []
    monkeypatch.setattr(caplog.handler, "filter", lambda record: n_decoded.append(len(decoded)) is None)
    open_image_cache(files, 600)
    assert "2 MB are needed, 1 MB are available. Set FASTCXR_CACHE_GB=0.1 to cache them" in caplog.text
    assert n_decoded == [0]
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0.1")
    caplog.clear()
    open_image_cache(files, 600)
    assert caplog.text == ""


def test_at_most_half_of_the_free_disk_is_used(files, temporary, monkeypatch, caplog):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(quota.shutil, "disk_usage", lambda _: usage._replace(free=COUNT * 225**2))
    assert_images_match_files(open_image_cache(files, 225), files, 225)
    assert "not cached for the next run" in caplog.text
    assert "half of the free disk space. Choose a larger disk with XDG_CACHE_HOME" in caplog.text
    assert "no temporary file" in caplog.text  # on the same disk
    monkeypatch.setattr(quota.shutil, "disk_usage", lambda _: usage._replace(free=3 * COUNT * 225**2))
    caplog.clear()
    assert_images_match_files(open_image_cache(files, 225), files, 225)
    assert caplog.text == ""


def test_with_a_limit_of_0_nothing_is_cached(cache, files, temporary, monkeypatch, caplog):
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0")
    with caplog.at_level(logging.INFO, "fastcxr"):
        assert_images_match_files(open_image_cache(files, SIZE), files)
    assert "FASTCXR_CACHE_GB is 0" in caplog.text
    assert not cache.exists()


@pytest.mark.parametrize("text", ["plenty", "-1", "nan"])
def test_an_invalid_limit_is_refused(files, monkeypatch, text):
    monkeypatch.setenv("FASTCXR_CACHE_GB", text)
    with pytest.raises(RecipeError, match="Set it to a number such as 20"):
        open_image_cache(files, SIZE)


def test_folders_that_a_killed_process_was_removing_are_removed(cache, files):
    left = cache / ".gone-1234"
    left.mkdir(parents=True)
    open_image_cache(files, SIZE)
    assert not left.exists()
    left.mkdir()
    quota.clear_image_cache()
    assert list(cache.iterdir()) == []


def test_a_folder_removed_before_locking_is_created_again(tmp_path, monkeypatch):
    folder, locked = tmp_path / "a" / "b" / "c", []
    quota.acquire_shared_lock(folder).close()
    lock = quota._flock

    def remove_and_lock(file, operation):
        if not locked:
            locked.append(shutil.move(folder, tmp_path / "gone"))
        lock(file, operation)

    monkeypatch.setattr(quota, "_flock", remove_and_lock)
    with quota.acquire_shared_lock(folder):
        assert (folder / "lock").exists()
        assert not quota.remove_if_unused(folder)
    assert quota.remove_if_unused(folder)


def test_a_folder_removed_after_mkdir_is_created_again(tmp_path, monkeypatch):
    made, make = [], Path.mkdir

    def make_and_remove(self, *args, **options):
        make(self, *args, **options)
        if self.name == "c" and not made:
            made.append(shutil.move(self, tmp_path / "gone"))

    monkeypatch.setattr(Path, "mkdir", make_and_remove)
    quota.acquire_shared_lock(tmp_path / "a" / "b" / "c").close()
    assert (tmp_path / "a" / "b" / "c" / "lock").exists()


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A cache folder that cannot be created, not even by root."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))


@pytest.fixture
def no_home(monkeypatch):
    """A user ID without HOME and without an entry in the user database, as in some containers."""

    def fail(_):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", fail)


def test_without_a_cache_folder_a_temporary_one_is_used_with_a_warning(files, nowhere, temporary, caplog, decoded):
    image_cache = open_image_cache(files, SIZE)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not cached for the next run: Not a directory" in caplog.text
    assert_images_match_files(image_cache, files)
    assert_images_match_files(pickle.loads(pickle.dumps(image_cache)), files)  # noqa: S301  written above
    assert len(decoded) == COUNT
    assert len(list(temporary.iterdir())) == 1


@pytest.mark.parametrize("limit", ["0", "0.000001", None])
def test_without_a_usable_cache_folder_each_image_is_decoded_once_per_process(
    files, cache, temporary, decoded, monkeypatch, limit
):
    if limit:
        monkeypatch.setenv("FASTCXR_CACHE_GB", limit)
    else:
        cache.parent.parent.mkdir()
        cache.parent.write_text("a file instead of a folder")
    for _ in range(3):  # the cache is closed in between, as between two folds
        assert_images_match_files(open_image_cache(files, SIZE), files)
    open_image_cache(files[:2], SIZE)
    assert sorted(decoded) == files
    assert len(list(temporary.iterdir())) == 1


def test_unused_sizes_are_evicted_from_the_temporary_folder(files, nowhere, temporary, monkeypatch, caplog):
    open_image_cache(files, 200)
    open_cache = open_image_cache(files, 201)
    each = max(entry.n_bytes for entry in list_cache_entries(quota.temporary_cache().image_dir))
    monkeypatch.setattr(quota.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 3 * each))
    caplog.clear()
    assert_images_match_files(open_image_cache(files, 202), files, 202)
    assert "no temporary file" not in caplog.text
    assert {path.name.partition("-")[0] for path in temporary.glob("*/images/*")} == {"201px", "202px"}
    assert_images_match_files(open_cache, files, 201)


USE = """
import sys
from pathlib import Path
from fastcxr.data.cache.images import open_image_cache
image_cache = open_image_cache(sys.argv[2:], 32)
print(len(list(Path(sys.argv[1]).iterdir())))
"""


def test_the_temporary_folder_is_removed_at_exit(files, nowhere, temporary):
    command = [sys.executable, "-c", USE, str(temporary), *files]
    found = subprocess.run(command, env=os.environ | {"TMPDIR": str(temporary)}, check=True, stdout=subprocess.PIPE)
    assert found.stdout.split() == [b"1"]
    assert list(temporary.iterdir()) == []


def test_a_user_without_a_home_folder_gets_a_temporary_cache_and_a_warning(files, no_home, temporary, caplog):
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert "images are not cached for the next run: this user has no home folder" in caplog.text


def test_the_error_for_a_user_without_a_home_folder_is_one_line(no_home):
    with pytest.raises(OutputError) as caught:
        find_image_cache_dir()
    text = "this user has no home folder. Set HOME or XDG_CACHE_HOME to an absolute path"
    assert str(caught.value) == text and caught.value.exit_code == 73


def test_an_older_platformdirs_without_a_home_folder_creates_no_folder_named_tilde(monkeypatch):
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: Path("~/.cache/fastcxr"))
    with pytest.raises(CannotStoreError, match="no home folder"):
        find_image_cache_dir()


def test_the_cache_folder_is_in_the_xdg_folder_or_the_home_folder(cache, monkeypatch, tmp_path):
    assert find_image_cache_dir() == cache
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_image_cache_dir() == tmp_path / ".cache" / "fastcxr" / "images"


@pytest.mark.parametrize(
    ("platform", "folder"),
    [("macos.MacOS", "Library/Caches/fastcxr"), ("windows.Windows", "AppData/Local/fastcxr/Cache")],
)
def test_macos_and_windows_have_the_cache_folder_of_the_platform(platform, folder, monkeypatch, tmp_path):
    module, _, name = platform.partition(".")
    directories = getattr(pytest.importorskip(f"platformdirs.{module}"), name)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("platformdirs.windows.get_win_folder", lambda _: str(tmp_path / "AppData" / "Local"))
    monkeypatch.setattr("platformdirs.PlatformDirs", directories)
    assert find_image_cache_dir() == tmp_path / folder / "images"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a call of POSIX")
def test_a_forked_worker_does_not_remove_the_temporary_folder(files, nowhere, temporary):
    open_image_cache(files, SIZE)
    child = os.fork()
    if not child:
        quota._remove_in_owner(quota.make_temporary_dir(), os.getppid())  # as at its exit
        os._exit(0)
    os.waitpid(child, 0)
    assert len(list(temporary.iterdir())) == 1


def test_a_bad_image_does_not_affect_the_others(tmp_path, files, nowhere, temporary, decoded):
    bad = []
    open_image_cache([*files, str(tmp_path / "gone.png")], SIZE, errors=bad)
    assert len(bad) == 1
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert sorted(decoded) == files


def test_without_any_folder_every_read_decodes(tmp_path, files, nowhere, temporary, monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    image_cache = open_image_cache(files, SIZE)
    assert "every image is decoded each time" in caplog.text
    caplog.clear()
    assert_images_match_files(image_cache, files)
    assert caplog.text == ""
    with pytest.raises(ImageError, match="gone.png"):
        open_image_cache([*files, str(tmp_path / "gone.png")], SIZE)


def test_a_full_disk_does_not_stop_the_run(files, monkeypatch, caplog):
    write, written = image_file._write_image, []

    def fail_at_third(file, slot, image):
        written.append(slot)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        write(file, slot, image)

    monkeypatch.setattr(image_file, "_write_image", fail_at_third)
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert "No space left on device" in caplog.text
    assert sizes() == set()


def test_a_partial_write_is_continued():
    class PartialWriter:
        def __init__(self):
            self.position, self.content = 0, bytearray(100)

        def seek(self, position):
            self.position = position

        def write(self, data):
            written = bytes(data[:7])
            self.content[self.position : self.position + len(written)] = written
            self.position += len(written)
            return len(written)

    file, image = PartialWriter(), np.arange(25, dtype=np.uint8).reshape(5, 5)
    image_file._write_image(file, 2, image)
    assert bytes(file.content[50:75]) == image.tobytes()


def test_images_of_earlier_formats_are_listed_and_cleared_but_not_read(cache, files, decoded):
    open_image_cache(files, SIZE)
    (cache / find_store_dir(SIZE).name).rename(cache / f"{SIZE}px-format2-reader3-12345678")
    old = cache.with_name("pictures") / f"{SIZE}px-format1-reader1-12345678"  # the folder of version 0.1
    shutil.copytree(cache / f"{SIZE}px-format2-reader3-12345678", old)
    open_image_cache(files, SIZE)
    assert len(decoded) == 2 * COUNT
    assert len(list_cache_entries()) == 3
    freed_bytes, remaining = quota.clear_image_cache()
    assert freed_bytes and remaining == [] and list(cache.iterdir()) == []
    assert not cache.with_name("pictures").exists()


def test_images_of_an_earlier_format_are_evicted_first_if_space_is_needed(cache, files, monkeypatch):
    open_image_cache(files, 60)
    set_last_use(60, 300)
    (cache / find_store_dir(60).name).rename(cache / "60px-format3-reader5-12345678")
    monkeypatch.setenv("FASTCXR_CACHE_GB", str(1.5 * list_cache_entries()[0].n_bytes / IMAGE_QUOTA_FRACTION / 1e9))
    assert_images_match_files(open_image_cache(files, 60), files, 60)
    assert [entry.folder for entry in list_cache_entries()] == [find_store_dir(60)]
