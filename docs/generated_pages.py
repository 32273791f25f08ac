"""Directives for text that the code already has, and formulas as MathML, which needs no script.

The directives are `options` (of a dataclass) and `study` (the docstring of a recipe script).
"""

import ast
import re
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parent.parent
FIELD = re.compile(r"^(\w+) {2,}(.*)")  # "Paper        accuracy .55": fields of the docstring of a study


class Options(SphinxDirective):
    """Table of the options of a dataclass such as fastcxr.Recipe: name, default and help text."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        module, _, name = self.arguments[0].rpartition(".")
        rows = [
            f"   * - ``{item.name}``\n     - {format_default(item)}\n     - {escape(item.metadata['help'])}"
            for item in fields(getattr(import_module(module), name))
        ]
        options = ".. list-table::\n   :header-rows: 1\n   :widths: 20 20 60"
        header = "\n\n   * - option\n     - default\n     - meaning"
        return parse(self, "\n".join([options + header, *rows]))


class Study(SphinxDirective):
    """The docstring of recipes/NAME.py."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return one section with a definition list."""
        script = ROOT / "recipes" / f"{self.arguments[0]}.py"
        self.env.note_dependency(str(script))
        title, parts = read_study(script)
        items = [f"{name}\n   ::\n\n{indent(text)}\n" for name, text in parts.items()]
        return parse(self, "\n".join([escape(title), "", *items]))


def read_study(script: Path) -> tuple[str, dict[str, str]]:
    """Return the first line of the docstring of a study, and the text of each of its fields."""
    title, *lines = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").splitlines()
    parts: dict[str, list[str]] = {}
    for line in filter(None, lines):
        if match := FIELD.match(line):
            parts[match[1]] = [match[2]]
        else:
            parts[list(parts)[-1]].append(line[13:])
    return title, {name: "\n".join(part) for name, part in parts.items()}


def format_default(item) -> str:
    """Return the default of a field as a literal."""
    value = item.default_factory() if item.default_factory is not MISSING else item.default
    text = f"{type(value).__name__}()" if hasattr(value, "__dataclass_fields__") else repr(value)
    return f"``{text}``"


def escape(text: str) -> str:
    """Return text without markup of reStructuredText."""
    return re.sub(r"([*`|_\\])", r"\\\1", text)


def indent(text: str) -> str:
    """Return the lines of a text inside a literal block of a definition."""
    return "\n".join(f"      {line}" for line in text.splitlines())


def parse(directive: SphinxDirective, text: str) -> list[nodes.Node]:
    """Return the nodes of a text in reStructuredText."""
    parent = nodes.container()
    directive.state.nested_parse(StringList(text.splitlines(), "generated"), 0, parent)
    return parent.children


def visit_inline_math(writer, node: nodes.math) -> None:
    """Write a formula inside a sentence."""
    writer.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def visit_math_block(writer, node: nodes.math_block) -> None:
    """Write a formula in a paragraph."""
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("options", Options)
    app.add_directive("study", Study)
    app.add_html_math_renderer("mathml", (visit_inline_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True}
