"""The command serve, and what it loads from a run folder."""

import json
import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import httpx
import pytest
from mean_export import LABELS, NOTICE, write_mean_export
from only_these import PREDICT_PACKAGES
from served_models import make_fields, make_png_bytes, make_served_model
from starlette.testclient import TestClient

from fastcxr.cli import serving
from fastcxr.data.imaging.memory import FileInMemory
from fastcxr.export.exported_model import load_export
from fastcxr.inference.explain_one import GradCamExplainer
from fastcxr.inference.occlusion import OcclusionExplainer
from fastcxr.inference.predict import predict
from fastcxr.inference.torch_scorer import TorchScorer
from fastcxr.models.bundle import Ensemble, load_model
from fastcxr.serve import server
from fastcxr.serve.app import make_app
from fastcxr.serve.options import ServeOptions
from fastcxr.workflows import serve as workflow
from fastcxr.workflows.serve import load_served_model, make_image_explainer, read_model_card

ONLY_THESE = Path(__file__).parents[1] / "support" / "only_these.py"


@pytest.fixture
def served(monkeypatch):
    """Replace the server, and return the models and options that it receives."""
    calls = []

    def serve_model(model, options, listening, show_urls):
        calls.append((model, options))
        show_urls(server.list_urls(options))
        return server.Stop()

    monkeypatch.setattr(server, "serve_model", serve_model)
    monkeypatch.setattr(server, "find_network_address", lambda host: "192.168.1.5")
    monkeypatch.setattr(server, "open_socket", lambda host, port: nullcontext())
    monkeypatch.setattr(workflow, "load_served_model", lambda folder, **options: make_served_model(name=folder.name))
    return calls


def test_serve_prints_the_url_and_the_critical_notices_and_ends_with_0(call, served):
    done = call("serve", "run", "--port", "8123", "--max-waiting", "3")
    assert done.returncode == 0
    assert done.stdout == "serving run at http://127.0.0.1:8123/\n"
    assert "CRITICAL: Image-level split. Patients may be in two splits." in done.stderr
    assert "For research, not for diagnosis" in done.stderr and done.stderr.rstrip().endswith("stopped")
    assert served[0][1] == ServeOptions(port=8123, max_waiting=3)


def test_a_request_has_one_time_in_the_log_file(call, served, monkeypatch, tmp_path):
    def serve_model(model, options, listening, show_urls):
        TestClient(make_app(model, options), base_url="http://127.0.0.1:8000").get("/healthz")
        return server.Stop()

    monkeypatch.setattr(server, "serve_model", serve_model)
    call("serve", "run", "--log-file", tmp_path / "log.txt")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert len(lines) == 3 and all(len(re.findall(r"\d\d:\d\d:\d\d", line)) == 1 for line in lines)


@pytest.mark.parametrize(("is_forced", "exit_code"), [(False, 0), (True, 130)])
def test_a_stop_during_a_computation_ends_the_process_at_once(call, served, monkeypatch, is_forced, exit_code):
    ended = []
    monkeypatch.setattr(server, "serve_model", lambda *_: server.Stop(is_forced, is_computing=True))
    monkeypatch.setattr(serving, "end_process", ended.append)
    assert call("serve", "run").stderr.splitlines()[-1] == "stopped before the end of a computation"
    assert ended == [exit_code]
    monkeypatch.setattr(server, "serve_model", lambda *_: server.Stop(is_forced))
    assert call("serve", "run").returncode == exit_code and ended == [exit_code]


@pytest.mark.parametrize("words", [["--host", "0.0.0.0"], ["--allow-host", "hub.example.org"]])
def test_a_server_for_other_computers_has_a_random_token_in_its_url(call, served, monkeypatch, words):
    monkeypatch.delenv("FASTCXR_TOKEN", raising=False)
    done = call("serve", "run", *words)
    token = served[0][1].token
    assert len(token) > 40 and done.stdout.rstrip().endswith(f"/?token={token}")
    is_in_all_networks = "0.0.0.0" in words
    assert (f"on other computers: http://192.168.1.5:8000/?token={token}" in done.stderr) == is_in_all_networks


def test_the_token_of_the_variable_is_used_and_validated(call, served, monkeypatch):
    monkeypatch.setenv("FASTCXR_TOKEN", "correct-horse-battery")
    done = call("serve", "run")
    assert served[0][1].token == "correct-horse-battery"
    assert done.stdout == "serving run at http://127.0.0.1:8000/\n", "the secret would be in the log of a service"
    assert "Add ?token= and the value of FASTCXR_TOKEN" in done.stderr and "horse" not in done.stderr
    monkeypatch.setenv("FASTCXR_TOKEN", "short")
    done = call("serve", "run")
    assert done.returncode == 64
    assert "the token has 5 characters, expected at least 16" in done.stderr and "Set FASTCXR_TOKEN" in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--port", "99999"], "--port 99999, expected a number from 0 to 65535"),
        (["--allow-host", "http://hub.org"], "is not a host name"),
        (["--json"], "Leave out --json"),
    ],
)
def test_an_invalid_option_is_an_error_with_a_fix(call, served, words, text):
    done = call("serve", "run", *words)
    assert done.returncode == 64 and text in done.stderr + done.stdout
    assert not served


