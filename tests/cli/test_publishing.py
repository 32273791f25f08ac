"""The commands push and pull, and hf://owner/name in the place of a run folder."""

import hashlib
import json
from contextlib import nullcontext

import pytest
from published_run import build_published_run
from sample_images import make_reference, save_image

from fastcxr.cli import publishing
from fastcxr.cli.main import RETURN_TO_CALLER, app
from fastcxr.cli.output import run_to_exit_code
from fastcxr.errors import FastcxrError
from fastcxr.workflows.publish import Question

pytestmark = pytest.mark.usefixtures("few_draws")


@pytest.fixture(scope="module")
def run(tmp_path_factory, few_draws):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcxr.report.run_page.make_run_figures", lambda *_: {})
        yield build_published_run(tmp_path_factory.mktemp("cli") / "run")[0]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder; return exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastcxr.report.run_page.make_run_figures", lambda *_: {})

    def call(*words):
        capsys.readouterr()
        exit_code = run_to_exit_code(lambda: app.meta(list(map(str, words)), **RETURN_TO_CALLER))
        return exit_code, *capsys.readouterr()

    return call


def test_a_dry_run_lists_every_file_with_its_size(hub, run, call):
    exit_code, out, err = call("push", run, "me/model", "--dry-run")
    assert exit_code == 0
    assert out == "dry run: nothing is sent; 10 files would go to the private me/model\n"
    assert [line.split()[0] for line in err.splitlines() if line.endswith("kB")].count("model.safetensors") == 1
    assert "names and images of the run are in none of them" in err
    assert "no licence is stated, and without one others may not use the model: pass --licence" in err
    assert hub.requests == []


def test_push_and_pull_give_one_json_document_each(hub, run, call, tmp_path):
    exit_code, out, _ = call("push", run, "me/model", "--license", "mit", "--json")
    document = json.loads(out)
    assert exit_code == 0
    assert document["url"] == f"{hub.url}/me/model" and document["private"] is True
    assert document["files"]["model.safetensors"] == (run / "model.safetensors").stat().st_size
    exit_code, out, err = call("pull", "me/model", "--json")
    assert exit_code == 0
    assert json.loads(out)["folder"] == "runs/model-1"
    assert (tmp_path / "runs" / "model-1" / "model.safetensors").is_file()
    steps = [line.split()[-4:] for line in err.splitlines() if "fastcxr predict" in line]
    assert steps == [["fastcxr", "predict", "runs/model-1", "IMAGES"]]
    assert ".html" not in err
    save_image(make_reference(), tmp_path / "image.png")
    named, pulled = (call("predict", model, "image.png", "--quiet")[1] for model in ("hf://me/model", "runs/model-1"))
    assert named == pulled and "image.png" in named
    published = json.loads((tmp_path / "runs/model-1/published.json").read_text())
    critical = [{"level": "critical", "title": "Image-level split", "text": ""}]
    text = json.dumps(published | {"notices": critical}).encode()
    sums = hub.get_files("me/model")["SHA256SUMS"].replace(
        *(hashlib.sha256(data).hexdigest().encode() for data in (hub.get_files("me/model")["published.json"], text))
    )
    hub.add_files("me/model", {"published.json": text, "SHA256SUMS": sums})
    exit_code, out, err = call("embed", "hf://me/model", "image.png", "--to", "vectors.npz", "--json")
    assert exit_code == 0 and json.loads(out)["critical"] == ["Image-level split"]
    assert "CRITICAL: Image-level split." in err
    exit_code, _, err = call("verify", "runs/model-1")
    assert exit_code == 0 and "a published model has no predictions.csv: the metrics are not recomputed" in err
    exit_code, _, err = call("verify", "hf://me/model")
    assert exit_code == 66 and "Run `fastcxr pull me/model`, and pass the folder that it writes" in err


@pytest.mark.parametrize(("answer", "is_yes"), [("y", True), ("YES", True), ("", False), ("n", False), (None, False)])
def test_a_question_needs_the_answer_yes(monkeypatch, capsys, answer, is_yes):
    def read_answer():
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr(publishing.sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("builtins.input", read_answer)
    questions = [Question("me/model is public: everyone can download the model", "Publish it?")]
    with nullcontext() if is_yes else pytest.raises(FastcxrError, match="nothing is sent: no consent"):
        publishing.confirm_all(questions, yes=False)
    assert "everyone can download the model." in (err := capsys.readouterr().err) and "Publish it? [y/N]" in err
    publishing.confirm_all(questions, yes=True)
    assert capsys.readouterr().err == ""


def test_without_a_terminal_a_question_is_an_error_that_names_yes(hub, run, call, monkeypatch):
    monkeypatch.setattr(publishing.sys, "stdin", type("Pipe", (), {"isatty": lambda self: False})())
    exit_code, out, err = call("push", run, "me/model", "--with-images")
    assert exit_code == 64
    assert "no terminal to ask for consent: report.html shows" in err and "Pass --yes if you consent" in err
    assert hub.repos == {}
