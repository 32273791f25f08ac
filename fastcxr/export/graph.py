"""The network of a classifier as one module: from gray bytes to calibrated probabilities and OOD scores, in float32.

The module contains all that inference/torch_scorer.py computes, so that a program without fastcxr needs the module
only: normalization, test-time augmentation, calibration, the OOD score, and the mean over the members of an ensemble.
"""

import copy
import math

import torch
from torch import nn

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.metrics.finding_calibration import LARGEST_PROBABILITY, SMALLEST_PROBABILITY
from fastcxr.models.bundle import Classifier, Ensemble
from fastcxr.models.heads import Float64Linear, forward_with_features
from fastcxr.models.ood import OODDetector

# calibrate_findings clips probabilities to these log odds
MIN_LOG_ODDS = math.log(SMALLEST_PROBABILITY)
MAX_LOG_ODDS = math.log(LARGEST_PROBABILITY) - math.log1p(-LARGEST_PROBABILITY)


class Normalization(nn.Module):
    """Gray bytes as input of a network, as models.preprocessing.normalize computes it."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[None, :, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32, shape (n, channels, size, size), from uint8, shape (n, size, size)."""
        return (images.float()[:, None] / 255 - self.mean) / self.std


class Calibration(nn.Module):
    """Calibrated probabilities from logits, as torch_scorer.compute_probability computes them."""

    slope: torch.Tensor
    intercept: torch.Tensor

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.is_multi_label = classifier.task == MULTI_LABEL
        lines = classifier.thresholds.get("findings", {}) if self.is_multi_label else {}
        default = {"slope": 1 if self.is_multi_label else 1 / classifier.temperature, "intercept": 0}
        rows = [lines.get(label, default) for label in classifier.labels]
        for name in default:
            self.register_buffer(name, torch.tensor([row[name] for row in rows], dtype=torch.float32))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Return probabilities from logits, both of shape (n, k)."""
        if self.is_multi_label:
            return (logits.clamp(MIN_LOG_ODDS, MAX_LOG_ODDS) * self.slope + self.intercept).sigmoid()
        return (logits * self.slope).softmax(dim=1)


class OODScore(nn.Module):
    """The score of an OODDetector in float32.

    The distance from the principal directions is the squared norm of what they leave of the features. The detector
    subtracts two squared norms in float64; in float32 most digits of that difference would be lost.
    """

    mean: torch.Tensor
    std: torch.Tensor
    directions: torch.Tensor
    weights: torch.Tensor
    noise_weight: torch.Tensor

    def __init__(self, detector: OODDetector):
        super().__init__()
        arrays = {
            "mean": detector.mean,
            "std": detector.std,
            "directions": detector.directions,
            "weights": 1 / (detector.variances * detector.threshold),
            "noise_weight": 1 / (detector.noise * detector.threshold),
        }
        for name, values in arrays.items():
            self.register_buffer(name, torch.from_numpy(values).float())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return distance / threshold, shape (n,), from features of shape (n, d)."""
        scaled = (features - self.mean) / self.std
        projected = scaled @ self.directions.T
        residual = scaled - projected @ self.directions
        return (projected.square() * self.weights).sum(dim=1) + residual.square().sum(dim=1) * self.noise_weight


class ClassifierGraph(nn.Module):
    """A classifier from gray bytes to probabilities and, `with_ood`, OOD scores."""

    def __init__(self, classifier: Classifier, *, with_ood: bool):
        super().__init__()
        self.network = copy_as_float32(classifier.network)
        self.normalize = Normalization(classifier.input_spec.mean, classifier.input_spec.std)
        self.calibrate, self.hflip_tta = Calibration(classifier), classifier.hflip_tta
        detector = classifier.ood_detector if with_ood else None
        self.stage_channels = detector.stage_channels if detector else {}
        self.score_ood = OODScore(detector) if detector else None

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return probabilities, shape (n, k), and OOD scores, shape (n,), or None, of uint8, shape (n, size, size)."""
        batch = self.normalize(images)
        if self.hflip_tta:  # one pass over both, because two would double the graph
            batch = torch.cat([batch, batch.flip(3)])
        logits, features = self.compute_logits(batch)
        if self.hflip_tta:
            logits = logits.unflatten(0, (2, -1)).mean(dim=0)
            features = None if features is None else features.unflatten(0, (2, -1))[0]
        score = None if self.score_ood is None or features is None else self.score_ood(features)
        return self.calibrate(logits), score

    def compute_logits(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return logits, shape (n, k), and the features for the OOD score, shape (n, d), or None."""
        if self.score_ood is None:
            return self.network(batch), None
        return forward_with_features(self.network, batch, self.stage_channels)


class ModelGraph(nn.Module):
    """A classifier, or the mean of the members of an ensemble, from gray bytes to probabilities and OOD scores."""

    def __init__(self, model: Classifier | Ensemble, *, with_ood: bool):
        super().__init__()
        classifiers = model.members if isinstance(model, Ensemble) else (model,)
        self.with_ood, self.image_size = with_ood and model.has_ood_detector, model.input_spec.image_size
        self.members = nn.ModuleList(ClassifierGraph(one, with_ood=self.with_ood) for one in classifiers)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return probabilities, shape (n, k), and with an OOD detector scores, shape (n,), of uint8 (n, size, size)."""
        probabilities, scores = zip(*(member(images) for member in self.members), strict=True)
        outputs = [probabilities, scores][: 1 + self.with_ood]
        return tuple(parts[0] if len(parts) == 1 else torch.stack(parts).mean(dim=0) for parts in outputs)


def copy_as_float32(network: nn.Module) -> nn.Module:
    """Return a copy of a network on the CPU in evaluation mode, whose head computes in float32."""
    network = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    for module in network.modules():
        if type(module) is Float64Linear:
            module.__class__ = nn.Linear  # pyright: ignore[reportAttributeAccessIssue]
    return network
