"""Tests for MODEL_CARD.md: metrics, unchecked items, caveats and escaping."""

import json
import re

import pytest

from fastcxr.report.run_page import write_run_report

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")


@pytest.fixture
def card(run_folder):
    write_run_report(run_folder)
    return (run_folder / "MODEL_CARD.md").read_text()


def test_the_card_has_the_metrics_of_metrics_json(card, run_folder):
    part = json.loads((run_folder / "metrics.json").read_text())["test"]
    low, high = part["intervals"]["of"]["accuracy"]
    assert f"- Accuracy: {100 * part['accuracy']:.1f} % ({100 * low:.1f}–{100 * high:.1f} %)" in card
    assert f"{part['n_images']} images of {part['n_patients']} patients" in card


def test_items_for_the_authors_are_unchecked_and_no_other_item_is_empty(card):
    assert len(re.findall(r"^- \[ \] ", card, re.MULTILINE)) == 8
    assert "CLAIM 14 to 18" in card
    assert not re.search(r": (–|None|)$", card, re.MULTILINE), card


def test_every_notice_of_the_report_is_a_caveat(card):
    assert "Horizontal flip" in card and "External validity: unknown" in card


def test_tags_in_names_are_escaped(run_folder):
    recipe = json.loads((run_folder / "recipe.json").read_text())
    (run_folder / "recipe.json").write_text(json.dumps(recipe | {"backbone": "<script>alert(1)</script>"}))
    write_run_report(run_folder)
    assert "<script>" not in (run_folder / "MODEL_CARD.md").read_text()


def test_the_card_of_a_chest_encoder_has_its_licence_and_citation(card, run_folder):
    assert "Licence of the initial weights" not in card
    model = json.loads((run_folder / "model.json").read_text())
    model["backbone"] |= {"licence": "MIT (page)", "citation": "EVA-X, 2025"}
    (run_folder / "model.json").write_text(json.dumps(model))
    write_run_report(run_folder)
    card = (run_folder / "MODEL_CARD.md").read_text()
    assert "- Licence of the initial weights: MIT (page)\n- Citation of the initial weights: EVA-X, 2025\n" in card
