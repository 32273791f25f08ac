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

N_FOLDS, SEED = 5, 0
N_COMPONENTS = 40  # principal components of pixels


def assign_folds(labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """The fold of each image, a patient's all in one, labels alike in all; slow for many patients, so dealt once."""
    folds = np.zeros(len(labels), int)
    splits = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=SEED).split(labels, labels, patients)
    for number, (_, held_out_rows) in enumerate(splits):
        folds[held_out_rows] = number
    return folds


def score_pixels(features: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> float:
    """Macro AUROC of a logistic regression on principal components, on patients it has not seen."""
    flat = features.reshape(len(features), -1)
    components = min(N_COMPONENTS, flat.shape[1], len(flat) // 2)
    components = PCA(components, svd_solver="randomized", random_state=SEED).fit_transform(
        flat
    )  # no label is looked at
    auroc_by_class = score_classes(
        lambda: make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)), components, labels, folds
    )
    return float(np.mean(list(auroc_by_class.values())))


def score_classes(
    make_model: Callable, features: np.ndarray, labels: np.ndarray, folds: np.ndarray
) -> dict[str, float]:
    """The AUROC of each class against the rest, of a model for each fold that has not seen it, pooled."""
    class_names = np.unique(labels)
    probabilities = np.zeros((len(labels), len(class_names)))
    for fold in np.unique(folds):
        is_held_out = folds == fold
        model = make_model().fit(features[~is_held_out], labels[~is_held_out])
        probabilities[np.ix_(is_held_out, np.searchsorted(class_names, model.classes_))] = model.predict_proba(
            features[is_held_out]
        )
    return {name: auroc(labels == name, probabilities[:, k]) for k, name in enumerate(class_names)}


def score_indicators(indicators: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> dict[str, float]:
    """The AUROC of each class against the rest, by naive Bayes, pooled over folds.

    `indicators`: what holds of each image, shape (n, traits), zeros and ones. A model of this kind is a product of two
    matrices, so that shuffled labels can be scored as well, many times.
    """
    class_names, truth = np.unique(labels, return_inverse=True)
    one_hot = np.eye(len(class_names))[truth]
    probabilities = np.zeros(one_hot.shape)
    for fold in np.unique(folds):
        is_held_out = folds == fold
        class_counts = one_hot[~is_held_out].sum(axis=0)
        log_likelihood = np.log(
            (indicators[~is_held_out].T @ one_hot[~is_held_out] + 1) / (class_counts + 2)
        )  # Laplace: one of each kind more
        probabilities[is_held_out] = softmax(
            indicators[is_held_out] @ log_likelihood + np.log(class_counts + 1), axis=1
        )
    return {name: auroc(truth == k, probabilities[:, k]) for k, name in enumerate(class_names)}


def auroc(is_positive: np.ndarray, score: np.ndarray) -> float:
    """The share of pairs of a positive and a negative that are ordered rightly, ties half (Mann and Whitney)."""
    positives = is_positive.sum()
    ranks = rankdata(score)[is_positive].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * (len(is_positive) - positives)))
