"""The checklist: nothing that the tool should know is empty, and no number in it comes from nowhere."""

import json
import re

import pytest
from synthetic_run import build_run

from fastcxr.io.formatting import format_number, format_score
from fastcxr.report.claim import list_items, make_claim_checklist
from fastcxr.report.run_page import write_run_report
from fastcxr.report.run_reader import read_run_record

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = build_run(tmp_path_factory.mktemp("claim") / "run")
    write_run_report(folder)
    return folder


def items(folder):
    record, metrics = read_run_record(folder), json.loads((folder / "metrics.json").read_text())
    return [item for section in list_items(record, metrics).values() for item in section]


def test_no_item_that_is_ticked_is_empty(folder):
    found = items(folder)
    assert all(len(item.answer) > 10 for item in found if not item.open_question)
    assert all(item.answer or item.open_question for item in found)
    text = (folder / "CLAIM.md").read_text()
    assert text.count("- [x]") == sum(not item.open_question for item in found) > 10
    assert text.count("- [ ]") == sum(bool(item.open_question) for item in found) > 8


def test_no_item_is_empty_in_a_folder_of_predictions_alone(folder, tmp_path):
    (tmp_path / "predictions.csv").write_text((folder / "predictions.csv").read_text())
    write_run_report(tmp_path)
    assert all(len(item.answer) > 10 for item in items(tmp_path) if not item.open_question)
    assert "is not in this folder" in (tmp_path / "CLAIM.md").read_text()


def numbers_of(value):
    if isinstance(value, dict):
        return {n for key, part in value.items() for n in numbers_of(key) | numbers_of(part)}
    if isinstance(value, list):
        return {n for part in value for n in numbers_of(part)}
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, str):
        return set(re.findall(r"\d[\d.,]*\d|\d", value))
    shown = {f"{value:,}", str(value), f"{value:.3g}", format_score(value), format_number(value)}
    return shown | ({f"{100 * value:.1f}", f"{100 * min(value, 0.999):.1f}"} if abs(value) <= 1 else set())


def test_every_number_is_found_in_the_files_of_the_run(folder):
    known = {"0", "95"}  # nothing left out; the level of all intervals
    for name in ("metrics", "run", "recipe", "model"):
        known |= numbers_of(json.loads((folder / f"{name}.json").read_text()))
    table = read_run_record(folder).manifest
    counts = [len(table), table["patient"].nunique(), table["source"].nunique()]
    for _, rows in table.groupby("split"):
        counts += [len(rows), rows["patient"].nunique()]
    known |= {f"{n:,}" for n in counts}
    said = " ".join(item.answer for item in items(folder) if item.topic != "Limits")
    strange = set(re.findall(r"\d[\d.,]*\d|\d", re.sub(r"sha256 \w+|DICOM|8-bit", "", said))) - known
    assert not strange


def test_what_was_not_done_is_said_and_not_left_out(folder):
    text = (folder / "CLAIM.md").read_text()
    assert "Not done: external validity is unknown." in text
    assert "The data says neither sex nor age nor view." in text
    assert "The data names no groups to compare." in text


def test_names_are_words_and_no_html(folder):
    record, metrics = read_run_record(folder), json.loads((folder / "metrics.json").read_text())
    record.recipe["classes"] = ["<script>"]
    assert "<script>" not in make_claim_checklist(record, metrics)
