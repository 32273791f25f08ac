"""What a run folder tells of each item of a checklist, as sentences; a thing that was not done is said to be so."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from fastcxr.data.demographics import COLUMNS
from fastcxr.io.formatting import count, listed, loss, score
from fastcxr.metrics.external import RANK
from fastcxr.metrics.predictions import SPLITS
from fastcxr.metrics.subgroups import UNSTATED, name_groups
from fastcxr.report.headline import headline_rows
from fastcxr.report.run_reader import RunRecord
from fastcxr.report.tables import attention_rows, check_words

UNKNOWN = "not known, for {} is not in this folder."


def say_method(record: RunRecord) -> str:
    """What is classified, into what, by what."""
    labels = record.predictions.labels
    kinds = f"{count(len(labels), 'class', 'classes')}: {listed(list(labels))}"
    return f"A neural network sorts chest radiographs into {kinds}."


def say_sources(record: RunRecord) -> str:
    """Each source with its images and patients."""
    rows = [
        f"{name} ({count(len(part), 'image')} of {count(part['patient'].nunique(), 'patient')})"
        for name, part in record.table.groupby("source")
    ]
    return f"{count(len(rows), 'source')}: {listed(rows)}."


def say_pixels(record: RunRecord) -> str:
    """From file to what the network sees."""
    pixels = record.model.get("pixels") or {}
    if not pixels:
        return "Every image becomes 8-bit gray and is padded to a square; the rest is " + UNKNOWN.format("model.json")
    return (
        f"Every image becomes 8-bit gray, is padded to a square and scaled to {pixels.get('image_size')} px; "
        f"less {pixels.get('mean')}, over {pixels.get('std')}."
    )


def say_selection(record: RunRecord) -> str:
    """What was chosen, and what was left out."""
    words = {"classes": "classes kept", "where": "rows kept", "relabel": "labels renamed"}
    chosen = [f"{words[name]}: {', '.join(map(str, given))}" for name in words if (given := record.recipe.get(name))]
    chosen += ["exact copies left out"] if record.recipe.get("drop_copies") else []
    left = f"{count(len(record.skipped), 'image')} left out" + (
        ", reasons in skipped.csv" if len(record.skipped) else ""
    )
    return f"{'; '.join([*chosen, left])}."


def say_identities(record: RunRecord) -> str:
    """What the tool itself writes."""
    return (
        "This folder holds no names of people and no DICOM tag of identity; patients are told apart by what their "
        "table or file names say, by salted hashes of a DICOM tag, or not at all."
    )


def say_missing(record: RunRecord) -> str:
    """Images without a label, a patient or pixels."""
    table = record.table
    alone = int((table["patient_from"] == "own").sum()) if "patient_from" in table else 0
    unread = int((record.predictions.table["error"] != "").sum())
    blank = int((table["label"] == "").sum())
    return (
        f"{count(alone, 'image')} without a patient, each taken as its own; {count(blank, 'image')} without a label; "
        f"{count(unread, 'image')} unreadable when scored. Nothing was filled in."
    )


def say_size(record: RunRecord, metrics: Mapping[str, Any]) -> str:
    """Images behind the headline, and how wide its intervals are."""
    split = record.predictions.headline_split
    if split not in metrics:
        return "No image was scored."
    part = metrics[split]
    sizes = listed([f"{label} {row['support']:,}" for label, row in part["per_class"].items()])
    edges = part["intervals"]["of"].get(RANK)
    wide = f" The interval of macro AUROC reaches from {score(edges[0])} to {score(edges[1])}." if edges else ""
    behind = f"{count(part['n_images'], 'image')} of {count(part['n_patients'], 'patient')}"
    return f"The {split} figures rest on {behind}: {sizes}.{wide}"


def say_splits(record: RunRecord) -> str:
    """Images and patients of each split, and what kept them apart."""
    table = record.table
    parts = dict(list(table.groupby("split")))
    order = sorted(parts, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))
    sizes = [
        f"{name} {count(len(parts[name]), 'image')} of {count(parts[name]['patient'].nunique(), 'patient')}"
        for name in order
    ]
    ways = listed(sorted(set(table["split_from"]) - {""})) if "split_from" in table else "not known"
    checks = [row["words"] for row in record.findings if row["check"] in ("patients", "copies")]
    return " ".join([f"{'; '.join(sizes)}. Kept apart by: {ways}.", *checks])


def say_people(record: RunRecord) -> str:
    """Sex, age and view in each split, where the data says them."""
    lines = []
    for column in COLUMNS:
        groups = name_groups(record.table, column)
        if column != "source" and set(groups) != {UNSTATED}:
            cells = pd.crosstab(record.table["split"], groups)
            parts = [
                f"{split} " + ", ".join(f"{name} {n:,}" for name, n in row.items()) for split, row in cells.iterrows()
            ]
            lines.append(f"{column}, images: {'; '.join(parts)}.")
    return " ".join(lines) or "The data says neither sex nor age nor view."


def say_network(record: RunRecord) -> str:
    """The backbone and its size."""
    backbone = record.model.get("backbone") or {}
    name = backbone.get("name") or record.recipe.get("backbone")
    size = f", {backbone['parameters']:,} parameters" if backbone.get("parameters") else ""
    return f"{name or 'Its name is ' + UNKNOWN.format('model.json')}{size}."


def say_machine(record: RunRecord) -> str:
    """Everything that a repetition needs beside the data."""
    versions = record.run.get("versions") or {}
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    seed = f"seed {record.recipe['seed']}" if "seed" in record.recipe else ""
    parts = [str(record.run.get("machine") or ""), named, seed]
    return "; ".join(filter(None, parts)) + "." if any(parts) else f"All of it is {UNKNOWN.format('run.json')}"


def say_weights(record: RunRecord) -> str:
    """What training began with."""
    given = record.first_weights
    if not given:
        return f"They are {UNKNOWN.format('model.json')}"
    checksum = (record.model.get("backbone") or {}).get("weights_sha256")
    return f"{given}" + (f", sha256 {checksum}." if checksum else ".")


def say_choices(record: RunRecord) -> str:
    """How it was taught; every other choice is in recipe.json."""
    recipe = record.recipe
    if not recipe:
        return f"How it was taught is {UNKNOWN.format('recipe.json')}"
    strategy = recipe.get("strategy")
    named = strategy if isinstance(strategy, str) else "stages of its own"
    names = ("optimizer", "loss", "epochs", "batch_size", "learning_rate", "schedule")
    told = [f"{name.replace('_', ' ')} {recipe[name]}" for name in names if name in recipe]
    monitor = (record.model.get("choices") or {}).get("monitor") or recipe.get("monitor")
    chosen = f" The epoch was chosen by {monitor.replace('_', ' ')} on validation images." if monitor else ""
    looks = " Each answer is the mean over an image and its mirror image." if record.model.get("mirror_images") else ""
    rest = "Every choice is in recipe.json, every epoch in history.csv."
    return f"Strategy {named}, {', '.join(told)}.{chosen}{looks} {rest}"


def say_figures(record: RunRecord, metrics: Mapping[str, Any]) -> str:
    """The headline with its intervals, and where those come from."""
    part = metrics.get(record.predictions.headline_split)
    if not part:
        return "No image was scored."
    told = [
        f"{name} {figure}" + (f" ({edges})" if edges else "") for name, figure, edges, _ in headline_rows(part, None)
    ]
    unit = part["intervals"]["unit"]
    way = (
        "draws of patients with replacement"
        if unit == "patient"
        else "Wilson's formula for shares, logit-DeLong for AUROC, draws with replacement for means"
    )
    return f"{'; '.join(told)}. Intervals of 95 %, the unit is the {unit}, from {way}."


def say_calibration(record: RunRecord, metrics: Mapping[str, Any]) -> str:
    """How far probabilities mean what they say."""
    part = metrics.get(record.predictions.headline_split, {})
    found = part.get("calibration") or {}
    if found.get("log_loss") is None:
        return "No image was scored."
    temperature = record.calibration.get("temperature")
    scaled = f" Scaled by a temperature of {temperature:.3g}, fitted on validation images." if temperature else ""
    log_loss, brier, ece = (loss(found[name]) for name in ("log_loss", "brier", "ece"))
    return f"Log-loss {log_loss}, Brier score {brier}, calibration error {ece}.{scaled}"


def say_thresholds(record: RunRecord) -> str:
    """Where the lines are drawn, and on which images that was chosen."""
    rows = record.calibration.get("thresholds") or {}
    if not rows:
        return "None was chosen: an image is given to its most probable class."
    told = [f"{label} {score(row['threshold'] if isinstance(row, Mapping) else row)}" for label, row in rows.items()]
    return f"{'; '.join(told)}; chosen on validation images alone."


def say_maps(record: RunRecord) -> str:
    """How heat maps were made, whether they passed, and how much of the heat lies in the border."""
    checked = check_words(record.maps)
    if not checked:
        return "None were made."
    far = listed([f"{row['label']} {row['share']} ({row['images']})" for row in attention_rows(record.maps)])
    outside = f" Median share of heat in the outer part of the picture: {far}." if far else ""
    return f"Heat maps by gradients (Grad-CAM). {checked}{outside}"


def say_elsewhere(record: RunRecord, metrics: Mapping[str, Any]) -> str:
    """Figures of other data, or that there are none."""
    told = []
    for place, drop in (metrics.get("drops") or {}).items():
        row = drop["figures"].get(RANK)
        figures = (
            f"macro AUROC {score(row['external'][0])}, internal {score(row['internal'][0])}"
            if row
            else "see metrics.json"
        )
        told.append(f"{place}: {figures}")
    return f"{'; '.join(told)}." if told else "Not done: external validity is unknown."


def say_groups(metrics: Mapping[str, Any]) -> str:
    """The range of macro AUROC over groups of people."""
    told = []
    for trait, groups in (metrics.get("subgroups") or {}).items():
        known = {name: row["auroc"][0] for name, row in groups.items() if row.get("auroc")}
        if len(known) > 1:
            low, high = (choose(known, key=known.get) for choose in (min, max))
            told.append(f"{trait}: macro AUROC from {score(known[low])} ({low}) to {score(known[high])} ({high})")
        else:
            told.append(f"{trait}: no two groups large enough to compare")
    return f"{'; '.join(told)}." if told else "The data names no groups to compare."


def say_mistakes(record: RunRecord, metrics: Mapping[str, Any]) -> str:
    """How many there are, and of what kind."""
    part = metrics.get(record.predictions.headline_split)
    if not part:
        return "No image was scored."
    cells = [
        (n, f"{label} taken for {part['labels'][k]} {n:,} times")
        for label, row in zip(part["labels"], part["confusion_matrix"], strict=True)
        for k, n in enumerate(row)
        if n and part["labels"][k] != label
    ]
    told = [words for _, words in sorted(cells, reverse=True)[:3]]
    return f"{listed(told) or 'None'}. report.html shows the worst, predictions.csv has all."


def say_bad_files(record: RunRecord) -> str:
    """What becomes of a file that cannot be read."""
    way = "left out and counted" if record.recipe.get("skip_bad") else "an error that stops the run"
    return f"A file that is no readable radiograph is {way}; {count(len(record.skipped), 'image')} here."


def say_where_it_is(record: RunRecord) -> str:
    """What of the model is in this folder."""
    checksum = (record.model.get("files") or {}).get("model.safetensors")
    return f"model.safetensors, sha256 {checksum}." if checksum else "The weights are not in this folder."
