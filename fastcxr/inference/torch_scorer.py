"""Score images with the network of a Classifier or an Ensemble, in PyTorch or compiled by OpenVINO."""

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.errors import ModelError
from fastcxr.inference.openvino import OpenVINOFeatureExtractor, OpenVINONetwork
from fastcxr.inference.scores import Scorer, Scores
from fastcxr.metrics.calibration import scale_probabilities
from fastcxr.metrics.finding_calibration import calibrate_findings
from fastcxr.models.bundle import Classifier, Ensemble, extract_classifier
from fastcxr.models.cpu_fusion import fuse_for_inference
from fastcxr.models.fitting_batches import FittingBatches, choose_batch_size
from fastcxr.models.heads import forward_with_features
from fastcxr.models.ood import OODDetector
from fastcxr.models.precision import autocast
from fastcxr.models.preprocessing import normalize
from fastcxr.models.state import find_learner_state, get_loaders_state
from fastcxr.training.fit_ood import read_cached_features

if TYPE_CHECKING:
    from fastai.learner import Learner

FEATURE_CHUNK_ROWS = 1024  # rows of the feature cache in memory at once


class TorchScorer(Scorer):
    """A classifier, or an ensemble of classifiers, with networks optimised for inference before the first image.

    Args:
        model: the model; its networks do not change.
        learner: the Learner that it was extracted from.
        dtype_and_device: precision and device in words; default: those of the network.
    """

    def __init__(
        self, model: Classifier | Ensemble, learner: "Learner | None" = None, dtype_and_device: str | None = None
    ):
        self.model, self.learner = model, learner
        self.dtype_and_device = dtype_and_device or model.dtype_and_device
        self.labels, self.task, self.image_size = model.labels, model.task, model.input_spec.image_size
        self.thresholds, self.bit_depths = model.thresholds, model.bit_depths
        self.has_ood_detector = model.has_ood_detector
        self.image_cache = None if learner is None else get_loaders_state(learner.dls).image_cache
        self.batches = FittingBatches(choose_batch_size(find_model_device(model)))

    @property
    def batch_size(self) -> int:
        """Number of images of a call of `score`: half of it after an out-of-memory error."""
        return self.batches.size

    @cached_property
    def fused_model(self) -> Classifier | Ensemble:
        """The model with networks optimised for inference."""
        return fuse_model(self.model)

    def score(self, images: np.ndarray) -> Scores:
        """Return the scores of gray bytes, shape (n, size, size), in batches that fit into memory.

        Raises DeviceError if one image does not fit, or the GPU was lost.
        """
        parts = list(self.batches.compute(lambda rows: score_model(self.fused_model, images[rows]), len(images)))
        ood_scores = [part.ood_score for part in parts if part.ood_score is not None]
        probability = np.concatenate([part.probability for part in parts])
        return Scores(probability, np.concatenate(ood_scores) if ood_scores else None)

    def find_cached_scores(self, table: pd.DataFrame) -> Scores | None:
        """Return the scores from the feature cache of a Learner with a fitted head.

        None without such a head, and if the cache belongs to other images or weights.
        """
        if self.learner is None or find_learner_state(self.learner).fitted_probe is None:
            return None
        from fastcxr.training.linear_probe import predict_from_features

        files = table["file"].tolist()
        is_valid = (table["split"] == "valid").tolist() if "split" in table else [False] * len(table)
        logits = predict_from_features(self.learner, files, is_valid)
        if logits is None:
            return None
        classifier = extract_classifier(self.learner)
        probability = compute_probability(logits, classifier)
        return Scores(probability, _compute_cached_ood_scores(self.learner, files, classifier.ood_detector))


def make_torch_scorer(model: "Learner | Classifier | Ensemble") -> TorchScorer:
    """Return the scorer of a model.

    Raises ArgumentTypeError for a value that is not a model, such as the path of a run folder.
    """
    if isinstance(model, Classifier | Ensemble):
        return TorchScorer(model)
    return TorchScorer(extract_classifier(model), model)


