"""Classifying many files: fastcxr, fastcxr with OpenVINO, and plain fastai's get_preds.

    python benchmarks/scoring.py --data DIR --weights FILE [--images 10000] [--blocks 5]

The files of DIR are listed again and again until there are as many as asked; every one is read from its file, by all
three. They take a block of files each by turns, so that a busy machine slows all; the table gives the sums.
"""

import argparse
import os
import tempfile
import time
from functools import partial
from itertools import cycle, islice
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: what the command line of fastcxr sets, for all

import numpy as np
import pandas as pd
from fastai.learner import Learner
from peer import make_plain_learner

from fastcxr import Recipe, make_learner, make_loaders, predict, read_manifest, split_by_patient, train
from fastcxr.inference.bundle import classifier_of
from fastcxr.inference.openvino import to_openvino
from fastcxr.progress import Progress


def score_plain(learner: Learner, table: pd.DataFrame) -> np.ndarray:
    """Probabilities by get_preds, as its tutorial says."""
    with learner.no_bar(), learner.no_logging():
        return learner.get_preds(dl=learner.dls.test_dl(table))[0].numpy()


def score_ours(classifier, table: pd.DataFrame) -> np.ndarray:
    """Probabilities by predict."""
    return predict(classifier, table, splits=None, progress=Progress()).probability


def main() -> None:
    """Run all roads by turns and print the table."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", required=True)
    words.add_argument("--weights", required=True)
    words.add_argument("--backbone", default="mobilenetv2_100")
    words.add_argument("--images", type=int, default=10_000)
    words.add_argument("--blocks", type=int, default=5)
    given = words.parse_args()
    recipe = Recipe(given.backbone, weights=str(Path(given.weights).resolve()), strategy="probe")
    manifest = split_by_patient(read_manifest(given.data), seed=0)
    many = manifest.iloc[list(islice(cycle(range(len(manifest))), given.images))]
    with tempfile.TemporaryDirectory() as folder:
        learner = make_learner(make_loaders(manifest, recipe), recipe)
        train(learner, recipe, Progress())
        ours, plain = classifier_of(learner), make_plain_learner(manifest, recipe, folder)
        roads = {
            "plain fastai, get_preds": partial(score_plain, plain),
            f"fastcxr, {ours.precision}": partial(score_ours, ours),
            f"fastcxr, OpenVINO, {ours.precision}": partial(score_ours, to_openvino(ours)),
        }
        seconds = dict.fromkeys(roads, 0.0)
        answers = {name: [] for name in roads}
        for road in roads.values():
            road(many[:64])  # warm
        for rows in np.array_split(np.arange(len(many)), given.blocks):
            for name, road in roads.items():
                started = time.perf_counter()
                answers[name].append(road(many.iloc[rows]))
                seconds[name] += time.perf_counter() - started
    slowest = max(seconds.values())
    for name, total in seconds.items():
        print(f"{name:<28} {total:>8.1f} s {len(many) / total:>8.0f} images/s {slowest / total:>6.2f} x")
    eager, graph = (np.concatenate(parts) for name, parts in answers.items() if name.startswith("fastcxr"))
    same = (eager.argmax(axis=1) == graph.argmax(axis=1)).mean()
    print(f"OpenVINO names the same class for {100 * same:.2f} % of the images")


if __name__ == "__main__":
    main()
