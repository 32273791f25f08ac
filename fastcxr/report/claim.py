"""From a run's record and its numbers to CLAIM.md: a checklist for who writes a paper about the model.

Each item is of one of three kinds: what the tool knows is filled in, what it knows in part is filled in and asks the
rest, and what only people know is an open box. The wording is our own; the numbers are those of CLAIM 2020
(doi:10.1148/ryai.2020200029), where items are known by their topic alone there is none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastcxr.io.html import replace_unprintable
from fastcxr.report.claim_items import (
    describe_availability,
    describe_calibration,
    describe_deidentification,
    describe_demographics,
    describe_environment,
    describe_errors,
    describe_external_test,
    describe_initial_weights,
    describe_method,
    describe_metrics,
    describe_missing_data,
    describe_network,
    describe_preprocessing,
    describe_saliency_maps,
    describe_sample_size,
    describe_selection,
    describe_sources,
    describe_splits,
    describe_subgroups,
    describe_thresholds,
    describe_training,
    describe_unreadable_files,
)
from fastcxr.report.notices import make_notices
from fastcxr.report.run_reader import RunRecord

REFERENCE_STANDARD_NUMBERS = "14 to 18"  # what this folder knows nothing of


@dataclass(frozen=True)
class Item:
    """`said`: what the folder tells, empty where it tells nothing. `asked`: what a person must add, or nothing."""

    topic: str
    answer: str = ""
    open_question: str = ""
    number: str = ""


def make_claim_checklist(record: RunRecord, metrics: Mapping[str, Any]) -> str:
    """The checklist as Markdown, from the run folder alone."""
    sections = list_items(record, metrics)
    n_open_boxes = sum(bool(item.open_question) for items in sections.values() for item in items)
    body = "\n\n".join(f"## {title}\n\n" + "\n".join(map(_format_item, items)) for title, items in sections.items())
    introduction = (
        "Filled in from this folder by fastcxr. A box without a tick asks a person; "
        f"{n_open_boxes} of {sum(map(len, sections.values()))} do. Numbers are items of CLAIM 2020 "
        "(doi:10.1148/ryai.2020200029); the wording is our own. `fastcxr report` writes this file anew: keep your "
        "answers in a copy."
    )
    return f"# Checklist for a paper (CLAIM)\n\n{introduction}\n\n{body}\n"


def list_items(record: RunRecord, metrics: Mapping[str, Any]) -> dict[str, list[Item]]:
    """Every item, by section."""
    return {
        "Title and purpose": _list_purpose_items(record),
        "Data": _list_data_items(record),
        "Reference standard": _list_reference_items(),
        "Partitions": _list_partition_items(record, metrics),
        "Model and training": _list_model_items(record),
        "Evaluation": _list_evaluation_items(record, metrics),
        "Results and discussion": _list_result_items(record, metrics),
        "Other": _list_other_items(record),
    }


def _list_purpose_items(record: RunRecord) -> list[Item]:
    return [
        Item("Kind of method", describe_method(record), number="1"),
        Item(
            "Intended use",
            open_question="Who is to use it, on whom, for what decision, and what follows from it",
            number="3",
        ),
        Item("Abstract, aims, design, definitions", open_question="What only the paper says", number="2, 4 to 6, 11"),
    ]


def _list_data_items(record: RunRecord) -> list[Item]:
    origin_question = "Who collected the images, where, when, from whom, under what licence"
    return [
        Item("Sources", describe_sources(record), origin_question, "7, 8"),
        Item("Preprocessing", describe_preprocessing(record), number="9"),
        Item("Selection", describe_selection(record), number="10"),
        Item(
            "Identities", describe_deidentification(record), "How the images themselves were freed of identities", "12"
        ),
        Item("Missing data", describe_missing_data(record), number="13"),
    ]


def _list_reference_items() -> list[Item]:
    return [
        Item(
            "Where labels come from",
            open_question="By what standard, and why that one",
            number=REFERENCE_STANDARD_NUMBERS,
        ),
        Item(
            "Who set them",
            open_question="How many readers, of what training, with what tools",
            number=REFERENCE_STANDARD_NUMBERS,
        ),
        Item(
            "Agreement",
            open_question="How far readers agreed, and what was done where they did not",
            number=REFERENCE_STANDARD_NUMBERS,
        ),
    ]


def _list_partition_items(record: RunRecord, metrics: Mapping[str, Any]) -> list[Item]:
    return [
        Item("Size of the sample", describe_sample_size(record, metrics), "How the size was chosen", "19"),
        Item("Splits", describe_splits(record), number="20"),
        Item("People in each split", describe_demographics(record), "Other traits that matter for this disease"),
    ]


def _list_model_items(record: RunRecord) -> list[Item]:
    return [
        Item("Network", describe_network(record)),
        Item("Software, machine, seed", describe_environment(record)),
        Item(
            "First weights", describe_initial_weights(record), "Licence of these weights, and of the images behind them"
        ),
        Item("Training", describe_training(record), "How many other settings were tried, and on which images"),
        Item("Ensembles", "One network answers; none are combined."),
    ]


def _list_evaluation_items(record: RunRecord, metrics: Mapping[str, Any]) -> list[Item]:
    return [
        Item("Figures and their intervals", describe_metrics(record, metrics)),
        Item("Calibration", describe_calibration(record, metrics)),
        Item("Thresholds", describe_thresholds(record)),
        Item("Robustness", open_question="What noise, turning, compression or another machine does to the figures"),
        Item("Explanations", describe_saliency_maps(record), "What readers made of them"),
        Item("Test on other data", describe_external_test(record, metrics)),
    ]


def _list_result_items(record: RunRecord, metrics: Mapping[str, Any]) -> list[Item]:
    known_limits = [f"{notice.title}. {notice.text}".strip() for notice in make_notices(record, metrics)]
    known_limits += [f"{row['title']}: {row['message']}" for row in record.findings if row["verdict"] == "WARN"]
    limits = " ".join(dict.fromkeys(known_limits)) or "None that the tool knows of."
    return [
        Item("Groups of people", describe_subgroups(metrics)),
        Item("Mistakes", describe_errors(record, metrics)),
        Item("Limits", limits, "What else limits the study, and whom a mistake would harm"),
    ]


def _list_other_items(record: RunRecord) -> list[Item]:
    return [
        Item("Bad input", describe_unreadable_files(record)),
        Item("Availability", describe_availability(record), "Where model, code and data can be had"),
        Item("Registration, protocol, ethics, funding", open_question="Numbers and names, or that there are none"),
    ]


def _format_item(item: Item) -> str:
    number = f"{item.number}. " if item.number else ""
    question_text = f"*To add:* {item.open_question}." if item.open_question else ""
    text = " ".join(filter(None, [item.answer, question_text]))
    escaped = replace_unprintable(text).replace("<", "&lt;").replace(">", "&gt;")
    return f"- [{' ' if item.open_question else 'x'}] **{number}{item.topic}.** {escaped}"