def test_a_missing_package_is_an_error_with_the_command(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = call("serve", "run")
    assert done.returncode == 69
    assert "FCX-E203" in done.stderr and "serve needs uvicorn" in done.stderr
    assert "Run `pip install uvicorn`" in done.stderr, "the extra would install torch too"


def test_a_port_in_use_is_an_error_before_the_model_is_loaded(call):
    with server.open_socket("127.0.0.1", 0) as listening:
        done = call("serve", "missing", "--port", listening.getsockname()[1])
    assert done.returncode == 73 and "FCX-E507" in done.stderr and "is in use" in done.stderr


def test_a_folder_that_is_no_run_is_an_error(call, tmp_path):
    done = call("serve", tmp_path, "--port", "0")
    assert done.returncode == 66 and "not a run" in done.stderr


def test_the_model_of_a_run_has_its_card_and_grad_cam_with_its_thumbnails(finished):
    run, data, _ = finished
    model = load_served_model(run, device="cpu")
    assert model.name == "run" and model.model_card.startswith("# Model card")
    assert isinstance(model.explainer, GradCamExplainer) and 1 <= len(model.explainer.check_images) <= 8
    file = next((data / "haze").glob("*.png"))
    in_memory = FileInMemory(file.name, file.read_bytes())
    row, expected = model.predict([in_memory])["predictions"][0], predict(model.scorer, [file]).table.iloc[0]
    assert {label: row[f"prob_{label}"] for label in model.scorer.labels} == {
        label: expected[f"prob_{label}"] for label in model.scorer.labels
    }
    description = model.describe(ServeOptions())
    assert json.loads(json.dumps(description)) == description
    assert description["saliency"] == "grad_cam" and set(description["thresholds"]) <= set(model.scorer.labels)
    found = model.explain(in_memory, "haze")
    assert found["label"] == "haze" and "Rank correlation" in found["note"] + str(model.explainer.note)
    ensemble = TorchScorer(Ensemble(members=(load_model(run, device="cpu"),) * 2))
    assert isinstance(make_image_explainer(run, ensemble), OcclusionExplainer)


def test_an_export_is_served_without_torch(tmp_path):
    export = write_mean_export(tmp_path / "export")
    (export / "MODEL_CARD.md").write_text("# Model card: mean")
    packages = ",".join((*PREDICT_PACKAGES, "starlette", "uvicorn", "python-multipart"))
    command = [sys.executable, str(ONLY_THESE), packages, "serve", str(export), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line.startswith("serving export at http://127.0.0.1:"), process.communicate()[1]
            with httpx.Client(base_url=line.split()[-1], timeout=30) as client:
                description = client.get("model.json").json()
                predicted = client.post("predict", files=make_fields(("a.png", make_png_bytes(200)))).json()
                found = client.post("saliency", files=make_fields(("a.png", make_png_bytes(200)))).json()
        finally:
            process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=30)[1]
    assert process.returncode == 0 and "CRITICAL: Image-level split" in errors
    assert description["notices"] == [NOTICE] and description["model_card"] == "# Model card: mean"
    assert description["thresholds"] == dict.fromkeys(LABELS, 0.35) and description["saliency"] == "occlusion"
    row = predict(load_export(export), [FileInMemory("a.png", make_png_bytes(200))]).table.iloc[0]
    assert predicted["predictions"][0]["prob_haze"] == row["prob_haze"] and predicted["critical"] == [NOTICE["title"]]
    assert found["label"] == row["predicted"] and found["image"].startswith("data:image/jpeg;base64,")


def test_the_notices_of_a_run_are_read_without_the_libraries_of_training_and_figures(finished):
    code = f"""import sys
from fastcxr.workflows.critical_notices import read_run_notices
assert read_run_notices({str(finished[0])!r}) is not None
print(*(sys.modules.keys() & {{"torch", "fastai", "sklearn", "matplotlib", "jinja2", "scipy.stats"}}))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_a_card_that_is_missing_or_too_large_is_left_out(tmp_path, monkeypatch):
    assert read_model_card(tmp_path) == ""
    (tmp_path / "MODEL_CARD.md").write_text("# Card")
    assert read_model_card(tmp_path) == "# Card"
    monkeypatch.setattr(workflow, "MAX_CARD_BYTES", 3)
    assert read_model_card(tmp_path) == ""
