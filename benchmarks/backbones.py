"""One training step and one prediction of each backbone of the published studies, four images of 224 px.

python benchmarks/backbones.py [NAME ...]
"""

import os
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: the same as `import fastcxr` sets

import torch
from common import make_parser
from torch.nn.functional import cross_entropy

from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.param_groups import layer_groups

NAMES = [
    "efficientnet_b7", "efficientnet_b4", "resnet152", "resnet101", "resnet50", "resnet34", "densenet121",
    "densenet169", "densenet201", "mobilenetv2_100", "vgg16", "vgg19_bn", "vit_tiny_patch16_224", "convnext_tiny",
    "torchvision:mobilenet_v3_small",
]  # fmt: skip
BATCH_SIZE, IMAGE_SIZE = 4, 224


def measure(name: str) -> tuple[int, float, float]:
    """Return the number of layer groups, and the seconds of one training step and of one prediction."""
    network = make_network(find_backbone(name, "none"), 3, "none", IMAGE_SIZE)
    groups = layer_groups(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    images, truth = torch.rand(BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE), torch.arange(BATCH_SIZE) % 3
    started = time.perf_counter()
    cross_entropy(network.train()(images), truth).backward()
    optimizer.step()
    trained = time.perf_counter()
    with torch.inference_mode():
        probability = network.eval()(images).softmax(dim=1)
    predicted = time.perf_counter()
    assert torch.isfinite(probability).all(), name
    return len(groups), trained - started, predicted - trained


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    print(f"{'backbone':<32} {'groups':>6} {'step, s':>8} {'predict, s':>10}")
    for name in parser.parse_args().names:
        groups, training, prediction = measure(name)
        print(f"{name:<32} {groups:>6} {training:>8.2f} {prediction:>10.2f}", flush=True)
