"""Values of the report page that findings have instead of those of classes."""

from collections.abc import Mapping
from typing import Any

from fastcxr.data.findings import split_labels
from fastcxr.metrics.predictions import (
    IN_DISTRIBUTION_COLUMN,
    PROBABILITY_PREFIX,
    TRUTH_PREFIX,
    select_most_wrong,
)
from fastcxr.metrics.thresholds import MIN_STABLE_POSITIVES
from fastcxr.report.finding_figure_set import PANELS, list_panels
from fastcxr.report.finding_rows import (
    MIN_GROUP_POSITIVES,
    N_WRONG_PER_FINDING,
    describe_averaged,
    describe_calibration_fit,
    find_common_target,
    make_calibration_means,
    make_decision_rows,
    make_finding_calibration_rows,
    make_finding_rows,
    make_finding_subgroup_rows,
    make_mean_rows,
    make_overall_rows,
)
from fastcxr.report.label_counts import describe_label_policy, make_label_tables
from fastcxr.report.run_reader import RunRecord, map_uris
from fastcxr.report.tables import make_drop_rows, make_reason_rows

MAX_CARD_LABELS = 6  # labels of an image in its card
FOLD_METRICS = {
    "auroc": "AUROC", "average_precision": "Average precision", "exact_match": "Exact match",
    "hamming_loss": "Hamming loss",
}  # fmt: skip


def make_finding_metrics_context(record: RunRecord, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template values of the metrics, labels and errors of findings."""
    predictions = record.predictions
    primary = metrics[predictions.primary_split] if predictions.primary_split else None
    has_images = bool(primary and primary["n_images"])
    fitted = record.calibration.get("findings") or {}
    decisions = make_decision_rows(primary) if primary else []
    return {
        "averaged": describe_averaged(primary) if primary else [],
        "findings": {split: make_finding_rows(metrics[split]) for split in predictions.splits},
        "means": {split: make_mean_rows(metrics[split]) for split in predictions.splits},
        "decisions": decisions,
        "target": find_common_target(decisions),
        "min_stable": MIN_STABLE_POSITIVES,
        "overall": make_overall_rows(primary) if primary else [],
        "calibration": make_finding_calibration_rows(primary, fitted) if primary and has_images else [],
        "calibration_means": make_calibration_means(primary) if primary and has_images else [],
        "calibration_fit": describe_calibration_fit(record.calibration),
        "panels": {kind: list_panels(primary, kind) if primary and has_images else [] for kind in PANELS},
        "reasons": {split: make_reason_rows(metrics[split]) for split in predictions.splits},
        "drops": make_drop_rows(metrics.get("external_drop", {}), list_drop_names(predictions.labels)),
        "subgroups": make_finding_subgroup_rows(metrics.get("subgroups", {}), predictions.labels),
        "min_positives": MIN_GROUP_POSITIVES,
        "fold_metrics": {name: text for name, text in FOLD_METRICS.items() if name in record.folds},
        "label_tables": make_label_tables(record),
        "label_policy": describe_label_policy(record),
        "wrong": [] if record.is_shared else make_wrong_groups(record),
    }


def list_drop_names(labels: tuple[str, ...]) -> dict[str, str]:
    """Return the text of each metric that is compared with an external test set, by its dotted name."""
    names = {"auroc.macro": "AUROC, macro", "auroc.weighted": "AUROC, weighted", "auroc.chexpert5": "CheXpert five"}
    names |= {"average_precision.macro": "Average precision, macro"}
    return names | {f"auroc.per_class.{label}": f"{label}: AUROC" for label in labels}


def make_wrong_groups(record: RunRecord) -> list[dict[str, Any]]:
    """Return the N_WRONG_PER_FINDING most wrong images of each finding: name and cards.

    A card has path, patient, probability, truth (whether the finding is present), labels (present findings), is_ood,
    and the data: URIs of thumbnail and saliency map. With thumbnails, an image without one is left out.
    """
    images = record.thumbnails[record.thumbnails["role"] == "wrong"]
    uris, map_uri = map_uris(images), _map_finding_uris(record)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in select_most_wrong(record.predictions, N_WRONG_PER_FINDING).to_dict("records"):
        finding, key = row["finding"], (row["source"], row["path"])
        card = {
            "path": row["path"],
            "patient": row["patient"],
            "probability": row[PROBABILITY_PREFIX + finding],
            "truth": row[TRUTH_PREFIX + finding] == 1,
            "labels": _shorten_labels(split_labels(row["label"])),
            "is_ood": row.get(IN_DISTRIBUTION_COLUMN) == "no",
            "uri": uris.get(key, ""),
            "map": map_uri.get((*key, finding), ""),
        }
        if not uris or card["uri"] or card["map"]:
            groups.setdefault(finding, []).append(card)
    return [{"name": name, "cards": cards} for name, cards in groups.items()]


def _shorten_labels(labels: list[str]) -> list[str]:
    n_others = len(labels) - MAX_CARD_LABELS
    return labels if n_others <= 1 else [*labels[:MAX_CARD_LABELS], f"{n_others} more"]


def _map_finding_uris(record: RunRecord) -> dict[tuple[str, str, str], str]:
    maps = record.saliency_maps.table
    maps = maps[(maps["role"] == "wrong") & (maps["uri"] != "")]
    return dict(zip(zip(maps["source"], maps["path"], maps["class"], strict=True), maps["uri"], strict=True))
