"""Decisions of the user on blank and uncertain labels of findings.

A blank label that is read as absent has the value BLANK_AS_ABSENT, so that its number stays visible. The uncertain
labels of training images are ignored, or count as present or absent. Those of other images are never evaluated: a
metric would otherwise measure the guess.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from fastcxr.data.findings import (
    BLANK_AS_ABSENT,
    FINDING_DTYPE,
    FINDING_PREFIX,
    NO_FINDING,
    list_findings,
    make_finding_labels,
    split_labels,
)
from fastcxr.errors import DataError, RecipeError
from fastcxr.io.tables import format_names, suggest_name

log = logging.getLogger("fastcxr")
BLANK_POLICIES = ("negative", "unknown")
UNCERTAIN_POLICIES = ("ignore", "positive", "negative")
VALUE_BY_UNCERTAIN_POLICY = {"ignore": np.nan, "positive": 1.0, "negative": 0.0}
# a device may be present in an image without a finding
FINDINGS_BESIDE_NO_FINDING = ("Support Devices", "Support_Devices", "support devices")


@dataclass(frozen=True)
class LabelPolicy:
    """The policy of all findings, and those of single findings.

    Attributes:
        default: policy of the findings that are not in `exceptions`.
        exceptions: policy by finding.
    """

    default: str
    exceptions: Mapping[str, str] = field(default_factory=dict)

    def find(self, finding: str) -> str:
        """Return the policy of a finding."""
        return self.exceptions.get(finding, self.default)


def parse_policy(entries: Iterable[str], policies: Sequence[str], option: str, default: str) -> LabelPolicy:
    """Return the policy of entries such as `ignore` and `Edema=positive`; the last one without a finding is for all.

    Args:
        entries: entries of the option.
        policies: valid policies.
        option: name of the option, for errors.
        default: policy without an entry for all findings.

    Raises:
        RecipeError: an unknown policy, or two policies of one finding.
    """
    exceptions: dict[str, str] = {}
    for entry in entries:
        finding, separator, policy = (part.strip() for part in entry.rpartition("="))
        if policy not in policies or (separator and not finding):
            problem = f"{option} is {entry!r}{suggest_name(policy, policies)}"
            raise RecipeError(problem, f"Pass {' or '.join(policies)}, or FINDING=POLICY")
        if exceptions.get(finding, policy) != policy:
            problem = f"{option} has two policies for {finding or 'all findings'}: {exceptions[finding]} and {policy}"
            raise RecipeError(problem, "Leave one of them out")
        exceptions[finding] = policy
    return LabelPolicy(exceptions.pop("", default), exceptions)


def reject_unknown_findings(policy: LabelPolicy, findings: Sequence[str], option: str) -> None:
    """Raise RecipeError if the policy names a finding that the data does not have."""
    for name in policy.exceptions:
        if name not in findings:
            problem = f"{option} names the finding {name!r}, which the data does not have{suggest_name(name, findings)}"
            raise RecipeError(problem, f"Choose from {', '.join(findings)}")


def apply_blank_policy(rows: pd.DataFrame, policy: LabelPolicy) -> pd.DataFrame:
    """Return the rows of one dataset with BLANK_AS_ABSENT for the blank labels that are read as absent.

    These are all blank labels of a finding with the policy "negative". With "unknown" they are those of images that are
    labelled "No Finding" and have no finding: the label states that the others are absent. Labels that were read with
    another policy before, as those of a packed file, are read again.
    """
    findings = list_findings(rows)
    if not findings:
        return rows
    is_normal = np.array([split_labels(label) == [NO_FINDING] for label in rows["label"].tolist()], bool)
    columns = {}
    for name in findings:
        values, is_absent = rows[FINDING_PREFIX + name], np.ones(len(rows), bool)
        if policy.find(name) == "unknown":
            is_absent = is_normal & (name not in FINDINGS_BESIDE_NO_FINDING)
        numbers = values.to_numpy(dtype=np.int8, na_value=BLANK_AS_ABSENT)
        is_unknown = (numbers == BLANK_AS_ABSENT) & ~is_absent
        columns[FINDING_PREFIX + name] = pd.Series(pd.arrays.IntegerArray(numbers, is_unknown), values.index)
    return rows.assign(**columns)


def drop_unlearnable_findings(
    rows: pd.DataFrame, uncertain: LabelPolicy | None = None, *, only_train: bool = True
) -> pd.DataFrame:
    """Return the rows without the findings that cannot be learned, and log their names.

    A finding can be learned if a training image has it and another does not, under the policy for uncertain labels.
    `only_train`: False counts all rows, so that all folds have the same findings. Raises DataError if none is left.
    """
    findings = list_findings(rows)
    if not findings:
        return rows
    counted = rows[rows["split"] == "train"] if only_train else rows.assign(split="train")
    truth = compute_truth(counted, findings, uncertain)
    has_both = (truth == 1).any(axis=0) & (truth == 0).any(axis=0)
    dropped = [name for name, is_learnable in zip(findings, has_both, strict=True) if not is_learnable]
    if len(dropped) == len(findings):
        problem = f"no training image has a finding that another training image does not have: {', '.join(findings)}"
        fix = "Check the labels, or pass `blank='negative'` if blank labels mean absent"
        raise DataError(problem, fix, code="E003")
    if dropped:
        text = "findings left out, because no training image has them, or none is known not to have them: %s"
        log.warning(text, format_names(dropped, len(dropped)))
    return rows.drop(columns=[FINDING_PREFIX + name for name in dropped])


def compute_truth(
    rows: pd.DataFrame, findings: Sequence[str] | None = None, uncertain: LabelPolicy | None = None
) -> np.ndarray:
    """Return the labels of the findings, shape (n, k): 1 present, 0 absent, NaN unknown or ignored.

    A finding without a column is unknown in all rows.

    Args:
        rows: rows of a manifest.
        findings: names of the findings; default: all, in the order of their columns.
        uncertain: policy for the uncertain labels of rows in the training split; default: ignore. Those of other rows
            are always ignored.
    """
    findings = list_findings(rows) if findings is None else findings
    is_train = (rows["split"] == "train").fillna(False).to_numpy(bool) if "split" in rows else np.zeros(len(rows), bool)
    truth = np.full((len(rows), len(findings)), np.nan, np.float32)
    for number, name in enumerate(findings):
        if FINDING_PREFIX + name not in rows:
            continue
        values = rows[FINDING_PREFIX + name].astype(FINDING_DTYPE).to_numpy(dtype=np.float32, na_value=np.nan)
        column = np.where(values == BLANK_AS_ABSENT, np.float32(0), values)
        guess = VALUE_BY_UNCERTAIN_POLICY[uncertain.find(name) if uncertain else "ignore"]
        truth[:, number] = np.where(column == -1, np.where(is_train, guess, np.nan), column)
    return truth


def make_findings_from_classes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with one label per image as rows with a finding per class, for `task="multi_label"`.

    "No Finding" becomes the absence of all findings.
    """
    labels = rows["label"]
    names = sorted(set(labels) - {NO_FINDING, ""})
    columns = {FINDING_PREFIX + name: (labels == name).astype(FINDING_DTYPE) for name in names}
    findings = pd.DataFrame(columns, index=rows.index)
    return rows.assign(**columns, label=make_finding_labels(findings, labels == NO_FINDING))
