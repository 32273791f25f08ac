"""The card fills in what the tool knows, leaves boxes for the rest, and takes names as words."""

import json
import re

import pytest

from fastcxr.report.run_page import write_run_report

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")


@pytest.fixture
def card(run_folder):
    write_run_report(run_folder)
    return (run_folder / "MODEL_CARD.md").read_text()


def test_the_figures_of_the_card_are_those_of_the_metrics(card, run_folder):
    part = json.loads((run_folder / "metrics.json").read_text())["test"]
    low, high = part["intervals"]["of"]["accuracy"]
    assert f"- Accuracy: {100 * part['accuracy']:.1f} % ({100 * low:.1f}–{100 * high:.1f} %)" in card
    assert f"{part['n_images']} images of {part['n_patients']} patients" in card


def test_what_only_people_know_is_an_open_box_and_nothing_else_is_empty(card):
    assert len(re.findall(r"^- \[ \] ", card, re.MULTILINE)) == 8
    assert "CLAIM 14 to 18" in card
    assert not re.search(r": (–|None|)$", card, re.MULTILINE), card


def test_every_warning_of_the_report_is_a_caveat(card):
    assert "Horizontal flip" in card and "External validity: unknown" in card


def test_names_are_words_and_not_html(run_folder):
    recipe = json.loads((run_folder / "recipe.json").read_text())
    (run_folder / "recipe.json").write_text(json.dumps(recipe | {"backbone": "<script>alert(1)</script>"}))
    write_run_report(run_folder)
    assert "<script>" not in (run_folder / "MODEL_CARD.md").read_text()
