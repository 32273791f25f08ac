"""Tests for quota.py, and for places where nothing can be kept"""

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

from fastcxr.data.cache import image_file
from fastcxr.data.cache import quota
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


def use(size: int, ago: float) -> None:
    then = time.time() - ago
    os.utime(find_store_dir(size) / "lock", (then, then))


def sizes() -> set[int]:
    return {kept.size for kept in list_cache_entries()}


def test_the_sizes_used_longest_ago_make_room(files, monkeypatch):
    for size, ago in ((60, 300), (61, 100), (62, 200)):
        open_image_cache(files, size)
        use(size, ago)
    bytes_each = max(kept.n_bytes for kept in list_cache_entries())
    monkeypatch.setenv("FASTCXR_CACHE_GB", str(3.5 * bytes_each / IMAGE_QUOTA_FRACTION / 1e9))
    assert_images_match_files(open_image_cache(files, 63), files, 63)
    assert sizes() == {61, 62, 63}
    assert sum(kept.n_bytes for kept in list_cache_entries()) <= 3.5 * bytes_each
    open_image_cache(files, 62)
    assert [kept.size for kept in list_cache_entries()][0] == 62  # opening is using


def test_a_size_in_use_never_makes_room(files, monkeypatch):
    first = open_image_cache(files, 60)
    use(60, 300)
    open_image_cache(files, 61)
    monkeypatch.setenv("FASTCXR_CACHE_GB", str(2.5 * list_cache_entries()[0].n_bytes / IMAGE_QUOTA_FRACTION / 1e9))
    open_image_cache(files, 62)
    assert sizes() == {60, 62}
    assert_images_match_files(first, files, 60)
    del first
    open_image_cache(files, 63)
    assert sizes() == {62, 63}


def test_a_size_that_is_full_of_other_cohorts_begins_anew(tmp_path, files, monkeypatch):
    open_image_cache(files, 200)
    monkeypatch.setenv("FASTCXR_CACHE_GB", str(1.5 * list_cache_entries()[0].n_bytes / IMAGE_QUOTA_FRACTION / 1e9))
    others = [str(save_image(make_reference(seed=100 + n), tmp_path / f"{n}.png")) for n in range(COUNT)]
    assert_images_match_files(open_image_cache(others, 200), others, 200)
    assert count_stored_images(200) == COUNT


def test_a_store_over_a_limit_that_came_later_is_still_read(files, old, decoded, monkeypatch):
    open_image_cache(files, 60)
    open_image_cache(files, SIZE)
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0.000001")
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert len(decoded) == 2 * COUNT
    assert sizes() == {SIZE}


def test_a_cohort_over_the_limit_is_not_kept_and_said(files, monkeypatch, caplog):
    open_image_cache(files, SIZE)
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0.0001")
    assert_images_match_files(open_image_cache(files, 200), files, 200)
    assert "not cached for the next run" in caplog.text and "may be used" in caplog.text
    assert 200 not in {kept.size for kept in list_cache_entries() if kept.n_images}


def test_no_more_than_half_of_the_free_disk_is_taken(files, temporary, monkeypatch, caplog):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(quota.shutil, "disk_usage", lambda _: usage._replace(free=COUNT * 225**2))
    assert_images_match_files(open_image_cache(files, 225), files, 225)
    assert "not cached for the next run" in caplog.text
    assert "no temporary file" in caplog.text  # it would fill the same disk
    monkeypatch.setattr(quota.shutil, "disk_usage", lambda _: usage._replace(free=3 * COUNT * 225**2))
    caplog.clear()
    assert_images_match_files(open_image_cache(files, 225), files, 225)
    assert caplog.text == ""


def test_a_limit_of_nothing_keeps_nothing(cache, files, temporary, monkeypatch, caplog):
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0")
    with caplog.at_level(logging.INFO, "fastcxr"):
        assert_images_match_files(open_image_cache(files, SIZE), files)
    assert "FASTCXR_CACHE_GB is 0" in caplog.text
    assert not cache.exists()


@pytest.mark.parametrize("words", ["plenty", "-1", "nan"])
def test_a_limit_that_is_no_number_is_refused(files, monkeypatch, words):
    monkeypatch.setenv("FASTCXR_CACHE_GB", words)
    with pytest.raises(RecipeError, match="Set it to a number such as 20"):
        open_image_cache(files, SIZE)


def test_what_a_killed_remover_left_is_swept_away(cache, files):
    left = cache / ".gone-1234"
    left.mkdir(parents=True)
    open_image_cache(files, SIZE)
    assert not left.exists()
    left.mkdir()
    quota.clear_image_cache()
    assert list(cache.iterdir()) == []


def test_who_comes_while_a_folder_is_removed_gets_a_new_one(tmp_path, monkeypatch):
    folder, locked = tmp_path / "a" / "b" / "c", []
    quota.acquire_shared_lock(folder).close()
    lock = quota._flock

    def late(file, kind):
        if not locked:
            locked.append(shutil.move(folder, tmp_path / "gone"))
        lock(file, kind)

    monkeypatch.setattr(quota, "_flock", late)
    with quota.acquire_shared_lock(folder):
        assert (folder / "lock").exists()
        assert not quota.remove_if_unused(folder)
    assert quota.remove_if_unused(folder)


