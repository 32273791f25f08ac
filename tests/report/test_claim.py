"""Tests for CLAIM.md: no checked item is empty, every number is in the files of the run, names are escaped."""

import json
import re

import pytest
from synthetic_run import build_run

from fastcxr.io.formatting import format_number, format_score
from fastcxr.report.markdown import make_claim_checklist
from fastcxr.report.run_page import write_run_report
from fastcxr.report.run_reader import read_run_record

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")
ITEM = re.compile(r"- \[([ x])\] \*\*(?:[\d, to]+\. )?(.+?)\.\*\* (.*?) ?(\*To add:\* .+\.)?$", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = build_run(tmp_path_factory.mktemp("claim") / "run")
    write_run_report(folder)
    return folder


def read_items(folder):
    """Rows of (mark, topic, answer, what the authors must add)."""
    text = (folder / "CLAIM.md").read_text()
    items = ITEM.findall(text)
    assert len(items) == text.count("\n- [") == 31
    return items


def test_every_item_has_an_answer_or_a_request_to_the_authors(folder):
    items = read_items(folder)
    assert all((mark == "x") == (not to_add) for mark, _, _, to_add in items)
    assert all(len(answer) > 10 for mark, _, answer, _ in items if mark == "x")
    n_open = sum(mark == " " for mark, *_ in items)
    assert 8 < n_open < 21
    assert f"Unchecked items must be completed by the authors ({n_open} of 31)." in (folder / "CLAIM.md").read_text()


def test_no_checked_item_is_empty_in_a_folder_with_predictions_only(folder, tmp_path):
    (tmp_path / "predictions.csv").write_text((folder / "predictions.csv").read_text())
    write_run_report(tmp_path)
    assert all(len(answer) > 10 for mark, _, answer, _ in read_items(tmp_path) if mark == "x")
    assert "model.json is not in this folder." in (tmp_path / "CLAIM.md").read_text()


def test_a_folder_without_scored_images_has_a_checklist(folder, tmp_path):
    header, first, *_ = (folder / "predictions.csv").read_text().splitlines()
    columns = dict(zip(header.split(","), first.split(","), strict=True))
    columns |= {name: "" for name in columns if name.startswith("p_") or name == "predicted"} | {"error": "bad file"}
    (tmp_path / "predictions.csv").write_text(f"{header}\n{','.join(columns.values())}\n")
    write_run_report(tmp_path)
    assert all(len(answer) > 10 for mark, _, answer, _ in read_items(tmp_path) if mark == "x")


def find_numbers(value):
    if isinstance(value, dict):
        return {n for key, part in value.items() for n in find_numbers(key) | find_numbers(part)}
    if isinstance(value, list):
        return {n for part in value for n in find_numbers(part)}
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, str):
        return set(re.findall(r"\d[\d.,]*\d|\d", value))
    shown = {f"{value:,}", str(value), f"{value:.3g}", format_score(value), format_number(value)}
    return shown | ({f"{100 * value:.1f}", f"{100 * min(value, 0.999):.1f}"} if abs(value) <= 1 else set())


def test_every_number_is_in_the_files_of_the_run(folder):
    known = {"0", "95"}  # no image left out; confidence level
    for name in ("metrics", "run", "recipe", "model"):
        known |= find_numbers(json.loads((folder / f"{name}.json").read_text()))
    table = read_run_record(folder).manifest
    counts = [len(table), table["patient"].nunique(), table["source"].nunique()]
    for _, rows in table.groupby("split"):
        counts += [len(rows), rows["patient"].nunique()]
    known |= {f"{n:,}" for n in counts}
    answers = " ".join(answer for _, topic, answer, _ in read_items(folder) if topic != "Limitations")
    numbers = set(re.findall(r"\d[\d.,]*\d|\d", re.sub(r"sha256 \w+|DICOM|8-bit", "", answers)))
    assert numbers <= known


def test_missing_steps_are_stated(folder):
    text = (folder / "CLAIM.md").read_text()
    assert "Not done: external validity is unknown." in text
    assert "The data contains neither sex nor age nor view." in text
    assert "The data contains no groups to compare." in text


def test_tags_in_names_are_escaped_and_control_characters_replaced(folder):
    record, metrics = read_run_record(folder), json.loads((folder / "metrics.json").read_text())
    record.recipe["classes"] = ["<script>", "a\u202eb & 'c'"]
    text = make_claim_checklist(record, metrics)
    assert "<script>" not in text and "&lt;script&gt;, a\ufffdb & 'c'" in text
