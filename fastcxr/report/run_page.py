"""From a run folder to metrics.json, its cards, figures/*.svg and report.html, without network, script or torch."""

import json
from pathlib import Path
from typing import Any

from fastcxr.io.files import write_sums, write_whole
from fastcxr.metrics.classification import summarize_folds
from fastcxr.metrics.evaluate import measure_predictions
from fastcxr.metrics.external import find_drops
from fastcxr.metrics.predictions import INTERNAL
from fastcxr.metrics.subgroups import measure_subgroups
from fastcxr.report.claim import draw_claim
from fastcxr.report.data_notices import is_image_level
from fastcxr.report.data_tables import cohort_part
from fastcxr.report.figure_set import draw_plates
from fastcxr.report.headline import beside, explain_intervals, headline_rows
from fastcxr.report.html import render, write_page
from fastcxr.report.model_card import draw_card
from fastcxr.report.notices import notices
from fastcxr.report.run_reader import RunRecord, read_run
from fastcxr.report.style import Plate
from fastcxr.report.tables import (
    attention_rows,
    calibration_rows,
    check_words,
    class_rows,
    drop_rows,
    line_rows,
    map_cards,
    mixup_rows,
    reason_rows,
    subgroup_rows,
    threshold_rows,
    wrong_cards,
)


def draw_report(folder: str | Path) -> Path:
    """Redraws metrics.json, MODEL_CARD.md, CLAIM.md, figures/*.svg and report.html of a finished run.

    The page's path comes back. Reads nothing but the run folder. The same files give the same page, byte for byte.
    """
    record = read_run(folder)
    metrics = measure_run(record)
    numbers = write_numbers(metrics)
    found = json.loads(numbers)
    write_whole(record.folder / "metrics.json", numbers)
    write_whole(record.folder / "MODEL_CARD.md", draw_card(record, found))
    write_whole(record.folder / "CLAIM.md", draw_claim(record, found))
    plates = draw_plates(record, metrics)  # after the numbers, which no figure may cost
    path = write_page(record.folder / "report.html", render_page(record, metrics, plates), plates)
    drawn = ("metrics.json", "MODEL_CARD.md", "CLAIM.md", "report.html", *(f"figures/{name}.svg" for name in plates))
    write_sums(record.folder, drawn)
    return path


def measure_run(record: RunRecord) -> dict[str, dict[str, Any]]:
    """The numbers of a run, from its other files alone."""
    metrics = measure_predictions(record.predictions, record.calibration, record.prevalence)
    return metrics | find_beside(record, metrics)


def write_numbers(metrics: dict[str, dict[str, Any]]) -> bytes:
    """The content of metrics.json."""
    numbers = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return numbers.encode("utf-8", "backslashreplace")  # surrogates of odd file names become JSON escapes


def find_beside(record: RunRecord, metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What metrics.json holds beside the splits: folds, drops and subgroups, where there are any."""
    found = {
        "folds": summarize_folds(record.folds) if len(record.folds) else {},
        "drops": find_drops(record.predictions, metrics),
        "subgroups": measure_subgroups(record.predictions),
    }
    return {name: part for name, part in found.items() if part}


def render_page(record: RunRecord, metrics: dict[str, dict[str, Any]], plates: dict[str, Plate]) -> str:
    """The page as HTML text."""
    return render("report.html.jinja", _context(record, metrics, plates), plates)


def _context(record: RunRecord, metrics: dict[str, dict[str, Any]], plates: dict[str, Plate]) -> dict[str, Any]:
    main = record.predictions.headline_split
    near = beside(metrics)
    near = near if near in metrics and (main == "test" or near == INTERNAL) else None
    splits = record.predictions.splits
    found = notices(record, metrics)
    return {
        "record": record,
        "metrics": {split: metrics[split] for split in splits},
        "main": main,
        "beside": near,
        "title": _title(record),
        "image_level": is_image_level(record),
        "headline": headline_rows(metrics.get(main), metrics.get(near)),
        "intervals": explain_intervals(metrics.get(main)),
        "stamps": [n for n in found if n.level == "stamp"],
        "notices": [n for n in found if n.level != "stamp"],
        "cohort": cohort_part(record),
        "classes": {split: class_rows(metrics[split]) for split in splits},
        "calibration": calibration_rows(metrics[main]) if main else [],
        "thresholds": threshold_rows(metrics[main]) if main else [],
        "lines": line_rows(metrics[main]) if main else [],
        "reasons": {split: reason_rows(metrics[split]) for split in splits},
        "wrong": wrong_cards(record),
        "typical": map_cards(record.maps, "typical"),
        "attention": attention_rows(record.maps),
        "check": check_words(record.maps),
        "misses": _misses(metrics.get(main)),
        "mixups": mixup_rows(metrics[main]) if main else [],
        "drops": drop_rows(metrics.get("drops", {}), record.predictions.labels),
        "subgroups": subgroup_rows(metrics.get("subgroups", {}), record.predictions.labels),
        "folds": record.folds.to_dict("records"),
        "by_source": bool(record.recipe.get("leave_one_source_out")),
        "of_folds": summarize_folds(record.folds),
        "rate_plates": [p for p in plates.values() if p.name.startswith("learning_rate_")],
    }


def _title(record: RunRecord) -> dict[str, str]:
    """What was trained, on what; each from the recipe, else from the model, else left out."""
    backbone = record.recipe.get("backbone") or (record.model.get("backbone") or {}).get("name") or ""
    data = _join(record.recipe.get("data"))
    weights = record.first_weights
    start = weights if weights in ("", "random weights") else f"the weights {weights}"
    return {"backbone": str(backbone), "data": data, "start": start}


def _join(data: Any) -> str:
    """The names of one source or of several."""
    places = data if isinstance(data, list | tuple) else [data or ""]
    return " + ".join(_name(str(place)).removesuffix(".csv").removesuffix(".h5") for place in places)


def _name(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


def _misses(part: dict[str, Any] | None) -> int:
    matrix = (part or {}).get("confusion_matrix", [])
    return sum(n for i, row in enumerate(matrix) for k, n in enumerate(row) if i != k)
