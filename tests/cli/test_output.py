"""Options of all commands: --quiet, --verbose, --json, --log-file; the last lines name the next step."""

import json
import os
import re
import shlex
import shutil
import signal
import sys
from datetime import UTC, datetime
from importlib import import_module
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from cli_calls import TRAIN, TRAIN_WITH_FIGURES
from rich.console import Console
from toy_images import write_toys

from fastcxr.cli.app import app
from fastcxr.cli.data import AUDIT_NOT_REUSED, AUDIT_REUSED, list_remedies
from fastcxr.cli.option_names import DATA_PLACEHOLDER, format_options
from fastcxr.cli.output import OutputOptions, run_to_exit_code
from fastcxr.cli.suggestions import OUTPUT_OPTIONS
from fastcxr.cli.tables import show_comparison, show_scout_table
from fastcxr.io.files import read_json
from fastcxr.io.formatting import format_score

pytestmark = pytest.mark.usefixtures("without_figures", "without_maps")


@pytest.fixture
def work(finished, tmp_path):
    """A folder with a copy of the finished run and its data."""
    run, data, _ = finished
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(data, tmp_path / "toys")
    return tmp_path


COMMANDS = {
    "train": ([*TRAIN, "--data", "toys", "--out", "new"], {"folder", "report", "metrics"}),
    "evaluate": (["evaluate", "run", "--data", "other", "--out", "new"], {"folder", "report", "metrics"}),
    "report": (["report", "run"], {"folder", "report", "metrics"}),
    "resume": (["resume", "run"], {"folder", "report", "metrics"}),
    "describe": (["describe", "--data", "toys"], {"folder", "report", "classes", "unreadable"}),
    "audit": (["audit", "--data", "toys"], {"folder", "report", "passed", "findings"}),
    "compare": (["compare", "run", "run2"], {"folder", "report", "rows", "n_shared_images", "patients"}),
    "verify": (["verify", "run"], {"folder", "n_files", "faults", "unverified"}),
    "predict": (["predict", "run", "toys"], {"critical", "n_classified", "n_unreadable", "n_ood", "predictions"}),
    "explain": (["explain", "run", "toys/haze"], {"critical", "folder", "report", "n_unreadable", "maps"}),
    "pack": (["pack", "toys", "--to", "c.h5"], {"file", "n_bytes", "n_images"}),
    "cache": (["cache"], {"folder", "images", "features", "unfinished_features"}),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_with_json_standard_output_is_one_document(call, work, command):
    words, keys = COMMANDS[command]
    shutil.copytree(work / "run", work / "run2")
    write_toys(work / "other", per_class=4, first=500) if command == "evaluate" else None
    done = call(*words, "--json", where=work)
    assert done.returncode in (0, 65 if command == "audit" else 0), done.stderr
    assert set(json.loads(done.stdout)) == keys


def test_the_lists_of_runs_models_and_backbones_are_json_arrays(call, work):
    (run,) = json.loads(call("list", ".", "--json", where=work).stdout)
    assert (run["run"], run["state"], run["split"]) == ("run", "finished", "test")
    (model,) = json.loads(call("models", "mobilenetv2_035", "--json").stdout)
    assert model["name"] == "mobilenetv2_035"
    done = call("scout", "mobilenetv2_035", "--data", "toys", "--json", "--image-size", "64", where=work)
    assert [row["backbone"] for row in json.loads(done.stdout)["backbones"]] == ["mobilenetv2_035"]
    assert json.loads(done.stdout)["backbones"][0]["auroc"] is None, "NaN is no JSON"
    assert json.loads(done.stdout)["figure"] is None and done.returncode == 0
    folder = Path(json.loads(done.stdout)["folder"])
    assert (work / folder / "scout.csv").exists() and not (work / folder / "scout.svg").exists()
    assert "no candidate was ranked, only timed. Pass --weights NAME=FILE" in done.stderr.splitlines()[-1]


def test_the_json_of_predict_has_the_values_of_the_table(call, work):
    document = json.loads(call("predict", "run", "toys", "--json", "--csv", "out.csv", where=work).stdout)
    # text: the default parser of numbers of some versions of pandas changes the last digit
    table = pd.read_csv(work / "out.csv", dtype=str, keep_default_na=False)
    assert table.to_dict("records") == [{k: str(v) for k, v in row.items()} for row in document["predictions"]]
    assert document["n_classified"] + document["n_ood"] == len(table) and document["file"] == "out.csv"


def test_an_error_with_json_is_a_document_and_a_line(call, tmp_path):
    done = call("report", "nowhere", "--json", where=tmp_path)
    assert done.returncode == 66
    assert json.loads(done.stdout)["error"] == {
        "code": "E304",
        "exit_code": 66,
        "problem": "the folder does not exist",
        "fix": "Pass the folder of a finished run. `fastcxr list` lists the runs in runs/",
        "path": "nowhere",
    }
    assert "fastcxr: FCX-E304 nowhere: the folder does not exist. Pass the folder" in done.stderr


@pytest.mark.parametrize(
    ("words", "exit_code", "fix"),
    [
        (["train", "--los", "focal"], 64, "Did you mean --loss?"),
        (["train", "--epochs", "0"], 64, "Change epochs"),
        (["trainn"], 64, 'Did you mean "train"?'),
        (["list", "--quiet", "--verbose"], 64, "Leave one of them out"),
        (["list", "--log-file", "no/log.txt"], 73, "Choose another --log-file"),
        (["train", "--data", "toys", "--out", "toys"], 73, "Choose another --out, or remove it"),
    ],
)
def test_every_kind_of_error_with_json_is_a_document(call, work, words, exit_code, fix):
    done = call(*words, "--json", where=work)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["exit_code"]) == (exit_code, exit_code)
    assert fix in error["fix"]


