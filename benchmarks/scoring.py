"""Classifying many files: fastcxr, fastcxr with OpenVINO, and plain fastai's get_preds.

    python benchmarks/scoring.py --data DIR --weights FILE [--images 10000] [--blocks 2]

The files of DIR are listed again and again until there are as many as asked; every one is read from its file, by all.
They take a block of files each by turns, each in a process of its own; the table gives the sums.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: what `import fastcxr` sets, for all

import numpy as np
import pandas as pd
from peer import make_plain_learner, run_alone

from fastcxr import Recipe, make_learner, make_loaders, predict, read_manifest, split_by_patient, train
from fastcxr.inference.openvino import to_openvino
from fastcxr.models.bundle import extract_classifier
from fastcxr.progress.base import Progress

PLAIN = {"plain fastai, get_preds": None, "plain fastai, no workers": 0}  # processes that read; None: fastai's choice
ROADS = (*PLAIN, "fastcxr", "fastcxr, OpenVINO")


def make_road(given: argparse.Namespace, manifest: pd.DataFrame, folder: str) -> Callable[[pd.DataFrame], np.ndarray]:
    """What turns a table of files into probabilities."""
    recipe = Recipe(given.backbone, weights=str(Path(given.weights).resolve()), strategy="linear_probe")
    if given.road in PLAIN:
        plain = make_plain_learner(manifest, recipe, folder, PLAIN[given.road])
        return lambda table: plain.get_preds(dl=plain.dls.test_dl(table))[0].numpy()
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    train(learner, recipe, Progress())
    ours = extract_classifier(learner)
    model = to_openvino(ours) if given.road == "fastcxr, OpenVINO" else ours
    return lambda table: predict(model, table, splits=None, progress=Progress()).probability


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one road for one block of files, and the class that it names for each."""
    manifest = split_by_patient(read_manifest(given.data), seed=0)
    table = manifest.iloc[list(islice(cycle(range(len(manifest))), given.images // given.blocks))]
    with tempfile.TemporaryDirectory() as folder:
        road = make_road(given, manifest, folder)
        road(table[:64])  # warm
        started = time.perf_counter()
        probability = road(table)
        return {"seconds": time.perf_counter() - started, "named": probability.argmax(axis=1).tolist()}


def main() -> None:
    """Run all roads by turns, each in a process of its own, and print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", required=True)
    words.add_argument("--weights", required=True)
    words.add_argument("--backbone", default="mobilenetv2_100")
    words.add_argument("--images", type=int, default=10_000)
    words.add_argument("--blocks", type=int, default=2)
    words.add_argument("--road", choices=ROADS, help="one block of this one alone")
    given = words.parse_args()
    if given.road:
        print(json.dumps(measure(given)))
        return
    blocks = [{road: run_alone(road) for road in ROADS} for _ in range(given.blocks)]
    seconds = {road: sum(block[road]["seconds"] for block in blocks) for road in ROADS}
    plain = min(seconds[road] for road in PLAIN)
    for road, total in seconds.items():
        speed = given.images / total
        print(f"{road:<26} {total:>8.1f} s {speed:>8.0f} images/s {plain / total:>6.2f} x")
    eager, graph = (np.array(blocks[0][road]["named"]) for road in ROADS[-2:])
    print(f"OpenVINO names the same class for {100 * (eager == graph).mean():.2f} % of the images")


if __name__ == "__main__":
    main()
