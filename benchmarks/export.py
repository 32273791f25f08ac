"""Exported ONNX files: differences from the model in PyTorch, and images/s beside PyTorch and OpenVINO in float32.

    python benchmarks/export.py RUN --images DIR [DIR ...] [--n 1000] [--networks NAME ...] [--rounds 5]

RUN is exported and scores N evenly spaced images of the folders. Each of the networks, with random weights, batch norms
of the images and a fitted out-of-distribution detector, scores 100 of them. Then RUN scores batches of 32 images and
single images with each engine; the engines alternate, and the ratio is the median of the rounds.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: the same as `import fastcxr` sets

import numpy as np
import onnxruntime
import torch
from torch import nn

from fastcxr.data.image_table import make_image_table
from fastcxr.export.export_json import ONNX_FILE
from fastcxr.export.exported_model import ExportedModel, load_export
from fastcxr.export.onnx import write_onnx
from fastcxr.inference.images import read_fitted_images
from fastcxr.inference.openvino import model_to_openvino
from fastcxr.inference.scores import Scorer, Scores
from fastcxr.inference.torch_scorer import TorchScorer
from fastcxr.io.cpus import count_cpus
from fastcxr.io.files import write_json
from fastcxr.metrics.feature_map import select_evenly
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.bundle import Classifier, Ensemble, load_model
from fastcxr.models.heads import HeadConfig, find_head, find_stages, forward_with_features
from fastcxr.models.preprocessing import InputSpec, make_blank_image, normalize
from fastcxr.training.fit_ood import compute_conformal_limit, fit_mahalanobis
from fastcxr.workflows.export import describe_export

NETWORKS = ("resnet18", "densenet121", "convnext_tiny", "vit_small_patch16_224")
BATCH_SIZES, N_NETWORK_IMAGES, N_TIMED_IMAGES, N_FITTING_IMAGES = (32, 1), 100, 32, 64
LABELS = ("a", "b", "c")


def read_images(folders: list[str], n: int, size: int) -> np.ndarray:
    """Return n evenly spaced images of the folders, shape (n, size, size)."""
    files = make_image_table(folders)["file"]
    chosen = files.iloc[select_evenly(len(files), n)].tolist()
    return np.stack([image for image in read_fitted_images(chosen, size, None) if isinstance(image, np.ndarray)])


def make_random_model(name: str, images: np.ndarray) -> Classifier:
    """Return a classifier with random weights, and batch norms and OOD detector of some of the images."""
    backbone, size = find_backbone(name, "none"), images.shape[1]
    spec = InputSpec(image_size=size, mean=backbone.mean, std=backbone.std)
    torch.manual_seed(0)
    network = make_network(backbone, len(LABELS), "none", size, HeadConfig(multi_scale=True))
    for layer in find_head(network).modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    stages = find_stages(network, make_blank_image(spec))
    chosen = torch.from_numpy(images[select_evenly(len(images), N_FITTING_IMAGES)])
    with torch.no_grad():
        network.train()(normalize(chosen[:, None], spec))
        features = forward_with_features(network.eval(), normalize(chosen[:, None], spec), stages)[1]
    detector = fit_mahalanobis(features, stages)
    detector = replace(detector, threshold=compute_conformal_limit(detector.compute_scores(features)))
    return Classifier(
        network=network, labels=LABELS, input_spec=spec, temperature=1.3, ood_detector=detector, hflip_tta=True
    )


def export(model: Classifier | Ensemble, run: Path, folder: Path) -> tuple[ExportedModel, float, float]:
    """Export a model; return it, the seconds of the conversion, and the size of the file in MB."""
    started = time.perf_counter()
    entries = write_onnx(model, folder)
    seconds = time.perf_counter() - started
    own = {"labels": list(model.labels), "image_size": model.input_spec.image_size, "task": model.task}
    description = describe_export(run, model) if model.thresholds else own | {"calibration": {}, "notices": []}
    depths = {"bit_depths": {"sources": {}, "default": None}, "check": {}}
    write_json(folder / "export.json", {"format": 1} | depths | description | entries)
    return load_export(folder), seconds, (folder / ONNX_FILE).stat().st_size / 1e6


def score_all(scorer: Scorer, images: np.ndarray, batch_size: int = 32) -> Scores:
    """Return the scores of all images, in batches."""
    parts = [scorer.score(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
    ood_scores = [part.ood_score for part in parts if part.ood_score is not None]
    probability = np.concatenate([part.probability for part in parts])
    return Scores(probability, np.concatenate(ood_scores) if ood_scores else None)


def compare(name: str, model: Classifier | Ensemble, exported: ExportedModel, images: np.ndarray) -> str:
    """Return the row of a model: differences of its file from PyTorch."""
    expected, found = score_all(TorchScorer(model), images), score_all(exported, images)
    differences = np.abs(found.probability - expected.probability).max(axis=1)
    same = int((found.probability.argmax(axis=1) == expected.probability.argmax(axis=1)).sum())
    spread = np.ptp(expected.probability, axis=0).max()
    cells = [name, f"{len(images):,}", f"{spread:.2f}", f"{np.median(differences):.1e}", f"{differences.max():.1e}"]
    cells.append(f"{same:,} of {len(images):,}")
    if expected.ood_score is None or found.ood_score is None:
        return " | ".join([*cells, "-", "-"])
    relative = np.abs(found.ood_score / expected.ood_score - 1).max()
    same = int(((found.ood_score <= 1) == (expected.ood_score <= 1)).sum())
    return " | ".join([*cells, f"{relative:.1e}", f"{same:,} of {len(images):,}"])


def time_engines(scorers: dict[str, Scorer], images: np.ndarray, batch_size: int, rounds: int) -> Iterator[str]:
    """Yield the row of each engine: median images/s, and the median ratio to the first engine in the same round."""
    rates: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(rounds + 1):
        for name, scorer in scorers.items():
            started = time.perf_counter()
            score_all(scorer, images, batch_size)
            rates[name].append(len(images) / (time.perf_counter() - started))
    first = next(iter(rates.values()))[1:]
    for name, values in rates.items():
        ratios = [value / other for value, other in zip(values[1:], first, strict=True)]
        yield f"{name} | {batch_size} | {statistics.median(values[1:]):.3g} | {statistics.median(ratios):.2f}"


def main() -> None:
    """Print the tables of differences and of images/s."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", nargs="+", required=True)
    parser.add_argument("--n", type=int, default=1000, help="images that the run scores")
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(count_cpus())
    model = load_model(given.run, precision="fp32", device="cpu")
    images = read_images(given.images, given.n, model.input_spec.image_size)
    print(f"{count_cpus()} cores, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}")
    print("| model | images | range of p | median difference | largest | same class | OOD, relative | same verdict |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        exported, *facts = export(model, given.run, Path(folder))
        print(f"| {compare(given.run.name, model, exported, images)} |", flush=True)
        conversions = {given.run.name: facts}
        for name in given.networks:
            random_model = make_random_model(name, images[:: max(1, len(images) // N_NETWORK_IMAGES)])
            with tempfile.TemporaryDirectory() as other:
                random_export, *conversions[name] = export(random_model, given.run, Path(other))
                chosen = images[select_evenly(len(images), N_NETWORK_IMAGES)]
                print(f"| {compare(name, random_model, random_export, chosen)} |", flush=True)
        for name, (seconds, megabytes) in conversions.items():
            print(f"{name}: converted in {seconds:.0f} s, {megabytes:.1f} MB")
        scorers: dict[str, Scorer] = {
            "torch": TorchScorer(model), "onnxruntime": exported, "OpenVINO": TorchScorer(model_to_openvino(model)),
        }  # fmt: skip
        print("| engine | batch | images/s | ratio to torch |\n|---|---|---|---|")
        for batch_size in BATCH_SIZES:
            for row in time_engines(scorers, images[:N_TIMED_IMAGES], batch_size, given.rounds):
                print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
