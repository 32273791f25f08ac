"""Critical notices on the model of a run or an export, in the commands that use it."""

import json

import pytest
from mean_export import NOTICE, write_mean_export
from served_models import GrayScorer, make_png_bytes

from fastcxr.cli import models as cli
from fastcxr.cli.output import OutputOptions, run_to_exit_code, use_output_options
from fastcxr.export.exported_model import load_export
from fastcxr.io.files import write_json
from fastcxr.report import notices as report
from fastcxr.workflows import load_scorer as loading
from fastcxr.workflows.critical_notices import list_critical_notices, read_run_notices

LINE = f"CRITICAL: {NOTICE['title']}. {NOTICE['text']}"


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A folder with metrics whose report has a critical notice."""
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run/metrics.json", {})
    monkeypatch.setattr(report, "read_critical_notices", lambda folder: [report.Notice(**NOTICE)])
    return tmp_path / "run"


@pytest.mark.needs("onnx", "onnxruntime")
def test_only_valid_critical_notices_of_an_export_are_listed(tmp_path):
    notices = [NOTICE, "text", {"level": "critical"}, NOTICE | {"title": 7}, NOTICE | {"more": "x"}]
    export = write_mean_export(tmp_path / "export", notices=[*notices, NOTICE | {"level": "warning"}])
    assert list_critical_notices(export, load_export(export)) == [NOTICE, NOTICE]


def test_the_notices_of_a_run_are_those_of_its_report(run_folder, tmp_path):
    assert read_run_notices(run_folder) == [NOTICE]
    assert read_run_notices(tmp_path) == []  # without metrics, as a fold


def test_a_run_without_the_files_of_its_report_can_predict(tmp_path, caplog):
    (tmp_path / "metrics.json").write_text("{")
    assert read_run_notices(tmp_path) == []
    assert "the critical notices of the run" in caplog.text and "are unknown" in caplog.text


@pytest.mark.needs("onnx", "onnxruntime")
@pytest.mark.parametrize("kind", ["run", "export"])
@pytest.mark.parametrize("as_json", [False, True])
def test_predict_states_the_critical_notices(kind, as_json, run_folder, tmp_path, monkeypatch, capsys):
    export = write_mean_export(tmp_path / "export")
    (tmp_path / "a.png").write_bytes(make_png_bytes())
    if kind == "run":  # its report is read, and any scorer predicts
        monkeypatch.setattr(loading, "load_scorer", lambda folder, **options: GrayScorer())

    def command():
        use_output_options(OutputOptions(json=as_json, quiet=True))
        return cli.predict(run_folder if kind == "run" else export, str(tmp_path / "a.png"))

    assert run_to_exit_code(command) == 0
    output, errors = capsys.readouterr()
    assert errors.splitlines().count(LINE) == 1
    if as_json:
        assert json.loads(output)["critical"] == [NOTICE["title"]]
