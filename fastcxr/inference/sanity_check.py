"""Sanity check of saliency maps: a map must change when the weights of the network are randomised.

Adebayo et al. 2018, "Sanity Checks for Saliency Maps" (cascading randomisation): the weights are randomised layer group
by layer group from the head down, and each map is compared with the original one by rank correlation. A map that does
not change shows the edges or the centre of an image, and no evidence.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from fastcxr.models.param_groups import merged_layer_groups

N_CHECK_IMAGES = 8
N_RANDOMISATIONS = 4  # of all weights: the maps of a single random network may resemble the original ones by chance
# limit with all weights randomised, from benchmarks/explain.py: Grad-CAM is near 0, a map of image edges is at 1;
# with very few positions in the feature map, chance alone gives higher values
MAX_RANK_CORRELATION = 0.5
COMPARED_MAP_PIXELS = 56  # side of the compared maps: neighbouring pixels of larger maps are redundant

AttributionMethod = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class SanityCheck:
    """Mean rank correlation with the original maps after each step of the randomisation, from the head down."""

    correlation: tuple[float, ...]
    images: int

    @property
    def is_passed(self) -> bool:
        """Whether the maps depend on the weights."""
        return self.correlation[-1] <= MAX_RANK_CORRELATION

    @property
    def failure_reason(self) -> str:
        """Why the maps are withheld; empty if the check passed."""
        problem = f"the map hardly changes when the weights are random (rank correlation {self.correlation[-1]:.2f})"
        return "" if self.is_passed else f"{problem}, so it does not show what the model learned"

    @property
    def summary(self) -> str:
        """Result of the check in one line."""
        numbers = ", ".join(f"{value:.2f}" for value in self.correlation)
        verdict = "passed" if self.is_passed else f"failed: {self.failure_reason}"
        return f"Rank correlation of maps after randomising weights from the head down: {numbers}. Check {verdict}."


def run_sanity_check(
    network: nn.Module, attribute: AttributionMethod, images: torch.Tensor, classes: torch.Tensor
) -> SanityCheck:
    """Compare maps of images, shape (n, channels, size, size), with those of increasingly randomised networks.

    `attribute`: returns maps, shape (n, size, size). `classes`: one per image, shape (n,). `network` is not modified.
    """
    original, randomised = attribute(network, images, classes), copy.deepcopy(network)
    step_correlations = [
        compute_rank_correlation(original, attribute(randomised, images, classes))
        for _ in randomise_cascade(network, randomised, seed=0)
    ]
    final_correlations = [step_correlations.pop()]
    for seed in range(1, N_RANDOMISATIONS):
        for _ in randomise_cascade(network, randomised, seed):
            pass  # to the stem
        final_correlations.append(compute_rank_correlation(original, attribute(randomised, images, classes)))
    return SanityCheck(correlation=(*step_correlations, float(np.mean(final_correlations))), images=len(images))


def randomise_cascade(network: nn.Module, randomised: nn.Module, seed: int) -> Iterator[None]:
    """Copy the weights of `network` into `randomised`, then randomise one more layer group per step, head to stem."""
    randomised.load_state_dict(network.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for group in reversed(merged_layer_groups(randomised)):
        for parameter in group:
            randomise(parameter, generator)
        yield


@torch.no_grad()
def randomise(parameter: torch.Tensor, generator: torch.Generator) -> None:
    """Replace values by normal noise of the same mean and deviation, which keeps the scale of the activations."""
    noise = torch.randn(parameter.shape, generator=generator).to(parameter)
    parameter.copy_(parameter.mean() + parameter.std(correction=0) * noise)


def compute_rank_correlation(maps: torch.Tensor, other_maps: torch.Tensor) -> float:
    """Return the mean Spearman correlation of pairs of maps, shape (n, size, size); 0 for a constant map."""
    ranks, other_ranks = (_rank_pixels(batch) for batch in (maps, other_maps))
    norms = np.sqrt((ranks**2).sum(axis=1) * (other_ranks**2).sum(axis=1))
    return float(np.mean((ranks * other_ranks).sum(axis=1) / np.where(norms > 0, norms, np.inf)))


def _rank_pixels(maps: torch.Tensor) -> np.ndarray:
    downsampled = nn.functional.adaptive_avg_pool2d(maps.float()[:, None], COMPARED_MAP_PIXELS).flatten(1).cpu().numpy()
    ranks = rankdata(downsampled, axis=1)
    return ranks - ranks.mean(axis=1, keepdims=True)
