"""Call of the command line in a process, and comparison of its metrics with scikit-learn."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, roc_auc_score

BACKBONE = "test_byobnet"  # of timm, with 200,000 weights; a process that imports no test support has it too
TRAIN_WITH_FIGURES = [
    "train", BACKBONE, "--weights", "none", "--image-size", "64", "--epochs", "1", "--strategy", "full",
]  # fmt: skip
TRAIN = [*TRAIN_WITH_FIGURES, "--figures", "none"]


def fastcxr(*words, where: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fastcxr", *map(str, words)]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, encoding="utf-8", check=False)


def check_against_scikit_learn(part: pd.DataFrame, found: dict) -> None:
    labels = found["labels"]
    probability = part[[f"prob_{label}" for label in labels]].to_numpy()
    onehot = (part["label"].to_numpy()[:, None] == np.array(labels)).astype(int)
    assert found["n_images"] == len(part)
    assert found["n_patients"] == part["patient"].nunique()
    assert found["accuracy"] == pytest.approx(accuracy_score(part["label"], part["predicted"]), abs=1e-9)
    assert found["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(part["label"], part["predicted"]), abs=1e-9
    )
    for average in ("macro", "micro"):
        assert found["auroc"][average] == pytest.approx(roc_auc_score(onehot, probability, average=average), abs=1e-9)
        assert found["average_precision"][average] == pytest.approx(
            average_precision_score(onehot, probability, average=average), abs=1e-9
        )
