"""Is a picture like the training images? What a network's stages see of it is held against what they saw of those.

The score is a squared Mahalanobis distance of pooled features (Lee 2018, arXiv:1807.03888), its covariance that of a
probabilistic PCA (Tipping 1999, doi:10.1111/1467-9868.00196): what the training images never do costs most. No class is
looked at. The limit is a conformal quantile (Vovk 2005) of validation images, which the distance was not fitted on.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from fastcxr.models.cpu_fusion import fuse_for_inference
from fastcxr.models.heads import find_stages, forward_with_features
from fastcxr.models.ood import ARRAY_FIELDS, OODDetector
from fastcxr.models.precision import autocast
from fastcxr.models.preprocessing import make_blank_image, normalize
from fastcxr.progress.base import Progress

if TYPE_CHECKING:
    from fastai.learner import Learner

log = logging.getLogger("fastcxr")
FALSE_POSITIVE_RATE = 0.03  # of pictures like the training images, that the limit shuts out
MIN_VALID_PATIENTS = (
    19  # validation patients: with fewer even the largest of their scores would shut out more than one in twenty
)
MAX_COMPONENTS = 50  # of the training images, along which each has a variance of its own
MAX_SPLIT_IMAGES = 5000  # images of a split that are looked at: more change little
BATCH_SIZE = 32
MIN_DEVIATION = 1e-4  # deviation or variance: what never moves must not weigh without end
MIN_RELATIVE_DEVIATION = (
    0.01  # of the median deviation: a channel that hardly speaks in training must not shut out whoever wakes it
)


def fit_ood_detector(learner: "Learner", progress: Progress) -> OODDetector | None:
    """Fit the OOD detector on training images, its threshold on validation images; return None, logged, without one.

    The features are those of the network as it is now, from its bank where one is there, else from a pass of their own.
    """
    stage_channels = find_stages(learner.model, make_blank_image(learner.dls.fastcxr.input_spec, learner.dls.device))
    if not stage_channels:
        return _log_no_detector("its stages are not known")
    train, valid = (_subsample(loader.items) for loader in (learner.dls.train, learner.dls.valid))
    patients = valid["patient"].nunique()
    if patients < MIN_VALID_PATIENTS:
        return _log_no_detector(f"{patients} validation patients, at least {MIN_VALID_PATIENTS} are needed")
    train_features, valid_features = (
        _compute_features(learner, table["file"].tolist(), stage_channels, progress) for table in (train, valid)
    )
    if not (np.isfinite(train_features).all() and np.isfinite(valid_features).all()):
        return _log_no_detector("what its stages see is no number")
    detector = fit_mahalanobis(train_features, stage_channels)
    return replace(
        detector,
        threshold=compute_conformal_limit(detector.compute_scores(valid_features)),
        images=len(valid),
        patients=patients,
    )


def _log_no_detector(reason: str) -> None:
    log.info("no OOD detector: %s; every image will be given a class", reason)


def fit_mahalanobis(features: np.ndarray, stage_channels: Mapping[str, int]) -> OODDetector:
    """Return a detector with threshold 1, fitted on features of training images, shape (n, d)."""
    from sklearn.decomposition import PCA

    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation = deviation.clip(max(MIN_DEVIATION, MIN_RELATIVE_DEVIATION * np.median(deviation)))
    n_components = max(1, min(MAX_COMPONENTS, len(features) // 4, features.shape[1] // 4))
    pca = PCA(n_components, random_state=0).fit((features - mean) / deviation)
    estimates = (mean, deviation, pca.components_, pca.explained_variance_, np.array([pca.noise_variance_]))
    minimums = (None, None, None, MIN_DEVIATION, MIN_DEVIATION)
    # contiguous: safetensors writes memory as it lies, and a transposed array would come back garbled
    arrays = [
        np.ascontiguousarray(array, np.float32).clip(floor) for array, floor in zip(estimates, minimums, strict=True)
    ]
    return OODDetector(stage_channels=stage_channels, **dict(zip(ARRAY_FIELDS, arrays, strict=True)))


def compute_conformal_limit(scores: np.ndarray) -> float:
    """The score that a further image of the same kind exceeds with a probability of SHARE, or as nearly as n allows."""
    rank = int(np.ceil((len(scores) + 1) * (1 - FALSE_POSITIVE_RATE)))
    return float(np.sort(scores)[min(rank, len(scores)) - 1])


def read_bank_features(learner: "Learner", files: list[str], stage_channels: Mapping[str, int]) -> np.ndarray:
    """What the stages saw of these files when the bank was filled: it holds them before the last layer's."""
    bank = learner.fastcxr.fitted_probe.bank
    return bank.features[0, bank.find_rows(files), : sum(stage_channels.values())]  # a copy: rows are named one by one


def _subsample(table: pd.DataFrame) -> pd.DataFrame:
    """At most MOST rows, evenly from the whole table."""
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, min(len(table), MAX_SPLIT_IMAGES)).astype(int))]


def _compute_features(
    learner: "Learner", files: list[str], stage_channels: Mapping[str, int], progress: Progress
) -> np.ndarray:
    if learner.fastcxr.fitted_probe is not None:
        return read_bank_features(learner, files, stage_channels)
    image_cache = learner.dls.fastcxr.image_cache
    network = fuse_for_inference(learner.model, learner.dls.fastcxr.input_spec, learner.fastcxr.precision)
    row_by_file, feature_batches = {file: row for row, file in enumerate(image_cache.files)}, []
    with progress.bar(len(files), "fitting the OOD detector") as bar, torch.no_grad():
        for start in range(0, len(files), BATCH_SIZE):
            images = torch.from_numpy(
                image_cache.read([row_by_file[file] for file in files[start : start + BATCH_SIZE]])
            )
            batch = normalize(images.to(learner.dls.device)[:, None], learner.dls.fastcxr.input_spec)
            with autocast(learner.fastcxr.precision, learner.dls.device):
                feature_batches.append(forward_with_features(network, batch, stage_channels)[1].cpu().numpy())
            bar.advance(len(images))
    return np.concatenate(feature_batches)
