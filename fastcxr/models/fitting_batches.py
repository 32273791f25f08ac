"""Batches of inference with as many images as fit into memory."""

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from fastcxr.models.device_errors import explain_device_errors, is_memory_error
from fastcxr.models.devices import search_algorithms

CPU_BATCH_SIZE = 32
GPU_BATCH_SIZE = 256  # batches that suit the caches of a CPU leave most of a GPU idle
log = logging.getLogger("fastcxr")
Result = TypeVar("Result")


def choose_batch_size(device: torch.device) -> int:
    """Return the number of images in the first batch of an inference pass."""
    return CPU_BATCH_SIZE if device.type == "cpu" else GPU_BATCH_SIZE


class FittingBatches:
    """Batches of one pass: after an out-of-memory error, this batch and all later ones have half the images.

    Args:
        size: number of images in the first batch.
    """

    def __init__(self, size: int):
        self.size, self.has_warned = size, False

    def compute(self, function: Callable[[slice], Result], n_images: int, first: int = 0) -> Iterator[Result]:
        """Yield the results of `function` for consecutive slices of `n_images` images, from image `first`.

        Raises DeviceError if one image does not fit into memory, or the GPU was lost.
        """
        with explain_device_errors():
            while first < n_images:
                batch = slice(first, min(first + self.size, n_images))
                try:
                    with search_algorithms(enabled=False):
                        result = function(batch)
                except (MemoryError, RuntimeError) as error:
                    if not is_memory_error(error) or batch.stop - batch.start == 1:
                        raise
                    self._halve(batch.stop - batch.start)
                    continue  # after the except block the error, and with it the failed batch, is released
                yield result
                first = batch.stop

    def _halve(self, n_images: int) -> None:
        self.size = n_images // 2
        if not self.has_warned:
            log.warning("out of memory with %d images: this and further batches are halved until they fit", n_images)
        self.has_warned = True
