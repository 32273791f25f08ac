"""Does a heat map show what the network has learned? The weights are drawn anew, and the map has to change.

Adebayo et al. 2018, "Sanity Checks for Saliency Maps" (cascading randomisation): weights are drawn anew layer group by
layer group from the head down, and the rank correlation of each map with the original one is taken. A map that stays as
it was shows the picture's edges, or the middle of any picture, and no evidence.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from fastcxr.models.param_groups import layer_groups

N_CHECK_IMAGES = 8  # whose maps are compared
N_RANDOMISATIONS = (
    4  # of all weights: maps of one random network may be alike by chance, and like those of the trained one
)
# mean rank correlation with all weights drawn anew, from benchmarks/explain.py: Grad-CAM stays near 0, a map of the
# picture's edges is at 1; on a grid of very few places chance alone reaches further up
MAX_RANK_CORRELATION = 0.5
COMPARED_MAP_PIXELS = 56  # side of the maps that are compared: neighbouring pixels of a large one say the same

AttributionMethod = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class SanityCheck:
    """Mean rank correlation of maps with the original ones as one layer group more, from the head down, is redrawn."""

    correlation: tuple[float, ...]
    images: int

    @property
    def is_passed(self) -> bool:
        """Whether the maps depend on what was learned."""
        return self.correlation[-1] <= MAX_RANK_CORRELATION

    @property
    def failure_reason(self) -> str:
        """Why the maps are withheld; empty where they passed."""
        problem = f"the map hardly changes when the weights are random (rank correlation {self.correlation[-1]:.2f})"
        return "" if self.is_passed else f"{problem}, so it does not show what the model learned"

    @property
    def summary(self) -> str:
        """What the check found, in a line."""
        correlations = ", ".join(f"{value:.2f}" for value in self.correlation)
        verdict = "passed" if self.is_passed else f"failed: {self.failure_reason}"
        return f"Rank correlation of maps with weights drawn anew from the head down: {correlations}. Check {verdict}."


def run_sanity_check(
    network: nn.Module, attribute: AttributionMethod, images: torch.Tensor, classes: torch.Tensor
) -> SanityCheck:
    """Compare maps of these images, shape (n, channels, size, size), with those of ever more random networks.

    `attribute`: makes maps, shape (n, size, size), of a network, images and a class each. `network` stays as it is.
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
    """Make `other` the same network with its head drawn anew, then the group below it too, and so on to the stem."""
    randomised.load_state_dict(network.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for group in reversed(layer_groups(randomised)):
        for parameter in group:
            randomise(parameter, generator)
        yield


@torch.no_grad()
def randomise(parameter: torch.Tensor, generator: torch.Generator) -> None:
    """Normal numbers of the same mean and deviation, so that the scale of what follows stays about as it was."""
    noise = torch.randn(parameter.shape, generator=generator).to(parameter)
    parameter.copy_(parameter.mean() + parameter.std(correction=0) * noise)


def compute_rank_correlation(maps: torch.Tensor, other_maps: torch.Tensor) -> float:
    """Mean of Spearman's rank correlation over pairs of maps, shape (n, size, size); an even map is like no other."""
    ranks, other_ranks = (_rank_pixels(batch) for batch in (maps, other_maps))
    norms = np.sqrt((ranks**2).sum(axis=1) * (other_ranks**2).sum(axis=1))
    return float(np.mean((ranks * other_ranks).sum(axis=1) / np.where(norms > 0, norms, np.inf)))


def _rank_pixels(maps: torch.Tensor) -> np.ndarray:
    downsampled = nn.functional.adaptive_avg_pool2d(maps.float()[:, None], COMPARED_MAP_PIXELS).flatten(1).cpu().numpy()
    ranks = rankdata(downsampled, axis=1)
    return ranks - ranks.mean(axis=1, keepdims=True)
