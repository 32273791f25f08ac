"""Directives for text that the code already has, and formulas as MathML, which needs no script.

The directives are `options` (of a dataclass), `study` (the docstring of a recipe script), `datasets` (the public
datasets) and `encoders` (the chest encoders).
"""

import ast
import re
from dataclasses import MISSING, fields
from importlib import import_module
from itertools import groupby
from pathlib import Path

from cyclopts import App
from docutils import nodes
from docutils.statemachine import StringList
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parent.parent
FIELD = re.compile(r"^(\w+) {2,}(.*)")  # "Paper        accuracy .55": fields of the docstring of a study
FIELD_INDENT = 13  # of the further lines of a field


class Options(SphinxDirective):
    """Definition list, in reStructuredText, of the options of a dataclass such as fastcxr.Recipe."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the name, default and help text of each option."""
        module, _, name = self.arguments[0].rpartition(".")
        items = [
            f"``{item.name}`` = {format_default(item)}\n   {escape(item.metadata['help'])}\n"
            for item in fields(getattr(import_module(module), name))
        ]
        return parse(self, "\n".join(items))


class Study(SphinxDirective):
    """The docstring of recipes/NAME.py."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a definition list of the fields, where indented lines are literal."""
        script = ROOT / "recipes" / f"{self.arguments[0]}.py"
        self.env.note_dependency(str(script))
        title, parts = read_study(script)
        items = [name + "".join(map(format_lines, group_lines(lines))) for name, lines in parts.items()]
        return parse(self, "\n".join([escape(title), "", *items]))


class Datasets(SphinxDirective):
    """The public datasets that fastcxr reads, with their names, labels, access and shared images."""

    def run(self) -> list[nodes.Node]:
        """Return a definition list."""
        datasets = import_module("fastcxr.data.readers.registry").PUBLIC_DATASETS
        items = [
            f"{escape(item.title)} (``{name}``)\n" + list_facts(item)
            for name, item in datasets.items()
            if item.citation
        ]
        return parse(self, "\n".join(items))


class Encoders(SphinxDirective):
    """The chest encoders, with image size, access, layout of the file, licence and citation."""

    def run(self) -> list[nodes.Node]:
        """Return a definition list."""
        encoders = import_module("fastcxr.models.encoders").ENCODERS
        describe = import_module("fastcxr.models.registry").describe_encoder
        return parse(self, "\n".join(format_encoder(describe(encoder)) for encoder in encoders.values()))


def format_encoder(facts: dict) -> str:
    """Return the facts of a chest encoder as a definition; of those that were not read only "see page"."""
    values = {name: facts[name]["value"] for name in ("image_size", "access", "licence")}
    sizes = [f"{facts['parameters'] / 1e6:.1f} M parameters"]
    sizes += [f"{values['image_size']} pixels"] if values["image_size"] else []
    access = {"page": "by hand", None: "see page"}.get(values["access"], values["access"])
    lines = [
        f"{facts['kind']}, {', '.join(sizes)}. Access: {access} (`page <{facts['page']}>`__).",
        f"File: {escape(facts['file'] or 'see page')}. Layout: {escape(facts['layout'])}.",
        f"Licence: {escape(values['licence'] or 'see page')}. {escape(facts['citation'])}.",
    ]
    return f"``{facts['name']}``\n" + "".join(f"   | {line}\n" for line in lines)


def list_facts(dataset) -> str:
    """Return the facts of a public dataset as the lines of a definition."""
    facts = [dataset.labels, f"{dataset.n_images:,} images ({dataset.counts_from})" if dataset.n_images else ""]
    lines = [f"{'; '.join(filter(None, facts))}. Access: {dataset.access} (`page <{dataset.page}>`__)."]
    for variant, text in dataset.label_variants.items():
        lines.append(f"``--label-variant {variant}``: {escape(text)}.")
    lines += [f"Shares images with {escape(other)}: {escape(text)}." for other, text in dataset.overlaps.items()]
    return "".join(f"   | {line}\n" for line in [escape_facts(lines[0]), *lines[1:]])


def escape_facts(line: str) -> str:
    """Escape a line of facts except the link at its end."""
    facts, _, link = line.rpartition("(`page")
    return f"{escape(facts)}(`page{link}"


def read_study(script: Path) -> tuple[str, dict[str, list[str]]]:
    """Return the first line of the docstring of a study, and the lines of each of its fields."""
    title, *lines = (ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "").splitlines()
    parts: dict[str, list[str]] = {}
    for line in filter(None, lines):
        if match := FIELD.match(line):
            parts[match[1]] = [match[2]]
        else:
            parts[list(parts)[-1]].append(line[FIELD_INDENT:])
    return title, parts


def group_lines(lines: list[str]) -> list[list[str]]:
    """Return the runs of lines that are all indented, or all not."""
    return [list(run) for _, run in groupby(lines, key=lambda line: line.startswith(" "))]


def format_lines(lines: list[str]) -> str:
    """Return lines as a literal block if they are indented, else as a paragraph, inside a definition."""
    is_literal = lines[0].startswith(" ")
    text = [line.strip() if is_literal else escape(line) for line in lines]
    indent = "\n      " if is_literal else "\n   "
    return ("\n   ::\n" if is_literal else "") + "".join(indent + line for line in text) + "\n"


def format_default(item) -> str:
    """Return the default of a field as a literal."""
    value = item.default_factory() if item.default_factory is not MISSING else item.default
    text = f"{type(value).__name__}()" if hasattr(value, "__dataclass_fields__") else repr(value)
    return f"``{text}``"


def escape(text: str) -> str:
    """Return text without markup of reStructuredText."""
    return re.sub(r"([*`|_\\])", r"\\\1", text)


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


def shorten_usage(commands: App) -> None:
    """Remove `Usage: fastcxr` from the usage of commands: cyclopts writes the names of all commands in its place."""
    for name in commands:
        if usage := commands[name].usage:
            commands[name].usage = usage.replace(f"Usage: fastcxr {name}", name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directives."""
    shorten_usage(import_module("fastcxr.cli.main").app)
    app.add_directive("options", Options)
    app.add_directive("study", Study)
    app.add_directive("datasets", Datasets)
    app.add_directive("encoders", Encoders)
    app.add_html_math_renderer("mathml", (visit_inline_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True}
