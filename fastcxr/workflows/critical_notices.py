"""Critical notices on the model in a folder, for the commands that use it: those of a run, or those of an export."""

import logging
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastcxr.errors import FastcxrError
from fastcxr.export.exported_model import ExportedModel
from fastcxr.inference.scores import Scorer
from fastcxr.io.hub_names import is_published
from fastcxr.workflows.published_model import CRITICAL, normalize_level, read_published_facts

log = logging.getLogger("fastcxr")
NOTICE_KEYS = ("level", "title", "text")
METRICS_FILE = "metrics.json"
DAMAGED_FILE_ERRORS = (FastcxrError, OSError, ValueError, TypeError, LookupError, AttributeError)
Notice = dict[str, str]  # level, title and text


def list_critical_notices(folder: str | Path, scorer: Scorer) -> list[Notice]:
    """Return the critical notices on the model of a run folder or of an export, which `load_scorer` has loaded."""
    if isinstance(scorer, ExportedModel):
        return [notice for notice in _select_valid(scorer.description["notices"]) if notice["level"] == CRITICAL]
    return read_run_notices(folder)


def read_run_notices(folder: str | Path) -> list[Notice]:
    """Return the critical notices of a run folder or a published model; none for a single fold without metrics.

    A run with a damaged or missing file of the report can predict: a warning states that its notices are unknown.
    """
    if is_published(folder):
        return [asdict(notice) for notice in read_published_facts(Path(folder)).notices if notice.level == CRITICAL]
    if not (Path(folder) / METRICS_FILE).is_file():
        return []
    from fastcxr.report.notices import read_critical_notices  # the report of a run, which an export does not need

    try:
        return [asdict(notice) for notice in read_critical_notices(Path(folder))]
    except DAMAGED_FILE_ERRORS as error:
        log.warning("the critical notices of the run %s are unknown: %s", Path(folder).resolve().name, error)
        return []


def _select_valid(notices: Iterable[Any]) -> Iterable[Notice]:
    """Yield the notices of export.json that have all texts: the file may come from an untrusted source."""
    for notice in notices:
        if isinstance(notice, dict) and all(isinstance(notice.get(key), str) for key in NOTICE_KEYS):
            yield {key: notice[key] for key in NOTICE_KEYS} | {"level": normalize_level(notice["level"])}
