"""From a run folder to metrics.json, figures/*.svg and report.html: one page without network, script or torch."""

import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from fastcxr.evaluation.drawing import class_color
from fastcxr.evaluation.metrics import measure_predictions
from fastcxr.evaluation.notices import is_image_level, notices
from fastcxr.evaluation.plates import Plate, draw_plates
from fastcxr.evaluation.record import RunRecord, read_run
from fastcxr.evaluation.tables import (
    class_rows,
    mixup_rows,
    reason_rows,
    sample_strips,
    skipped_rows,
    split_table,
    wrong_cards,
)
from fastcxr.evaluation.words import NOTHING, count, duration, headline_rows, listed, plain, rate, score, share
from fastcxr.storage import write_whole

TEMPLATES = Path(__file__).parent / "templates"


def draw_report(folder: str | Path) -> Path:
    """Redraws metrics.json, figures/*.svg and report.html of a finished run; the page's path comes back.

    Reads nothing but the run folder. The same files give the same page, byte for byte.
    """
    record = read_run(folder)
    metrics = measure_predictions(record.predictions)
    plates = draw_plates(record, metrics)
    page = render_page(record, metrics, plates)
    # surrogates of odd file names become JSON escapes
    numbers = json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (record.folder / "figures").mkdir(exist_ok=True)
    write_whole(record.folder / "metrics.json", numbers.encode("utf-8", "backslashreplace"))
    for plate in plates.values():
        drawing = f'<?xml version="1.0" encoding="utf-8"?>\n{plate.svg}\n'
        write_whole(record.folder / "figures" / f"{plate.name}.svg", drawing.encode())
    write_whole(record.folder / "report.html", page.encode())
    return record.folder / "report.html"


def render_page(record: RunRecord, metrics: dict[str, dict[str, Any]], plates: dict[str, Plate]) -> str:
    """The page as HTML text."""
    page = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters |= {"share": share, "score": score, "rate": rate, "duration": duration, "number": "{:,}".format}
    page.filters |= {
        "kind": _kind,
        "words": lambda name: str(name).replace("_", " "),
        "listed": listed,
        "monitor": _monitor,
        "breakable": _breakable,
    }
    page.globals |= {"count": count, "class_color": class_color, "plate": lambda name: plates.get(name)}
    return page.get_template("report.html.jinja").render(**_context(record, metrics, plates))


def _context(record: RunRecord, metrics: dict[str, dict[str, Any]], plates: dict[str, Plate]) -> dict[str, Any]:
    main = record.predictions.headline_split
    beside = "valid" if main == "test" and "valid" in metrics else None
    found = notices(record, metrics)
    return {
        "record": record,
        "metrics": metrics,
        "main": main,
        "beside": beside,
        "title": _title(record),
        "image_level": is_image_level(record),
        "headline": headline_rows(metrics.get(main), metrics.get(beside)),
        "stamps": [n for n in found if n.level == "stamp"],
        "notices": [n for n in found if n.level != "stamp"],
        "splits": split_table(record),
        "skipped": skipped_rows(record.skipped),
        "samples": sample_strips(record),
        "classes": {split: class_rows(part) for split, part in metrics.items()},
        "reasons": {split: reason_rows(part) for split, part in metrics.items()},
        "wrong": wrong_cards(record),
        "misses": _misses(metrics.get(main)),
        "mixups": mixup_rows(metrics[main]) if main else [],
        "rate_plates": [p for p in plates.values() if p.name.startswith("learning_rate_")],
    }


def _title(record: RunRecord) -> dict[str, str]:
    """What was trained, on what; each from the recipe, else from the model, else left out."""
    backbone = record.recipe.get("backbone") or (record.model.get("backbone") or {}).get("name") or ""
    data = _join(record.recipe.get("data"))
    weights = str(record.recipe.get("weights") or "")
    start = {"": "", "imagenet": "ImageNet weights", "none": "random weights"}.get(
        weights, f"weights of {_name(weights)}"
    )
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


def _shown(value: Any) -> Any:
    """Every value on its way into the page: nothing that cannot be shown, a dash for nothing."""
    if isinstance(value, Markup):
        return value
    return NOTHING if value is None else plain(value)


def _monitor(name: str) -> str:
    return {"auroc": "macro AUROC", "valid_loss": "loss on valid", "accuracy": "accuracy"}.get(
        name, str(name).replace("_", " ")
    )


def _breakable(text: Any) -> Markup:
    """A long name may be broken after a mark inside it rather than anywhere."""
    if len(str(text)) <= 20:
        return escape(plain(text))
    return Markup(re.sub(r"([_./-]+)", r"\1<wbr>", str(escape(plain(text)))))


def _kind(value: Any) -> str:
    """How the template lays a value out: mapping, table (a list of mappings), list or plain."""
    if isinstance(value, dict):
        return "mapping"
    if isinstance(value, list | tuple):
        return "table" if value and all(isinstance(item, dict) for item in value) else "list"
    return "plain"
