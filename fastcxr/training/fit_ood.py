"""Fit a Mahalanobis out-of-distribution (OOD) detector on pooled features of the network's stages, and map them.

The score is the squared Mahalanobis distance (Lee 2018, arXiv:1807.03888) under the covariance of a probabilistic PCA
(Tipping 1999, doi:10.1111/1467-9868.00196). Labels are not used. The threshold is a conformal quantile (Vovk 2005) of
validation scores; the distance is fitted on training images only.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import torch
from torch import nn

from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.io.optional_outputs import skip_on_error
from fastcxr.metrics.feature_map import EMPTY_MAP, MAX_MAP_IMAGES, make_feature_map, select_evenly
from fastcxr.models.cpu_fusion import fuse_for_inference
from fastcxr.models.devices import find_float64_device
from fastcxr.models.fitting_batches import FittingBatches, choose_batch_size
from fastcxr.models.heads import find_stages, forward_with_features
from fastcxr.models.ood import ARRAY_FIELDS, OODDetector
from fastcxr.models.precision import autocast
from fastcxr.models.preprocessing import make_blank_image, normalize
from fastcxr.models.state import find_learner_state, get_loaders_state
from fastcxr.progress.base import Progress

if TYPE_CHECKING:
    from fastai.learner import Learner

log = logging.getLogger("fastcxr")
FALSE_POSITIVE_RATE = 0.03  # share of in-distribution images above the threshold
MIN_VALID_PATIENTS = 19  # with fewer, even the largest score as threshold would reject more than 1 in 20
MAX_COMPONENTS = 50  # principal components with a variance each
MAX_SPLIT_IMAGES = 5000  # images per split; more change the fit little
MIN_DEVIATION = 1e-4  # floor for deviations and variances, against division by zero
MIN_RELATIVE_DEVIATION = 0.01  # of the median deviation: floor for near-constant channels, against huge distances


def fit_ood_detector(learner: "Learner", progress: Progress) -> tuple[OODDetector | None, pd.DataFrame]:
    """Fit the OOD detector on training images and its threshold on validation images; return it with the feature map.

    Features come from the feature cache if the learner has one, otherwise from a pass over the images. The detector is
    None if the network's stages are unknown, validation patients are too few, or features are not finite. The map (see
    make_feature_map) then has no rows, except if patients are too few. The reason is logged.
    """
    blank_image = make_blank_image(learner.dls.fastcxr.input_spec, learner.dls.device)
    stage_channels = find_stages(cast(nn.Module, learner.model), blank_image)
    if not stage_channels:
        return _log_no_features(learner, "the network's stages are unknown")
    train, valid = (_subsample(loader.items, MAX_SPLIT_IMAGES) for loader in (learner.dls.train, learner.dls.valid))
    patients = valid["patient"].nunique()
    has_detector = patients >= MIN_VALID_PATIENTS
    if not has_detector:
        _log_no_detector(learner, f"got {patients} validation patients, expected at least {MIN_VALID_PATIENTS}")
        train, valid = (_subsample(table, MAX_MAP_IMAGES // 2) for table in (train, valid))
    device = find_float64_device(learner.dls.device)
    network = None if find_learner_state(learner).fitted_probe else _fuse_network(learner)
    train_features, valid_features = (
        torch.from_numpy(_compute_features(learner, table["file"].tolist(), stage_channels, progress, network)).to(
            device
        )
        for table in (train, valid)
    )
    if not (train_features.isfinite().all() and valid_features.isfinite().all()):
        return _log_no_features(learner, "features of its stages are NaN or infinite")
    feature_map = map_features(pd.concat([train, valid]), train_features, valid_features)
    if not has_detector:
        return None, feature_map
    detector = fit_mahalanobis(train_features, stage_channels)
    threshold = compute_conformal_limit(detector.compute_scores(valid_features))
    return replace(detector, threshold=threshold, images=len(valid), patients=patients), feature_map


def _log_no_detector(learner: "Learner", reason: str) -> None:
    result = "decisions" if get_loaders_state(learner.dls).task == MULTI_LABEL else "a class"
    log.info("no OOD detector: %s; predict assigns %s to every image", reason, result)


def _log_no_features(learner: "Learner", reason: str) -> tuple[None, pd.DataFrame]:
    _log_no_detector(learner, reason)
    log.info("no feature map: %s", reason)
    return None, EMPTY_MAP


def map_features(images: pd.DataFrame, train_features: torch.Tensor, valid_features: torch.Tensor) -> pd.DataFrame:
    """Return the map of at most MAX_MAP_IMAGES evenly spaced images; no rows if it fails, with a warning.

    `images`: the training images, followed by the validation images. Features of each: shape (n, d).
    """
    with skip_on_error("feature map"):
        rows, n_train = select_evenly(len(images), MAX_MAP_IMAGES), len(train_features)
        parts = train_features[rows[rows < n_train]], valid_features[rows[rows >= n_train] - n_train]
        selected = torch.cat(parts).double()
        mean, deviation = compute_standardization(selected)
        return make_feature_map(images.iloc[rows], ((selected - mean) / deviation).float().cpu().numpy())
    return EMPTY_MAP


def fit_mahalanobis(features: torch.Tensor, stage_channels: Mapping[str, int]) -> OODDetector:
    """Return a detector with threshold 1, fitted on features of training images, shape (n, d), on their device."""
    features = features.double()
    mean, deviation = compute_standardization(features)
    directions, *variances = fit_probabilistic_pca((features - mean) / deviation)
    variances = (variance.clamp(min=MIN_DEVIATION) for variance in variances)
    # contiguous: safetensors stores the memory buffer and would change the order of a transposed array
    arrays = [array.float().contiguous().cpu().numpy() for array in (mean, deviation, directions, *variances)]
    return OODDetector(stage_channels=stage_channels, **dict(zip(ARRAY_FIELDS, arrays, strict=True)))


def compute_standardization(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of each feature, shape (d,); the deviation of constant ones has a floor."""
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    floor = (MIN_RELATIVE_DEVIATION * deviation.quantile(0.5)).clamp(min=MIN_DEVIATION)
    return mean, deviation.clamp(min=floor)


