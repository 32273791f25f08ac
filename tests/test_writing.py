"""Text of the project uses the terms of docs/glossary.md and no metaphor."""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "data/README.md", ROOT / "benchmarks/README.md"]
FILES = [
    *DOCUMENTS,
    *ROOT.glob("notebooks/*.ipynb"),
    *ROOT.glob("fastcxr/report/templates/*.jinja"),
    *(file for folder in ("fastcxr", "recipes", "benchmarks", "tests") for file in (ROOT / folder).rglob("*.py")),
]
FORBIDDEN = re.compile(
    r"""\b(?:
    # metaphors
    roads? | houses? | rooms? | doors? | shel(?:f|ves) | nouns? | ink | shy | dear | kin | banks? | arms? |
    # personification
    speaks? | spoken? | hears? | heard | tells? | telling | told | says? | said | taught | teach(?:es)? |
    believ(?:e|es|ed|able) | look(?:s|ed|ing)?\ at |
    # dated or literary
    whoever | whomever | nobody | somebody | aloud | loudly | anew | so\ many | so\ few | broken\ off | begun | beware |
    mend(?:s|ed|ing)? | of\ (?:one's|its|their|my|your)\ own | (?:go|goes|gone|going|went)\ on\ (?:with|from) |
    stands?\ (?:in|above|beside|below|for) |
    # synonyms of image, saliency map, out-of-distribution detector, external and internal
    picture[sd]? | heat\ ?maps? | gates? | elsewhere | at\ home
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)
CACHE_FOLDER_OF_0_1 = "pictures"
README_TERMS = [
    "calibration", "checkpoint", "confidence interval", "cross-validation", "discriminative learning rates",
    "early stopping", "external", "fine-tuning", "linear probe", "near-duplicate", "out-of-distribution",
    "saliency map", "shortcut", "test-time augmentation", "threshold",
]  # fmt: skip


def read_text_parts(file: Path) -> Iterator[str]:
    """Yield the text of a file: of Python its strings, docstrings, comments and the names of tests."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        yield from ("".join(cell["source"]) for cell in json.loads(text)["cells"])
    elif file.suffix != ".py":
        yield text
    else:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != CACHE_FOLDER_OF_0_1:
                yield node.value
            elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield node.name.replace("_", " ")
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        yield from (token.string for token in tokens if token.type == tokenize.COMMENT)


def find_forbidden_words(file: Path) -> list[str]:
    parts = [(part, match) for part in read_text_parts(file) for match in FORBIDDEN.finditer(part)]
    return [f"{match[0]}: {part[max(0, match.start() - 40) : match.end() + 40]}" for part, match in parts]


def test_text_has_no_forbidden_word():
    found = {
        str(file.relative_to(ROOT)): find_forbidden_words(file) for file in sorted(FILES) if file != Path(__file__)
    }
    assert not {name: words for name, words in found.items() if words}


@pytest.mark.parametrize(
    "source",
    [
        '"""Read a picture."""',
        "x = 1  # nobody reads it",
        'raise OSError(f"{x} was broken off")',
        "def test_shelf_is_full(): 0",
    ],
)
def test_search_finds_a_forbidden_word_in_python(tmp_path, source):
    (tmp_path / "module.py").write_text(source)
    assert len(find_forbidden_words(tmp_path / "module.py")) == 1


def test_search_reads_markdown_templates_and_notebooks(tmp_path):
    (tmp_path / "page.md").write_text("The gate is\nshy.")
    (tmp_path / "page.jinja").write_text("<p>Look at the picture</p>")
    (tmp_path / "page.ipynb").write_text(json.dumps({"cells": [{"source": ["Begun ", "anew"]}]}))
    counts = {file.suffix: len(find_forbidden_words(file)) for file in tmp_path.iterdir()}
    assert counts == {".md": 2, ".jinja": 2, ".ipynb": 2}


@pytest.mark.parametrize("term", README_TERMS)
def test_readme_uses_the_term(term):
    assert term in re.sub(r"\s+", " ", (ROOT / "README.md").read_text(encoding="utf-8")).lower()


@pytest.mark.parametrize("term", README_TERMS)
def test_glossary_defines_the_term(term):
    first_cells = re.findall(r"^\| ([^|]+) \|", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert any(term in cell.lower() for cell in first_cells)
