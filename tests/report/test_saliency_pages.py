"""Tests for the saliency maps of reports and explain.html."""

import json

import numpy as np
import pandas as pd
import pytest
from html_page import Page
from synthetic_run import build_run, write_thumbnail

from fastcxr.errors import InputMissingError
from fastcxr.metrics.predictions import mark_ood, read_predictions, select_most_wrong, write_predictions
from fastcxr.report.run_page import write_run_report
from fastcxr.report.saliency_page import write_saliency_page

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")

CHECK = {"correlation": [0.2, 0.04], "images": 4, "passed": True}


def write_maps(folder, rows, **facts):
    """Write saliency.csv and explain.json. `rows`: role, source, path and class of each map."""
    (folder / "figures" / "maps").mkdir(parents=True, exist_ok=True)
    withheld = facts.get("failure_reason", "")
    table = []
    for number, (role, source, path, label) in enumerate(rows):
        name = "" if withheld else f"figures/maps/{number:04d}.jpg"
        if name:
            write_thumbnail(folder / name, number)
        table.append([role, source, path, label, label, 0.75, "" if withheld else 0.42, withheld, "", name])
    columns = ["role", "source", "path", "predicted", "class", "probability", "border_share", "note", "error", "file"]
    pd.DataFrame(table, columns=columns).to_csv(folder / "saliency.csv", index=False)
    facts = {"method": "grad_cam", "failure_reason": "", "check": CHECK, "border_share": {}} | facts
    (folder / "explain.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a run folder without a report, and the rows of its most confident errors."""
    folder = build_run(tmp_path_factory.mktemp("run"))
    wrong = select_most_wrong(read_predictions(folder / "predictions.csv"), 8)
    return folder, [("wrong", row.source, row.path, row.predicted) for row in wrong.itertuples()]


def read_page(path):
    return Page(path.read_text(encoding="utf-8"))


def test_errors_and_typical_images_are_shown_with_their_maps(whole):
    folder, rows = whole
    write_maps(folder, [*rows, ("typical", "here", "sure.png", rows[0][3]), ("measured", "here", "x.png", "y")])
    text = write_run_report(folder).read_text(encoding="utf-8")
    assert text.count("with saliency map, true class") == len(rows)
    assert text.count('alt="Radiograph sure.png, with saliency map for') == 1
    page = Page(text)
    assert "Grad-CAM of the correct predictions" in page.text and "was 0.20 and 0.04" in page.text
    assert "x.png" not in page.text, "maps with the role measured are not shown"


def test_an_out_of_distribution_image_is_marked_on_its_card(tmp_path):
    folder = build_run(tmp_path)
    predictions = read_predictions(folder / "predictions.csv")
    wrong = select_most_wrong(predictions, 1).iloc[0]
    is_ood = (predictions.table["path"] == wrong["path"]).to_numpy()
    write_predictions(mark_ood(predictions, np.where(is_ood, 2.0, 0.5)), folder / "predictions.csv")
    text = write_run_report(folder).read_text(encoding="utf-8")
    assert text.count("out-of-distribution: no predicted class") == 1
    card = next(card for card in text.split("<article") if "out-of-distribution: no predicted class" in card)
    assert f"<span>Most probable</span> <b>{wrong['predicted']}</b>" in card and "<span>Predicted</span>" not in card


def test_a_border_share_above_one_half_is_a_warning(whole):
    folder, rows = whole
    outside = {"flu": {"median": 0.51, "images": 8}, "none": {"median": 0.5, "images": 7}}
    page = read_page(write_run_report(write_maps(folder, rows, border_share=outside)))
    assert "High saliency at the image border" in page.text and "flu 51.0 % (8 images). A uniform map" in page.text
    page = read_page(write_run_report(write_maps(folder, rows, border_share={"none": outside["none"]})))
    assert "High saliency" not in page.text and "50.0 %" in page.text


def test_the_report_has_the_reason_of_withheld_maps_and_no_map(whole):
    folder, rows = whole
    text = write_run_report(write_maps(folder, rows, failure_reason="the map hardly changes")).read_text(
        encoding="utf-8"
    )
    assert "Saliency maps withheld" in text and "The map hardly changes." in text
    assert "with saliency map, true class" not in text


def test_a_run_without_maps_has_no_saliency_section(tmp_path):
    page = read_page(write_run_report(build_run(tmp_path)))
    assert "saliency" not in page.text.lower()


def test_a_map_outside_the_folder_is_not_embedded(tmp_path):
    write_thumbnail(tmp_path / "secret.jpg", 1)
    folder = write_maps(tmp_path / "maps", [("", "here", "a.png", "flu")])
    table = pd.read_csv(folder / "saliency.csv", keep_default_na=False)
    table.assign(file="../secret.jpg").to_csv(folder / "saliency.csv", index=False)
    assert "data:image" not in write_saliency_page(folder).read_text(encoding="utf-8")


def test_explain_html_is_reproducible_and_escapes_names(tmp_path):
    folder = write_maps(tmp_path / "maps", [("", "here", "<b>.png", "flu"), ("", "here", "b.png", "cold")])
    first = write_saliency_page(folder).read_bytes()
    assert write_saliency_page(folder).read_bytes() == first
    assert b"<b>.png" not in first and first.count(b"data:image/jpeg") == 2


def test_a_folder_without_maps_is_an_error(tmp_path):
    with pytest.raises(InputMissingError, match="no saliency.csv.*Pass an output folder of fastcxr explain"):
        write_saliency_page(tmp_path)
