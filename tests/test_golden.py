"""Regression tests of user-facing output against stored files: help texts, a report and its numbers."""

import io
import json
import shutil

import pytest
from golden_files import (
    GOLDEN,
    check_text,
    differing_shapes,
    is_updating,
    shapes_of,
    store_or_read,
    text_of,
    update_shapes,
)
from rich.console import Console

import fastcxr.cli.main  # noqa: F401  registers the commands
from fastcxr.cli.app import app
from fastcxr.report.run_page import write_run_report
from fastcxr.workflows.verify import find_differences

COMMANDS = sorted(name for name in app if not name.startswith("-"))
WIDTH = 100  # columns
TOLERANCE = 1.0  # points: axes positions depend on the text size, which differs between matplotlib releases


def show_help(*words: str) -> str:
    """Return the output of --help in a terminal of fixed width without colors."""
    shown = io.StringIO()
    app.help_print(words, console=Console(file=shown, width=WIDTH, color_system=None, legacy_windows=False))
    return "\n".join(line.rstrip() for line in shown.getvalue().splitlines()).strip() + "\n"


@pytest.mark.parametrize("command", ["fastcxr", *COMMANDS])
def test_the_help_of_a_command_matches_the_stored_text(command):
    check_text(show_help(*[command] * (command != "fastcxr")), f"help/{command}.txt")


def test_every_stored_help_text_belongs_to_a_command():
    obsolete = [path for path in (GOLDEN / "help").iterdir() if path.stem not in ("fastcxr", *COMMANDS)]
    if is_updating():
        for path in obsolete:
            path.unlink()
    else:
        assert obsolete == []


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory):
    """Write report, metrics and cards of the stored run with the current code; return the folder."""
    folder = tmp_path_factory.mktemp("golden") / "run"
    shutil.copytree(GOLDEN / "run", folder)
    write_run_report(folder)
    return folder


def test_the_text_of_the_report_matches_the_stored_text(redrawn):
    check_text(text_of((redrawn / "report.html").read_text(encoding="utf-8")), "drawn/report.txt")


@pytest.mark.parametrize("name", ["MODEL_CARD.md", "CLAIM.md"])
def test_model_card_and_claim_match_the_stored_text(redrawn, name):
    check_text((redrawn / name).read_text(encoding="utf-8"), f"drawn/{name}")


def test_the_metrics_match_the_stored_ones(redrawn):
    found = (redrawn / "metrics.json").read_text(encoding="utf-8")
    stored = json.loads(store_or_read(found, "drawn/metrics.json"))
    assert list(find_differences(stored, json.loads(found))) == [], "tolerance 1e-9; predictions.csv is unchanged"


FIGURES = sorted(path.stem for path in (GOLDEN / "drawn" / "shapes").glob("*.txt"))


def test_the_figures_have_the_stored_names(redrawn):
    drawn = sorted(path.stem for path in (redrawn / "figures").glob("*.svg"))
    if is_updating():
        update_shapes({name: read_shapes(redrawn, name) for name in drawn})
    else:
        assert drawn == FIGURES


@pytest.mark.parametrize("name", FIGURES)
def test_the_shapes_of_a_figure_match_the_stored_ones(redrawn, name):
    if not is_updating():  # the test above updates the shapes
        stored = (GOLDEN / "drawn" / "shapes" / f"{name}.txt").read_text(encoding="utf-8")
        assert differing_shapes(stored, read_shapes(redrawn, name), TOLERANCE) == []


def read_shapes(folder, name: str) -> str:
    return shapes_of((folder / "figures" / f"{name}.svg").read_text(encoding="utf-8"))


def test_a_changed_word_fails_with_its_line_and_the_update_command(monkeypatch):
    monkeypatch.delenv("FASTCXR_UPDATE_GOLDEN", raising=False)
    changed = (GOLDEN / "help" / "verify.txt").read_text(encoding="utf-8").replace("checksums", "parts")
    with pytest.raises(AssertionError, match="(?s)parts of all files.*FASTCXR_UPDATE_GOLDEN=1 make test-fast"):
        check_text(changed, "help/verify.txt")


def test_text_of_keeps_numbers_and_omits_styles_and_drawings():
    page = "<style>b{}</style><p>AUROC <b>0.912</b></p><svg><text>axis</text></svg><td>1</td><td>2 &lt; 3</td>"
    assert text_of(page) == "AUROC 0.912\n1 2 < 3\n"


@pytest.mark.parametrize(("d", "differs"), [("M 0.4 0 L 10 5", False), ("M 0 0 L 10 7", True), ("M 0 0 C 10 5", True)])
def test_differing_shapes_ignores_rounding_only(d, differs):
    stored, found = (shapes_of(f'<svg><text x="1">a</text><path d="{part}"/></svg>') for part in ("M 0 0 L 10 5", d))
    assert "text" not in stored
    assert bool(differing_shapes(stored, found, TOLERANCE)) is differs
    assert differing_shapes(stored, found + found, TOLERANCE) == ["1 shapes are stored, 2 are drawn"]