def test_the_document_of_unreadable_images_lists_each_image(call, work):
    (work / "toys" / "haze" / "broken.png").write_bytes(b"")
    done = call(*TRAIN, "--data", "toys", "--json", where=work)
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["exit_code"]) == (65, 65)
    assert [(image["code"], image["path"]) for image in error["images"]] == [("E101", "haze/broken.png")]
    assert "--skip-bad" in error["fix"]


def test_quiet_hides_messages_and_shows_result_warnings_and_errors(call, work):
    (work / "toys" / "haze" / "broken.png").write_bytes(b"")
    done = call("describe", "--data", "toys", "--quiet", "--out", "d", where=work)
    assert done.stdout.strip() == "d/describe.html"
    assert "next:" not in done.stderr and "folder:" not in done.stderr
    assert "FCX-E101 haze/broken.png" in done.stderr
    assert "no such file" in call("train", "--data", "nowhere", "--quiet", where=work).stderr
    assert "next:" in call("describe", "--data", "toys", "--out", "e", where=work).stderr, "quiet ends with the command"


def test_verbose_shows_the_traceback_of_an_error_and_excludes_quiet(call, tmp_path):
    assert "Traceback" in call("report", "nowhere", "--verbose", where=tmp_path).stderr
    assert "Traceback" not in call("report", "nowhere", where=tmp_path).stderr
    done = call("list", "--quiet", "--verbose", where=tmp_path)
    assert done.returncode == 64 and "Leave one of them out" in done.stderr


def test_the_log_file_has_all_lines_with_their_time_also_with_quiet(call, work):
    done = call(*TRAIN, "--data", "toys", "--out", "new", "--quiet", "--log-file", "log.txt", where=work)
    assert done.returncode == 0, done.stderr
    lines = (work / "log.txt").read_text(encoding="utf-8").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", lines[n]) for n in (0, -1))
    text = "\n".join(lines)
    for part in ("run folder: new", "60 images", "epoch  ", "AUROC, macro", "next: open", "fastcxr export new"):
        assert part in text
    call("report", "nowhere", "--log-file", "log.txt", where=work)
    assert "the folder does not exist" in (work / "log.txt").read_text(encoding="utf-8").splitlines()[-1]


