"""Apply the options `task` and `blank` of a recipe to the rows of its datasets."""

import logging
from collections.abc import Sequence

import pandas as pd

from fastcxr.config.recipe import Recipe
from fastcxr.data.findings import (
    BLANK_AS_ABSENT,
    FINDING_PREFIX,
    NO_FINDING,
    is_multi_label,
    keep_findings,
    list_findings,
    require_single_label,
)
from fastcxr.data.label_policy import (
    BLANK_POLICIES,
    UNCERTAIN_POLICIES,
    LabelPolicy,
    apply_blank_policy,
    make_findings_from_classes,
    parse_policy,
    reject_unknown_findings,
)
from fastcxr.data.readers.label_cells import is_no_finding
from fastcxr.data.readers.public import PublicDataset
from fastcxr.io.tables import format_names

log = logging.getLogger("fastcxr")


def find_uncertain_policy(recipe: Recipe) -> LabelPolicy:
    """Return the policy for uncertain labels of training images. Raise RecipeError for an invalid entry."""
    return parse_policy(recipe.uncertain, UNCERTAIN_POLICIES, "uncertain", "ignore")


def apply_label_options(
    tables: list[pd.DataFrame], datasets: Sequence[PublicDataset | None], recipe: Recipe
) -> list[pd.DataFrame]:
    """Return the tables with the labels of the recipe's task, and with its policy for blank labels.

    Args:
        tables: rows of each dataset.
        datasets: the public dataset of each table, or None.
        recipe: recipe with the options task and blank.

    Raises:
        DataError: the task is one label per image, but the data has several (E015).
        RecipeError: an invalid policy, or a finding that the data does not have.
    """
    if recipe.task == "single_label":
        for table in tables:
            require_single_label(table)
    if recipe.task == "multi_label":
        tables = [table if is_multi_label(table) else _make_findings(table) for table in tables]
        chosen = [name.strip() for text in recipe.classes for name in text.split(",")]
        tables = [keep_findings(table, chosen) for table in tables] if chosen else tables
    findings = list(dict.fromkeys(name for table in tables for name in list_findings(table)))
    reject_unknown_findings(parse_policy(recipe.blank, BLANK_POLICIES, "blank", "unknown"), findings, "blank")
    return [_apply_blank(table, dataset, recipe) for table, dataset in zip(tables, datasets, strict=True)]


def _make_findings(table: pd.DataFrame) -> pd.DataFrame:
    """Return rows with a finding per class; a class such as Normal or No_findings becomes the absence of all."""
    absent = [label for label in table["label"].unique() if is_no_finding(label) and label != NO_FINDING]
    if absent:
        log.info("%s is read as %s", format_names(absent), NO_FINDING)
    return make_findings_from_classes(table.assign(label=table["label"].replace(dict.fromkeys(absent, NO_FINDING))))


def _apply_blank(table: pd.DataFrame, dataset: PublicDataset | None, recipe: Recipe) -> pd.DataFrame:
    columns = [FINDING_PREFIX + name for name in list_findings(table)]
    if not columns:
        return table
    is_decided = dataset is None and not recipe.blank and bool((table[columns] == BLANK_AS_ABSENT).any(axis=None))
    policy = parse_policy(recipe.blank, BLANK_POLICIES, "blank", dataset.blank if dataset else "unknown")
    resolved = table if is_decided else apply_blank_policy(table, policy)
    n_absent = int((resolved[columns] == BLANK_AS_ABSENT).sum().sum())
    n_unknown = int(resolved[columns].isna().sum().sum())
    if n_absent + n_unknown:
        reason = "decided when the data was written" if is_decided else _explain_policy(policy, dataset, recipe)
        if n_absent and policy.default == "unknown" and not is_decided:
            reason += f"; absent in images labelled {NO_FINDING}"
        text = "blank labels of findings: %s read as absent, %s unknown (%s)"
        log.info(text, f"{n_absent:,}", f"{n_unknown:,}", reason)
    return resolved


def _explain_policy(policy: LabelPolicy, dataset: PublicDataset | None, recipe: Recipe) -> str:
    if recipe.blank:
        return f"blank={', '.join(recipe.blank)}"
    if dataset is not None and dataset.blank_reason:
        return f"the default for {dataset.title}: {dataset.blank_reason}"
    return f"blank={policy.default}, the default: no label is guessed"
