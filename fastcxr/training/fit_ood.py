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

from fastcxr.models.cpu_fusion import quicken
from fastcxr.models.heads import find_depths, look
from fastcxr.models.ood import ARRAYS, Gate
from fastcxr.models.precision import computing
from fastcxr.models.preprocessing import blank, normalize
from fastcxr.progress.base import Progress

if TYPE_CHECKING:
    from fastai.learner import Learner

log = logging.getLogger("fastcxr")
SHARE = 0.03  # of pictures like the training images, that the limit shuts out
FEWEST = 19  # validation patients: with fewer even the largest of their scores would shut out more than one in twenty
DIRECTIONS = 50  # of the training images, along which each has a variance of its own
MOST = 5000  # images of a split that are looked at: more change little
BATCH = 32
SMALLEST = 1e-4  # deviation or variance: what never moves must not weigh without end
QUIET = 0.01  # of the median deviation: a channel that hardly speaks in training must not shut out whoever wakes it


def fit_gate(learner: "Learner", progress: Progress) -> Gate | None:
    """A gate from the learner's training images, its limit from its validation images; None, and a word, without one.

    The features are those of the network as it is now, from its bank where one is there, else from a pass of their own.
    """
    depths = find_depths(learner.model, blank(learner.dls.pixels, learner.dls.device))
    if not depths:
        return _no_gate("its stages are not known")
    train, valid = (_thin_out(loader.items) for loader in (learner.dls.train, learner.dls.valid))
    patients = valid["patient"].nunique()
    if patients < FEWEST:
        return _no_gate(f"{patients} validation patients, at least {FEWEST} are needed")
    known, others = (_see(learner, table["file"].tolist(), depths, progress) for table in (train, valid))
    if not (np.isfinite(known).all() and np.isfinite(others).all()):
        return _no_gate("what its stages see is no number")
    gate = fit_distance(known, depths)
    return replace(gate, limit=find_limit(gate.measure(others)), images=len(valid), patients=patients)


def _no_gate(why: str) -> None:
    log.info("no gate: %s; a picture of anything will be given a class", why)


def fit_distance(features: np.ndarray, depths: Mapping[str, int]) -> Gate:
    """A gate whose limit is 1 for these features of training images, shape (n, d)."""
    from sklearn.decomposition import PCA

    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation = deviation.clip(max(SMALLEST, QUIET * np.median(deviation)))
    count = max(1, min(DIRECTIONS, len(features) // 4, features.shape[1] // 4))
    model = PCA(count, random_state=0).fit((features - mean) / deviation)
    found = (mean, deviation, model.components_, model.explained_variance_, np.array([model.noise_variance_]))
    floors = (None, None, None, SMALLEST, SMALLEST)
    # contiguous: safetensors writes memory as it lies, and a transposed array would come back garbled
    arrays = [np.ascontiguousarray(array, np.float32).clip(floor) for array, floor in zip(found, floors, strict=True)]
    return Gate(depths=depths, **dict(zip(ARRAYS, arrays, strict=True)))


def find_limit(scores: np.ndarray) -> float:
    """The score that a further image of the same kind exceeds with a probability of SHARE, or as nearly as n allows."""
    rank = int(np.ceil((len(scores) + 1) * (1 - SHARE)))
    return float(np.sort(scores)[min(rank, len(scores)) - 1])


def features_in_bank(learner: "Learner", files: list[str], depths: Mapping[str, int]) -> np.ndarray:
    """What the stages saw of these files when the bank was filled: it holds them before the last layer's."""
    bank = learner.fitted.bank
    return bank.features[0, bank.rows(files), : sum(depths.values())]  # a copy: rows are named one by one


def _thin_out(table: pd.DataFrame) -> pd.DataFrame:
    """At most MOST rows, evenly from the whole table."""
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, min(len(table), MOST)).astype(int))]


def _see(learner: "Learner", files: list[str], depths: Mapping[str, int], progress: Progress) -> np.ndarray:
    if learner.fitted is not None:
        return features_in_bank(learner, files, depths)
    pictures = learner.dls.pictures
    network = quicken(learner.model, learner.dls.pixels, learner.precision)
    row_of, found = {file: row for row, file in enumerate(pictures.files)}, []
    with progress.bar(len(files), "looking at images for the gate") as bar, torch.no_grad():
        for start in range(0, len(files), BATCH):
            squares = torch.from_numpy(pictures.read([row_of[file] for file in files[start : start + BATCH]]))
            batch = normalize(squares.to(learner.dls.device)[:, None], learner.dls.pixels)
            with computing(learner.precision, learner.dls.device):
                found.append(look(network, batch, depths)[1].cpu().numpy())
            bar.advance(len(squares))
    return np.concatenate(found)
