"""From a run's record and its numbers to MODEL_CARD.md: what the tool knows is filled in, the rest are open boxes.

The sections are those of Mitchell 2019 (doi:10.1145/3287560.3287596); behind each box stands the item of CLAIM 2020
(doi:10.1148/ryai.2020200029) that asks for it.
"""

from typing import Any

from fastcxr.io.formatting import NOTHING, count, listed, reach, score, share
from fastcxr.io.html import plain
from fastcxr.metrics.predictions import SPLITS
from fastcxr.report.headline import explain_intervals, headline_rows
from fastcxr.report.notices import notices
from fastcxr.report.run_reader import RunRecord

OPEN = {
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


def draw_card(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> str:
    """The card as Markdown, from the run folder alone."""
    parts = [
        ("Details", _details(record)),
        ("Intended use", ["For research, not for diagnosis.", *_boxes("Intended use")]),
        ("Training data", [*_data(record), *_boxes("Training data")]),
        ("Figures", _figures(record, metrics)),
        ("Caveats", _caveats(record, metrics)),
        ("Ethics", _boxes("Ethics")),
    ]
    body = "\n\n".join(f"## {title}\n\n" + "\n".join(_escape(line) for line in lines) for title, lines in parts)
    name = record.recipe.get("backbone") or (record.model.get("backbone") or {}).get("name") or "a network"
    return f"# Model card: {_escape(str(name))}\n\n{body}\n"


def _details(record: RunRecord) -> list[str]:
    backbone, run = record.model.get("backbone") or {}, record.run
    versions = run.get("versions") or {}
    facts = {
        "Task": f"one label an image: {listed(list(record.predictions.labels))}",
        "Network": " ".join(str(backbone[name]) for name in ("library", "name") if name in backbone),
        "Parameters": backbone.get("parameters"),
        "First weights (CLAIM 24)": record.first_weights,
        "sha256 of the model": (record.model.get("files") or {}).get("model.safetensors"),
        "Command (CLAIM 25)": run.get("command"),
        "Machine and versions (CLAIM 23)": ", ".join(
            [str(run.get("machine", "")), *(f"{name} {versions[name]}" for name in versions)]
        ),
        "Seed (CLAIM 23)": record.recipe.get("seed"),
        "Every choice (CLAIM 25)": "recipe.json",
        "Preprocessing (CLAIM 9)": _pixels(record.model.get("pixels") or {}),
    }
    return [f"- {name}: {NOTHING if value in (None, '') else value}" for name, value in facts.items()]


def _pixels(pixels: dict[str, Any]) -> str:
    if not pixels:
        return NOTHING
    size = pixels.get("image_size")
    return f"8-bit gray, padded to a square of {size} px, less {pixels.get('mean')}, over {pixels.get('std')}"


def _data(record: RunRecord) -> list[str]:
    table = record.manifest
    lines = [f"- {record.run['cohort']}"] if record.run.get("cohort") else []
    parts = dict(list(table.groupby("split")))
    for split in sorted(parts, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)):
        rows = parts[split]
        classes = listed([f"{label} {n:,}" for label, n in rows["label"].value_counts().sort_index().items()])
        patients = count(rows["patient"].nunique(), "patient")
        lines.append(f"- {split} (CLAIM 20, 21): {count(len(rows), 'image')} of {patients}; {classes}")
    left = count(len(record.skipped), "image")
    return [*lines, f"- Left out (CLAIM 10): {left}" + (", reasons in skipped.csv" if len(record.skipped) else "")]


def _figures(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[str]:
    split = record.predictions.headline_split
    part = metrics.get(split)
    if not part:
        return ["No image was scored."]
    lines = [
        f"- {name}: {figure}" + (f" ({low_high})" if low_high else "")
        for name, figure, low_high, _ in headline_rows(part, None)
    ]
    lines += [_class_line(part, label) for label in part["per_class"]]
    fitted = record.calibration.get("temperature")
    lines += [f"- Temperature, fitted on validation images (CLAIM 28): {fitted:.3g}"] if fitted else []
    behind = f"{count(part['n_images'], 'image')} of {count(part['n_patients'], 'patient')}"
    head = f"On {split}, {behind}. {explain_intervals(part)}"
    return [head, "", *lines, "- Failures with their probabilities (CLAIM 37): report.html and predictions.csv"]


def _class_line(part: dict[str, Any], label: str) -> str:
    names = ("sensitivity", "specificity")
    reaches = {name: reach(part, f"per_class.{label}.{name}", share) for name in names}
    pairs = [f"{name} {share(part['per_class'][label][name])} ({reaches[name] or 'no interval'})" for name in names]
    return f"- {label}: {', '.join(pairs)}, AUROC {score(part['auroc']['per_class'][label])}"


def _caveats(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> list[str]:
    """Every warning of the report and every check that did not pass, as a sentence (CLAIM 38)."""
    found = [f"- {notice.title}. {notice.text}" for notice in notices(record, metrics)]
    told = [row for row in record.findings if row["verdict"] != "PASS"]
    checked = [f"- {row['verdict']}, {row['title']}: {row['words']}" for row in told]
    return list(dict.fromkeys([*found, *checked])) or ["- None that the tool knows of."]


def _boxes(section: str) -> list[str]:
    return [f"- [ ] {words}" for words in OPEN[section]]


def _escape(line: str) -> str:
    """Names of classes and files are words, not HTML."""
    return plain(line).replace("<", "&lt;").replace(">", "&gt;")
