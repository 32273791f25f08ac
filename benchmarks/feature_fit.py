"""Fit a head on features larger than a limit of memory: seconds and peak memory.

    python benchmarks/feature_fit.py [--images 400000] [--features 1280] [--memory 500] [--task findings]

The features are random and written to a temporary .npy file, as the feature cache stores them. 80 % of the rows train
the head, in random order, the others select its L2 penalty. `memory`: available memory [MB], of which the fit uses a
share for features; without it, the memory of the system. Memory: peak of allocated memory (RssAnon)
before and during the fit, and of allocated and mapped memory together (VmHWM), which the operating system can reclaim.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from growth import record_peaks

from fastcxr.data.cache.features import release_pages
from fastcxr.progress.base import Bar, Progress
from fastcxr.training import feature_split
from fastcxr.training.feature_split import FeatureSplit
from fastcxr.training.finding_losses import FindingCrossEntropy
from fastcxr.training.linear_probe import fit_probe
from fastcxr.training.losses import LabelSmoothingCrossEntropy

BLOCK_ROWS = 10_000


def write_features(path: Path, n_rows: int, n_features: int, n_outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Write correlated random features, and return them and the truth of each output, shape (n, k)."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(32, n_features)).astype(np.float32)
    values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_rows, n_features))
    truth = np.empty((n_rows, n_outputs), np.float32)
    for start in range(0, n_rows, BLOCK_ROWS):
        hidden = rng.normal(size=(min(BLOCK_ROWS, n_rows - start), 32)).astype(np.float32)
        rows = slice(start, start + len(hidden))
        values[rows] = hidden @ mixing + rng.normal(size=(len(hidden), n_features)).astype(np.float32)
        release_pages(values)
        truth[rows] = hidden[:, :n_outputs] + rng.normal(size=(len(hidden), n_outputs)) > 1
    values.flush()
    return np.lib.format.open_memmap(path, mode="r"), truth


class CountingProgress(Progress):
    """Count the passes over the training features."""

    def __init__(self):
        self.passes = 0

    @contextmanager
    def bar(self, total: int, text: str) -> Iterator[Bar]:
        """Yield a bar that counts its steps."""

        def advance(steps: int = 1) -> None:
            self.passes += steps

        yield cast(Bar, SimpleNamespace(advance=advance))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400_000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--memory", type=int, help="available memory [MB]")
    parser.add_argument("--task", choices=("classes", "findings"), default="classes")
    given = parser.parse_args()
    if given.memory:
        feature_split.read_available_memory = lambda: given.memory * 1_000_000
    n_outputs = 3 if given.task == "classes" else 14
    with tempfile.TemporaryDirectory() as folder:
        features, truth = write_features(Path(folder) / "features.npy", given.images, given.features, n_outputs)
        order = np.random.default_rng(1).permutation(given.images)
        n_train = int(0.8 * given.images)
        targets = torch.from_numpy(truth if given.task == "findings" else truth[:, :2].sum(axis=1).astype(np.int64))
        train, valid = (
            FeatureSplit((features,), np.sort(rows), targets[np.sort(rows)], torch.ones(len(rows)))
            for rows in (order[:n_train], order[n_train:])
        )
        loss = FindingCrossEntropy() if given.task == "findings" else LabelSmoothingCrossEntropy(0.0)
        head = SimpleNamespace(
            linear=torch.nn.Linear(given.features, n_outputs),
            mean=torch.zeros(given.features), std=torch.ones(given.features),
        )  # fmt: skip
        before, peaks = {"RssAnon": 0}, {"RssAnon": 0, "VmHWM": 0}
        threading.Thread(target=record_peaks, args=[before], daemon=True).start()
        time.sleep(0.3)
        before = dict(before)
        threading.Thread(target=record_peaks, args=[peaks], daemon=True).start()
        progress, started, cpu_started = CountingProgress(), time.perf_counter(), time.process_time()
        fit = fit_probe(head, loss, train, valid, progress)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
        time.sleep(0.2)
    print(f"{features.nbytes / 1e6:,.0f} MB of features, {given.task}, L2 {fit.l2:g}, loss {fit.valid_loss:.6f}")
    print(f"{seconds:.0f} s, {cpu:.0f} processor seconds, {progress.passes} passes over the training features")
    print(f"memory before {before['RssAnon'] / 1024:.0f} MB, peak {peaks['RssAnon'] / 1024:.0f} MB, "
          f"with mapped files {peaks['VmHWM'] / 1024:.0f} MB")  # fmt: skip
