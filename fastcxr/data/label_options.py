"""Apply the options `task` and `blank` of a recipe to the rows of its datasets."""

import logging
from collections.abc import Sequence

import pandas as pd

from fastcxr.config.recipe import Recipe
from fastcxr.data.findings import (
    BLANK_AS_ABSENT,
    FINDING_PREFIX,
    is_multi_label,
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
from fastcxr.data.readers.public import PublicDataset

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
        tables = [table if is_multi_label(table) else make_findings_from_classes(table) for table in tables]
    findings = list(dict.fromkeys(name for table in tables for name in list_findings(table)))
    reject_unknown_findings(parse_policy(recipe.blank, BLANK_POLICIES, "blank", "unknown"), findings, "blank")
    return [_apply_blank(table, dataset, recipe) for table, dataset in zip(tables, datasets, strict=True)]


def _apply_blank(table: pd.DataFrame, dataset: PublicDataset | None, recipe: Recipe) -> pd.DataFrame:
    findings = list_findings(table)
    policy = parse_policy(recipe.blank, BLANK_POLICIES, "blank", dataset.blank if dataset else "unknown")
    resolved = apply_blank_policy(table, policy)
    columns = [FINDING_PREFIX + name for name in findings]
    n_absent = int((resolved[columns] == BLANK_AS_ABSENT).sum().sum()) if columns else 0
    n_unknown = int(resolved[columns].isna().sum().sum()) if columns else 0
    if n_absent + n_unknown:
        text = "blank labels of findings: %s read as absent, %s unknown (%s)"
        log.info(text, f"{n_absent:,}", f"{n_unknown:,}", _explain_policy(policy, dataset, recipe))
    return resolved


def _explain_policy(policy: LabelPolicy, dataset: PublicDataset | None, recipe: Recipe) -> str:
    if recipe.blank:
        return f"blank={', '.join(recipe.blank)}"
    if dataset is not None and dataset.blank_reason:
        return f"the default for {dataset.title}: {dataset.blank_reason}"
    return f"blank={policy.default}, the default: no label is guessed"
