"""From a run's record and its numbers to CLAIM.md: a checklist for who writes a paper about the model.

Each item is of one of three kinds: what the tool knows is filled in, what it knows in part is filled in and asks the
rest, and what only people know is an open box. The wording is our own; the numbers are those of CLAIM 2020
(doi:10.1148/ryai.2020200029), where items are known by their topic alone there is none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastcxr.io.html import plain
from fastcxr.report.claim_items import (
    say_bad_files,
    say_calibration,
    say_choices,
    say_elsewhere,
    say_figures,
    say_groups,
    say_identities,
    say_machine,
    say_maps,
    say_method,
    say_missing,
    say_mistakes,
    say_network,
    say_people,
    say_pixels,
    say_selection,
    say_size,
    say_sources,
    say_splits,
    say_thresholds,
    say_weights,
    say_where_it_is,
)
from fastcxr.report.notices import notices
from fastcxr.report.run_reader import RunRecord

TRUTH = "14 to 18"  # what this folder knows nothing of


@dataclass(frozen=True)
class Item:
    """`said`: what the folder tells, empty where it tells nothing. `asked`: what a person must add, or nothing."""

    topic: str
    said: str = ""
    asked: str = ""
    number: str = ""


def draw_claim(record: RunRecord, metrics: Mapping[str, Any]) -> str:
    """The checklist as Markdown, from the run folder alone."""
    sections = list_items(record, metrics)
    open_boxes = sum(bool(item.asked) for items in sections.values() for item in items)
    body = "\n\n".join(f"## {title}\n\n" + "\n".join(map(_line, items)) for title, items in sections.items())
    head = (
        "Filled in from this folder by fastcxr. A box without a tick asks a person; "
        f"{open_boxes} of {sum(map(len, sections.values()))} do. Numbers are items of CLAIM 2020 "
        "(doi:10.1148/ryai.2020200029); the wording is our own. `fastcxr report` writes this file anew: keep your "
        "answers in a copy."
    )
    return f"# Checklist for a paper (CLAIM)\n\n{head}\n\n{body}\n"


def list_items(record: RunRecord, metrics: Mapping[str, Any]) -> dict[str, list[Item]]:
    """Every item, by section."""
    return {
        "Title and purpose": _purpose(record),
        "Data": _data(record),
        "Reference standard": _truth(),
        "Partitions": _partitions(record, metrics),
        "Model and training": _model(record),
        "Evaluation": _evaluation(record, metrics),
        "Results and discussion": _results(record, metrics),
        "Other": _other(record),
    }


def _purpose(record: RunRecord) -> list[Item]:
    return [
        Item("Kind of method", say_method(record), number="1"),
        Item(
            "Intended use", asked="Who is to use it, on whom, for what decision, and what follows from it", number="3"
        ),
        Item("Abstract, aims, design, definitions", asked="What only the paper says", number="2, 4 to 6, 11"),
    ]


def _data(record: RunRecord) -> list[Item]:
    origin = "Who collected the images, where, when, from whom, under what licence"
    return [
        Item("Sources", say_sources(record), origin, "7, 8"),
        Item("Preprocessing", say_pixels(record), number="9"),
        Item("Selection", say_selection(record), number="10"),
        Item("Identities", say_identities(record), "How the images themselves were freed of identities", "12"),
        Item("Missing data", say_missing(record), number="13"),
    ]


def _truth() -> list[Item]:
    return [
        Item("Where labels come from", asked="By what standard, and why that one", number=TRUTH),
        Item("Who set them", asked="How many readers, of what training, with what tools", number=TRUTH),
        Item("Agreement", asked="How far readers agreed, and what was done where they did not", number=TRUTH),
    ]


def _partitions(record: RunRecord, metrics: Mapping[str, Any]) -> list[Item]:
    return [
        Item("Size of the sample", say_size(record, metrics), "How the size was chosen", "19"),
        Item("Splits", say_splits(record), number="20"),
        Item("People in each split", say_people(record), "Other traits that matter for this disease"),
    ]


def _model(record: RunRecord) -> list[Item]:
    return [
        Item("Network", say_network(record)),
        Item("Software, machine, seed", say_machine(record)),
        Item("First weights", say_weights(record), "Licence of these weights, and of the images behind them"),
        Item("Training", say_choices(record), "How many other settings were tried, and on which images"),
        Item("Ensembles", "One network answers; none are combined."),
    ]


def _evaluation(record: RunRecord, metrics: Mapping[str, Any]) -> list[Item]:
    return [
        Item("Figures and their intervals", say_figures(record, metrics)),
        Item("Calibration", say_calibration(record, metrics)),
        Item("Thresholds", say_thresholds(record)),
        Item("Robustness", asked="What noise, turning, compression or another machine does to the figures"),
        Item("Explanations", say_maps(record), "What readers made of them"),
        Item("Test on other data", say_elsewhere(record, metrics)),
    ]


def _results(record: RunRecord, metrics: Mapping[str, Any]) -> list[Item]:
    known = [f"{notice.title}. {notice.text}".strip() for notice in notices(record, metrics)]
    known += [f"{row['title']}: {row['words']}" for row in record.findings if row["verdict"] == "WARN"]
    limits = " ".join(dict.fromkeys(known)) or "None that the tool knows of."
    return [
        Item("Groups of people", say_groups(metrics)),
        Item("Mistakes", say_mistakes(record, metrics)),
        Item("Limits", limits, "What else limits the study, and whom a mistake would harm"),
    ]


def _other(record: RunRecord) -> list[Item]:
    return [
        Item("Bad input", say_bad_files(record)),
        Item("Availability", say_where_it_is(record), "Where model, code and data can be had"),
        Item("Registration, protocol, ethics, funding", asked="Numbers and names, or that there are none"),
    ]


def _line(item: Item) -> str:
    number = f"{item.number}. " if item.number else ""
    asked = f"*To add:* {item.asked}." if item.asked else ""
    words = " ".join(filter(None, [item.said, asked]))
    escaped = plain(words).replace("<", "&lt;").replace(">", "&gt;")
    return f"- [{' ' if item.asked else 'x'}] **{number}{item.topic}.** {escaped}"
