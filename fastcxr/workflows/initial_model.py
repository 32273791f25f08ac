"""The published model of the initial weights of a training: its critical notices, and what is unknown.

Training images of it may be in the test split. Its list of training images is not published.
"""

import logging
from pathlib import Path
from typing import Any

from fastcxr.io.hub_names import is_hub_name, is_published, parse_hub_name
from fastcxr.models.hub_download import find_model_dir
from fastcxr.report.weights_notices import INITIAL_MODEL_KEY, describe_notice, describe_unknown_overlap
from fastcxr.workflows.critical_notices import read_run_notices

log = logging.getLogger("fastcxr")


def describe_initial_model(weights: str) -> dict[str, Any]:
    """Return the entry of run.json on the published model of the initial weights, with warnings; else nothing.

    Args:
        weights: option of the recipe: hf://owner/name, a weights file in the folder of a published model, or others.

    Raises:
        HubError: the hub cannot be reached, and its cache does not have the model.
        ModelError: a file of the published model is damaged or does not have its checksum.
    """
    if (folder := _find_published_dir(weights)) is None:
        return {}
    name = str(parse_hub_name(weights)) if is_hub_name(weights) else ""
    log.warning(describe_unknown_overlap(name))
    notices = read_run_notices(folder)
    for notice in notices:
        log.warning(describe_notice(notice["title"], notice["text"]))
    return {INITIAL_MODEL_KEY: {"notices": [{key: notice[key] for key in ("title", "text")} for notice in notices]}}


def _find_published_dir(weights: str) -> Path | None:
    if is_hub_name(weights):
        return find_model_dir(weights)
    file = Path(weights).expanduser()
    return find_model_dir(file.parent) if file.is_file() and is_published(file.parent) else None