def test_a_log_file_that_cannot_be_written_is_an_error(call, tmp_path):
    done = call("list", "--log-file", "no/log.txt", where=tmp_path)
    assert done.returncode == 73 and "Choose another --log-file" in done.stderr


def test_a_recipe_script_has_the_output_options(call, work):
    (work / "s.py").write_text("from fastcxr import Recipe\nRECIPES = {'a': Recipe('mobilenetv2_035', weights='none')}")
    options = ["--data", "toys", "--size", "64", "--epochs", "1", "--strategy", "full"]
    done = call("run", "s.py", "a", *options, "--out", "new", "--json", "--quiet", where=work)
    assert json.loads(done.stdout)["folder"] == "new", done.stderr
    done = call("run", "s.py", "--all", *options, "--json", where=work)
    assert set(json.loads(done.stdout)["variants"]) == {"a"}, done.stderr


@pytest.mark.parametrize("command", [name for name in app if not name.startswith("-")])
def test_the_help_of_every_command_shows_the_output_options(command):
    page = StringIO()
    app.help_print([command], console=Console(file=page, width=80))
    assert all(f"--{name.replace('_', '-')}" in page.getvalue() for name in OutputOptions.__dataclass_fields__)
    assert set(OUTPUT_OPTIONS) == {f"--{name.replace('_', '-')}" for name in OutputOptions.__dataclass_fields__}


def test_the_last_lines_name_the_next_commands(call, work):
    shown = call("report", "run", where=work).stderr
    assert "next: open run/report.html" in shown
    assert "fastcxr predict run IMAGES" in shown
    assert "fastcxr audit --data DATA ..." in shown, "recipe.json has no full paths"


def test_the_next_step_has_the_data_options_of_the_command_and_runs(call, work, monkeypatch):
    (work / "toys").rename(work / "my toys")
    options = ["--patient-regex", r"(\d+)_", "--classes", "haze", "clear", "--ignore-given-splits", "--seed", "7"]
    shown = call("describe", "--data", "my toys", *options, "--out", "d", where=work).stderr
    step = shown.splitlines()[-1].strip().removeprefix("train: fastcxr ")
    expected = (
        r"train --data 'my toys' --classes haze --classes clear --patient-regex '(\d+)_' --ignore-given-splits --seed 7"
    )
    assert step == expected
    recipes = []

    def start(prepare, *rest):
        recipes.append(prepare()[0])
        return 0

    monkeypatch.setattr("fastcxr.cli.train.start_prepared_training", start)
    assert call(*shlex.split(step), where=work).returncode == 0
    assert (recipes[0].data, recipes[0].classes, recipes[0].seed) == ("my toys", ("haze", "clear"), 7)
    assert recipes[0].patient_regex == r"(\d+)_"


def test_options_as_text_are_quoted_short_and_complete():
    assert format_options({"data": None, "seed": 42, "folds": 0}) == ""
    assert format_options({"patient_regex": "-(.)", "reuse_audit": False}) == "--patient-regex='-(.)' --no-reuse-audit"
    assert format_options({"data": ("a" * 150, "b" * 150)}) == DATA_PLACEHOLDER == format_options(None)
    assert format_options({"data": str(Path("toys").absolute())}) == "--data toys"
    assert format_options({"data": "toys", "patient_table": "/home/anna/table.csv"}) == DATA_PLACEHOLDER


def test_training_ends_with_its_own_data_options(call, work):
    done = call(*TRAIN, "--data", "toys", "--deduplicate", "--out", "new", where=work)
    assert "fastcxr audit --data toys --deduplicate" in done.stderr


@pytest.mark.parametrize(("out", "is_reused"), [("other", False), ("runs/mine", True)])
def test_an_audit_states_whether_training_reuses_it(call, work, out, is_reused):
    shown = call("audit", "--data", "toys", "--out", out, where=work).stderr.splitlines()[-1]
    assert shown == (AUDIT_REUSED if is_reused else AUDIT_NOT_REUSED)
    done = call(*TRAIN, "--data", "toys", "--out", "new", where=work)
    assert ("results of the audit in" in done.stderr) == is_reused


