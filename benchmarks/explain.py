"""Do heat maps depend on what a network has learned? Each kind of backbone, trained, then drawn anew group by group.

    python benchmarks/explain.py [--data DIR] [--weights FILE] [NAME ...]

mobilenetv2_100 as a probe on FILE over DIR where both are given; every NAME from random weights on the bundled sample.
Beside Grad-CAM stand maps that know nothing of the weights, or follow them in part: what the limit has to catch.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastcxr import Recipe, load_model
from fastcxr.data.manifest import read_written_manifest
from fastcxr.data.synthetic.sample import find_or_write_sample
from fastcxr.inference.explain import find_attribution_method, make_inputs
from fastcxr.inference.predict import read_fitted_images, score_batch
from fastcxr.inference.sanity_check import AttributionMethod, run_sanity_check
from fastcxr.workflows.explain import N_CHECKED_IMAGES
from fastcxr.workflows.train import run

NAMES = ["resnet18", "densenet121", "convnext_atto", "vit_tiny_patch16_224"]
BATCHES = 4  # each as many images as a run checks


def edges(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The edges of the picture, which no weight changes."""
    down, right = torch.gradient(images.mean(dim=1), dim=(1, 2))
    return down.abs() + right.abs()


def middle(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The middle of any picture."""
    line = torch.linspace(-1, 1, images.shape[-1])
    return torch.exp(-2 * (line[:, None] ** 2 + line**2)).expand(len(images), -1, -1)


def times(one: AttributionMethod, other: AttributionMethod) -> AttributionMethod:
    """The product of two maps, each from 0 to 1: a map that depends on the weights in part."""

    def draw(*given: object) -> torch.Tensor:
        maps = (each(*given) for each in (one, other))
        first, second = (m / m.amax(dim=(1, 2), keepdim=True).clamp_min(1e-9) for m in maps)
        return first * second

    return draw


def measure(folder: Path) -> None:
    """Print the rows of one trained network: mean correlation at each step, and the highest last one of a check."""
    classifier = load_model(folder)
    classifier.network.requires_grad_(False)
    grad_cam = find_attribution_method("grad_cam", classifier)
    table = read_written_manifest(folder / "manifest.csv")
    table = table[table["split"] == "test"].sample(BATCHES * N_CHECKED_IMAGES, random_state=0)
    squares = np.stack(list(read_fitted_images(files_of(table, folder), classifier.input_spec.image_size, None)))
    images = make_inputs(classifier, squares)
    classes = torch.from_numpy(score_batch(classifier, squares).probability.argmax(axis=1))
    ways = {
        "Grad-CAM": grad_cam, "edges x Grad-CAM": times(edges, grad_cam), "middle x Grad-CAM": times(middle, grad_cam),
        "edges": edges,
    }  # fmt: skip
    for name, draw in ways.items():
        parts = [slice(start, start + N_CHECKED_IMAGES) for start in range(0, len(images), N_CHECKED_IMAGES)]
        rows = [run_sanity_check(classifier.network, draw, images[part], classes[part]).correlation for part in parts]
        steps = " ".join(f"{value:6.2f}" for value in np.mean(rows, axis=0))
        print(f"    {name:<20} {steps}   highest {max(row[-1] for row in rows):.2f}", flush=True)


def files_of(table, folder: Path) -> list[str]:
    """Where the images of a run are on this machine."""
    home = Path(json.loads((folder / "recipe.json").read_text())["data"])
    return [str(home / path) for path in table["path"]]


def main() -> None:
    """Train and measure each network."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("names", nargs="*", default=NAMES)
    words.add_argument("--data")
    words.add_argument("--weights")
    words.add_argument("--epochs", type=int, default=3)
    given = words.parse_args()
    recipes = [
        Recipe(name, data=str(find_or_write_sample()), weights="none", strategy="full", epochs=given.epochs)
        for name in given.names
    ]
    if given.data and given.weights:
        recipes.insert(0, Recipe("mobilenetv2_100", data=given.data, weights=given.weights, strategy="linear_probe"))
    for recipe in recipes:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "run"
            run(recipe, folder)
            auroc = json.loads((folder / "metrics.json").read_text())["test"]["auroc"]["macro"]
            print(f"{recipe.backbone}, {recipe.strategy}, AUROC {auroc:.3f}", flush=True)
            measure(folder)


if __name__ == "__main__":
    main()
