"""Decode the files that an image cache lacks, by threads or processes; several commands at once share the work.

The files of a dataset are divided into blocks of BLOCK_FILES, which each command claims one by one (see blocks). Python
executes one thread at a time outside of decoders: reading a radiograph of 1024 px scales to about four threads, one of
256 px to less than two. Many missing files are therefore decoded by processes.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastcxr.data.cache.blocks import BlockTask, FilledBlock, ImageList
from fastcxr.data.cache.decoding_process import DecodingProcess, ProcessEndedError, can_start_processes
from fastcxr.data.cache.image_file import ImageStoreWriter
from fastcxr.errors import ImageError
from fastcxr.io.cpus import count_cpus
from fastcxr.progress.base import Bar, Progress

log = logging.getLogger("fastcxr")
BLOCK_FILES = 512  # consecutive files of a dataset that one process claims
MIN_PROCESS_FILES = 4096  # fewer missing files are decoded by threads: a process starts in about a second
MAX_PROCESSES = 32  # each needs about 100 MB of memory
WAIT_SECONDS = 0.2  # between two attempts to claim blocks that other processes have claimed


def fill_cache(
    writer: ImageStoreWriter,
    images: ImageList,
    make_space: Callable[[Path, int, int], bool],
    progress: Progress | None = None,
    errors: list[ImageError] | None = None,
) -> np.ndarray | None:
    """Decode the files that are not cached; return slot and checksum of all, or None if the cache must be emptied.

    Args:
        writer: the open cache.
        images: the files.
        make_space: see quota.evict; called with the folder, the missing and all bytes before anything is decoded.
        progress: progress display.
        errors: receives the error of each unreadable file, whose location is zeros; without it the first is raised.
    """
    if errors is not None:
        errors.clear()  # errors of a first attempt that failed
    n_images, n_bytes = len(images.files), writer.size**2
    locations = writer.find_locations(images.find_signatures())
    missing = np.flatnonzero(locations[:, 0] == 0)
    if not make_space(writer.folder, len(missing) * n_bytes, n_images * n_bytes):
        return None
    if len(missing):
        with (progress or Progress()).bar(len(missing), "reading images") as bar:
            errors_by_row = _Filling(writer, images, missing, locations, bar, strict=errors is None).run()
        if errors is not None:
            errors += [errors_by_row[row] for row in sorted(errors_by_row)]
    return locations


class _Filling:
    """The missing rows of a dataset while they are decoded."""

    def __init__(
        self,
        writer: ImageStoreWriter,
        images: ImageList,
        missing: np.ndarray,
        locations: np.ndarray,
        bar: Bar,
        *,
        strict: bool,
    ):
        """Prepare the blocks of the missing rows. `locations`: is set for these rows."""
        self.writer, self.images, self.locations, self.bar, self.strict = writer, images, locations, bar, strict
        self.n_missing = len(missing)
        self.pending = deque(np.split(missing, np.flatnonzero(np.diff(missing // BLOCK_FILES)) + 1))
        self.errors: dict[int, ImageError] = {}
        self.bar_lock, self.is_stopped = threading.Lock(), False

    def run(self) -> dict[int, ImageError]:
        """Fill all blocks, and return the errors of unreadable files by row."""
        n_processes = min(count_cpus(), len(self.pending), MAX_PROCESSES)
        if self.n_missing >= MIN_PROCESS_FILES and n_processes > 1 and can_start_processes():
            self._fill_by_processes(n_processes)
        n_threads = count_cpus()  # all blocks, or those of processes that ended unexpectedly
        self._fill(lambda task: task.run(self.writer, self._advance), n_threads)
        return self.errors

    def _fill_by_processes(self, n_processes: int) -> None:
        processes = list[DecodingProcess]()
        with ThreadPoolExecutor(n_processes) as pool:
            try:
                for _ in range(n_processes):
                    processes.append(DecodingProcess(self.writer.folder, self.writer.size))
            except OSError as error:  # too many processes, or too little memory
                log.info("%s of %s processes that decode images started: %s", len(processes), n_processes, error)
            try:
                for finished in [pool.submit(self._fill_by_process, process) for process in processes]:
                    finished.result()
            except BaseException:  # an unreadable image, or an interruption by the user
                self.is_stopped = True
                raise
            finally:
                for process in processes:
                    process.end()

    def _fill_by_process(self, process: DecodingProcess) -> None:
        try:
            self._fill(lambda task: process.run(task, self._advance), 1)
        except ProcessEndedError:
            if not self.is_stopped:
                log.warning("a process that decodes images ended unexpectedly: others decode its files")

    def _fill(self, run: Callable[[BlockTask], FilledBlock | None], n_threads: int) -> None:
        """Fill blocks until none is left; those that other processes have claimed are tried again later."""
        n_busy = 0  # blocks in a row that other processes have claimed
        while self.pending and not self.is_stopped:
            try:
                rows = self.pending.popleft()
            except IndexError:  # another thread has taken the last one
                return
            try:
                filled = run(self._make_task(rows, n_threads))
            except ProcessEndedError:
                self.pending.append(rows)
                raise
            if filled is not None:
                n_busy = 0
                self.locations[rows] = filled.locations
                self.errors.update({int(rows[row]): error for row, error in filled.errors.items()})
                continue
            self.pending.append(rows)
            n_busy += 1
            if n_busy >= len(self.pending):
                time.sleep(WAIT_SECONDS)
                n_busy = 0

    def _make_task(self, rows: np.ndarray, n_threads: int) -> BlockTask:
        first = int(rows[0]) // BLOCK_FILES * BLOCK_FILES
        block = self.images.select(range(first, min(first + BLOCK_FILES, len(self.images.files))))
        images = self.images.select(rows)
        return BlockTask(name=block.compute_hash(), images=images, strict=self.strict, n_threads=n_threads)

    def _advance(self, steps: int) -> None:
        with self.bar_lock:
            self.bar.advance(steps)
