"""Small models that predict labels from image features or file properties, cross-validated by patient.

The models of several labels per image fit all labels at once and leave out the unknown ones.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import expit, logit, softmax
from scipy.stats import rankdata
from sklearn.model_selection import StratifiedGroupKFold

N_FOLDS, SEED = 5, 0
N_COMPONENTS = 40  # principal components of the pixels
INVERSE_REGULARIZATION = 0.1  # C of the logistic regression
N_NEWTON_STEPS = 7
MAX_COLUMNS = 1000  # permuted labels in memory at once


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
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def make_model():
        return make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_REGULARIZATION, max_iter=300))

    return float(np.mean(list(score_classes(make_model, _extract_components(features), labels, folds).values())))


def _extract_components(features: np.ndarray) -> np.ndarray:
    """Return principal components of the features, fitted on all folds: PCA uses no labels."""
    from sklearn.decomposition import PCA

    flat = features.reshape(len(features), -1)
    n_components = min(N_COMPONENTS, flat.shape[1], len(flat) // 2)
    return PCA(n_components, svd_solver="randomized", random_state=SEED).fit_transform(flat)


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


def score_pixels_of_labels(features: np.ndarray, truth: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return the AUROC of each label by the model of score_pixels, on held-out patients; NaN with one class only.

    Args:
        features: Inputs of the images, first dimension n.
        truth: Labels of the images, shape (n, k): 1 present, 0 absent, NaN unknown.
        folds: Fold of each image.
    """
    components = _extract_components(features)
    scores = np.zeros(truth.shape)
    for fold in np.unique(folds):
        is_held_out = folds == fold
        mean, deviation = components[~is_held_out].mean(axis=0), components[~is_held_out].std(axis=0)
        inputs = np.column_stack([(components - mean) / np.maximum(deviation, 1e-8), np.ones(len(components))])
        scores[is_held_out] = inputs[is_held_out] @ _fit_logistic(inputs[~is_held_out], truth[~is_held_out])
    return auroc_within_folds(scores, truth == 1, truth == 0, folds)


def _fit_logistic(inputs: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the weights of one logistic regression per label, by Newton's method, shape (inputs, k).

    `inputs`: shape (n, inputs); the last column is the intercept, which is not regularized.
    """
    is_known, target = (~np.isnan(truth)).astype(float), np.nan_to_num(truth)
    ridge = np.full(inputs.shape[1], 1 / INVERSE_REGULARIZATION)
    ridge[-1] = 1e-6
    weights = np.zeros((inputs.shape[1], truth.shape[1]))
    weights[-1] = logit((target.sum(axis=0) + 0.5) / (is_known.sum(axis=0) + 1))
    for _ in range(N_NEWTON_STEPS):
        probability = expit(inputs @ weights)
        gradient = inputs.T @ (is_known * (probability - target)) + ridge[:, None] * weights
        curvature = is_known * probability * (1 - probability)
        hessian = np.stack([(inputs * column[:, None]).T @ inputs for column in curvature.T]) + np.diag(ridge)
        weights -= np.linalg.solve(hessian, gradient.T[..., None])[..., 0].T
    return weights


def score_indicators_of_labels(
    indicators: np.ndarray, truth: np.ndarray, folds: np.ndarray, orders: np.ndarray
) -> np.ndarray:
    """Return the AUROC of each label by naive Bayes, for each order of the labels, shape (orders, k).

    Images with the same properties and fold are counted together, which makes many permutations fast.

    Args:
        indicators: Binary properties of each image, shape (n, properties).
        truth: Labels of the images, shape (m, k): 1 present, 0 absent, NaN unknown.
        folds: Fold of each image, shape (n,).
        orders: Row of `truth` that each image gets, shape (orders, n).
    """
    rows = np.column_stack([folds, indicators])
    patterns, group_of_row = np.unique(rows, axis=0, return_inverse=True)
    by_group = np.argsort(group_of_row.ravel(), kind="stable")
    starts = np.searchsorted(group_of_row.ravel()[by_group], np.arange(len(patterns)))
    per_chunk = max(MAX_COLUMNS // truth.shape[1], 1)
    aurocs = []
    for start in range(0, len(orders), per_chunk):
        labels = truth[orders[start : start + per_chunk][:, by_group]]  # (orders, n, k)
        labels = labels.transpose(1, 0, 2).reshape(len(by_group), -1)
        present, absent = (np.add.reduceat((labels == value).astype(float), starts, axis=0) for value in (1, 0))
        scores = _score_patterns(patterns[:, 0], patterns[:, 1:], present, absent)
        aurocs.append(auroc_within_folds(scores, present, absent, patterns[:, 0]).reshape(-1, truth.shape[1]))
    return np.concatenate(aurocs)


def _score_patterns(folds: np.ndarray, patterns: np.ndarray, present: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """Return the log-likelihood ratio of each pattern and label, fitted on the other folds, shape (patterns, k)."""
    scores = np.zeros(present.shape)
    for fold in np.unique(folds):
        is_held_out = folds == fold
        # Laplace smoothing, as in score_indicators
        likelihood, other = (
            (patterns[~is_held_out].T @ counts[~is_held_out] + 1) / (counts[~is_held_out].sum(axis=0) + 2)
            for counts in (present, absent)
        )
        scores[is_held_out] = patterns[is_held_out] @ (np.log(likelihood) - np.log(other))
    return scores


def auroc_within_folds(scores: np.ndarray, present: np.ndarray, absent: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Return the AUROC of each column, shape (k,); NaN for a column with one class only. Ties count half.

    Only images of the same fold are compared: each fold has another model.

    Args:
        scores: Score of each row and column, shape (n, k).
        present: Number of positive images in each row, shape (n, k).
        absent: Number of negative images in each row, shape (n, k).
        folds: Fold of each row, shape (n,).
    """
    u_statistic, n_pairs = np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    for fold in np.unique(folds):
        is_in_fold = folds == fold
        u_statistic += _sum_ordered_pairs(scores[is_in_fold], present[is_in_fold], absent[is_in_fold])
        n_pairs += present[is_in_fold].sum(axis=0) * absent[is_in_fold].sum(axis=0)
    return np.divide(u_statistic, n_pairs, out=np.full(len(n_pairs), np.nan), where=n_pairs > 0)


def _sum_ordered_pairs(scores: np.ndarray, present: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """Return the Mann-Whitney U statistic of each column."""
    order = np.argsort(scores, axis=0, kind="stable")
    scores, present, absent = (np.take_along_axis(values, order, axis=0) for values in (scores, present, absent))
    up_to, is_next = np.cumsum(absent, axis=0, dtype=float), scores[1:] > scores[:-1] + 1e-12
    edge = np.ones((1, scores.shape[1]), bool)
    # negative images with a lower score, and with a lower or the same score
    lower = np.maximum.accumulate(np.where(np.concatenate([edge, is_next]), up_to - absent, 0.0), axis=0)
    upper = np.where(np.concatenate([is_next, edge]), up_to, np.inf)
    upper = np.minimum.accumulate(upper[::-1], axis=0)[::-1]
    return (present * (lower + upper)).sum(axis=0) / 2


def standard_error_of_chance(n_present: np.ndarray, n_absent: np.ndarray) -> np.ndarray:
    """Return the standard deviation of the AUROC of a random score (Mann-Whitney); infinite with one class only."""
    product = 12.0 * n_present * n_absent
    ratio = np.divide(n_present + n_absent + 1, product, out=np.full(np.shape(product), np.inf), where=product > 0)
    return np.sqrt(ratio)