def test_who_comes_just_before_a_folder_is_removed_makes_it_again(tmp_path, monkeypatch):
    made, make = [], Path.mkdir

    def make_late(self, *words, **options):
        make(self, *words, **options)
        if self.name == "c" and not made:
            made.append(shutil.move(self, tmp_path / "gone"))

    monkeypatch.setattr(Path, "mkdir", make_late)
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


def test_without_a_cache_folder_a_temporary_one_is_used_aloud(files, nowhere, temporary, caplog, decoded):
    pictures = open_image_cache(files, SIZE)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not cached for the next run: Not a directory" in caplog.text
    assert_images_match_files(pictures, files)
    assert_images_match_files(pickle.loads(pickle.dumps(pictures)), files)  # noqa: S301  our own
    assert len(decoded) == COUNT
    assert len(list(temporary.iterdir())) == 1


@pytest.mark.parametrize("limit", ["0", "0.000001", None])
def test_where_nothing_can_be_kept_each_picture_is_decoded_once_whoever_asks(
    files, cache, temporary, decoded, monkeypatch, limit
):
    if limit:
        monkeypatch.setenv("FASTCXR_CACHE_GB", limit)
    else:
        cache.parent.parent.mkdir()
        cache.parent.write_text("a file in its place")
    for _ in range(3):  # and nobody holds them in between, as between two folds
        assert_images_match_files(open_image_cache(files, SIZE), files)
    open_image_cache(files[:2], SIZE)
    assert sorted(decoded) == files
    assert len(list(temporary.iterdir())) == 1


def test_sizes_that_nobody_uses_make_room_in_the_temporary_folder(files, nowhere, temporary, monkeypatch, caplog):
    open_image_cache(files, 200)
    held = open_image_cache(files, 201)
    each = max(entry.n_bytes for entry in list_cache_entries(quota.temporary_cache().image_dir))
    monkeypatch.setattr(quota.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 3 * each))
    caplog.clear()
    assert_images_match_files(open_image_cache(files, 202), files, 202)
    assert "no temporary file" not in caplog.text
    assert {path.name.partition("-")[0] for path in temporary.glob("*/images/*")} == {"201px", "202px"}
    assert_images_match_files(held, files, 201)


USE = """
import sys
from pathlib import Path
from fastcxr.data.cache.images import open_image_cache
pictures = open_image_cache(sys.argv[2:], 32)
print(len(list(Path(sys.argv[1]).iterdir())))
"""


def test_the_temporary_folder_goes_with_the_process(files, nowhere, temporary):
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
    monkeypatch.setattr(quota, "user_cache_path", lambda *_, **__: Path("~/.cache/fastcxr"))
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
def test_a_forked_worker_does_not_take_the_temporary_folder_with_it(files, nowhere, temporary):
    open_image_cache(files, SIZE)
    child = os.fork()
    if not child:
        quota._remove_in_owner(quota.make_temporary_dir(), os.getppid())  # what its end would do
        os._exit(0)
    os.waitpid(child, 0)
    assert len(list(temporary.iterdir())) == 1


def test_a_bad_image_costs_the_good_ones_nothing(tmp_path, files, nowhere, temporary, decoded):
    bad = []
    open_image_cache([*files, str(tmp_path / "gone.png")], SIZE, errors=bad)
    assert len(bad) == 1
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert sorted(decoded) == files


def test_without_any_place_every_read_decodes(tmp_path, files, nowhere, temporary, monkeypatch, caplog):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    pictures = open_image_cache(files, SIZE)
    assert "every image is decoded each time" in caplog.text
    caplog.clear()
    assert_images_match_files(pictures, files)
    assert caplog.text == ""
    with pytest.raises(ImageError, match="gone.png"):
        open_image_cache([*files, str(tmp_path / "gone.png")], SIZE)


def test_a_disk_that_fills_up_is_no_reason_to_stop(files, monkeypatch, caplog):
    write, written = image_file._write_image, []

    def fill(file, slot, square):
        written.append(slot)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        write(file, slot, square)

    monkeypatch.setattr(image_file, "_write_image", fill)
    assert_images_match_files(open_image_cache(files, SIZE), files)
    assert "No space left on device" in caplog.text
    assert count_stored_images() == 0


def test_a_write_that_takes_less_than_it_was_given_is_continued():
    class Short:
        def __init__(self):
            self.place, self.content = 0, bytearray(100)

        def seek(self, place):
            self.place = place

        def write(self, data):
            taken = bytes(data[:7])
            self.content[self.place : self.place + len(taken)] = taken
            self.place += len(taken)
            return len(taken)

    file, square = Short(), np.arange(25, dtype=np.uint8).reshape(5, 5)
    image_file._write_image(file, 2, square)
    assert bytes(file.content[50:75]) == square.tobytes()


def test_images_of_earlier_formats_are_not_read_but_listed_and_cleared(cache, files, decoded):
    open_image_cache(files, SIZE)
    (cache / find_store_dir(SIZE).name).rename(cache / f"{SIZE}px-format2-reader3-12345678")
    old = cache.with_name("pictures") / f"{SIZE}px-format1-reader1-12345678"  # the folder of version 0.1
    shutil.copytree(cache / f"{SIZE}px-format2-reader3-12345678", old)
    open_image_cache(files, SIZE)
    assert len(decoded) == 2 * COUNT
    assert len(list_cache_entries()) == 3
    freed, kept = quota.clear_image_cache()
    assert freed and kept == [] and list(cache.iterdir()) == []
    assert not cache.with_name("pictures").exists()
