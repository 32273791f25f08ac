"""Small models that predict labels from image features or file properties, cross-validated by patient."""

from collections.abc import Callable

import numpy as np
from scipy.special import softmax
from scipy.stats import rankdata
from sklearn.model_selection import StratifiedGroupKFold

N_FOLDS, SEED = 5, 0
N_COMPONENTS = 40  # principal components of the pixels


def assign_folds(labels: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Return the fold of each image, stratified by label and grouped by patient. Slow for many patients."""
    folds = np.zeros(len(labels), int)
    splits = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=SEED).split(labels, labels, patients)
    for number, (_, held_out_rows) in enumerate(splits):
        folds[held_out_rows] = number
    return folds


def score_pixels(features: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> float:
    """Return the macro AUROC of a logistic regression on principal components, on held-out patients."""
    # imported here: a training loads this module for other checks, and these load 50 modules of scikit-learn
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    flat = features.reshape(len(features), -1)
    n_components = min(N_COMPONENTS, flat.shape[1], len(flat) // 2)
    # fitted on all folds: PCA uses no labels
    components = PCA(n_components, svd_solver="randomized", random_state=SEED).fit_transform(flat)

    def make_model():
        return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))

    return float(np.mean(list(score_classes(make_model, components, labels, folds).values())))


def score_classes(
    make_model: Callable, features: np.ndarray, labels: np.ndarray, folds: np.ndarray
) -> dict[str, float]:
    """Return the AUROC of each class against the rest, pooled over the held-out folds."""
    class_names = np.unique(labels)
    probabilities = np.zeros((len(labels), len(class_names)))
    for fold in np.unique(folds):
        is_held_out = folds == fold
        model = make_model().fit(features[~is_held_out], labels[~is_held_out])
        columns = np.searchsorted(class_names, model.classes_)
        probabilities[np.ix_(is_held_out, columns)] = model.predict_proba(features[is_held_out])
    return {name: auroc(labels == name, probabilities[:, k]) for k, name in enumerate(class_names)}


def score_indicators(indicators: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> dict[str, float]:
    """Return the AUROC of each class against the rest by naive Bayes, pooled over the held-out folds.

    The model is a product of two matrices, fast enough to score many permutations of the labels.

    Args:
        indicators: Binary properties of each image, shape (n, properties).
        labels: Class of each image.
        folds: Fold of each image.
    """
    class_names, truth = np.unique(labels, return_inverse=True)
    one_hot = np.eye(len(class_names))[truth]
    probabilities = np.zeros(one_hot.shape)
    for fold in np.unique(folds):
        is_held_out = folds == fold
        class_counts = one_hot[~is_held_out].sum(axis=0)
        # Laplace smoothing: one more image with and one without each property
        likelihood = (indicators[~is_held_out].T @ one_hot[~is_held_out] + 1) / (class_counts + 2)
        log_posterior = indicators[is_held_out] @ np.log(likelihood) + np.log(class_counts + 1)
        probabilities[is_held_out] = softmax(log_posterior, axis=1)
    return {name: auroc(truth == k, probabilities[:, k]) for k, name in enumerate(class_names)}


def auroc(is_positive: np.ndarray, score: np.ndarray) -> float:
    """Return the area under the ROC curve from the Mann-Whitney U statistic; ties count half."""
    n_positives = is_positive.sum()
    rank_sum = rankdata(score)[is_positive].sum()
    u_statistic = rank_sum - n_positives * (n_positives + 1) / 2
    return float(u_statistic / (n_positives * (len(is_positive) - n_positives)))
