"""Lines of `fastcxr models`: the list of backbones, the list of chest encoders, and all facts of one encoder."""

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MAX_WIDTH = 80  # characters of a line
LABEL_WIDTH = 16  # characters, of the names of facts
ACCESS_TEXTS = {
    "open": "open: fastcxr downloads the file",
    "gated": "gated: the hub asks each user to accept terms, then fastcxr downloads the file",
    "page": "by hand: each user downloads the file from the page",
    "package": "package: torchxrayvision downloads the file",
}
FEATURE_TEXTS = {
    "class_token": "class token",
    "patch_mean": "mean of the patch tokens",
    "both": "class token and mean of the patch tokens",
    "attention_pool": "attention pool of the patch tokens",
    "pooled": "mean of the last feature map",
}
FACT_NAMES = {
    "licence": "licence",
    "access": "access",
    "image_size": "image size",
    "normalization": "mean and std",
    "interpolation": "interpolation",
}
UNREAD_NAMES = {"native_size": "native px", "access": "access", "licence": "licence"}


def format_backbone_list(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of the list of backbones: a heading, then one line per row of list_backbones."""
    yield f"{'name':<52} {'library':<12} {'parameters':>11} {'native px':>9}  pretrained"
    for row in rows:
        parameters, size = _format_parameters(row["parameters"]), row["native_size"] or "-"
        yield (
            f"{row['name']:<52} {row['library']:<12} {parameters:>11} {size:>9}  {'yes' if row['pretrained'] else 'no'}"
        )


def format_encoder_list(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of the list of chest encoders: a heading, then two lines per row of list_encoders."""
    yield f"{'name':<28} {'parameters':>10} {'native px':>9}  {'access':<8} cached"
    for row in rows:
        access = {None: "-", "page": "by hand"}.get(row["access"], row["access"])
        yield (
            f"{row['name']:<28} {_format_parameters(row['parameters']):>10} {row['native_size'] or '-':>9}  "
            f"{access:<8} {'yes' if row['cached'] else 'no'}"
        )
        unread = [text for name, text in UNREAD_NAMES.items() if row[name] is None]
        facts = [f"licence: {row['licence']}"] if row["licence"] else []
        facts += [f"{', '.join(unread)}: see {row['page']}"] if unread else []
        yield from (f"    {fact}" for fact in facts)


def format_encoder(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of all facts of an encoder (see describe_encoder), and of the commands that train with it."""
    yield f"{facts['name']}: pretrained {facts['kind']}"
    options = ", ".join(f"{name}={value}" for name, value in facts["options"].items())
    normalization = facts["normalization"]["value"] or {}
    access = facts["access"]["value"]
    lines = {
        "page": [facts["page"]],
        "hub id": [facts["repo"] or "none"],
        "file": [facts["file"] or f"see {facts['page']}"],
        "layout": [f"{facts['layout']} (names of the tensors in the file)"],
        "cached": [facts["cached_file"] or "no"],
        "network": [f"{facts['architecture']} of timm" + (f" with {options}" if options else "")],
        "parameters": [f"{_format_parameters(facts['parameters'])} without a head"],
        "features": [f"{FEATURE_TEXTS[facts['features']]}: input of the head"],
        "channels": [str(facts["channels"])],
        "image size": [_format_fact(facts["image_size"], f"{facts['image_size']['value']} px")],
        "other sizes": [facts["other_sizes"]],
        "mean": [_format_fact(facts["normalization"], _format_channels(normalization.get("mean", ())))],
        "std": [_format_fact(facts["normalization"], _format_channels(normalization.get("std", ())))],
        "interpolation": [
            _format_fact(facts["interpolation"], str(facts["interpolation"]["value"])),
            "fastcxr pads to a square, and resizes with an antialiased bilinear filter",
        ],
        "licence": [_format_fact(facts["licence"], str(facts["licence"]["value"]))],
        "access": [_format_fact(facts["access"], ACCESS_TEXTS.get(access, ""))],
        "citation": [facts["citation"]],
        "reported": [f"{item['figure']} ({item['source']})" for item in facts["reported"]],
        "read on": list(_format_pages(facts)),
    }
    for label, texts in lines.items():
        for number, text in enumerate(texts):
            yield from _wrap(label if number == 0 else "", text)
    yield "train with it:"
    yield from (f"  {command}" for command in facts["train"])


def make_encoder_commands(facts: Mapping[str, Any]) -> list[str]:
    """Return the commands that train with an encoder: with the weights that are fetched, and with a file."""
    command = f"fastcxr train {facts['name']} --data DIR"
    if facts["access"]["value"] == "package":
        return [command]
    with_file = f"{command} --weights {facts['file'] or 'FILE'}"
    return [with_file] if facts["access"]["value"] == "page" else [command, with_file]


def _format_fact(fact: Mapping[str, Any], text: str) -> str:
    """Return the text of a fact, or where to find it if it was not read."""
    return f"see {fact['page']}" if fact["value"] is None else text


def _format_pages(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield each page on which facts were read, with their names and the date."""
    read_facts = [(name, facts[name]) for name in FACT_NAMES if facts[name]["read"]]
    for page, date in dict.fromkeys((fact["page"], fact["read"]) for _, fact in read_facts):
        yield page
        yield f"({date}: {', '.join(FACT_NAMES[name] for name, fact in read_facts if fact['page'] == page)})"


def _format_channels(values: Iterable[float]) -> str:
    """Return one number if all channels have the same, else all."""
    numbers = [f"{value:.6g}" for value in values]
    return numbers[0] if len(set(numbers)) == 1 else ", ".join(numbers)


def _format_parameters(n: int) -> str:
    return f"{n / 1e6:.1f} M"


def _wrap(label: str, text: str) -> list[str]:
    """Return a fact as lines that fit the terminal, except where an address or a file name is longer."""
    indent, width = " " * (LABEL_WIDTH + 2), min(MAX_WIDTH, shutil.get_terminal_size().columns)
    return textwrap.wrap(
        text, width, initial_indent=f"  {label:<{LABEL_WIDTH}}", subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