def fuse_model(model: Classifier | Ensemble) -> Classifier | Ensemble:
    """Return the classifier, or the ensemble of classifiers, with networks optimised for inference."""
    if isinstance(model, Ensemble):
        return Ensemble(members=tuple(map(fuse_classifier, model.members)))
    return fuse_classifier(model)


def fuse_classifier(classifier: Classifier) -> Classifier:
    """Return the classifier with its network optimised for inference; a compiled graph already is."""
    if isinstance(classifier.network, OpenVINONetwork | OpenVINOFeatureExtractor):
        return classifier
    network = fuse_for_inference(classifier.network, classifier.input_spec, classifier.precision)
    return replace(classifier, network=network)


def find_model_device(model: Classifier | Ensemble) -> torch.device:
    """Return the device of a classifier, or of the classifiers of an ensemble."""
    classifier = model if isinstance(model, Classifier) else model.members[0]
    return next(classifier.network.parameters()).device


def score_model(model: Classifier | Ensemble, images: np.ndarray) -> Scores:
    """Return the scores of a batch by a classifier, or the mean scores of the members of an ensemble."""
    if isinstance(model, Classifier):
        return score_batch(model, images)
    scores = [score_batch(member, images) for member in model.members]
    ood_scores = [one.ood_score for one in scores if one.ood_score is not None]
    mean_ood_score = np.mean(ood_scores, axis=0) if model.has_ood_detector else None
    return Scores(np.mean([one.probability for one in scores], axis=0), mean_ood_score)


@torch.inference_mode()
def score_batch(classifier: Classifier, images: np.ndarray) -> Scores:
    """Return the scores of gray bytes, shape (n, size, size). Raise ModelError if float16 overflows."""
    device, detector = next(classifier.network.parameters()).device, classifier.ood_detector
    batch = normalize(torch.from_numpy(images).to(device)[:, None], classifier.input_spec)
    with autocast(classifier.precision, device):
        logits, features = compute_logits(classifier, batch)
        if classifier.hflip_tta:
            logits = (logits.float() + compute_logits(classifier, batch.flip(3))[0].float()) / 2
    probability = compute_probability(logits, classifier)
    if classifier.precision == "fp16" and not np.isfinite(probability).all():
        problem = "an output of the network is NaN or infinite in float16, whose largest number is 65,504"
        raise ModelError(problem, "Pass `precision='fp32'`", code="E310")
    if detector is None or features is None:
        return Scores(probability, None)
    return Scores(probability, detector.compute_scores(features))


def compute_probability(logits: torch.Tensor, classifier: Classifier) -> np.ndarray:
    """Return probabilities from logits, both of shape (n, k): softmax of classes, or sigmoid of each finding.

    The probabilities of all commands and reports come from this function. It applies the temperature, or the
    calibration lines of findings, as the end of a training run does, so that no digit differs.
    """
    # float64, because scikit-learn requires rows that sum to one; on the CPU, because Apple GPUs have no float64
    logits = logits.cpu().double()
    if classifier.task == MULTI_LABEL:
        lines = classifier.thresholds.get("findings", {})
        return calibrate_findings(logits.sigmoid().numpy(), classifier.labels, lines)
    return scale_probabilities(logits.softmax(dim=1).numpy(), classifier.temperature)


def compute_logits(classifier: Classifier, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the logits of a batch, and the features for the OOD detector or None."""
    if classifier.ood_detector is None:
        return classifier.network(batch), None
    return forward_with_features(classifier.network, batch, classifier.ood_detector.stage_channels)


def _compute_cached_ood_scores(learner: "Learner", files: list[str], detector: OODDetector | None) -> np.ndarray | None:
    """Return the OOD scores of files in the feature cache of the learner; None without a detector."""
    if detector is None:
        return None
    ood_scores = np.full(len(files), np.nan)
    for start in range(0, len(files), FEATURE_CHUNK_ROWS):
        rows = slice(start, start + FEATURE_CHUNK_ROWS)
        features = read_cached_features(learner, files[rows], detector.stage_channels)
        ood_scores[rows] = detector.compute_scores(torch.from_numpy(features).to(learner.dls.device))
    return ood_scores
