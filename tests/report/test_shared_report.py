"""Tests for the report without images, and the files that are published: no image, path or patient in any of them."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from finding_run import build_finding_run, make_finding_manifest
from html_page import Page
from planted_identifiers import NAME
from planted_run import DATASET, WEIGHTS, plant_identifiers
from synthetic_run import build_run, make_manifest

from fastcxr.config.recipe import Recipe
from fastcxr.errors import InputMissingError
from fastcxr.io.files import compute_sha256, read_checksums
from fastcxr.report.feature_map import make_feature_map_figures
from fastcxr.report.run_page import render_image_free_report, write_image_free_report, write_run_report
from fastcxr.report.run_reader import read_run_record
from fastcxr.report.shared_files import make_shared_card, make_shared_metrics, make_shared_recipe
from fastcxr.report.shared_record import NOT_SHARED, make_shared_options, make_shared_record, number_names
from fastcxr.report.style import to_svg_figure
from fastcxr.workflows.verify import verify

pytestmark = pytest.mark.usefixtures("few_draws")
FINDINGS = ("Edema", "Mass")


def build_planted(folder, kind):
    """Write a run folder of a kind, with identifiers in all files and a report; return the forbidden texts."""
    if kind == "findings":
        build_finding_run(folder, FINDINGS, make_finding_manifest(FINDINGS, 120, share=0.4))
    else:
        manifest = make_manifest(n=200).assign(sex=np.resize(["F", "M"], 200), age=np.resize(["41", "72"], 200))
        build_run(folder, manifest)
    if kind == "folds":
        pool_folds(folder)
    forbidden = plant_identifiers(folder)
    run = json.loads((folder / "run.json").read_text())
    if kind in ("evaluation", "export"):
        tested = {"run": f"run-{NAME}", "failed": ["Near-duplicates."], "overlap": {"kept": False, "training": {}}}
        if kind == "export":
            tested |= {"overlap": {}, "export": f"export-{NAME}", "notices": [], "files": {"model.onnx": "12" * 32}}
        (folder / "run.json").write_text(json.dumps(run | {"tested": tested}))
    return forbidden


def pool_folds(folder):
    """Turn the folder into one of two folds: each image has an out-of-fold prediction."""
    table = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
    table.assign(split="oof", fold=np.resize(["1", "2"], len(table))).to_csv(folder / "predictions.csv", index=False)
    folds = pd.DataFrame({"fold": [1, 2], "n_images": 30, "n_patients": 12, "accuracy": 0.5, "auroc": 0.7})
    folds.assign(balanced_accuracy=0.5, average_precision=0.6).to_csv(folder / "folds.csv", index=False)
    for name in ("history.csv", "model.json"):
        (folder / name).unlink()


def find_leaks(text, forbidden):
    return sorted(part for part in forbidden if part in text)


def make_published_files(folder):
    """Return the text of each file that is published."""
    return {
        "report": render_image_free_report(folder),
        "card": make_shared_card(folder),
        "metrics": json.dumps(make_shared_metrics(folder), ensure_ascii=False),
        "recipe": json.dumps(make_shared_recipe(folder), ensure_ascii=False),
    }


@pytest.fixture
def no_figures(monkeypatch):
    """Leave out the figures, which take most of the time; a slow test has them."""
    monkeypatch.setattr("fastcxr.report.run_page.make_run_figures", lambda *_: {})


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("kind", ["findings", "folds", "evaluation"])
def test_no_published_file_has_an_image_a_path_or_a_patient(tmp_path, kind):
    forbidden = build_planted(tmp_path / "run", kind)
    full = write_run_report(tmp_path / "run", figures=False).read_text(encoding="utf-8")
    assert len(find_leaks(full, forbidden)) > 10, "the search must find what the full report has"
    files = make_published_files(tmp_path / "run")
    assert {name: find_leaks(text, forbidden) for name, text in files.items()} == dict.fromkeys(files, [])
    page = Page(files["report"])
    assert not page.open and not page.sources and "img" not in page.tags
    assert "no images, file names or patient identifiers" in page.text
    assert DATASET in files["report"] and DATASET in files["recipe"]
    assert kind == "folds" or WEIGHTS in files["card"]
    assert kind != "evaluation" or "External test of the model of another run." in page.text


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A run with identifiers in all files and its full report, and the forbidden texts."""
    folder = tmp_path_factory.mktemp("planted") / "run"
    forbidden = build_planted(folder, "classes")
    write_run_report(folder, figures=False)
    return folder, forbidden


@pytest.fixture(scope="module")
def shared_text(planted):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcxr.report.run_page.make_run_figures", lambda *_: {})
        return render_image_free_report(planted[0])


def find_tables(text):
    return re.findall("<table.*?</table>", text, re.DOTALL)


def test_counts_and_metrics_are_those_of_the_full_report(planted, shared_text):
    full = (planted[0] / "report.html").read_text(encoding="utf-8")
    assert find_tables(shared_text) == find_tables(full) and len(find_tables(full)) > 5
    assert find_leaks(shared_text, planted[1]) == [] and len(find_leaks(full, planted[1])) > 10


