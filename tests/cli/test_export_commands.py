"""Commands that use an exported model, in environments without torch, and those that need its run."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from mean_export import NOTICE, write_mean_export
from only_these import EVALUATE_PACKAGES, PREDICT_PACKAGES
from PIL import Image
from sample_images import make_dicom, save_dicom
from toy_findings import FINDINGS, write_finding_toys
from toy_images import draw_toy, write_toys

from fastcxr import load_export, load_model
from fastcxr.config.tasks import MULTI_LABEL
from fastcxr.errors import InputMissingError, ModelError, RecipeError
from fastcxr.io.formats import FORMAT_KEY, MODEL_FORMAT
from fastcxr.report.notices import read_terminal_notices
from fastcxr.workflows.verify import find_differences

pytestmark = [pytest.mark.needs("onnx", "onnxruntime"), pytest.mark.usefixtures("without_figures")]
ONLY_THESE = Path(__file__).parents[1] / "support" / "only_these.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with an export, and with images of several types."""
    folder = tmp_path_factory.mktemp("export")
    write_mean_export(folder / "export")
    (folder / "images").mkdir()
    gray = draw_toy("haze", 1)
    save_dicom(folder / "film.dcm", make_dicom(gray.astype("uint16") * 16, BitsStored=12))
    Image.fromarray(gray).save(folder / "images" / "a.jpg")
    Image.fromarray(gray // 8).save(folder / "images" / "dark.png")
    (folder / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def run_with(packages, *words, where) -> subprocess.CompletedProcess:
    """Run the command in a process that can import these packages and what they require."""
    command = [sys.executable, str(ONLY_THESE), ",".join(packages), *map(str, words)]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, encoding="utf-8", check=False)


def test_an_export_predicts_files_and_folders_without_torch_as_with_it(call, folder):
    words = ["predict", "export", "film.dcm", "images"]
    expected = call(*words, where=folder)
    done = run_with(PREDICT_PACKAGES, *words, "--csv", "predictions.csv", where=folder)
    assert (done.returncode, expected.returncode) == (2, 2), done.stderr
    assert (folder / "predictions.csv").read_text() == expected.stdout
    assert "precision: float32 with onnxruntime on cpu" in done.stderr.splitlines()
    rows = {row["path"]: row for row in csv.DictReader(expected.stdout.splitlines())}
    assert rows["images/dark.png"]["in_distribution"] == "no" and not rows["images/dark.png"]["predicted"]
    assert rows["images/broken.png"]["error"].startswith("FCX-E1")
    assert rows["film.dcm"]["prob_haze"] and rows["images/a.jpg"]["predicted"]
    done = run_with(PREDICT_PACKAGES, *words, "--json", where=folder)
    document = json.loads(done.stdout)
    assert (document["n_classified"], document["n_unreadable"], document["n_ood"]) == (2, 1, 1)
    found = {row["path"]: row["prob_haze"] for row in document["predictions"] if not row["error"]}
    assert found == {path: float(row["prob_haze"]) for path, row in rows.items() if row["prob_haze"]}


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["predict", "--help"]])
def test_help_is_shown_with_few_packages(folder, words):
    done = run_with(PREDICT_PACKAGES, *words, where=folder)
    assert done.returncode == 0, done.stderr
    assert "fastcxr" in done.stdout


def test_an_export_of_findings_has_decisions_and_hashed_names(call, folder, tmp_path):
    export = write_mean_export(tmp_path / "export", labels=("Edema", "Nodule"), task=MULTI_LABEL)
    done = call("predict", export, folder / "images", "--hash-names")
    table = pd.read_csv(pd.io.common.StringIO(done.stdout))
    assert {"prob_Edema", "decision_Nodule", "predicted"} <= set(table.columns)
    assert "a.jpg" not in done.stdout + done.stderr


@pytest.mark.parametrize("option", [["--engine", "openvino"], ["--precision", "bf16"]])
def test_an_option_of_a_run_is_rejected_for_an_export(call, folder, option):
    done = call("predict", folder / "export", folder / "images", *option)
    assert done.returncode == 64
    assert f"got {' '.join(option)}. Leave it out, or pass the run folder" in done.stderr.splitlines()[-1]