def test_the_run_folder_is_printed_once_and_only_if_it_is_used(call, work):
    (work / "toys" / "haze" / "broken.png").write_bytes(b"")
    for words in (["--data", "nowhere"], ["--data", "toys"], ["--data", "toys", "--classes", "haze"]):
        for command in (TRAIN, ["audit"]):
            if command == TRAIN or "nowhere" in words:
                done = call(*command, *words, "--out", "new", where=work)
                assert done.returncode in (65, 66) and "folder: new" not in done.stderr
    assert not (work / "new").exists()
    done = call(*TRAIN, "--data", "toys", "--skip-bad", "--folds", "2", "--out", "new", where=work)
    assert [line for line in done.stderr.splitlines() if line.startswith("run folder: ")] == ["run folder: new"]
    assert done.stderr.count("reading images ...") == 1


@pytest.mark.parametrize("words", [["resume", "run"], [*TRAIN_WITH_FIGURES, "--data", "toys", "--out", "run"]])
def test_a_finished_run_is_one_line_without_its_table(call, work, words):
    predict_train = ["--predict-train", "--batch-size", "8"] if words[0] == "train" else []
    done = call(*words, *predict_train, where=work)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "this run is finished: run/report.html"
    assert done.stdout.strip() == "run/report.html"
    assert "AUROC" not in done.stderr


def test_a_failed_audit_ends_with_the_remedies_each_once():
    findings = [{"title": t, "fix": f} for t, f in (("Width", "Convert."), ("Height", "Convert."), ("Other", ""))]
    assert list_remedies(findings) == ["Width and Height: Convert."]


def test_an_evaluation_ends_with_the_difference_to_the_internal_test(call, work):
    write_toys(work / "other", per_class=4, first=500)
    shown = call("evaluate", "run", "--data", "other", "--out", "new", where=work).stderr.split("\nnext:")[0]
    assert "on other, and" in shown.splitlines()[-1]
    assert "on the internal test set" in shown.splitlines()[-1]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_comparison_shows_every_name_in_full(tmp_path, width):
    names = ["chest_xrays-mobilenetv2_100-seed-1", "chest_xrays-mobilenetv2_100-seed-2"]
    row = {"images": 90, "patients": 80, "auroc": [0.91, 0.85, 0.95], "accuracy": [0.8, 0.7, 0.9]}
    rows = [{"name": name} | row for name in names]
    rows[1] |= {"auroc_p": 0.5, "auroc_tie": True, "accuracy_p": 0.5, "accuracy_tie": True}
    (tmp_path / "compare.json").write_text(json.dumps({"rows": rows, "n_shared_images": 1}))
    page = StringIO()
    show_comparison(Console(file=page, width=width), tmp_path)
    table, _, last = page.getvalue().rstrip().rpartition("\n")
    first_column = re.split(r"AUROC, macro.*\n", table)[1]
    pieces = [line.split("  ")[0].strip() for line in first_column.splitlines() if not line.startswith(" ")]
    assert "".join(pieces) == "".join(names)
    assert "…" not in table
    assert last == "tested on the 1 image shared by all models"


def test_a_table_has_no_column_without_text():
    page = StringIO()
    scores = {"auroc": 0.9, "auroc_sd": 0.01, "parameters": 2e6, "note": "", "image_size": 224}
    costs = {"images_per_second": 9.0, "seconds_per_1000_images": 111.0}
    show_scout_table(Console(file=page, width=80), pd.DataFrame([{"backbone": "a"} | scores | costs]))
    assert page.getvalue().splitlines()[0].split() == ["backbone", "AUROC", "px", "s/1,000", "params"]


