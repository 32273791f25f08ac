"""The run folders of a study's arms come in; tables that show its published figures beside those found here go out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from fastcxr.io.files import read_json
from fastcxr.io.formatting import NOTHING, score, share
from fastcxr.io.tables import find_column
from fastcxr.report.notices import read_stamps

Paper = Mapping[str, Mapping[str, float]]
# heading and words of a figure; others are shares, under their own name
SHOWN = {"auroc": ("AUROC", score), "top2_accuracy": ("top-2 accuracy", share), "f1": ("F1", share)}


def compare_with_paper(places: Mapping[str, Path | None], paper: Paper) -> list[Table]:
    """One row an arm: the paper's figures beside those found here; then a table for each class that the paper names.

    `places`: the run folder of each arm; an arm without one, or without figures in it, has dashes.
    """
    parts = {arm: read_headline(place) for arm, place in places.items()}
    paper = {arm: paper.get(arm, {}) for arm in places}
    named = dict.fromkeys(name for figures in paper.values() for name in figures)
    # two classes: the second guess is always right
    guesses = ["top2_accuracy"] if any(len(part.get("labels", ())) > 2 for part in parts.values()) else []
    whole = dict.fromkeys(["accuracy", "auroc", *guesses, *(name for name in named if not part_name(name)[0])])
    images = [f"{part['n_images']:,}" if part else NOTHING for part in parts.values()]
    first = draw_table("", {**make_columns(list(whole), parts, paper), "images": images}, places)
    labels = filter(None, dict.fromkeys(part_name(name)[0] for name in named))
    of_class = {label: [name for name in named if part_name(name)[0] == label] for label in labels}
    return [first, *(draw_table(label, make_columns(some, parts, paper), places) for label, some in of_class.items())]


def make_columns(names: Sequence[str], parts: Mapping[str, dict[str, Any]], paper: Paper) -> dict[str, list[str]]:
    """Cells of each figure by their heading, the paper's before ours where it has published any."""
    columns = {}
    for name in names:
        figure = part_name(name)[1]
        heading, words = SHOWN.get(figure, (figure, share))
        if any(name in figures for figures in paper.values()):
            columns[f"paper {heading}"] = [words(figures.get(name)) for figures in paper.values()]
        columns[heading] = [words(find_figure(part, name)) for part in parts.values()]
    return columns


def draw_table(title: str, columns: Mapping[str, Sequence[str]], arms: Mapping[str, Any]) -> Table:
    """A row an arm; of a class, only arms of which anything is known."""
    table = Table(box=None, pad_edge=False, title=escape(title) or None, title_justify="left")
    table.add_column("arm", no_wrap=True)
    for heading in columns:
        table.add_column(escape(heading), justify="right")
    for arm, *cells in zip(arms, *columns.values(), strict=True):
        if not title or set(cells) != {NOTHING}:
            table.add_row(escape(arm), *cells)
    return table


def part_name(name: str) -> tuple[str, str]:
    """The class and the figure that a name such as "COVID-19 recall" speaks of; "accuracy" speaks of no class."""
    label, _, figure = name.rpartition(" ")
    return label, figure


def find_figure(part: Mapping[str, Any], name: str) -> float | None:
    """A figure of a split by its name, whatever the case and the signs of the class; None where there is none."""
    label, figure = part_name(name)
    if not label:
        return part.get(figure)
    of_class = part.get("per_class", {})
    own = label if label in of_class else find_column(of_class, [label])
    return of_class.get(own, {}).get(figure)


def find_doubted(places: Mapping[str, Path | None]) -> dict[str, list[str]]:
    """The finished arms under each stamp that doubts their figures, by the stamp's title."""
    doubted: dict[str, list[str]] = {}
    for arm, place in places.items():
        for stamp in read_stamps(place) if read_headline(place) else ():
            doubted.setdefault(stamp.title, []).append(arm)
    return doubted


def read_headline(place: Path | None) -> dict[str, Any]:
    """Figures of a finished run, auroc the macro one: of its test split, or of its pooled folds; or nothing."""
    if place is None or not (place / "metrics.json").is_file():
        return {}
    metrics = read_json(place / "metrics.json")
    part = next(metrics[split] for split in ("test", "oof", "valid") if split in metrics)
    return part | {"auroc": part["auroc"]["macro"]}
