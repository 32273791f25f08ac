"""What a run folder tells of each item of a checklist, as sentences; a thing that was not done is said to be so."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from fastcxr.data.demographics import DEMOGRAPHIC_COLUMNS
from fastcxr.io.formatting import format_number, format_score, join_names, pluralize
from fastcxr.metrics.external import MACRO_AUROC
from fastcxr.metrics.predictions import SPLITS
from fastcxr.metrics.subgroups import UNSTATED, assign_groups
from fastcxr.report.headline import make_headline_rows
from fastcxr.report.run_reader import RunRecord
from fastcxr.report.tables import describe_sanity_check, make_border_share_rows

UNKNOWN_TEXT = "not known, for {} is not in this folder."


def describe_method(record: RunRecord) -> str:
    """What is classified, into what, by what."""
    labels = record.predictions.labels
    class_text = f"{pluralize(len(labels), 'class', 'classes')}: {join_names(list(labels))}"
    return f"A neural network sorts chest radiographs into {class_text}."


def describe_sources(record: RunRecord) -> str:
    """Each source with its images and patients."""
    rows = [
        f"{name} ({pluralize(len(part), 'image')} of {pluralize(part['patient'].nunique(), 'patient')})"
        for name, part in record.table.groupby("source")
    ]
    return f"{pluralize(len(rows), 'source')}: {join_names(rows)}."


def describe_preprocessing(record: RunRecord) -> str:
    """From file to what the network sees."""
    input_spec = record.model.get("input_spec") or {}
    if not input_spec:
        return "Every image becomes 8-bit gray and is padded to a square; the rest is " + UNKNOWN_TEXT.format(
            "model.json"
        )
    return (
        f"Every image becomes 8-bit gray, is padded to a square and scaled to {input_spec.get('image_size')} px; "
        f"less {input_spec.get('mean')}, over {input_spec.get('std')}."
    )


def describe_selection(record: RunRecord) -> str:
    """What was chosen, and what was left out."""
    field_texts = {"classes": "classes kept", "filter": "rows kept", "relabel": "labels renamed"}
    selections = [
        f"{field_texts[name]}: {', '.join(map(str, given))}"
        for name in field_texts
        if (given := record.recipe.get(name))
    ]
    selections += ["exact copies left out"] if record.recipe.get("deduplicate") else []
    left_out_text = f"{pluralize(len(record.skipped), 'image')} left out" + (
        ", reasons in skipped.csv" if len(record.skipped) else ""
    )
    return f"{'; '.join([*selections, left_out_text])}."


def describe_deidentification(record: RunRecord) -> str:
    """What the tool itself writes."""
    return (
        "This folder holds no names of people and no DICOM tag of identity; patients are told apart by what their "
        "table or file names say, by salted hashes of a DICOM tag, or not at all."
    )


def describe_missing_data(record: RunRecord) -> str:
    """Images without a label, a patient or pixels."""
    table = record.table
    n_without_patient = int((table["patient_origin"] == "image").sum()) if "patient_origin" in table else 0
    n_unreadable = int((record.predictions.table["error"] != "").sum())
    n_unlabelled = int((table["label"] == "").sum())
    return (
        f"{pluralize(n_without_patient, 'image')} without a patient, each taken as its own; "
        f"{pluralize(n_unlabelled, 'image')} without a label; "
        f"{pluralize(n_unreadable, 'image')} unreadable when scored. Nothing was filled in."
    )


def describe_sample_size(record: RunRecord, metrics: Mapping[str, Any]) -> str:
    """Images behind the headline, and how wide its intervals are."""
    split = record.predictions.primary_split
    if split not in metrics:
        return "No image was scored."
    split_metrics = metrics[split]
    sizes = join_names([f"{label} {row['support']:,}" for label, row in split_metrics["per_class"].items()])
    bounds = split_metrics["intervals"]["of"].get(MACRO_AUROC)
    interval_text = (
        f" The interval of macro AUROC reaches from {format_score(bounds[0])} to {format_score(bounds[1])}."
        if bounds
        else ""
    )
    sample_text = (
        f"{pluralize(split_metrics['n_images'], 'image')} of {pluralize(split_metrics['n_patients'], 'patient')}"
    )
    return f"The {split} figures rest on {sample_text}: {sizes}.{interval_text}"


def describe_splits(record: RunRecord) -> str:
    """Images and patients of each split, and what kept them apart."""
    table = record.table
    tables_by_split = dict(list(table.groupby("split")))
    order = sorted(tables_by_split, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))
    sizes = [
        f"{name} {pluralize(len(tables_by_split[name]), 'image')} of "
        f"{pluralize(tables_by_split[name]['patient'].nunique(), 'patient')}"
        for name in order
    ]
    split_origins = join_names(sorted(set(table["split_origin"]) - {""})) if "split_origin" in table else "not known"
    check_messages = [row["message"] for row in record.findings if row["check"] in ("patients", "copies")]
    return " ".join([f"{'; '.join(sizes)}. Kept apart by: {split_origins}.", *check_messages])


def describe_demographics(record: RunRecord) -> str:
    """Sex, age and view in each split, where the data says them."""
    lines = []
    for column in DEMOGRAPHIC_COLUMNS:
        groups = assign_groups(record.table, column)
        if column != "source" and set(groups) != {UNSTATED}:
            cells = pd.crosstab(record.table["split"], groups)
            parts = [
                f"{split} " + ", ".join(f"{name} {n:,}" for name, n in row.items()) for split, row in cells.iterrows()
            ]
            lines.append(f"{column}, images: {'; '.join(parts)}.")
    return " ".join(lines) or "The data says neither sex nor age nor view."


def describe_network(record: RunRecord) -> str:
    """The backbone and its size."""
    backbone = record.model.get("backbone") or {}
    name = backbone.get("name") or record.recipe.get("backbone")
    size = f", {backbone['parameters']:,} parameters" if backbone.get("parameters") else ""
    return f"{name or 'Its name is ' + UNKNOWN_TEXT.format('model.json')}{size}."


def describe_environment(record: RunRecord) -> str:
    """Everything that a repetition needs beside the data."""
    versions = record.run.get("versions") or {}
    version_texts = ", ".join(f"{name} {number}" for name, number in versions.items())
    seed = f"seed {record.recipe['seed']}" if "seed" in record.recipe else ""
    parts = [str(record.run.get("machine") or ""), version_texts, seed]
    return "; ".join(filter(None, parts)) + "." if any(parts) else f"All of it is {UNKNOWN_TEXT.format('run.json')}"


def describe_initial_weights(record: RunRecord) -> str:
    """What training began with."""
    weights = record.initial_weights
    if not weights:
        return f"They are {UNKNOWN_TEXT.format('model.json')}"
    checksum = (record.model.get("backbone") or {}).get("weights_sha256")
    return f"{weights}" + (f", sha256 {checksum}." if checksum else ".")


def describe_training(record: RunRecord) -> str:
    """How it was taught; every other choice is in recipe.json."""
    recipe = record.recipe
    if not recipe:
        return f"How it was taught is {UNKNOWN_TEXT.format('recipe.json')}"
    strategy = recipe.get("strategy")
    strategy_text = strategy if isinstance(strategy, str) else "stages of its own"
    names = ("optimizer", "loss", "epochs", "batch_size", "learning_rate", "schedule")
    option_texts = [f"{name.replace('_', ' ')} {recipe[name]}" for name in names if name in recipe]
    monitor = (record.model.get("choices") or {}).get("monitor") or recipe.get("monitor")
    monitor_text = f" The epoch was chosen by {monitor.replace('_', ' ')} on validation images." if monitor else ""
    mirror_text = (
        " Each answer is the mean over an image and its mirror image." if record.model.get("hflip_tta") else ""
    )
    file_text = "Every choice is in recipe.json, every epoch in history.csv."
    return f"Strategy {strategy_text}, {', '.join(option_texts)}.{monitor_text}{mirror_text} {file_text}"


def describe_metrics(record: RunRecord, metrics: Mapping[str, Any]) -> str:
    """The headline with its intervals, and where those come from."""
    split_metrics = metrics.get(record.predictions.primary_split)
    if not split_metrics:
        return "No image was scored."
    metric_texts = [
        f"{name} {figure}" + (f" ({edges})" if edges else "")
        for name, figure, edges, _ in make_headline_rows(split_metrics, None)
    ]
    unit = split_metrics["intervals"]["unit"]
    interval_method = (
        "draws of patients with replacement"
        if unit == "patient"
        else "Wilson's formula for shares, logit-DeLong for AUROC, draws with replacement for means"
    )
    return f"{'; '.join(metric_texts)}. Intervals of 95 %, the unit is the {unit}, from {interval_method}."


def describe_calibration(record: RunRecord, metrics: Mapping[str, Any]) -> str:
    """How far probabilities mean what they say."""
    split_metrics = metrics.get(record.predictions.primary_split, {})
    calibration = split_metrics.get("calibration") or {}
    if calibration.get("log_loss") is None:
        return "No image was scored."
    temperature = record.calibration.get("temperature")
    scaled = f" Scaled by a temperature of {temperature:.3g}, fitted on validation images." if temperature else ""
    log_loss, brier, ece = (format_number(calibration[name]) for name in ("log_loss", "brier", "ece"))
    return f"Log-loss {log_loss}, Brier score {brier}, calibration error {ece}.{scaled}"


def describe_thresholds(record: RunRecord) -> str:
    """Where the lines are drawn, and on which images that was chosen."""
    rows = record.calibration.get("thresholds") or {}
    if not rows:
        return "None was chosen: an image is given to its most probable class."
    threshold_texts = [
        f"{label} {format_score(row['threshold'] if isinstance(row, Mapping) else row)}" for label, row in rows.items()
    ]
    return f"{'; '.join(threshold_texts)}; chosen on validation images alone."


def describe_saliency_maps(record: RunRecord) -> str:
    """How heat maps were made, whether they passed, and how much of the heat lies in the border."""
    check_text = describe_sanity_check(record.saliency_maps)
    if not check_text:
        return "None were made."
    border_texts = join_names(
        [f"{row['label']} {row['share']} ({row['images']})" for row in make_border_share_rows(record.saliency_maps)]
    )
    border_text = f" Median share of heat in the outer part of the picture: {border_texts}." if border_texts else ""
    return f"Heat maps by gradients (Grad-CAM). {check_text}{border_text}"


def describe_external_test(record: RunRecord, metrics: Mapping[str, Any]) -> str:
    """Figures of other data, or that there are none."""
    source_texts = []
    for external_name, drop in (metrics.get("external_drop") or {}).items():
        row = drop["figures"].get(MACRO_AUROC)
        metric_text = (
            f"macro AUROC {format_score(row['external'][0])}, internal {format_score(row['internal'][0])}"
            if row
            else "see metrics.json"
        )
        source_texts.append(f"{external_name}: {metric_text}")
    return f"{'; '.join(source_texts)}." if source_texts else "Not done: external validity is unknown."


def describe_subgroups(metrics: Mapping[str, Any]) -> str:
    """The range of macro AUROC over groups of people."""
    subgroup_texts = []
    for trait, groups in (metrics.get("subgroups") or {}).items():
        auroc_by_group = {name: row["auroc"][0] for name, row in groups.items() if row.get("auroc")}
        if len(auroc_by_group) > 1:
            low, high = (choose(auroc_by_group, key=auroc_by_group.get) for choose in (min, max))
            subgroup_texts.append(
                f"{trait}: macro AUROC from {format_score(auroc_by_group[low])} ({low}) to "
                f"{format_score(auroc_by_group[high])} ({high})"
            )
        else:
            subgroup_texts.append(f"{trait}: no two groups large enough to compare")
    return f"{'; '.join(subgroup_texts)}." if subgroup_texts else "The data names no groups to compare."


def describe_errors(record: RunRecord, metrics: Mapping[str, Any]) -> str:
    """How many there are, and of what kind."""
    split_metrics = metrics.get(record.predictions.primary_split)
    if not split_metrics:
        return "No image was scored."
    cells = [
        (n, f"{label} taken for {split_metrics['labels'][k]} {n:,} times")
        for label, row in zip(split_metrics["labels"], split_metrics["confusion_matrix"], strict=True)
        for k, n in enumerate(row)
        if n and split_metrics["labels"][k] != label
    ]
    error_texts = [words for _, words in sorted(cells, reverse=True)[:3]]
    return f"{join_names(error_texts) or 'None'}. report.html shows the worst, predictions.csv has all."


def describe_unreadable_files(record: RunRecord) -> str:
    """What becomes of a file that cannot be read."""
    handling = "left out and counted" if record.recipe.get("skip_bad") else "an error that stops the run"
    return f"A file that is no readable radiograph is {handling}; {pluralize(len(record.skipped), 'image')} here."


def describe_availability(record: RunRecord) -> str:
    """What of the model is in this folder."""
    checksum = (record.model.get("files") or {}).get("model.safetensors")
    return f"model.safetensors, sha256 {checksum}." if checksum else "The weights are not in this folder."
