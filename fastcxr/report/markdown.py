"""Write MODEL_CARD.md and CLAIM.md of a run from templates, which hold the text and the unchecked items.

Model card sections: Mitchell 2019 (doi:10.1145/3287560.3287596). Checklist items: CLAIM 2020
(doi:10.1148/ryai.2020200029), in our own wording.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment

from fastcxr.data.demographics import DEMOGRAPHIC_COLUMNS
from fastcxr.data.label_policy import compute_truth
from fastcxr.io.formatting import MISSING, format_interval, format_number, format_percent, format_score, pluralize
from fastcxr.io.html import replace_unprintable
from fastcxr.metrics.predictions import SPLITS
from fastcxr.metrics.subgroups import UNSTATED, assign_groups
from fastcxr.report.data_notices import is_overlap_unknown
from fastcxr.report.data_tables import describe_patient_origins
from fastcxr.report.finding_rows import describe_averaged, describe_calibration_fit, make_overall_rows
from fastcxr.report.headline import describe_intervals, get_primary_metrics, make_headline_rows
from fastcxr.report.html import make_environment
from fastcxr.report.label_counts import describe_label_policy, make_label_tables
from fastcxr.report.notices import FEW_IMAGES, make_notices
from fastcxr.report.run_reader import RunRecord
from fastcxr.report.tables import describe_sanity_check, make_border_share_rows
from fastcxr.report.training_summary import describe_training, describe_valid_predictions
from fastcxr.report.tuning_notice import describe_other_settings

STATE_TEXTS = {
    "present": "positive", "absent": "negative", "blank": "blank (read as absent)", "uncertain": "uncertain",
    "unknown": "unknown",
}  # fmt: skip


def make_model_card(record: RunRecord, metrics: Mapping[str, Any]) -> str:
    """Return the content of MODEL_CARD.md."""
    return _render("MODEL_CARD.md.jinja", record, metrics)


def make_claim_checklist(record: RunRecord, metrics: Mapping[str, Any]) -> str:
    """Return the content of CLAIM.md."""
    return _render("CLAIM.md.jinja", record, metrics)


def _render(template: str, record: RunRecord, metrics: Mapping[str, Any]) -> str:
    primary = get_primary_metrics(record, metrics)
    backbone = record.model.get("backbone") or {}
    findings = [row for row in record.findings if row["verdict"] != "PASS"]
    has_small_classes = any(row["check"] == "sizes" for row in findings)  # the finding states them of every split
    limits = [
        str(notice)
        for notice in make_notices(record, metrics)
        if not (has_small_classes and notice.title.startswith(FEW_IMAGES))
    ]
    limits += [f"{row['title']} ({row['verdict']}): {row['message']}" for row in findings]

    def format_class_interval(label: str, name: str) -> str:
        return format_interval(dict(primary), f"per_class.{label}.{name}", format_percent) or "no interval"

    def format_ranking(label: str, name: str) -> str:
        interval = format_interval(dict(primary), f"{name}.per_class.{label}", format_score)
        return f"{format_score(primary[name]['per_class'][label])} ({interval or 'no interval'})"

    is_multi_label = record.predictions.is_multi_label
    context = {
        "record": record,
        "is_multi_label": is_multi_label,
        "unit": "finding" if is_multi_label else "class",
        "label_policy": describe_label_policy(record) if is_multi_label else [],
        "averaged": describe_averaged(primary) if is_multi_label and primary else [],
        "calibration_fit": describe_calibration_fit(record.calibration),
        "recipe": record.recipe,
        "backbone": backbone,
        "input_spec": record.model.get("input_spec") or {},
        "overlap_unknown": is_overlap_unknown(record),
        "name": record.recipe.get("backbone") or backbone.get("name"),
        "labels": list(record.predictions.labels),
        "versions": [f"{name} {number}" for name, number in (record.run.get("versions") or {}).items()],
        "tested_files": ((record.run.get("tested") or {}).get("files") or {}).values(),
        "metrics": metrics,
        "split": record.predictions.primary_split,
        "primary": primary,
        "headline": make_headline_rows(primary, None) if primary else [],
        "intervals": describe_intervals(primary),
        "class_interval": format_class_interval,
        "ranking": format_ranking,
        "format_number": format_number,
        "limits": list(dict.fromkeys(limits)),
        "sources": [f"{name} ({_count(rows)})" for name, rows in record.table.groupby("source")],
        "splits": _list_splits(record),
        "selections": _list_selections(record.recipe),
        "training": describe_training(record),
        "other_settings": describe_other_settings(record),
        "valid_predictions": describe_valid_predictions(record),
        "identifiers": describe_patient_origins(record.table),
        "n_without_patient": _count_equal(record.table, "patient_origin", "image"),
        "n_unlabelled": _count_unlabelled(record),
        "n_unreadable": int((record.predictions.table["error"] != "").sum()),
        "split_origins": sorted(set(record.table.get("split_origin", pd.Series(dtype=str)).unique()) - {""}),
        "demographics": _list_demographics(record.table),
        "sanity_check": describe_sanity_check(record.saliency_maps),
        "border_shares": make_border_share_rows(record.saliency_maps),
        "subgroups": _list_subgroup_ranges(metrics.get("subgroups") or {}),
        "errors": _list_overall_errors(primary) if is_multi_label else _list_frequent_errors(primary),
    }
    return _make_environment().get_template(template).render(context) + "\n"


@cache
def _make_environment() -> Environment:
    return make_environment().overlay(autoescape=False, finalize=_escape)


def _escape(value: Any) -> str:
    """Escape tags, but not & and quotes, which a reader of Markdown text sees; None becomes MISSING."""
    return MISSING if value is None else replace_unprintable(value).replace("<", "&lt;").replace(">", "&gt;")


def _count(rows: pd.DataFrame) -> str:
    return f"{pluralize(len(rows), 'image')} of {pluralize(rows['patient'].nunique(), 'patient')}"


def _count_equal(table: pd.DataFrame, column: str, value: str) -> int:
    return int((table[column] == value).sum()) if column in table else 0


def _list_splits(record: RunRecord) -> list[dict[str, Any]]:
    """Return name, size and classes of each split, train, valid and test first; of findings, the known labels."""
    table = record.table
    parts = {str(name): rows for name, rows in table.groupby("split")}
    order = sorted(parts, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))
    if record.predictions.is_multi_label:
        texts = {part["split"]: [_describe_counts(row) for row in part["rows"]] for part in make_label_tables(record)}
    else:
        texts = {
            name: [f"{label} {n:,}" for label, n in rows["label"].value_counts().sort_index().items()]
            for name, rows in parts.items()
        }
    return [{"name": name, "size": _count(parts[name]), "classes": texts.get(name, [])} for name in order]


def _describe_counts(row: Mapping[str, Any]) -> str:
    """Return the labels of a finding by state, and its prevalence under the label policy."""
    texts = [f"{row[name]:,} {text}" for name, text in STATE_TEXTS.items()]
    return f"{row['name']}: {', '.join(texts)}; prevalence {row['prevalence']}"


def _count_unlabelled(record: RunRecord) -> int:
    """Return the images without a label; of findings, without a known label of any finding."""
    if not record.predictions.is_multi_label:
        return _count_equal(record.table, "label", "")
    return int(np.isnan(compute_truth(record.table, list(record.predictions.labels))).all(axis=1).sum())


def _list_selections(recipe: Mapping[str, Any]) -> list[str]:
    names = {"classes": "classes kept", "filter": "rows kept", "relabel": "labels renamed"}
    selections = [f"{text}: {', '.join(map(str, recipe[key]))}" for key, text in names.items() if recipe.get(key)]
    return [*selections, *["exact duplicates left out"] * bool(recipe.get("deduplicate"))]


def _list_demographics(table: pd.DataFrame) -> list[str]:
    """Return the images of each sex, age group and view in each split, of those that the data contains."""
    lines = []
    for column in DEMOGRAPHIC_COLUMNS:
        groups = assign_groups(table, column)
        if column != "source" and set(groups.unique()) != {UNSTATED}:
            cells = pd.crosstab(table["split"], groups)
            parts = [
                f"{split} " + ", ".join(f"{name} {n:,}" for name, n in row.items()) for split, row in cells.iterrows()
            ]
            lines.append(f"{column}, images: {'; '.join(parts)}.")
    return lines


def _list_subgroup_ranges(subgroups: Mapping[str, Any]) -> list[str]:
    """Return the lowest and highest macro AUROC among the groups of each trait."""
    texts = []
    for trait, groups in subgroups.items():
        aurocs = {name: row["auroc"][0] for name, row in groups.items() if row.get("auroc")}
        text = "no two groups are large enough to compare"
        if len(aurocs) > 1:
            low, high = (choose(aurocs, key=aurocs.__getitem__) for choose in (min, max))
            text = f"macro AUROC {format_score(aurocs[low])} ({low}) to {format_score(aurocs[high])} ({high})"
        texts.append(f"{trait}: {text}")
    return texts


def _list_frequent_errors(split_metrics: Mapping[str, Any]) -> list[str]:
    """Return the three most frequent pairs of true and predicted class."""
    labels, matrix = split_metrics.get("labels", []), split_metrics.get("confusion_matrix", [])
    cells = [
        (n, f"{label} predicted as {prediction}: {n:,}")
        for label, row in zip(labels, matrix, strict=True)
        for prediction, n in zip(labels, row, strict=True)
        if n and prediction != label
    ]
    return [text for _, text in sorted(cells, reverse=True)[:3]]


def _list_overall_errors(split_metrics: Mapping[str, Any]) -> list[str]:
    """Return exact match and Hamming loss, and the three findings with the lowest sensitivity."""
    if not split_metrics:
        return []
    per_class = split_metrics["per_class"]
    known = {label: row["sensitivity"] for label, row in per_class.items() if row["sensitivity"] is not None}
    lowest = sorted(known, key=lambda label: known[label])[:3]
    texts = [f"{name} {value}" for name, value in make_overall_rows(split_metrics)]
    return [*texts, *(f"{label}: sensitivity {format_percent(known[label])}" for label in lowest)]