def test_fp32_is_the_precision_of_an_export(call, folder):
    done = call("predict", "export", "film.dcm", "--precision", "fp32", where=folder)
    assert done.returncode == 0 and "prob_haze" in done.stdout, done.stderr


@pytest.mark.parametrize("words", [["predict", "norun", "images"], ["evaluate", "norun", "--data", "images"]])
def test_a_wrong_folder_is_neither_run_nor_export(call, folder, words):
    done = call(*words, where=folder)
    assert "FCX-E304 norun: the folder does not exist. Pass the folder of a finished run or of an export" in done.stderr


def test_an_export_for_timm_does_not_predict(call, folder, tmp_path):
    done = call("predict", write_mean_export(tmp_path / "export", target="timm"), folder / "images")
    assert done.returncode == 65
    assert "this export is for timm, expected one for onnx" in done.stderr.splitlines()[-1]


def test_the_model_of_a_run_needs_torch_and_the_error_names_an_export(folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.json").write_text(json.dumps({FORMAT_KEY: MODEL_FORMAT}))
    done = run_with(PREDICT_PACKAGES, "predict", tmp_path / "run", "images", where=folder)
    assert (done.returncode, done.stdout) == (69, "")
    (line,) = done.stderr.splitlines()
    assert "FCX-E203: the model of the run run needs torch, torchvision, fastai, timm and safetensors" in line
    assert "or export the run with `fastcxr export`" in line
    done = run_with(PREDICT_PACKAGES, "predict", tmp_path / "other", "images", where=folder)
    assert done.stderr.startswith("fastcxr: FCX-E304"), "the wrong folder, not the packages"


@pytest.mark.parametrize(
    ("words", "packages"),
    [
        (["evaluate", "export", "--data", "images"], "scikit-learn scipy matplotlib jinja2 filelock platformdirs"),
        (["describe", "--data", "images"], "fastcxr"),
    ],
)
def test_a_command_names_the_packages_that_it_lacks_before_it_starts(folder, words, packages):
    done = run_with(PREDICT_PACKAGES, *words, "--out", "out", where=folder)
    (line,) = done.stderr.splitlines()
    assert line.startswith("fastcxr: FCX-E203: ") and f"`pip install {packages}`" in line
    assert done.returncode == 69 and not (folder / "out").exists()


@pytest.mark.parametrize("command", ["explain", "embed", "resume", "report", "verify", "compare"])
def test_a_command_that_needs_the_run_states_it(call, folder, command):
    more = {"explain": ["images"], "embed": ["images", "--to", "a.npz"], "compare": ["images"]}
    done = call(command, "export", *more.get(command, []), where=folder)
    (line,) = done.stderr.splitlines()
    assert "FCX-E304 export: an exported model, which has no " in line
    assert "Pass the run folder that was exported" in line and "`fastcxr serve`" in line


@pytest.mark.slow
def test_an_export_of_several_folds_is_evaluated_without_torch(call, folder, tmp_path):
    network = {"backbone": {"library": "timm", "name": "resnet50"}, "head": {}, "hflip_tta": True}
    network["input_spec"] = {"image_size": 32, "mean": [0.5], "std": [0.2]}
    export = write_mean_export(tmp_path / "export", model={"members": [network | {"choices": {}}]})
    write_toys(tmp_path / "toys", per_class=6)
    words = ["evaluate", export, "--data", "toys", "--out", "external"]
    done = run_with(EVALUATE_PACKAGES, *words, where=tmp_path)
    assert done.returncode == 0, done.stderr
    run_json = json.loads((tmp_path / "external" / "run.json").read_text())
    files = json.loads((export / "export.json").read_text())["files"]
    tested = {"run": "first", "failed": [], "export": "export", "overlap": {}, "files": files}
    assert run_json["tested"] == tested | {"notices": [{name: NOTICE[name] for name in ("title", "text")}]}
    page = (tmp_path / "external" / "report.html").read_text()
    assert "Test on other data of the model of run first, exported to export and run with onnxruntime." in page
    assert "This is an external test" not in page and "External test of" not in page
    title = "Overlap with the training images: unknown"
    notices = read_terminal_notices(tmp_path / "external")
    first = next(notice for notice in notices if notice.level == "warning")
    assert first.title == title
    assert "does not contain the list of training images" in first.text
    assert title in done.stderr and title in page and title in (tmp_path / "external" / "MODEL_CARD.md").read_text()
    assert "Logged warning" not in page
    assert f"SHA-256 of the model: {files['model.onnx']}" in (tmp_path / "external" / "MODEL_CARD.md").read_text()
    claim = (tmp_path / "external" / "CLAIM.md").read_text()
    assert "- [ ] **External test.** Unknown: " in claim and f"sha256 {files['model.onnx']}" in claim
    assert f"The run of the evaluated model has a critical notice: {NOTICE['title']}" in page
    table = pd.read_csv(tmp_path / "external" / "predictions.csv", keep_default_na=False)
    predicted = pd.read_csv(pd.io.common.StringIO(call("predict", export, "toys", where=tmp_path).stdout))
    pd.testing.assert_series_equal(table["prob_haze"], predicted["prob_haze"])
    assert call("verify", tmp_path / "external").returncode == 0
    assert call("report", tmp_path / "external").returncode == 0
    shutil.copytree(tmp_path / "external", tmp_path / "other")
    done = call("compare", "external", "other", "--out", "compared", where=tmp_path)
    assert (tmp_path / "compared" / "compare.html").exists(), done.stderr


def test_overlap_is_not_kept_with_an_export(call, folder):
    done = call("evaluate", "export", "--data", "images", "--keep-overlap", "--out", "kept", where=folder)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 64 and not (folder / "kept").exists()
    assert "does not contain the list of training images" in line and "got --keep-overlap. Leave it out" in line


def test_an_export_of_findings_is_evaluated(call, tmp_path):
    data = write_finding_toys(tmp_path / "toys", n_images=24)
    export = write_mean_export(tmp_path / "export", labels=FINDINGS, task=MULTI_LABEL)
    done = call("evaluate", export, "--data", data, "--out", tmp_path / "external")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "external" / "metrics.json").read_text())
    assert (metrics["test"]["labels"], metrics["test"]["n_images"]) == (list(FINDINGS), 24)
    table = pd.read_csv(tmp_path / "external" / "predictions.csv")
    assert table["decision_haze"].eq("yes").equals(table["prob_haze"] >= 0.35)
    assert call("verify", tmp_path / "external").returncode == 0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"calibration": {"thresholds": {"haze": {"threshold": 1.5}}}},
            """invalid value of 'calibration.thresholds.haze': {"threshold": 1.5}""",
        ),
        ({"calibration": {"thresholds": 3}}, "invalid value of 'calibration.thresholds': 3"),
        ({"calibration": {"uncertain_below": -0.1}}, "invalid value of 'calibration.uncertain_below': -0.1"),
        ({"bit_depths": {"sources": 3, "default": None}}, """invalid value of 'bit_depths': {"sources": 3, "default"""),
        ({"labels": ["haze", "haze"]}, """invalid value of 'labels': ["haze", "haze"]"""),
        (
            {"labels": ["haze"] * 100},
            """invalid value of 'labels': ["haze", "haze", "haze", "haze", "haze", "haze", "haze", "ha.... Copy""",
        ),
    ],
)
def test_invalid_values_of_export_json_are_an_error_of_one_line(call, folder, tmp_path, changes, problem):
    export = write_mean_export(tmp_path / "export")
    content = json.loads((export / "export.json").read_text()) | changes
    (export / "export.json").write_text(json.dumps(content))
    done = call("predict", export, folder / "images")
    assert done.returncode == 65
    (line,) = done.stderr.splitlines()
    assert f"FCX-E301 {tmp_path}/export/export.json: {problem}" in line


