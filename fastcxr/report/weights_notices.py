"""Conditions of report notices about initial weights of a published model, whose training images are unknown.

Each function yields, for each notice, its text and the names in its title.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fastcxr.io.hub_names import is_hub_name
from fastcxr.report.run_reader import RunRecord

Found = Iterator[tuple[str, ...]]  # text, names in the title
INITIAL_MODEL_KEY = "initial_model"  # of run.json: `notices`, the critical ones of the published model
INITIAL_MODEL = "The published model of the initial weights"
UNKNOWN_OVERLAP = (
    "does not contain the list of training images. If it was trained on some of the validation or test images, or on "
    "other images of these patients, the metrics are optimistic."
)


def describe_unknown_overlap(name: str) -> str:
    """Return the text of the notice. `name`: hf://owner/name, or empty for a published model in a folder."""
    return f"{INITIAL_MODEL}{f' ({name})' if name else ''} {UNKNOWN_OVERLAP}"


def describe_notice(title: str, text: str) -> str:
    """Return the warning for a critical notice of the published model."""
    return f"{INITIAL_MODEL} has a critical notice: {title.rstrip('.')}. {text}".rstrip()


def is_of_initial_model(message: str) -> bool:
    """Return whether a logged message is about the published model of the initial weights, which has own notices."""
    return message.startswith(INITIAL_MODEL) or f": {INITIAL_MODEL}" in message  # after the name of a fold


def find_unknown_weights_overlap(record: RunRecord, metrics: Mapping[str, Any]) -> Found:
    """Yield that validation and test images may be training images of the initial weights."""
    is_named = is_hub_name(record.initial_weights)
    if is_named or INITIAL_MODEL_KEY in record.run:
        yield (describe_unknown_overlap(record.initial_weights if is_named else ""),)


def find_weights_notices(record: RunRecord, metrics: Mapping[str, Any]) -> Found:
    """Yield each critical notice of the published model that the initial weights are of."""
    for notice in (record.run.get(INITIAL_MODEL_KEY) or {}).get("notices") or []:
        yield notice["text"], notice["title"]