def test_the_map_of_the_features_is_that_of_the_full_report(planted):
    record = read_run_record(planted[0])
    shared = make_shared_record(record)
    assert make_feature_map_figures(shared) == make_feature_map_figures(record) != []
    assert find_leaks(shared.feature_map.to_csv(), planted[1]) == []
    assert find_leaks(shared.predictions.table.to_csv() + shared.manifest.to_csv(), planted[1]) == []


def test_numbers_sort_like_the_names():
    numbers = number_names("image", pd.Series(["b", "", "a"]), pd.Series(["c", "b"]))
    assert numbers == {"": "", "a": "image 0000001", "b": "image 0000002", "c": "image 0000003"}


def test_each_section_without_its_content_refers_to_the_full_report(shared_text):
    text = Page(shared_text).text
    for sentence in (
        "The full report shows the most confident errors.",
        "The full report has the files and reasons.",
        'The full report has the command. "not shared": the value may',
        "patient regex not shared",
        "The full report has the 3 messages of the run.",
        "Logged warning. 2 warnings of the run: only the full report has the text.",
        "Reason given: not shared",
        "No saliency map of 1 image",
        "Date: 2026-03-01. It checked",
        "The options were selected by 4 trials.",
    ):
        assert sentence in text
    assert "no thumbnail" not in text and "Example images" not in text and "Gray values" in text


def test_a_figure_that_fails_is_left_out_without_the_reason(planted, monkeypatch):
    def fail(*_):
        raise OSError(f"{NAME}.ttf")

    left_out = to_svg_figure(fail, "roc", "")
    assert NAME in left_out.svg
    monkeypatch.setattr("fastcxr.report.run_page.make_run_figures", lambda *_: {"roc": left_out})
    text = render_image_free_report(planted[0])
    assert "Figure roc left out." in text and NAME not in text


def test_the_card_refers_to_published_files_only(planted):
    card = make_shared_card(planted[0])
    names = set(re.findall(r"[\w-]+\.(?:csv|html|json|md|npz)\b", card))
    assert names == {"recipe.json", "metrics.json", "report-no-images.html"}
    assert "Command" not in card and "2 images" in card


def test_the_shared_recipe_is_a_recipe(planted, tmp_path):
    content = make_shared_recipe(planted[0])
    (tmp_path / "recipe.json").write_text(json.dumps({name: x for name, x in content.items() if name != "strategy"}))
    recipe = Recipe.from_json(tmp_path)
    assert recipe.data == (DATASET, DATASET) and recipe.weights == f"{WEIGHTS}.pth" and recipe.epochs == 3
    assert recipe.filter == (f"patient={NOT_SHARED}", f"ward={NOT_SHARED}", "View Position=PA")
    assert recipe.patient_regex == recipe.reuse_split == recipe.waive_audit == NOT_SHARED
    assert recipe.relabel == () and recipe.patient_tag is None


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("../data/ozturk", "ozturk"),
        ("/d/a.csv", "a"),
        ("a.b", "a.b"),
        (".", "data"),
        ("..", "data"),
        ("C:\\d\\x\\", "x"),
    ],
)
def test_a_dataset_has_the_last_part_of_its_path_as_name(data, name):
    assert make_shared_options({"data": data}) == {"data": name}


def test_an_option_that_is_not_set_stays_so():
    options = {"patient_table": None, "split_file": None, "filter": [], "waive_audit": None, "weights": "pretrained"}
    assert make_shared_options(options) == options


@pytest.mark.usefixtures("no_figures")
def test_the_report_is_written_beside_the_full_one_and_verified(planted, tmp_path):
    folder = shutil.copytree(planted[0], tmp_path / "run")
    full = (folder / "report.html").read_bytes()
    page = write_image_free_report(folder)
    assert page == folder / "report-no-images.html" and (folder / "report.html").read_bytes() == full
    assert read_checksums(folder)[page.name] == compute_sha256(page)
    assert [fault for fault in verify(folder)[0] if fault.path == page] == []


@pytest.mark.parametrize("name", ["describe.html", "audit.html", "explain.html"])
def test_a_page_of_images_is_refused_with_the_reason(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(InputMissingError, match=f"{name} has no version without images.*Pass the folder") as caught:
        render_image_free_report(tmp_path)
    assert caught.value.code == "E711"


def test_a_folder_without_run_is_an_error(tmp_path):
    for make in (render_image_free_report, make_shared_card, make_shared_metrics, make_shared_recipe):
        with pytest.raises(InputMissingError, match="Pass the folder of a finished run"):
            make(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "findings", "folds", "evaluation", "export"])
def test_figures_are_those_of_the_full_report_and_have_no_identifier(tmp_path, kind):
    forbidden = build_planted(tmp_path / "run", kind)
    full = write_run_report(tmp_path / "run").read_text(encoding="utf-8")
    shared = render_image_free_report(tmp_path / "run")
    figures = [re.findall(r"<svg .*?</svg>", text, re.DOTALL) for text in (shared, full)]
    assert figures[0] == figures[1] and len(figures[0]) > 5
    assert find_leaks(shared, forbidden) == []
