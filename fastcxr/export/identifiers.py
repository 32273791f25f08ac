"""Search of files to publish for what identifies a patient: file names, paths, patient identifiers and images.

The search is a guard behind the functions that make these files without any of it. A number of less than five digits
is a count in most texts: as a patient or a file name it is searched for with its folder or file type only.
"""

import html
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from fastcxr.io.formulas import unescape_formulas

TABLES = ("manifest.csv", "predictions.csv", "skipped.csv", "saliency.csv", "feature_map.csv", "figures/images.csv")
MIN_LENGTH, MIN_DIGITS = 4, 5  # of an identifier that is searched for as a word
TOKEN, HAS_DIGIT = re.compile(r"\w+"), re.compile(r"\d")
IMAGE_SIGNATURES = {
    "a PNG image": re.compile(rb"\x89PNG\r\n\x1a\n|iVBORw0KGgo"),
    "a JPEG image": re.compile(rb"\xff\xd8\xff|/9j/4"),
    "a DICOM file": re.compile(rb"\x00\x00\x00\x00DICM"),
    "an image": re.compile(rb"data:image/(?!svg)|<image\b|\bII\*\x00|\bMM\x00\*", re.IGNORECASE),
}
DRAWING_NUMBERS = re.compile(
    r"\s(?:d|points|transform|viewBox|width|height|[xyr][12]?|c[xy]|d[xy])=\"[\d\s.,MLHVCSQTAZmlhvcsqtaz()%-]*\""
)
MAX_HEADER_BYTES = 100_000_000
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Leak:
    """What identifies a patient in a file to publish; `kind`: such as a patient identifier."""

    file: str
    kind: str
    text: str = ""


def find_leaks(folder: Path, run: Path, *, skip: Iterable[str] = ()) -> Iterator[Leak]:
    """Yield what identifies a patient of `run` in the files of a folder, at most one of each kind in a file.

    Args:
        folder: the files to publish.
        run: run folder with the names and identifiers to search for.
        skip: names of files that are not searched.
    """
    identifiers = _Index(list_identifiers(run))
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in skip:
            continue
        content = read_searched_bytes(path)
        yield from (Leak(name, kind) for kind, pattern in IMAGE_SIGNATURES.items() if pattern.search(content))
        found = {}
        for text in list_texts(path, content):
            for kind, identifier in identifiers.search(text):
                found.setdefault(kind, identifier)
        yield from (Leak(name, kind, identifier) for kind, identifier in found.items())


def read_searched_bytes(path: Path) -> bytes:
    """Return the content of a file, of a safetensors file its header: the numbers of tensors are no text."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return file.read(min(size, MAX_HEADER_BYTES))


def list_texts(path: Path, content: bytes) -> Iterator[str]:
    """Yield the texts of a file: keys and strings of JSON; of HTML without entities and numbers of drawings."""
    text = content.decode("utf-8", "surrogateescape")
    if path.suffix in (".json", ".safetensors"):
        yield from _list_strings(json.loads(text))
    elif path.suffix == ".html":
        yield html.unescape(DRAWING_NUMBERS.sub(" ", text))
    else:
        yield html.unescape(text)


def _list_strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield str(key)
            yield from _list_strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _list_strings(part)


def list_identifiers(run: Path) -> dict[str, str]:
    """Return the texts to search for in the tables of a run and of its folds, each with its kind.

    Texts that are also labels, splits, sources or words of the report do not identify a patient.
    """
    identifiers: dict[str, str] = {}
    public = set(_read_labels(run)) | _list_words()
    for folder in [run, *run.glob("fold-*"), *run.glob("patient_split")]:
        for table in _read_tables(folder):
            public |= {value for name in ("split", "source", "label") if name in table for value in set(table[name])}
            for path in set(table["path"]) if "path" in table else ():
                for text, kind in _list_path_identifiers(path).items():
                    identifiers.setdefault(text, kind)
            if "patient" in table:
                identifiers |= dict.fromkeys(set(table["patient"]), "a patient identifier")
    for path in {str(run.resolve()), str(Path.cwd()), str(Path.home())}:
        identifiers[path] = "a folder of this computer"
    return {text: kind for text, kind in identifiers.items() if _is_searched(text, public)}


def _list_path_identifiers(path: str) -> dict[str, str]:
    *folders, name = path.replace("\\", "/").split("/")
    found = {folder: "a folder of an image" for folder in folders if HAS_DIGIT.search(folder)}
    stem = name.rpartition(".")[0] or name
    return found | {path: "the path of an image", name: "a file name", stem: "a file name"}


def _is_searched(text: str, public: set[str]) -> bool:
    if len(text) < MIN_LENGTH or text in public:
        return False
    return not text.isdigit() or len(text) >= MIN_DIGITS


def _read_tables(folder: Path) -> Iterator[pd.DataFrame]:
    for name in TABLES:
        if (folder / name).is_file():
            options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "encoding_errors": "surrogateescape"}
            wanted: Callable[[str], bool] = {"path", "patient", "source", "split", "label"}.__contains__
            yield unescape_formulas(pd.read_csv(folder / name, usecols=wanted, **options))


def _read_labels(run: Path) -> list[str]:
    models = [run / "model.json", *run.glob("fold-*/model.json")]
    return [label for path in models if path.is_file() for label in json.loads(path.read_text("utf-8"))["labels"]]


@cache
def _list_words() -> set[str]:
    """Return the words of the texts of this package, which do not identify a patient, such as chest or saliency."""
    files = [*PACKAGE.glob("report/templates/*"), *PACKAGE.glob("report/*.py"), *PACKAGE.glob("export/*.py")]
    files += [*PACKAGE.glob("audit/*.py"), *PACKAGE.glob("config/*.py"), *PACKAGE.glob("metrics/*.py")]
    text = " ".join(path.read_text("utf-8") for path in files)
    return {word for word in re.findall(r"[\w-]+", text) if not HAS_DIGIT.search(word)}


class _Index:
    """Identifiers by their first word, for a search in one pass over the words of a text."""

    def __init__(self, identifiers: Mapping[str, str]):
        self.identifiers, self.by_first_word = identifiers, defaultdict(list)
        for text in identifiers:
            if match := TOKEN.search(text):
                self.by_first_word[match[0]].append((text, match.start()))

    def search(self, text: str) -> Iterator[tuple[str, str]]:
        """Yield kind and text of each identifier that is in the text as whole words."""
        for token in TOKEN.finditer(text):
            for identifier, offset in self.by_first_word.get(token[0], ()):
                start = token.start() - offset
                end = start + len(identifier)
                if start >= 0 and text.startswith(identifier, start) and _is_whole(text, start, end):
                    yield self.identifiers[identifier], identifier


def _is_whole(text: str, start: int, end: int) -> bool:
    """Return whether a part of a text is neither inside a word nor the digits of a decimal number."""
    before, after = text[max(0, start - 2) : start], text[end : end + 1]
    if re.search(r"\w$", before) or re.match(r"\w", after):
        return False
    return not (text[start:end].isdigit() and re.search(r"\d[.,]$", before))
