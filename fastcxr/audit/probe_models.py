"""Features and labels come in; how well a small model tells the labels of patients that it has not seen goes out."""

from collections.abc import Callable

import numpy as np
from scipy.special import softmax
from scipy.stats import rankdata
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS, SEED = 5, 0
PARTS = 40  # principal components of pixels


def deal_folds(labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """The fold of each image, a patient's all in one, labels alike in all; slow for many patients, so dealt once."""
    folds = np.zeros(len(labels), int)
    dealt = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=SEED).split(labels, labels, patients)
    for number, (_, held) in enumerate(dealt):
        folds[held] = number
    return folds


def score_pixels(features: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> float:
    """Macro AUROC of a logistic regression on principal components, on patients it has not seen."""
    flat = features.reshape(len(features), -1)
    parts = min(PARTS, flat.shape[1], len(flat) // 2)
    parts = PCA(parts, svd_solver="randomized", random_state=SEED).fit_transform(flat)  # no label is looked at
    made = score_classes(
        lambda: make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)), parts, labels, folds
    )
    return float(np.mean(list(made.values())))


def score_classes(make: Callable, features: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> dict[str, float]:
    """The AUROC of each class against the rest, of a model for each fold that has not seen it, pooled."""
    names = np.unique(labels)
    guesses = np.zeros((len(labels), len(names)))
    for fold in np.unique(folds):
        held = folds == fold
        model = make().fit(features[~held], labels[~held])
        guesses[np.ix_(held, np.searchsorted(names, model.classes_))] = model.predict_proba(features[held])
    return {name: auroc(labels == name, guesses[:, k]) for k, name in enumerate(names)}


def score_traits(traits: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> dict[str, float]:
    """The AUROC of each class against the rest, by naive Bayes, pooled over folds.

    `traits`: what holds of each image, shape (n, traits), zeros and ones. A model of this kind is a product of two
    matrices, so that shuffled labels can be scored as well, many times.
    """
    names, truth = np.unique(labels, return_inverse=True)
    classes = np.eye(len(names))[truth]
    guesses = np.zeros(classes.shape)
    for fold in np.unique(folds):
        held = folds == fold
        seen = classes[~held].sum(axis=0)
        likely = np.log((traits[~held].T @ classes[~held] + 1) / (seen + 2))  # Laplace: one of each kind more
        guesses[held] = softmax(traits[held] @ likely + np.log(seen + 1), axis=1)
    return {name: auroc(truth == k, guesses[:, k]) for k, name in enumerate(names)}


def auroc(truth: np.ndarray, score: np.ndarray) -> float:
    """The share of pairs of a positive and a negative that are ordered rightly, ties half (Mann and Whitney)."""
    positives = truth.sum()
    ranks = rankdata(score)[truth].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * (len(truth) - positives)))
