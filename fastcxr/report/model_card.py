"""From a run's record and its numbers to MODEL_CARD.md: what the tool knows is filled in, the rest are open boxes.

The sections are those of Mitchell 2019 (doi:10.1145/3287560.3287596); behind each box stands the item of CLAIM 2020
(doi:10.1148/ryai.2020200029) that asks for it.
"""

from typing import Any

from fastcxr.io.formatting import MISSING, format_interval, format_percent, format_score, join_names, pluralize
from fastcxr.io.html import replace_unprintable
from fastcxr.metrics.predictions import SPLITS
from fastcxr.report.headline import describe_intervals, make_headline_rows
from fastcxr.report.notices import make_notices
from fastcxr.report.run_reader import RunRecord

OPEN_ITEMS = {
    "Intended use": (
        "Who is to use it, for what decision, and what happens after it (CLAIM 3)",
        "For which people it is meant, and for which not (CLAIM 3)",
    ),
    "Training data": (
        "Who collected the images, where, when, and under what licence (CLAIM 7, 8)",
        "Who set the labels, by what standard, and how far readers agreed (CLAIM 14 to 18)",
        "How identities were removed (CLAIM 12)",
        "Age, sex and other traits of the patients in each split (CLAIM 34)",
    ),
    "Ethics": (
        "Approval, consent, funding and registration (CLAIM 40 to 42)",
        "Who may be harmed by a mistake, and how that was weighed",
    ),
}


def make_model_card(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> str:
    """The card as Markdown, from the run folder alone."""
    sections = [
        ("Details", _list_details(record)),
        ("Intended use", ["For research, not for diagnosis.", *_list_open_boxes("Intended use")]),
        ("Training data", [*_list_data(record), *_list_open_boxes("Training data")]),
        ("Figures", _list_metrics(record, metrics)),
        ("Caveats", _list_caveats(record, metrics)),
        ("Ethics", _list_open_boxes("Ethics")),
    ]
    body = "\n\n".join(f"## {title}\n\n" + "\n".join(_escape_html(line) for line in lines) for title, lines in sections)
    name = record.recipe.get("backbone") or (record.model.get("backbone") or {}).get("name") or "a network"
    return f"# Model card: {_escape_html(str(name))}\n\n{body}\n"


def _list_details(record: RunRecord) -> list[str]:
    backbone, run = record.model.get("backbone") or {}, record.run
    versions = run.get("versions") or {}
    facts = {
        "Task": f"one label an image: {join_names(list(record.predictions.labels))}",
        "Network": " ".join(str(backbone[name]) for name in ("library", "name") if name in backbone),
        "Parameters": backbone.get("parameters"),
        "First weights (CLAIM 24)": record.initial_weights,
        "sha256 of the model": (record.model.get("files") or {}).get("model.safetensors"),
        "Command (CLAIM 25)": run.get("command"),
        "Machine and versions (CLAIM 23)": ", ".join(
            [str(run.get("machine", "")), *(f"{name} {versions[name]}" for name in versions)]
        ),
        "Seed (CLAIM 23)": record.recipe.get("seed"),
        "Every choice (CLAIM 25)": "recipe.json",
        "Preprocessing (CLAIM 9)": _describe_preprocessing(record.model.get("input_spec") or {}),
    }
    return [f"- {name}: {MISSING if value in (None, '') else value}" for name, value in facts.items()]


def _describe_preprocessing(input_spec: dict[str, Any]) -> str:
    if not input_spec:
        return MISSING
    size = input_spec.get("image_size")
    return f"8-bit gray, padded to a square of {size} px, less {input_spec.get('mean')}, over {input_spec.get('std')}"


def _list_data(record: RunRecord) -> list[str]:
    table = record.manifest
    lines = [f"- {record.run['cohort']}"] if record.run.get("cohort") else []
    tables_by_split = dict(list(table.groupby("split")))
    for split in sorted(
        tables_by_split, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)
    ):
        rows = tables_by_split[split]
        classes = join_names([f"{label} {n:,}" for label, n in rows["label"].value_counts().sort_index().items()])
        patients = pluralize(rows["patient"].nunique(), "patient")
        lines.append(f"- {split} (CLAIM 20, 21): {pluralize(len(rows), 'image')} of {patients}; {classes}")
    n_left_out = pluralize(len(record.skipped), "image")
    return [
        *lines,
        f"- Left out (CLAIM 10): {n_left_out}" + (", reasons in skipped.csv" if len(record.skipped) else ""),
    ]


def _list_metrics(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[str]:
    split = record.predictions.primary_split
    split_metrics = metrics.get(split)
    if not split_metrics:
        return ["No image was scored."]
    lines = [
        f"- {name}: {figure}" + (f" ({low_high})" if low_high else "")
        for name, figure, low_high, _ in make_headline_rows(split_metrics, None)
    ]
    lines += [_format_class_line(split_metrics, label) for label in split_metrics["per_class"]]
    temperature = record.calibration.get("temperature")
    lines += [f"- Temperature, fitted on validation images (CLAIM 28): {temperature:.3g}"] if temperature else []
    sample_text = (
        f"{pluralize(split_metrics['n_images'], 'image')} of {pluralize(split_metrics['n_patients'], 'patient')}"
    )
    heading = f"On {split}, {sample_text}. {describe_intervals(split_metrics)}"
    return [heading, "", *lines, "- Failures with their probabilities (CLAIM 37): report.html and predictions.csv"]


def _format_class_line(split_metrics: dict[str, Any], label: str) -> str:
    names = ("sensitivity", "specificity")
    intervals = {name: format_interval(split_metrics, f"per_class.{label}.{name}", format_percent) for name in names}
    pairs = [
        f"{name} {format_percent(split_metrics['per_class'][label][name])} ({intervals[name] or 'no interval'})"
        for name in names
    ]
    return f"- {label}: {', '.join(pairs)}, AUROC {format_score(split_metrics['auroc']['per_class'][label])}"


def _list_caveats(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[str]:
    """Every warning of the report and every check that did not pass, as a sentence (CLAIM 38)."""
    notice_lines = [f"- {notice.title}. {notice.text}" for notice in make_notices(record, metrics)]
    failed_findings = [row for row in record.findings if row["verdict"] != "PASS"]
    finding_lines = [f"- {row['verdict']}, {row['title']}: {row['message']}" for row in failed_findings]
    return list(dict.fromkeys([*notice_lines, *finding_lines])) or ["- None that the tool knows of."]


def _list_open_boxes(section: str) -> list[str]:
    return [f"- [ ] {words}" for words in OPEN_ITEMS[section]]


def _escape_html(line: str) -> str:
    """Names of classes and files are words, not HTML."""
    return replace_unprintable(line).replace("<", "&lt;").replace(">", "&gt;")