def test_an_interrupted_training_is_called_interrupted_and_names_resume(call, work, monkeypatch):
    def stop(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("fastcxr.workflows.train.make_learner", stop)
    done = call(*TRAIN, "--data", "toys", "--out", "new", where=work)
    assert done.returncode == 130
    assert "interrupted (stopped by SIGINT). No training step is saved yet: repeat the command" in done.stderr


@pytest.mark.parametrize(
    "words", [["report", "new"], ["predict", "new", "toys"], ["compare", "new", "run"], ["verify", "new"]]
)
def test_a_command_on_an_interrupted_run_names_resume(call, work, words):
    (work / "new").mkdir()
    shutil.copy(work / "run" / "recipe.json", work / "new")
    done = call(*words, where=work)
    assert done.returncode == 66
    assert "the run is interrupted" in done.stderr and "Resume it with: fastcxr resume new" in done.stderr


def test_list_shows_state_metrics_and_the_command_that_resumes(call, work):
    for name in ("new", "folds"):
        (work / name).mkdir()
        recipe = read_json(work / "run" / "recipe.json") | ({"folds": 5} if name == "folds" else {})
        (work / name / "recipe.json").write_text(json.dumps(recipe))
    (work / "folds" / "fold-1").mkdir()
    (work / "folds" / "fold-1" / "report.html").touch()
    done = call("list", ".", where=work)
    states = {line.split("  ")[0].strip(): " ".join(line.split()[1:3]) for line in done.stdout.splitlines()[1:]}
    assert states["new"].startswith("interrupted") and states["folds"] == "folds 1/5"
    auroc = read_json(work / "run" / "metrics.json")["test"]["auroc"]["macro"]
    assert states["run"] == f"finished {format_score(auroc)}"
    assert "fastcxr resume new" in done.stderr and "fastcxr resume folds" in done.stderr


def test_the_date_of_a_run_is_its_start_also_after_a_new_report(call, work):
    start = datetime.fromisoformat(read_json(work / "run" / "run.json")["started"]).astimezone()
    old = work / "run" / "run.json"
    old.write_text(json.dumps(read_json(old) | {"started": "2020-02-03T04:05:06+00:00"}))
    expected = datetime(2020, 2, 3, 4, 5, 6, tzinfo=UTC).astimezone().strftime("%Y-%m-%dT%H:%M:%S")
    assert start.year > 2020
    for _ in range(2):
        (run,) = json.loads(call("list", ".", "--json", where=work).stdout)
        assert run["date"] == expected
        call("report", "run", where=work)
    for damaged in ("{}", '{"started": 3}', '{"started": "yesterday"}'):
        old.write_text(damaged)
        os.utime(work / "run" / "recipe.json", (0, 0))
        (run,) = json.loads(call("list", ".", "--json", where=work).stdout)
        assert run["date"] == datetime.fromtimestamp(0).isoformat(timespec="seconds")


def test_list_reports_that_there_are_no_runs(call, tmp_path):
    done = call("list", where=tmp_path)
    assert (done.returncode, done.stderr.strip()) == (0, "no runs in runs")
    assert call("list", "nowhere", where=tmp_path).returncode == 66


def test_an_error_without_torch_is_not_replaced_by_a_missing_package(monkeypatch):
    def fail() -> int:
        raise RuntimeError("of another library")

    monkeypatch.setitem(sys.modules, "torch", None)  # its import fails
    monkeypatch.delitem(sys.modules, "fastcxr.models.device_errors", raising=False)
    with pytest.raises(RuntimeError, match="of another library"):
        run_to_exit_code(fail)


@pytest.mark.parametrize(("module", "is_line"), [("no_such_package.part", True), ("fastcxr.no_such_module", False)])
def test_a_missing_package_is_an_error_of_one_line_and_a_missing_module_of_fastcxr_a_traceback(capfd, module, is_line):
    if not is_line:
        with pytest.raises(ModuleNotFoundError):
            run_to_exit_code(lambda: import_module(module))
        return
    assert run_to_exit_code(lambda: import_module(module)) == 69
    assert "FCX-E203: this command needs no_such_package, which is not installed" in capfd.readouterr().err
