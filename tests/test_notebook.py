"""Tests of the quickstart notebook on a CPU, and of the HTML display of its results."""

import os
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from fastcxr.data.manifest import ManifestSummary, describe_manifest, read_manifest
from fastcxr.data.splits import split_by_patient
from fastcxr.io.html import make_html_table
from fastcxr.metrics.predictions import make_predictions
from fastcxr.report.html import Page, write_page

try:
    import nbformat
except ModuleNotFoundError:
    nbformat = None

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
MAX_OUTPUT_CHARACTERS = 100_000  # of a stored output; images are text in base64
HOSTILE = "<script>alert('x')</script>\udc80&\"\u202e"
ESCAPED = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;\ufffd&amp;&quot;\ufffd"


def code_cells(notebook, tag: str | None = None) -> list:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if tag is None or tag in cell.metadata.get("tags", ())]


def write_small_sample(folder: Path) -> None:
    """Write 20 images per class of the sample into the cache folder of find_or_write_sample."""
    for label_dir in sorted((ROOT / "data" / "sample").iterdir()):
        if label_dir.is_dir():
            (folder / label_dir.name).mkdir(parents=True)
            for file in sorted(label_dir.iterdir())[:20]:
                shutil.copy(file, folder / label_dir.name)
    shutil.copy(ROOT / "data" / "sample" / "README.txt", folder)


def run_notebook(path: Path, folder: Path) -> dict[str, list]:
    """Run a notebook with random weights; return the outputs of each code cell by its id."""
    import nbclient

    write_small_sample(folder / "cache" / "fastcxr" / "sample-v1")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", ())]
    code_cells(notebook, "weights")[0].source = 'WEIGHTS = "none"'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        # raises the error of a cell that fails
        nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return {cell.id: cell.outputs for cell in code_cells(notebook)}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> dict[str, list]:
    """The outputs of the quickstart."""
    return run_notebook(NOTEBOOK, tmp_path_factory.mktemp("notebook"))


def mime_types(outputs: list) -> set[str]:
    return {name for output in outputs for name in output.get("data", {})}


def pages(outputs: list) -> str:
    return "".join(output.get("data", {}).get("text/html", "") for output in outputs)


@pytest.mark.parametrize("cell", ["batch", "rate", "one"])
@pytest.mark.needs("nbformat", "nbclient", "ipykernel")
def test_cells_with_figures_show_a_png(outputs, cell):
    assert "image/png" in mime_types(outputs[cell])


@pytest.mark.needs("nbformat", "nbclient", "ipykernel")
def test_manifest_predictions_and_report_are_displayed(outputs):
    assert "lobar_opacity" in pages(outputs["manifest"])
    assert "AUROC, macro" in pages(outputs["predict"])
    assert "<iframe srcdoc=" in pages(outputs["report"])
    assert "head" in pages(outputs["compare"])


@pytest.mark.needs("nbformat", "nbclient", "ipykernel")
def test_training_displays_a_table_and_no_progress_bar(outputs):
    assert "★" in pages(outputs["train"])
    assert "<progress" not in pages(outputs["train"])


@pytest.mark.needs("nbformat", "nbclient", "ipykernel")
def test_the_only_warning_is_about_random_weights(outputs):
    texts = [output.text for cell in outputs.values() for output in cell if output.output_type == "stream"]
    assert [text for text in texts if not text.startswith("strategy lp_ft needs pretrained weights")] == []


@pytest.mark.slow
@pytest.mark.needs("nbformat", "nbclient", "ipykernel")
def test_the_notebook_of_a_table_shows_an_error_with_its_fix_and_the_report(tmp_path):
    outputs = run_notebook(NOTEBOOK.with_name("own_data_csv.ipynb"), tmp_path)
    assert "Rename the column" in outputs["error"][0].text
    assert "AUROC, macro" in pages(outputs["predict"])
    assert "<iframe srcdoc=" in pages(outputs["report"])


@pytest.mark.slow
@pytest.mark.needs("nbformat", "nbclient", "ipykernel")
def test_the_notebook_of_external_validation_shows_the_difference(tmp_path):
    outputs = run_notebook(NOTEBOOK.with_name("external_validation.ipynb"), tmp_path)
    text = " ".join("".join(output.text for output in outputs["evaluate"]).split())
    assert "on the internal test set" in text
    assert "auroc.macro" in pages(outputs["difference"])


@pytest.mark.slow
@pytest.mark.needs("nbformat", "nbclient", "ipykernel", "onnx", "onnxruntime", "onnxscript")
def test_the_notebook_of_findings_predicts_with_its_export(tmp_path):
    outputs = run_notebook(NOTEBOOK.with_name("findings.ipynb"), tmp_path)
    assert "3 findings" in pages(outputs["manifest"])
    assert "auroc" in pages(outputs["metrics"])
    assert "threshold" in pages(outputs["thresholds"])
    assert "image/png" in mime_types(outputs["calibration"])
    assert "<div" in pages(outputs["saliency"])
    assert "haze" in pages(outputs["exported-predictions"])
    difference = next(output.text for output in outputs["exported-predictions"] if output.output_type == "stream")
    assert float(difference.split()[-1]) < 1e-4


