"""How often the audit's probes fail a cohort without a shortcut, and one with a planted shortcut.

    python benchmarks/audit.py --data DIR [--label No_findings] [--seeds 100]

Images of one label are given one of two made-up labels at random, patient by patient: nothing tells these apart, so a
FAIL is a false alarm. Then a shortcut is planted into the second label's pictures or files, and a PASS is a miss.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from fastcxr import read_manifest
from fastcxr.checks.looks import Looks, look_at
from fastcxr.checks.probes import check_probes
from fastcxr.progress import Progress


def leave(looks: Looks, chosen: np.ndarray) -> Looks:
    """Nothing is planted."""
    return looks


def mark_corner(looks: Looks, chosen: np.ndarray) -> Looks:
    """A bright mark near a corner, as a hospital's letters are."""
    small = looks.small.copy()
    small[chosen, 3:6, 3:8] = 250
    return replace(looks, small=small)


def brighten(looks: Looks, chosen: np.ndarray) -> Looks:
    """Another gamma, as another machine has."""
    small = looks.small.copy()
    small[chosen] = (255 * (small[chosen] / 255) ** 0.7).astype(np.uint8)
    counts = [np.bincount(picture.ravel() // 8, minlength=32) / picture.size for picture in small]
    return replace(looks, small=small, histogram=np.stack(counts))


def save_otherwise(looks: Looks, chosen: np.ndarray) -> Looks:
    """Another colour mode."""
    facts = looks.facts.copy()
    facts.loc[chosen, "mode"] = "RGB"
    return replace(looks, facts=facts)


def main() -> None:
    """One row for each thing that was planted."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", required=True)
    words.add_argument("--label", default="No_findings")
    words.add_argument("--seeds", type=int, default=100)
    given = words.parse_args()
    manifest = read_manifest(given.data)
    manifest = manifest[manifest["label"] == given.label].reset_index(drop=True)
    looks = look_at(manifest["file"].tolist(), Progress())
    patients = pd.factorize(manifest["patient"])[0]
    print(f"{len(manifest):,} images of {patients.max() + 1:,} patients, {given.seeds} seeds")
    for plant in (leave, mark_corner, brighten, save_otherwise):
        failed, started = 0, time.perf_counter()
        for seed in range(given.seeds):
            side = np.random.default_rng(seed).integers(0, 2, patients.max() + 1)[patients] == 1
            table = manifest.assign(label=np.where(side, "second", "first"))
            findings = check_probes(table, plant(looks, side), Progress())
            failed += any(finding.verdict == "FAIL" for finding in findings)
        low, high = binomtest(failed, given.seeds).proportion_ci(method="wilson")
        seconds = (time.perf_counter() - started) / given.seeds
        print(f"{plant.__name__:<16} FAIL {failed:>4} ({low:.3f} to {high:.3f}), {seconds:.1f} s each", flush=True)


if __name__ == "__main__":
    main()
