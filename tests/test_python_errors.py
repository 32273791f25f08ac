"""A message of the package names Python arguments; the command line shows the options in their place."""

import ast
import re
from pathlib import Path

import pytest

from fastcxr.cli.option_names import ARGUMENT_PATTERN, OPTION_BY_ARGUMENT, name_options

PACKAGE = Path(__file__).parents[1] / "fastcxr"
# only the command line raises with options; reports and audits give commands to run
MODULES = [
    file
    for file in sorted(PACKAGE.rglob("*.py"))
    if file.relative_to(PACKAGE).parts[0] not in ("cli", "report", "audit", "__main__.py")
]
IN_BACKTICKS = re.compile(r"`([^`]*)`")
ONLY_IN_PYTHON = {"root"}  # arguments without an option


def remove_commands(text: str) -> str:
    """Remove commands to run in a shell, such as `fastcxr pack DIR --to FILE`."""
    return IN_BACKTICKS.sub(lambda match: "" if " " in match[1] else match[0], text)


def find_texts(source: str) -> list[str]:
    """Return the texts of a module except docstrings; values in f-strings become {}."""
    tree = ast.parse(source)
    texts, skipped = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(node.value)
        if isinstance(node, ast.JoinedStr):
            skipped |= set(node.values)
            texts.append("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            texts.append(node.value)
    return texts


def test_no_message_of_a_module_names_an_option_of_the_command_line():
    texts = [(file.name, text) for file in MODULES for text in find_texts(file.read_text(encoding="utf-8"))]
    assert [pair for pair in texts if re.search(r"(?<![\w-])--[a-z{]", remove_commands(pair[1]))] == []


def test_every_argument_in_a_message_has_an_option():
    found = set()
    for file in MODULES:
        for text in find_texts(file.read_text(encoding="utf-8")):
            found |= {match[1] for match in ARGUMENT_PATTERN.finditer(text) if match[2] or match[1] in "data folder"}
    assert len(found) > 10
    assert found - ONLY_IN_PYTHON <= set(OPTION_BY_ARGUMENT)


def test_the_search_finds_an_option_in_an_f_string_and_not_in_a_docstring():
    source = 'def f():\n    """--a"""\n    raise ValueError("--b", f"pass --c {x} or `fastcxr d --e`")'
    assert {remove_commands(text) for text in find_texts(source)} == {"--b", "pass --c {} or "}


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("leave them out with `skip_bad=True`", "leave them out with --skip-bad"),
        ("Pass `folds=2` or more, and `fold` up to it", "Pass --folds 2 or more, and --fold up to it"),
        ("Choose `strategy='full'`", "Choose --strategy full"),
        ("pass `relabel=['no finding=normal', 'a=b']`", "pass --relabel 'no finding=normal' --relabel a=b"),
        ("pass `patient_regex='^([^/]+)/'`", "pass --patient-regex '^([^/]+)/'"),
        ("pass `weights=FILE` or `weights='none'`", "pass --weights FILE or --weights none"),
        ("Choose another `folder`", "Choose another --out"),
        ("Leave out `earlier`, or pass `unit='image'`", "Leave out --reuse-split, or pass --split image"),
        ("Run `pip install 'fastcxr[dicom]'` or `dcmdjpeg`", "Run `pip install 'fastcxr[dicom]'` or `dcmdjpeg`"),
    ],
)
def test_the_command_line_shows_options_in_place_of_arguments(message, shown):
    assert name_options(message) == shown
