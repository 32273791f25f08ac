"""Targets of findings for fastai: one number per finding, 1 present, 0 absent, NaN unknown."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from fastai.data.block import TransformBlock
from fastai.data.transforms import EncodedMultiCategorize, MultiCategory
from fastai.torch_core import TensorMultiCategory

from fastcxr.config.recipe import Recipe
from fastcxr.data.findings import list_findings
from fastcxr.data.label_options import find_uncertain_policy
from fastcxr.data.label_policy import compute_truth

TARGET_PREFIX = "target_"  # of the columns with the targets of the training and validation rows


class EncodeFindings(EncodedMultiCategorize):
    """Convert the targets of an image to a tensor, shape (k,), and a tensor back to the names of present findings."""

    def decodes(self, targets: torch.Tensor) -> MultiCategory:
        """Return the names of the findings with the target 1."""
        return MultiCategory([name for name, value in zip(self.vocab, targets, strict=True) if value == 1])


class TargetReader:
    """Read the targets of a row, shape (k,), from its columns."""

    def __init__(self, findings: Sequence[str]):
        self.columns = [TARGET_PREFIX + name for name in findings]

    def __call__(self, row: pd.Series) -> np.ndarray:  # noqa: D102
        return row[self.columns].to_numpy(np.float32)


def make_finding_block(findings: Sequence[str]) -> TransformBlock:
    """Return fastai's block for the targets of these findings."""
    return TransformBlock(type_tfms=[EncodeFindings(list(findings))])


def append_targets(rows: pd.DataFrame, recipe: Recipe) -> pd.DataFrame:
    """Return the rows with a column of targets per finding; the recipe decides on uncertain training labels."""
    findings = list_findings(rows)
    truth = compute_truth(rows, findings, find_uncertain_policy(recipe))
    columns = pd.DataFrame(truth, columns=[TARGET_PREFIX + name for name in findings], index=rows.index)
    return pd.concat([rows, columns], axis=1)


def read_targets(rows: pd.DataFrame, findings: Sequence[str]) -> np.ndarray:
    """Return the targets of rows of `append_targets`, shape (n, k)."""
    return rows[[TARGET_PREFIX + name for name in findings]].to_numpy(np.float32)


def is_finding_target(target: torch.Tensor) -> bool:
    """Return whether the targets of a batch are those of findings."""
    return isinstance(target, TensorMultiCategory) or (target.ndim == 2 and target.is_floating_point())
