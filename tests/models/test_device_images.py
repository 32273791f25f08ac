"""Images of a dataset on a device: the same batches from the disk, and from one copy where it fits."""

import copy

import numpy as np
import pytest
import torch

from fastcxr.data.cache import images as images_module
from fastcxr.data.cache.images import ImageCache, open_image_cache
from fastcxr.errors import ImageError
from fastcxr.models import device_images as module
from fastcxr.models.device_images import DeviceImages, copy_all_images

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BATCHES = [[3, 1, 1], np.array([7]), range(20, 28)]


@pytest.fixture(scope="module")
def cache(toy_manifest) -> ImageCache:
    return open_image_cache(toy_manifest["file"].tolist(), 32)


def assert_equal_batches(found, cache):
    for images, rows in zip(found, BATCHES, strict=True):
        assert images.dtype == torch.uint8
        assert np.array_equal(images.cpu().numpy(), cache.read(rows))


def test_batches_read_ahead_from_the_disk_are_those_of_the_cache(cache):
    assert_equal_batches(DeviceImages(cache).read_batches(BATCHES, CPU), cache)


def test_batches_of_the_copy_are_those_of_the_cache_and_need_no_disk(cache, monkeypatch):
    monkeypatch.setattr(module, "read_free_memory", lambda device: 2**40)
    images = DeviceImages(cache)
    images._copies[CPU] = copy_all_images(cache, CPU)
    monkeypatch.setattr(DeviceImages, "find_copy", lambda self, device: self._copies[device])
    with monkeypatch.context() as patch:
        patch.setattr(ImageCache, "read", None)
        found = list(images.read_batches(BATCHES, CPU))
    assert_equal_batches(found, cache)


def test_the_copy_is_made_in_chunks_of_limited_size(cache, monkeypatch):
    read, sizes = ImageCache.read, []
    monkeypatch.setattr(ImageCache, "read", lambda self, rows: sizes.append(len(rows)) or read(self, rows))
    monkeypatch.setattr(images_module, "CHUNK_BYTES", 7 * 32**2 + 1)
    monkeypatch.setattr(module, "read_free_memory", lambda device: 2**40)
    all_images = copy_all_images(cache, CPU)
    assert sorted(sizes) == [2, 7, 7, 7, 7]
    assert np.array_equal(all_images.numpy(), read(cache, range(30)))


@pytest.mark.parametrize(("n_free_bytes", "fits"), [(2 * 30 * 32**2, True), (2 * 30 * 32**2 - 2, False)])
def test_the_images_are_copied_if_they_need_at_most_half_of_the_free_memory(cache, monkeypatch, n_free_bytes, fits):
    monkeypatch.setattr(module, "read_free_memory", lambda device: n_free_bytes)
    assert (copy_all_images(cache, CPU) is not None) == fits


def test_a_gpu_gets_one_copy_until_it_is_released_and_a_cpu_none(cache, monkeypatch):
    made = []
    monkeypatch.setattr(module, "copy_all_images", lambda cache, device: made.append(device) or torch.empty(0))
    images = DeviceImages(cache)
    assert images.find_copy(CPU) is None
    assert images.find_copy(GPU) is images.find_copy(GPU)
    assert made == [GPU]
    images.release()
    images.find_copy(GPU)
    assert made == [GPU, GPU]


def test_images_that_do_not_fit_are_not_tried_again(cache, monkeypatch):
    made = []
    monkeypatch.setattr(module, "copy_all_images", lambda cache, device: made.append(device))
    images = DeviceImages(cache)
    assert images.find_copy(GPU) is images.find_copy(GPU) is None
    assert len(made) == 1


def test_a_worker_process_receives_no_copy(cache):
    images = DeviceImages(cache)
    images._copies[GPU] = torch.zeros(10**6, dtype=torch.uint8)
    received = copy.copy(images)  # by the methods of pickle
    assert received._copies == {}
    assert received.cache is cache
    assert images._copies


def test_an_unreadable_image_raises_at_its_batch(cache, monkeypatch):
    read = ImageCache.read

    def fail_at_last(self, rows):
        if 20 in rows:
            raise ImageError("broken", "Copy it again")
        return read(self, rows)

    monkeypatch.setattr(ImageCache, "read", fail_at_last)
    batches = DeviceImages(cache).read_batches(BATCHES, CPU)
    assert len(next(batches)) == 3
    assert len(next(batches)) == 1
    with pytest.raises(ImageError, match="broken"):
        next(batches)


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_batches_on_a_gpu_are_those_of_the_cache(cache, monkeypatch, share):
    monkeypatch.setattr(module, "MAX_MEMORY_SHARE", share)
    images = DeviceImages(cache)
    assert (images.find_copy(GPU) is None) == (share == 0)
    found = list(images.read_batches(BATCHES, GPU))
    assert {batch.device for batch in found} == {GPU}
    assert_equal_batches(found, cache)
