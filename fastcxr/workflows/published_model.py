"""published.json of a published model: what its files do not state about the training, without names of images."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastcxr.errors import ModelError
from fastcxr.export.export_json import WARNING
from fastcxr.io.files import read_json
from fastcxr.io.formats import FORMAT_KEY, PUBLISHED_FORMAT, is_format
from fastcxr.io.html import replace_unprintable
from fastcxr.io.hub_names import PUBLISHED_FILE
from fastcxr.report.notices import Notice
from fastcxr.version import VERSION

MAX_TEXT, MAX_ITEMS = 2000, 50  # characters of a text, and texts, of an untrusted file
CRITICAL, OTHER_LEVELS = "critical", ("warning", "note")  # of notices
COPY_AGAIN_FIX = "Run `fastcxr pull` again"


@dataclass(frozen=True, kw_only=True)
class PublishedFacts:
    """The content of published.json.

    Attributes:
        notices: critical notices of the run.
        public_datasets: names of the public datasets that the model was trained on, as in PUBLIC_DATASETS.
        timm: what timm loads, "classifier", "backbone", or None.
    """

    notices: tuple[Notice, ...]
    public_datasets: tuple[str, ...]
    timm: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the content of published.json."""
        return {FORMAT_KEY: PUBLISHED_FORMAT, "warning": WARNING, "fastcxr": VERSION} | asdict(self)


def read_published_facts(folder: Path) -> PublishedFacts:
    """Read published.json of an untrusted folder. Raises ModelError for a damaged file or one of another version."""
    path = folder / PUBLISHED_FILE
    try:
        content = read_json(path)
        if not is_format(content[FORMAT_KEY], PUBLISHED_FORMAT):
            problem = "another version of fastcxr published the model"
            raise ModelError(problem, "Update fastcxr, or publish the model again", path=path, code="E306")
        notices = tuple(
            Notice(normalize_level(level), title, text)
            for level, title, text in (
                _read_texts(row[key] for key in ("level", "title", "text")) for row in content["notices"][:MAX_ITEMS]
            )
        )
        datasets = _read_texts(content["public_datasets"][:MAX_ITEMS])
        timm = content.get("timm")
        return PublishedFacts(notices=notices, public_datasets=datasets, timm=timm if isinstance(timm, str) else None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        problem = f"not a {PUBLISHED_FILE} of fastcxr ({type(error).__name__})"
        raise ModelError(problem, COPY_AGAIN_FIX, path=path, code="E301") from error


def normalize_level(level: str) -> str:
    """Return the level of a notice of an untrusted file: critical, unless it is one of the other levels."""
    return level if level in OTHER_LEVELS else CRITICAL


def _read_texts(values: Iterable[Any]) -> tuple[str, ...]:
    texts = tuple(values)
    if not all(isinstance(text, str) and len(text) <= MAX_TEXT for text in texts):
        raise TypeError
    return tuple(map(replace_unprintable, texts))  # no control characters for the terminal