@pytest.mark.needs("nbformat")
@pytest.mark.parametrize("path", sorted(NOTEBOOK.parent.glob("*.ipynb")), ids=lambda path: path.stem)
def test_stored_outputs_are_those_of_the_quickstart_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not [cell.id for cell in code_cells(notebook) if cell.execution_count]
    stored = {cell.id: str(cell.outputs) for cell in code_cells(notebook) if cell.outputs}
    assert set(stored) == ({"manifest", "batch", "train", "predict", "one", "compare"} if path == NOTEBOOK else set())
    assert max(map(len, stored.values()), default=0) < MAX_OUTPUT_CHARACTERS
    assert not [cell for cell, text in stored.items() if re.search(r"/(home|root|tmp|work|Users)/|<iframe", text)]


@pytest.mark.needs("nbformat")
def test_the_notebook_is_short_and_tags_its_two_special_cells_once():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert 12 <= len(code_cells(notebook)) <= 18
    assert [cell.source.split()[:2] for cell in code_cells(notebook, "install")] == [["%pip", "install"]]
    assert [cell.source for cell in code_cells(notebook, "weights")] == ['WEIGHTS = "pretrained"']


@pytest.mark.needs("nbformat")
def test_the_notebook_states_that_its_images_are_synthetic():
    first = nbformat.read(NOTEBOOK, as_version=4).cells[0].source
    assert "**synthetic**" in first
    assert "not for diagnosis" in first


def test_make_html_table_escapes_hostile_text():
    table = make_html_table([HOSTILE, "n"], [[HOSTILE, 1234]])
    assert "<script" not in table
    assert table.count(ESCAPED) == 2
    assert "1,234" in table


def test_describe_manifest_returns_text_with_a_table(toy_folder):
    manifest = read_manifest(toy_folder)
    summary = describe_manifest(manifest)
    assert summary == "3 classes, 30 images, 15 patients from NIH file names"
    assert list(summary.counts.columns) == ["all", "patients"]
    summary = describe_manifest(split_by_patient(manifest))
    assert list(summary.counts.columns) == ["train", "valid", "test", "all", "patients"]
    assert list(summary.counts.loc["all classes"])[-2:] == [30, 15]
    assert summary.counts.loc["haze", ["train", "valid", "test"]].sum() == 10
    assert "<th" in summary._repr_html_()
    assert summary in summary._repr_html_()


def test_describe_manifest_counts_no_patients_without_patient_identifiers(toy_manifest):
    unknown = toy_manifest.assign(patient_origin="image")
    assert "patients" not in describe_manifest(unknown)._repr_html_()


@pytest.mark.usefixtures("without_pyarrow")
def test_describe_manifest_escapes_hostile_labels(toy_manifest):
    page = describe_manifest(toy_manifest.assign(label=HOSTILE))._repr_html_()
    assert ESCAPED in page
    assert "<script" not in page
    assert "<b>" not in ManifestSummary("<b>")._repr_html_()


def make_example(split: str = "test", label: str = "haze", count: int = 6):
    names = [f"{HOSTILE}{k}.png" for k in range(count)]
    table = pd.DataFrame({"source": "toys", "path": names, "patient": names, "label": label, "split": split})
    return make_predictions(table, [[0.75, 0.25]] * count, ("haze", "clear"), ["FCX-E101 <i>cut off</i>"] + [""] * 5)


@pytest.mark.usefixtures("without_pyarrow")
def test_predictions_show_the_metrics_of_each_split_and_a_few_rows():
    page = make_example()._repr_html_()
    assert "6 images, 1 unreadable; the first 5:" in page
    assert "100.0 %" in page
    assert page.count(ESCAPED) == 5
    assert "&lt;i&gt;cut off&lt;/i&gt;" in page
    assert "<script" not in page
    assert "<i>" not in page


@pytest.mark.usefixtures("without_pyarrow")
def test_predictions_of_unlabelled_images_show_no_metrics():
    page = make_example(split="", label="")._repr_html_()
    assert "AUROC" not in page
    assert "label" not in page
    assert "0.750" in page


def test_a_page_is_a_path_with_an_html_display(tmp_path):
    page = write_page(tmp_path / "report.html", '<nav><a href="#data">Data</a></nav><p title="&quot;">x</p>', {})
    assert isinstance(page, Path)
    assert page == tmp_path / "report.html"
    shown = page._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;nav&gt;')
    assert shown.count('"') == 4, "the page cannot end the attribute"
    assert "about:srcdoc#data" in shown, "#data alone would load the notebook into the frame"
    assert "title=&quot;&amp;quot;&quot;" in shown


def test_a_missing_page_and_a_folder_are_displayed_as_paths(tmp_path):
    assert Page(tmp_path / "report.html")._repr_html_() is None
    assert Page(tmp_path)._repr_html_() is None