def test_swapped_labels_or_another_task_of_export_json_are_an_error(tmp_path):
    export = write_mean_export(tmp_path / "export")
    content = json.loads((export / "export.json").read_text())
    (export / "export.json").write_text(json.dumps(content | {"labels": ["haze", "clear", "opacity"]}))
    with pytest.raises(
        ModelError, match=r'FCX-E301.*labels \["clear", "haze", "opacity"\], expected .*\["haze", "clear"'
    ):
        load_export(export)
    (export / "export.json").write_text(json.dumps(content | {"task": MULTI_LABEL}))
    with pytest.raises(ModelError, match='FCX-E301.*task "single_label", expected those of export.json: "multi_label"'):
        load_export(export)


def test_an_export_of_another_format_names_both_numbers(tmp_path):
    export = write_mean_export(tmp_path / "export", format=2)
    with pytest.raises(ModelError, match=r"FCX-E306.*has the format 2, expected 1\. Export the run again$"):
        load_export(export)


def test_an_export_describes_itself(folder):
    text = repr(load_export(folder / "export"))
    assert text.startswith("<ExportedModel: 3 classes: clear, haze, opacity; 32 x 32 pixels; float32 with onnxruntime")
    assert f"; with OOD detector; critical: {NOTICE['title']}>" in text


