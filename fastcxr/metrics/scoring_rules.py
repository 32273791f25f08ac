"""Scoring rules of single images and of single labels: log-loss and Brier score."""

import numpy as np

MIN_PROBABILITY = 1e-12  # keeps the log-loss of a single error finite


def compute_log_losses(truth: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return the log-loss of each image in nats, shape (n,)."""
    return -np.log(np.clip(probability[np.arange(len(truth)), truth], MIN_PROBABILITY, 1))


def compute_brier_scores(truth: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return the squared error of each image, summed over classes (Brier 1950), shape (n,)."""
    distance = np.array(probability, float)
    distance[np.arange(len(truth)), truth] -= 1
    return np.square(distance, out=distance).sum(axis=1)


def compute_label_losses(positive: np.ndarray, probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the squared error (0 to 1) and the log-loss in nats of each label; all arrays have the same shape."""
    of_truth = np.clip(np.where(positive, probability, 1 - probability), MIN_PROBABILITY, 1)
    return np.square(probability - positive), -np.log(of_truth)
