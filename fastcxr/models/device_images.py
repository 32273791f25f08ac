"""Decoded images of a dataset as tensors on a device; a GPU gets one copy of all images if they fit."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fastcxr.data.cache.images import ImageCache
from fastcxr.io.threads import map_ahead
from fastcxr.models.devices import move_async, pin, read_free_memory

MAX_MEMORY_SHARE = 0.5  # of the free GPU memory, for the copy of all images
N_BATCHES_AHEAD = 2  # read from the disk while the device computes
Rows = Sequence[int] | np.ndarray
log = logging.getLogger("fastcxr")


class DeviceImages:
    """The images of an image cache on a device.

    A GPU gets one copy of all images when the first ones are read, if they need at most MAX_MEMORY_SHARE of its free
    memory. All loaders and passes over a dataset share it. Otherwise each batch is read from the disk.
    """

    def __init__(self, cache: ImageCache):
        self.cache = cache
        self._copies: dict[torch.device, torch.Tensor | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_copies": {}}  # for worker processes

    def read(self, rows: Rows, device: torch.device) -> torch.Tensor:
        """Return the images of the rows, uint8, shape (n, size, size). See ImageCache.read for errors."""
        all_images = self.find_copy(device)
        if all_images is None:
            return move_async(pin(torch.from_numpy(self.cache.read(rows)), device), device)
        return all_images.index_select(0, move_async(torch.as_tensor(rows), device))

    def read_batches(self, batches: Iterable[Rows], device: torch.device) -> Iterator[torch.Tensor]:
        """Yield the images of each batch of rows in order, uint8, shape (n, size, size).

        The host does not wait for a GPU: threads read batches ahead, and copies to the GPU are asynchronous.
        See ImageCache.read for errors.
        """
        if self.find_copy(device) is not None:
            yield from (self.read(rows, device) for rows in batches)
            return

        def read(rows: Rows) -> torch.Tensor:
            return pin(torch.from_numpy(self.cache.read(rows)), device)

        for images in map_ahead(read, batches, n_threads=N_BATCHES_AHEAD, n_ahead=N_BATCHES_AHEAD):
            yield move_async(images, device)

    def find_copy(self, device: torch.device) -> torch.Tensor | None:
        """Return the copy of all images on a GPU, shape (n, size, size), or None if they do not fit."""
        if device.type != "cuda":
            return None
        if device not in self._copies:
            self._copies[device] = copy_all_images(self.cache, device)
        return self._copies[device]

    def release(self) -> None:
        """Free the GPU memory of the copies; the next read copies the images again."""
        self._copies.clear()


def copy_all_images(cache: ImageCache, device: torch.device) -> torch.Tensor | None:
    """Return all images in GPU memory, uint8, shape (n, size, size), or None if it is too small."""
    shape = (len(cache.files), cache.size, cache.size)
    n_bytes, n_free_bytes = math.prod(shape), read_free_memory(device)
    if n_bytes > MAX_MEMORY_SHARE * n_free_bytes:
        sizes = [f"{n / 2**30:.1f} GB" for n in (n_bytes, n_free_bytes)]
        log.info("the images need %s, and %s of the GPU memory are free: each batch is read from the disk", *sizes)
        return None
    copy = torch.empty(shape, dtype=torch.uint8, device=device)
    for rows, images in cache.map_chunks(lambda rows, images: (rows, torch.from_numpy(images))):
        copy[rows] = images
    return copy
