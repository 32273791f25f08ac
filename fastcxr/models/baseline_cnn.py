"""A small CNN without pretrained weights as a baseline, after Le and Tiabrat (2021)."""

import torch
from torch import nn

NATIVE_SIZE, MEAN, STD = 128, (0.5,), (0.5,)  # one gray channel, scaled to -1 to 1
CHANNELS, POOLED_SIZE = (32, 64), 4


class BaselineCNN(nn.Module):
    """Two blocks of convolution, ReLU and max pooling, average pooling to a 4 x 4 grid, and a linear classifier.

    The layer groups are the first convolution, the second convolution and the head.
    """

    def __init__(self, n_classes: int):
        super().__init__()
        self.first = nn.Conv2d(len(MEAN), CHANNELS[0], kernel_size=5, padding=2)
        self.second = nn.Conv2d(*CHANNELS, kernel_size=5, padding=2)
        self.pool = nn.MaxPool2d(2)
        self.grid = nn.AdaptiveAvgPool2d(POOLED_SIZE)
        self.classifier = nn.Linear(CHANNELS[1] * POOLED_SIZE * POOLED_SIZE, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (n, n_classes), of images of shape (n, 1, size, size) with size >= 16."""
        features = self.pool(self.first(images).relu())
        features = self.pool(self.second(features).relu())
        return self.classifier(self.grid(features).flatten(1))

    def get_classifier(self) -> nn.Module:
        """Return the head. timm's networks have a method of this name."""
        return self.classifier

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return a pattern of parameter names for each layer. timm's networks have a method of this name."""
        return {"stem": r"^first", "blocks": r"^second"}