def test_list_shows_exports(call, tmp_path):
    write_mean_export(tmp_path / "runs" / "export-first-1")
    write_mean_export(tmp_path / "runs" / "old", format=0)
    rows = {row["run"]: row for row in json.loads(call("list", "--json", where=tmp_path).stdout)}
    assert {name: (row["state"], row["target"]) for name, row in rows.items()} == {
        "export-first-1": ("export", "onnx"), "old": ("other version", "onnx"),
    }  # fmt: skip
    shown = call("list", where=tmp_path).stdout
    assert "export (onnx)" in shown and rows["old"]["date"][:10] in shown


def test_only_for_cuda_another_package_is_advised(folder):
    for device, fix in (("mps", "Pass `device='cpu'`"), ("cuda", "Pass `device='cpu'`, or install onnxruntime-gpu")):
        with pytest.raises(RecipeError, match=f"the device '{device}' here. {fix}$"):
            load_export(folder / "export", device)


@pytest.mark.parametrize("changes", [{"labels": ["a", "b"]}, {"image_size": 64}, {"has_ood_detector": False}])
def test_a_graph_that_does_not_match_export_json_is_not_run(folder, tmp_path, changes):
    export = write_mean_export(tmp_path / "export")
    content = json.loads((export / "export.json").read_text()) | changes
    (export / "export.json").write_text(json.dumps(content))
    with pytest.raises(
        ModelError,
        match=r"FCX-E305.*the model has images of n x 32 x 32, probabilities of n x 3, ood_score of n; expected im",
    ):
        load_export(export)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run": {}}, "KeyError"),
        ({"recipe": {"format": 2, "backbone": 7}}, "RecipeError"),
        ({"model": {"members": []}}, "IndexError"),
        ({"model": {"backbone": 3}}, "ValueError"),
        ({"notices": [3]}, "TypeError"),
    ],
)
def test_an_evaluation_needs_the_facts_on_the_training(call, folder, tmp_path, changes, reason):
    export = write_mean_export(tmp_path / "export", **changes)
    done = call("evaluate", export, "--data", folder / "images", "--out", tmp_path / "out")
    assert done.returncode == 65
    assert f"export.json: the facts on the training cannot be read ({reason})" in done.stderr


def test_python_predicts_with_an_export_without_torch(folder):
    code = """
import sys
from fastcxr import load_export, predict
print(predict(load_export("export"), ["film.dcm"]).probability.shape)
print({"torch", "fastai", "timm"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(1, 3)", "set()"]


def test_load_model_names_load_export(folder):
    with pytest.raises(InputMissingError, match="an exported model, which has no model.json.*load_export"):
        load_model(folder / "export")


@pytest.mark.slow
@pytest.mark.needs("onnxscript")
def test_the_metrics_of_an_export_are_those_of_its_run(call, finished, tmp_path):
    run, data, _ = finished
    assert call("export", run, "--data", data, "--out", tmp_path / "export").returncode == 0
    other = write_toys(tmp_path / "other", per_class=6, first=100)
    metrics = []
    for model, options in ((run, ["--precision", "fp32", "--device", "cpu"]), (tmp_path / "export", [])):
        folder = tmp_path / f"on-{model.name}"
        done = call("evaluate", model, "--data", other, "--out", folder, *options)
        assert done.returncode == 0, done.stderr
        metrics.append(json.loads((folder / "metrics.json").read_text()))
        assert call("verify", folder).returncode == 0
    assert set(metrics[0]) - set(metrics[1]) == {"internal_test", "external_drop"}
    differences = list(find_differences(metrics[0]["test"], metrics[1]["test"]))
    assert max((abs(one - other) for _, one, other in differences), default=0) < 1e-5
