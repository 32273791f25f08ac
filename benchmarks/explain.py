"""Change of saliency maps when the weights of a trained network are replaced by random ones, group by group.

    python benchmarks/explain.py [--data DIR --weights FILE] [--epochs 3] [NAME ...]
    python benchmarks/explain.py --encoders --data DIR [--epochs 8] [NAME ...]

With --data and --weights: a linear probe of mobilenetv2_100. Each NAME is trained from random weights on the bundled
sample; with --encoders, each is a chest encoder, reduced to four blocks of width 192, on DIR at 112 px. Grad-CAM is
compared with maps that ignore the weights, or depend on them in part. The table contains the mean correlation after
each step, and the highest final value of one check.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import make_parser
from torch import nn

from fastcxr import Recipe, load_model
from fastcxr.data.manifest_file import read_written_manifest
from fastcxr.data.synthetic.sample import find_or_write_sample
from fastcxr.inference.explain import find_attribution_method, make_inputs
from fastcxr.inference.images import read_fitted_images
from fastcxr.inference.sanity_check import AttributionMethod, run_sanity_check
from fastcxr.inference.torch_scorer import score_batch
from fastcxr.models import backbones, encoders
from fastcxr.workflows.explain import N_CHECKED_IMAGES
from fastcxr.workflows.train import run

NAMES = ["resnet18", "densenet121", "convnext_atto", "vit_tiny_patch16_224"]
# of each kind: class token; the same and patch mean, with registers; patch mean; attention pool
ENCODER_NAMES = ["biomedclip", "chexfound", "eva-x-tiny", "medsiglip"]
SMALL = {"depth": 4, "embed_dim": 192, "num_heads": 3, "patch_size": 16}
N_CHECKS = 4  # checks per network, each of as many images as in a run


def map_edges(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the edges of the image, which do not depend on the weights."""
    down, right = torch.gradient(images.mean(dim=1), dim=(1, 2))
    return down.abs() + right.abs()


def map_middle(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return a map of the image centre, the same for all images."""
    line = torch.linspace(-1, 1, images.shape[-1])
    return torch.exp(-2 * (line[:, None] ** 2 + line**2)).expand(len(images), -1, -1)


def multiply(one: AttributionMethod, other: AttributionMethod) -> AttributionMethod:
    """Return the product of two maps, each scaled to a maximum of 1: it depends on the weights in part."""

    def attribute(network: nn.Module, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        maps = (method(network, images, classes) for method in (one, other))
        first, second = (m / m.amax(dim=(1, 2), keepdim=True).clamp_min(1e-9) for m in maps)
        return first * second

    return attribute


def measure(folder: Path, data: Path) -> None:
    """Print one row for each attribution method, for a run and the folder of its images."""
    classifier = load_model(folder)
    classifier.network.requires_grad_(False)
    grad_cam = find_attribution_method("grad_cam", classifier)
    table = read_written_manifest(folder / "manifest.csv")
    table = table[table["split"] == "test"].sample(N_CHECKS * N_CHECKED_IMAGES, random_state=0)
    files = [str(data / path) for path in table["path"]]
    fitted = np.stack(list(read_fitted_images(files, classifier.input_spec.image_size, None)))
    images = make_inputs(classifier, fitted)
    classes = torch.from_numpy(score_batch(classifier, fitted).probability.argmax(axis=1))
    methods = {
        "Grad-CAM": grad_cam, "edges x Grad-CAM": multiply(map_edges, grad_cam),
        "middle x Grad-CAM": multiply(map_middle, grad_cam), "edges": map_edges,
    }  # fmt: skip
    parts = list(zip(images.split(N_CHECKED_IMAGES), classes.split(N_CHECKED_IMAGES), strict=True))
    for name, method in methods.items():
        rows = [run_sanity_check(classifier.network, method, *part).correlation for part in parts]
        steps = " ".join(f"{value:6.2f}" for value in np.mean(rows, axis=0))
        print(f"    {name:<20} {steps}   highest {max(row[-1] for row in rows):.2f}", flush=True)


def register_small_encoders(names: list[str]) -> list[str]:
    """Add small versions of these encoders, which are trained in minutes, to the table, and return their names."""
    table, small_names = dict(encoders.ENCODERS), [f"small-{name}" for name in names]
    for name, small_name in zip(names, small_names, strict=True):
        scale = {"init_values": 1.0} if "dinov2" in table[name].architecture else {}  # 1e-5 needs long training
        options = {**table[name].options, **SMALL, **scale}
        table[small_name] = replace(table[name], name=small_name, image_size=112, options=options)
    for module in (backbones, encoders):
        module.ENCODERS = table
    return small_names


def main() -> None:
    """Train and measure each network."""
    parser = make_parser(__doc__, (), ["data", "weights"])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--epochs", type=int, help="epochs from random weights; default 3, for encoders 8")
    parser.add_argument("--encoders", action="store_true", help="train small encoders on DIR")
    given = parser.parse_args()
    names = given.names or (ENCODER_NAMES if given.encoders else NAMES)
    if given.encoders:
        names = register_small_encoders(names)
        start = Recipe(data=given.data, epochs=given.epochs or 8, optimizer="adamw", learning_rate=5e-4)
    else:
        start = Recipe(data=str(find_or_write_sample()), epochs=given.epochs or 3)
    recipes = [start.replace(backbone=name, weights="none", strategy="full") for name in names]
    if given.data and given.weights:
        recipes.insert(0, Recipe("mobilenetv2_100", data=given.data, weights=given.weights, strategy="linear_probe"))
    for recipe in recipes:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "run"
            run(recipe, folder)
            auroc = json.loads((folder / "metrics.json").read_text())["test"]["auroc"]["macro"]
            print(f"{recipe.backbone}, {recipe.strategy}, AUROC {auroc:.3f}", flush=True)
            measure(folder, Path(recipe.data))


if __name__ == "__main__":
    main()
