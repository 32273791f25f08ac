"""A report shows the maps that a run left, warns of attention in the border, and shows none that are withheld."""

import json

import pandas as pd
import pytest
from html_page import Page
from synthetic_run import build_run, write_thumbnail

from fastcxr.errors import InputMissingError
from fastcxr.metrics.predictions import read_predictions, select_most_wrong
from fastcxr.report.run_page import write_run_report
from fastcxr.report.saliency_page import write_saliency_page

pytestmark = pytest.mark.usefixtures("without_figures", "few_draws")

CHECK = {"correlation": [0.2, 0.04], "images": 4, "passed": True}


def write_maps(folder, rows, **facts):
    """saliency.csv and explain.json as a run writes them. `rows`: role, path and class of each map."""
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
    """A run folder without a report, and its most wrong rows."""
    folder = build_run(tmp_path_factory.mktemp("run"))
    wrong = select_most_wrong(read_predictions(folder / "predictions.csv"), 8)
    return folder, [("wrong", row.source, row.path, row.predicted) for row in wrong.itertuples()]


def page_of(path):
    return Page(path.read_text(encoding="utf-8"))


def test_the_most_wrong_images_and_the_typical_ones_stand_beside_their_maps(whole):
    folder, rows = whole
    write_maps(folder, [*rows, ("typical", "here", "sure.png", rows[0][3]), ("measured", "here", "x.png", "y")])
    text = write_run_report(folder).read_text(encoding="utf-8")
    assert text.count("and its heat map, truth") == len(rows)
    assert text.count('alt="Radiograph sure.png, and its heat map for') == 1
    page = Page(text)
    assert "Grad-CAM of the surest right answers" in page.text and "was 0.20 and 0.04" in page.text
    assert "x.png" not in page.text, "what is only measured is not shown"


def test_attention_in_the_border_is_warned_of_from_more_than_half_on(whole):
    folder, rows = whole
    outside = {"flu": {"median": 0.51, "images": 8}, "none": {"median": 0.5, "images": 7}}
    page = page_of(write_run_report(write_maps(folder, rows, border_share=outside)))
    assert "High saliency at the image border" in page.text and "flu 51.0 % (8 images). A uniform map" in page.text
    page = page_of(write_run_report(write_maps(folder, rows, border_share={"none": outside["none"]})))
    assert "High saliency" not in page.text and "50.0 %" in page.text


def test_withheld_maps_are_not_in_the_report_and_it_says_why(whole):
    folder, rows = whole
    text = write_run_report(write_maps(folder, rows, failure_reason="the map hardly changes")).read_text(
        encoding="utf-8"
    )
    assert "Saliency maps withheld" in text and "The map hardly changes." in text
    assert "and its heat map, truth" not in text


def test_a_report_of_an_earlier_run_has_no_maps_and_no_word_of_them(tmp_path):
    page = page_of(write_run_report(build_run(tmp_path)))
    assert "heat map" not in page.text and "Where the model looks" not in page.text


def test_a_map_from_outside_the_folder_does_not_get_in(tmp_path):
    write_thumbnail(tmp_path / "secret.jpg", 1)
    folder = write_maps(tmp_path / "maps", [("", "here", "a.png", "flu")])
    table = pd.read_csv(folder / "saliency.csv", keep_default_na=False)
    table.assign(file="../secret.jpg").to_csv(folder / "saliency.csv", index=False)
    assert "data:image" not in write_saliency_page(folder).read_text(encoding="utf-8")


def test_a_page_of_maps_is_redrawn_from_its_folder_alone(tmp_path):
    folder = write_maps(tmp_path / "maps", [("", "here", "<b>.png", "flu"), ("", "here", "b.png", "cold")])
    first = write_saliency_page(folder).read_bytes()
    assert write_saliency_page(folder).read_bytes() == first
    assert b"<b>.png" not in first and first.count(b"data:image/jpeg") == 2


def test_a_folder_without_maps_says_what_to_name(tmp_path):
    with pytest.raises(InputMissingError, match="no saliency.csv.*Name one that fastcxr explain made"):
        write_saliency_page(tmp_path)