def fit_probabilistic_pca(scaled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return principal directions, shape (m, d), their variances, shape (m,), and the noise variance, shape (1,).

    `scaled`: centred features, shape (n, d). The eigenvectors of the covariance come from the smaller one of the
    products of the features with themselves, d x d or n x n.
    """
    n, d = scaled.shape
    n_components = max(1, min(MAX_COMPONENTS, n // 4, d // 4))
    eigenvalues, vectors = torch.linalg.eigh(scaled.T @ scaled if d <= n else scaled @ scaled.T)
    eigenvalues, vectors = eigenvalues[-n_components:].flip(0), vectors[:, -n_components:].flip(1)
    if d > n:
        vectors = scaled.T @ vectors / eigenvalues.clamp(min=MIN_DEVIATION).sqrt()
    residual = scaled.square().sum() - eigenvalues.sum()
    noise = residual / max(1, min(n, d) - n_components)
    return vectors.T, eigenvalues / (n - 1), noise[None] / (n - 1)


def compute_conformal_limit(scores: np.ndarray) -> float:
    """Return the score that a further in-distribution image exceeds with probability FALSE_POSITIVE_RATE.

    This is the k-th smallest of n scores, k = min(n, ceil((n + 1) (1 - FALSE_POSITIVE_RATE))) (Vovk 2005).
    """
    rank = int(np.ceil((len(scores) + 1) * (1 - FALSE_POSITIVE_RATE)))
    return float(np.sort(scores)[min(rank, len(scores)) - 1])


def read_cached_features(learner: "Learner", files: list[str], stage_channels: Mapping[str, int]) -> np.ndarray:
    """Return the stage features of these files from the feature cache as a copy, shape (n, d)."""
    cache = learner.fastcxr.fitted_probe.cache
    # the features of the last layer follow those of the stages
    return cache.features[0][cache.find_rows(files), : sum(stage_channels.values())]


def _subsample(table: pd.DataFrame, max_images: int) -> pd.DataFrame:
    """Return at most `max_images` evenly spaced rows."""
    return table.iloc[select_evenly(len(table), max_images)]


def _fuse_network(learner: "Learner") -> nn.Module:
    input_spec, precision = learner.dls.fastcxr.input_spec, learner.fastcxr.precision
    return fuse_for_inference(cast(nn.Module, learner.model), input_spec, precision)


def _compute_features(
    learner: "Learner",
    files: list[str],
    stage_channels: Mapping[str, int],
    progress: Progress,
    network: nn.Module | None = None,
) -> np.ndarray:
    """Return the stage features of these files, shape (n, d). `network`: of _fuse_network, if it is already fused."""
    if find_learner_state(learner).fitted_probe is not None:
        return read_cached_features(learner, files, stage_channels)
    network = _fuse_network(learner) if network is None else network
    state, precision, device = learner.dls.fastcxr, learner.fastcxr.precision, learner.dls.device
    row_by_file, feature_batches = state.image_cache.row_by_file, []

    def compute_batch(batch: slice) -> np.ndarray:
        images = state.images.read([row_by_file[file] for file in files[batch]], device)
        images = normalize(images[:, None], state.input_spec)
        with autocast(precision, device):
            return forward_with_features(network, images, stage_channels)[1].cpu().numpy()

    with progress.bar(len(files), "computing features") as bar, torch.no_grad():
        for features in FittingBatches(choose_batch_size(device)).compute(compute_batch, len(files)):
            feature_batches.append(features)
            bar.advance(len(features))
    return np.concatenate(feature_batches)
