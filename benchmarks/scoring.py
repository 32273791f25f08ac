"""Prediction of many files: fastcxr, fastcxr with OpenVINO, and get_preds of plain fastai.

    python benchmarks/scoring.py --data DIR --weights FILE [--images 10000] [--blocks 2]

The files of DIR are repeated up to the number of images; every variant reads each of them from its file. The variants
alternate in blocks of files, each block in a separate process; the table contains the sums.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import numpy as np
import pandas as pd
from common import make_parser, parse_or_measure, run_in_subprocess
from plain_fastai import N_WORKERS, make_plain_learner

from fastcxr import Recipe, make_learner, make_loaders, predict, read_manifest, split_by_patient, train
from fastcxr.inference.openvino import to_openvino
from fastcxr.models.bundle import extract_classifier
from fastcxr.progress.base import Progress

VARIANTS = (*N_WORKERS, "fastcxr", "fastcxr, OpenVINO")


def make_predict(
    given: argparse.Namespace, manifest: pd.DataFrame, folder: str
) -> Callable[[pd.DataFrame], np.ndarray]:
    """Return a function that predicts the probabilities of a table of files."""
    recipe = Recipe(given.backbone, weights=given.weights, strategy="linear_probe")
    if given.variant in N_WORKERS:
        plain = make_plain_learner(manifest, recipe, folder, N_WORKERS[given.variant])
        return lambda table: plain.get_preds(dl=plain.dls.test_dl(table))[0].numpy()
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    train(learner, recipe, Progress())
    classifier = extract_classifier(learner)
    model = to_openvino(classifier) if given.variant == "fastcxr, OpenVINO" else classifier
    return lambda table: predict(model, table, splits=None, progress=Progress()).probability


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds and the predicted classes of one block of files."""
    manifest = split_by_patient(read_manifest(given.data), seed=0)
    table = manifest.iloc[list(islice(cycle(range(len(manifest))), given.images // given.blocks))]
    with tempfile.TemporaryDirectory() as folder:
        predict_table = make_predict(given, manifest, folder)
        predict_table(table[:64])  # warm-up
        started = time.perf_counter()
        probability = predict_table(table)
        return {"seconds": time.perf_counter() - started, "classes": probability.argmax(axis=1).tolist()}


def main() -> None:
    """Run all variants alternately, each block in a separate process, and print the table."""
    parser = make_parser(__doc__, ["data", "weights"], ["backbone"])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--blocks", type=int, default=2)
    given = parse_or_measure(parser, VARIANTS, measure)
    blocks = [{variant: run_in_subprocess(variant) for variant in VARIANTS} for _ in range(given.blocks)]
    seconds = {variant: sum(block[variant]["seconds"] for block in blocks) for variant in VARIANTS}
    plain = min(seconds[variant] for variant in N_WORKERS)
    for variant, total in seconds.items():
        print(f"{variant:<26} {total:>8.1f} s {given.images / total:>8.0f} images/s {plain / total:>6.2f} x")
    torch_classes, openvino_classes = (np.array(blocks[0][variant]["classes"]) for variant in VARIANTS[-2:])
    print(
        f"OpenVINO predicts the same class for {100 * (torch_classes == openvino_classes).mean():.2f} % of the images"
    )


if __name__ == "__main__":
    main()
