"""A small network of our own, to hold the large ones against: gray squares come in, one number a class goes out.

Two convolutions with pooling, after the baseline of Le and Tiabrat (2021), to be trained from random weights.
"""

import torch
from torch import nn

NATIVE_SIZE, MEAN, STD = 128, (0.5,), (0.5,)  # one gray channel, from -1 to 1
CHANNELS, POOLED_SIZE = (32, 64), 4


class BaselineCNN(nn.Module):
    """Convolution, ReLU and pooling, twice; then the mean of each cell of a 4 x 4 grid, so that any size fits.

    Three layer groups: either convolution and the head. The head is linear, or as described by a recipe.
    """

    def __init__(self, n_classes: int):
        super().__init__()
        self.first = nn.Conv2d(len(MEAN), CHANNELS[0], kernel_size=5, padding=2)
        self.second = nn.Conv2d(*CHANNELS, kernel_size=5, padding=2)
        self.pool = nn.MaxPool2d(2)
        self.grid = nn.AdaptiveAvgPool2d(POOLED_SIZE)
        self.classifier = nn.Linear(CHANNELS[1] * POOLED_SIZE * POOLED_SIZE, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`images`: (n, 1, size, size), size 16 at least -> (n, classes)."""
        features = self.pool(self.first(images).relu())
        features = self.pool(self.second(features).relu())
        return self.classifier(self.grid(features).flatten(1))

    def get_classifier(self) -> nn.Module:
        """The head, by the name that timm's networks give it."""
        return self.classifier

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Which parameters make a layer, by the name that timm's networks give it."""
        return {"stem": r"^first", "blocks": r"^second"}
