"""Code blocks of the pages in docs/, and their execution on small data with small settings.

A fence ```bash or ```python is executed. A `{code-block}` with `:class: not-run` is shown with a remark and not
executed; ```text is output or a file, never code.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import pytest
from tiny_network import NAME

import fastcxr
import fastcxr.cli.main  # noqa: F401  registers the commands
from fastcxr.cli.app import app
from fastcxr.cli.output import run_to_exit_code
from fastcxr.models.backbones import find_backbone

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
FENCE = re.compile(r"^(?P<mark>`{3,}|:{3,})(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=mark)\s*$", re.MULTILINE | re.DOTALL)
SMALL = {"weights": "none", "image_size": 32, "epochs": 1}  # instead of the values on the page
SMALL_BACKBONE = NAME


@dataclass(frozen=True)
class Block:
    """One fence of a page: its info string, its text, and the line of the page on which it begins."""

    info: str
    text: str
    line: int

    @property
    def is_run(self) -> bool:
        """Whether the tests execute the block."""
        return self.info in ("bash", "python")


def read_blocks(page: Path) -> list[Block]:
    """Return the fences of a page."""
    return find_blocks(page.read_text(encoding="utf-8"))


def find_blocks(text: str) -> list[Block]:
    """Return the fences of a text in MyST."""
    return [
        Block(match["info"].strip(), match["body"], text[: match.start()].count("\n") + 1)
        for match in FENCE.finditer(text)
    ]


def split_commands(text: str) -> Iterator[str]:
    """Yield the commands of a bash block, with continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def run_command(line: str) -> None:
    """Execute a line `fastcxr ...` in this process, with the variables before it as in a shell. It must succeed."""
    words = shlex.split(line, comments=True)
    variables = dict(word.split("=", 1) for word in takewhile(lambda word: "=" in word, words))
    name, *arguments = words[len(variables) :]
    assert name == "fastcxr", f"the tests cannot run {line!r}: mark it as not run"
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in variables.items():
            patch.setenv(variable, value)
        assert run_fastcxr(shrink(arguments)) == 0, line


def run_fastcxr(arguments: list[str]) -> int:
    """Run the command line in this process, which saves the imports, and return the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fastcxr", *arguments])
        return run_to_exit_code(
            lambda: app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        )


def shrink(arguments: list[str]) -> list[str]:
    """Return the arguments of a command with the settings of SMALL instead of those given."""
    if arguments[0] == "train" and not arguments[1].startswith("-"):
        arguments = ["train", replace_backbone(arguments[1]), *arguments[2:]]
    names = {"train": SMALL, "run": SMALL, "scout": ["image_size"]}.get(arguments[0], ())
    flags = {f"--{name.replace('_', '-')}": str(SMALL[name]) for name in names}
    kept, words = [], iter(arguments)
    for word in words:
        if word in flags:
            next(words)
        else:
            kept.append(word)
    return [*kept, *(part for pair in flags.items() for part in pair)]


def replace_backbone(name: str) -> str:
    """Return the name of a small backbone; `name` must be one that fastcxr finds."""
    find_backbone(name, "none")
    return SMALL_BACKBONE


def run_python(page: Path, blocks: list[Block]) -> None:
    """Execute the Python blocks of a page in one namespace, with small settings and a small backbone."""
    names = {"__name__": "docs"}
    with pytest.MonkeyPatch.context() as patch:
        recipe_class = fastcxr.Recipe

        def make_small_recipe(*backbone: str, **options):
            return recipe_class(*map(replace_backbone, backbone), **(options | SMALL))

        patch.setattr(fastcxr, "Recipe", make_small_recipe)
        for block in blocks:
            exec(compile("\n" * block.line + block.text, page, "exec"), names)  # lines as on the page
