"""Labels of findings by state and split, and the policy for blank and uncertain labels in words."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from fastcxr.data.findings import BLANK_AS_ABSENT, FINDING_PREFIX, list_findings
from fastcxr.data.label_policy import BLANK_POLICIES, UNCERTAIN_POLICIES, LabelPolicy, compute_truth, parse_policy
from fastcxr.data.readers.public import PublicDataset
from fastcxr.data.readers.registry import PUBLIC_DATASETS
from fastcxr.io.formatting import format_percent, join_names, pluralize
from fastcxr.report.data_tables import list_splits
from fastcxr.report.run_reader import RunRecord

BLANK_MESSAGE = "blank labels of findings:"  # start of the message of fastcxr.data.label_options
BLANK_TEXTS = {"negative": "absent", "unknown": "unknown"}
UNCERTAIN_TEXTS = {"ignore": "ignored", "positive": "read as present", "negative": "read as absent"}
VALUES = {"present": 1, "absent": 0, "blank": BLANK_AS_ABSENT, "uncertain": -1}
STATES = (*VALUES, "unknown")


def make_label_tables(record: RunRecord) -> list[dict[str, Any]]:
    """Return for each split its name, number of images and rows with the labels of each finding of the model.

    A row has the finding, the images in each of STATES (blank: read as absent), and under the policy of the recipe the
    known and positive labels and their ratio, the prevalence. Empty if no table of the run has the labels.
    """
    table, labels = record.table, list(record.predictions.labels)
    if not list_findings(table):
        return []
    parts = {split: table[table["split"] == split] for split in list_splits(table)}
    policy = _read_uncertain_policy(record.recipe)
    return [
        {"split": split, "images": len(rows), "rows": _make_rows(rows, labels, policy)} for split, rows in parts.items()
    ]


def _make_rows(rows: pd.DataFrame, labels: list[str], policy: LabelPolicy) -> list[dict[str, Any]]:
    columns = [FINDING_PREFIX + label for label in labels]
    values = rows.reindex(columns=columns).to_numpy(float, na_value=np.nan)  # a finding without a column is unknown
    states = {name: (values == value).sum(axis=0) for name, value in VALUES.items()}
    states["unknown"] = np.isnan(values).sum(axis=0)
    truth = compute_truth(rows, labels, policy)
    n_known, n_present = (~np.isnan(truth)).sum(axis=0), np.nansum(truth, axis=0)
    return [
        {
            "name": label,
            "prevalence": format_percent(n_present[k] / n_known[k] if n_known[k] else None),
            "known": int(n_known[k]),
            "positive": int(n_present[k]),
        }
        | {name: int(column[k]) for name, column in states.items()}
        for k, label in enumerate(labels)
    ]


def describe_label_policy(record: RunRecord) -> list[str]:
    """Return sentences on the policy for blank, uncertain and unknown labels; empty without labels."""
    tables = make_label_tables(record)
    if not tables:
        return []
    totals = {name: sum(row[name] for part in tables for row in part["rows"]) for name in STATES}
    training = [part for part in tables if part["split"] == "train"]
    n_uncertain = sum(row["uncertain"] for part in training for row in part["rows"])
    blank = f"Blank labels: {totals['blank']:,} are read as absent. {_explain_blank(record)}".strip()
    uncertain = f"Uncertain labels: {_describe_policy(_read_uncertain_policy(record.recipe), UNCERTAIN_TEXTS)} in"
    return [
        blank,
        f"{uncertain} training ({n_uncertain:,}); those of other splits are never evaluated "
        f"({totals['uncertain'] - n_uncertain:,}).",
        f"Unknown labels: {totals['unknown']:,}. They are neither in the loss nor in a metric.",
    ]


def describe_masked_labels(record: RunRecord) -> str:
    """Return how many training labels are unknown or ignored, as a sentence; empty without training images."""
    training = next((part for part in make_label_tables(record) if part["split"] == "train"), None)
    if training is None or not training["images"]:
        return ""
    n_labels = training["images"] * len(training["rows"])
    n_masked = n_labels - sum(row["known"] for row in training["rows"])
    if not n_masked:
        return "All training labels are known."
    labels = f"{n_masked:,} of {pluralize(n_labels, 'training label')} ({format_percent(n_masked / n_labels)})"
    return f"{labels} are unknown or ignored; they have no gradient."


def _explain_blank(record: RunRecord) -> str:
    """Return the policy for blank labels in effect: the option of the recipe, or the defaults of the datasets."""
    policy = parse_policy(record.recipe.get("blank") or (), BLANK_POLICIES, "blank", "")
    if policy.default or not record.run:
        default = policy.default or "default of the dataset"
        return f"Policy: {_describe_policy(LabelPolicy(default, policy.exceptions), BLANK_TEXTS)}."
    reasons = [
        f"{BLANK_TEXTS[dataset.blank]}, the default for {dataset.title}"
        + (f": {dataset.blank_reason}" if dataset.blank_reason else "")
        for dataset in _list_public_datasets(record.run)
    ] or [_read_other_reason(record.run)]
    exceptions = [f"{finding}: {BLANK_TEXTS[name]}" for finding, name in policy.exceptions.items()]
    return f"Policy: {'; '.join([*reasons, *exceptions])}."


def _read_other_reason(run: Mapping[str, Any]) -> str:
    """Return the logged reason for the labels of data that is no public dataset, else the default."""
    lines = [str(line.get("text", "")) for line in run.get("messages") or [] if isinstance(line, Mapping)]
    reasons = [text.partition(" unknown (")[2].removesuffix(")") for text in lines if text.startswith(BLANK_MESSAGE)]
    decided = [reason for reason in reasons if reason.startswith("decided")]
    return decided[0] if decided else "unknown, the default: no label is guessed"


def name_blank_policy(entries: Iterable[str], run: Mapping[str, Any]) -> str:
    """Return the policy in effect for blank labels, such as `negative (default for CheXpert), Edema=unknown`.

    Args:
        entries: option `blank` of the recipe.
        run: content of run.json; empty if it is missing.
    """
    policy = parse_policy(entries, BLANK_POLICIES, "blank", "")
    titles_by_policy: dict[str, list[str]] = {}
    for dataset in _list_public_datasets(run):
        titles_by_policy.setdefault(dataset.blank, []).append(dataset.title)
    parts = [f"{name} (default for {join_names(titles)})" for name, titles in titles_by_policy.items()]
    parts = parts or ["unknown (default)" if run else "default of the dataset"]
    exceptions = [f"{finding}={name}" for finding, name in policy.exceptions.items()]
    return ", ".join([*([policy.default] if policy.default else parts), *exceptions])


def _list_public_datasets(run: Mapping[str, Any]) -> list[PublicDataset]:
    """Return the public datasets that run.json lists; those of an evaluation are only named in its messages."""
    lines = [str(line.get("text", "")) for line in run.get("messages") or [] if isinstance(line, Mapping)]
    texts = [text for text in lines if text.startswith(BLANK_MESSAGE)]
    names = run.get("public_datasets") or []
    return [
        dataset
        for name, dataset in PUBLIC_DATASETS.items()
        if name in names or any(f"default for {dataset.title}: " in text for text in texts)
    ]


def _read_uncertain_policy(recipe: Mapping[str, Any]) -> LabelPolicy:
    return parse_policy(recipe.get("uncertain") or (), UNCERTAIN_POLICIES, "uncertain", "ignore")


def _describe_policy(policy: LabelPolicy, texts: Mapping[str, str]) -> str:
    """Return `ignored, except Edema: read as present`."""
    text = texts.get(policy.default, policy.default)
    exceptions = [f"{finding}: {texts[name]}" for finding, name in policy.exceptions.items()]
    return f"{text}, except {join_names(exceptions)}" if exceptions else text
