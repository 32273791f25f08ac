"""Tests for the trackers of a run: failures, interruptions, names, and what is remembered, with a recording tracker."""

import ast
import logging
import socket
from pathlib import Path

import pytest
from synthetic_run import make_history

from fastcxr.config.recipe import Recipe
from fastcxr.config.recipe_paths import redact_paths
from fastcxr.errors import InputMissingError, OutputError, PackageError, RecipeError, TrackingError
from fastcxr.io.files import read_json, write_json
from fastcxr.tracking import session
from fastcxr.tracking.base import TRACKING_FILE, Tracker
from fastcxr.tracking.mlflow import MLflow
from fastcxr.tracking.mlflow_uri import find_uri_fault
from fastcxr.tracking.session import Tracking, find_tracker_names, require_trackers, track_finished_run


class Recorder(Tracker):
    """A tracker that records its calls, and fails in those named by `failing`."""

    name, title, module, fix = "mlflow", "Recorder", "json", "Start the recorder"
    calls: list[tuple]
    failing: set[str]

    def call(self, name, *values):
        self.calls.append((name, *values))
        if name in self.failing:
            raise ConnectionError(f"no answer from https://user:key@host in {self.folder}")

    def check(self):
        self.call("check")

    def start(self, description):
        self.call("start", description.name)
        self.saved["run_id"] = "1"
        self.n_epochs = self.saved.get("n_epochs", 0)

    def describe(self):
        return "here"

    def send_values(self, values, step, seconds):
        self.call("send", step)

    def send_results(self, results):
        self.call("results", results.step)

    def add_parts(self, parts):
        self.call("parts", [part["run_id"] for part in parts])

    def end(self, status):
        self.call("end", status)

    def drop(self):
        self.call("drop")

    def discard(self):
        self.call("discard")


class Second(Recorder):
    name, title = "tensorboard", "Second"


@pytest.fixture
def recorder(monkeypatch):
    """Replace MLflow and TensorBoard by recording trackers."""
    for tracker in (Recorder, Second):
        tracker.calls, tracker.failing = [], set()
        monkeypatch.setitem(session.TRACKERS, tracker.name, tracker)
    monkeypatch.setattr("fastcxr.report.run_page.render_image_free_report", lambda folder: "<html>")
    return Recorder


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "runs" / "first"
    path.mkdir(parents=True)
    write_recipe(path, Recipe("resnet18", data="data/xrays"))
    return path


def write_recipe(path, recipe):
    path.mkdir(exist_ok=True)
    (path / "recipe.json").write_text(redact_paths(recipe).to_json())


def finish_run(folder, n_epochs=2):
    write_epochs(folder, n_epochs)
    write_json(folder / "metrics.json", {"test": {"n_images": 3, "accuracy": 0.5}})


def write_epochs(folder, number):
    make_history().head(number).to_csv(folder / "history.csv", index=False)


def test_each_epoch_is_sent_once_and_then_the_results(recorder, folder):
    tracking = Tracking(folder, ["mlflow"])
    lines = []
    tracking.start(lines.append)
    for number in (1, 2, 1, 2, 3):  # a resumed run writes the rows before the interruption again
        write_epochs(folder, number)
        tracking.send_epochs()
    finish_run(folder, 3)
    tracking.complete()
    names = [("send", 1), ("send", 2), ("send", 3), ("results", 3), ("parts", []), ("end", "finished")]
    assert recorder.calls == [("start", "first"), *names]
    assert lines == ["tracking: Recorder, here"]
    assert read_json(folder / TRACKING_FILE)["trackers"] == {"mlflow": {"run_id": "1", "is_complete": True}}


def test_without_trackers_nothing_is_written(folder):
    tracking = Tracking(folder)
    finish_run(folder)
    with tracking:
        tracking.check()
        tracking.remember()
        tracking.start(print)
        tracking.send_epochs()
        tracking.complete()
    assert not (folder / TRACKING_FILE).exists()


def test_a_failure_is_one_warning_without_server_and_key_and_the_other_tracker_goes_on(recorder, folder, caplog):
    tracking = Tracking(folder, ["mlflow", "tensorboard"])
    tracking.start(print)
    recorder.failing = {"send"}
    for number in (1, 2, 3):
        write_epochs(folder, number)
        tracking.send_epochs()
    finish_run(folder, 3)
    tracking.complete()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    message = caplog.messages[0]
    assert message.startswith("Recorder cannot be reached (ConnectionError): the run goes on without it.")
    assert message.endswith(f"send the rest with `fastcxr track {folder} --to mlflow`")
    assert "host" not in message and "key" not in message
    assert [call for call in recorder.calls if call[0] in ("send", "drop", "end")] == [("send", 1), ("drop",)]
    assert [call for call in Second.calls if call[0] == "send"] == [("send", 1), ("send", 2), ("send", 3)]
    saved = read_json(folder / TRACKING_FILE)["trackers"]
    assert saved["tensorboard"]["is_complete"] and "is_complete" not in saved["mlflow"]


def test_the_rest_is_sent_after_a_failure(recorder, folder):
    finish_run(folder)
    write_json(folder / TRACKING_FILE, {"format": 1, "trackers": {"mlflow": {"run_id": "1", "n_epochs": 1}}})
    assert track_finished_run(folder, [], print) == []
    assert [call for call in recorder.calls if call[0] in ("send", "results")] == [("send", 2), ("results", 2)]
    recorder.calls.clear()
    assert track_finished_run(folder, [], print) == ["mlflow"]
    assert recorder.calls == []


def test_a_second_failure_of_sending_the_rest_is_an_error(recorder, folder):
    finish_run(folder)
    recorder.failing = {"results"}
    with pytest.raises(TrackingError, match="was not sent to mlflow. Repeat the command"):
        track_finished_run(folder, ["mlflow"], print)


def test_a_run_that_is_not_finished_cannot_be_sent_and_a_run_without_tracker_needs_one(recorder, folder):
    with pytest.raises(InputMissingError, match=r"metrics\.json"):
        track_finished_run(folder, ["mlflow"], print)
    finish_run(folder)
    with pytest.raises(RecipeError, match="no tracker. Pass one, such as `to='mlflow'`"):
        track_finished_run(folder, [], print)


@pytest.mark.parametrize("method", ["check", "start"])
def test_a_tracker_that_cannot_be_used_is_one_line_with_the_fix(recorder, folder, method):
    recorder.failing = {method}
    tracking = Tracking(folder, ["mlflow"])
    with pytest.raises(
        TrackingError, match="FCX-E731: Recorder cannot be used .ConnectionError.*Start the recorder"
    ) as caught:
        getattr(tracking, method)(*[print] * (method == "start"))
    assert "\n" not in str(caught.value) and caught.value.exit_code == 69
    assert str(folder) not in str(caught.value) and "key" not in str(caught.value)
    assert not (folder / TRACKING_FILE).exists()


def test_if_the_second_tracker_cannot_be_started_the_first_one_is_removed(recorder, folder):
    recorder.failing = {"start"}
    with pytest.raises(TrackingError):
        Tracking(folder, ["tensorboard", "mlflow"]).start(print)
    assert Second.calls == [("start", "first"), ("discard",)]


def test_a_tracked_run_that_was_started_earlier_is_not_removed(recorder, folder):
    write_json(folder / TRACKING_FILE, {"format": 1, "trackers": {"tensorboard": {"run_id": "1"}}})
    recorder.failing = {"start"}
    with pytest.raises(TrackingError):
        Tracking(folder, ["tensorboard", "mlflow"]).start(print)
    assert ("discard",) not in Second.calls


@pytest.mark.parametrize(
    ("error", "is_kept", "call"),
    [
        (KeyboardInterrupt, True, ("end", "killed")),
        (ValueError, True, ("end", "failed")),
        (ValueError, False, ("discard",)),
    ],
)
def test_an_error_ends_the_tracked_run_and_removes_it_with_the_run_folder(recorder, folder, error, is_kept, call):
    def run():
        with Tracking(folder, ["mlflow"], lambda: is_kept) as tracking:
            tracking.start(print)
            raise error

    with pytest.raises(error):
        run()
    assert recorder.calls[1:] == [call]


def test_a_resumed_run_and_its_folds_have_the_trackers_of_the_start(folder):
    Tracking(folder, ["mlflow"]).remember()
    write_recipe(folder / "fold-1", Recipe("resnet18"))
    assert find_tracker_names(folder) == find_tracker_names(folder / "fold-1") == ("mlflow",)
    assert find_tracker_names(folder, ["wandb"]) == ("wandb", "mlflow")
    assert find_tracker_names(folder.parent) == ()


def test_a_pooled_run_has_the_trackers_of_folds_that_were_run_by_themselves(folder):
    write_recipe(folder / "fold-2", Recipe("resnet18"))
    Tracking(folder / "fold-2", ["wandb"]).remember()
    assert find_tracker_names(folder) == ("wandb",)


def test_the_folds_of_a_pooled_run_become_its_parts(recorder, folder):
    for number in (1, 2):
        part = folder / f"fold-{number}"
        write_recipe(part, Recipe("resnet18"))
        write_json(part / TRACKING_FILE, {"format": 1, "trackers": {"mlflow": {"run_id": f"of fold {number}"}}})
    finish_run(folder)
    Tracking(folder, ["mlflow"]).complete()
    assert ("parts", ["of fold 1", "of fold 2"]) in recorder.calls


def test_an_unknown_or_missing_tracker_is_rejected(monkeypatch):
    with pytest.raises(RecipeError, match="no tracker called 'mlfow'. Did you mean 'mlflow'"):
        require_trackers(["mlfow"])
    monkeypatch.setattr("fastcxr.io.packages.find_spec", lambda name: None)
    with pytest.raises(PackageError, match="tracking with W&B needs wandb.*pip install wandb"):
        require_trackers(["wandb"])


def test_the_packages_of_trackers_are_imported_only_where_a_run_is_tracked():
    files = list(Path(session.__file__).parent.glob("*.py"))
    for file in files:
        for node in ast.parse(file.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"mlflow", "wandb", "tensorboard"}, file
    assert len(files) > 5


def test_one_tracker_can_be_given_without_a_list(folder):
    assert find_tracker_names(folder, "mlflow") == ("mlflow",)


def test_a_damaged_tracking_file_is_one_line(folder):
    (folder / TRACKING_FILE).write_text("{")
    with pytest.raises(OutputError, match=r"FCX-E732 .*tracking\.json: the file is damaged. Remove it"):
        Tracking(folder)


def test_a_report_that_cannot_be_made_does_not_lose_the_metrics(recorder, folder, monkeypatch, caplog):
    def fail(folder):
        raise ValueError("no font")

    monkeypatch.setattr("fastcxr.report.run_page.render_image_free_report", fail)
    finish_run(folder)
    with caplog.at_level(logging.WARNING, "fastcxr"):
        Tracking(folder, ["mlflow"]).complete()
    assert ("end", "finished") in recorder.calls
    assert "the report for the trackers left out: ValueError: no font" in caplog.text


@pytest.mark.parametrize(
    ("uri", "shown", "reason"),
    [
        ("http://someone:secret@127.0.0.1:{port}/a?token=secret", "http://127.0.0.1:{port}/a", "no answer from 127.0"),
        ("postgresql+psycopg2://someone:secret@127.0.0.1:{port}/a", "postgresql+psycopg2://127.0.0.1:{port}/a", "no a"),
        ("http://localhost:port", "http://localhost:port", "Port could not be cast"),
        ("sqlite:////proc/x.db", "sqlite:////proc/x.db", "the folder /proc cannot be written: "),
        ("sqlite:///{folder}/no/x.db", "sqlite:///{folder}/no/x.db", "no cannot be written: No such file"),
        ("sqlite:///{folder}", "sqlite:///{folder}", "a folder, expected a file"),
        ("sqlite:///{folder}/recipe.json", "sqlite:///{folder}/recipe.json", "the file is no SQLite database"),
        ("/proc/nope", "/proc/nope", "MLflow does not store runs in folders"),
        ("file:///tmp/x", "file:///tmp/x", "MLflow does not store runs in folders"),
    ],
)
def test_an_address_that_mlflow_cannot_use_is_one_line_before_mlflow_is_imported(
    folder, monkeypatch, uri, shown, reason
):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # no process listens
        values = {"port": unused.getsockname()[1], "folder": folder}
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(**values))
        monkeypatch.setattr(MLflow, "_connect", lambda tracker: pytest.fail("MLflow repeats failed connections"))
        with pytest.raises(TrackingError) as caught:
            MLflow(folder, folder, {}).check()
    message = str(caught.value)
    assert message.startswith("FCX-E731: MLflow cannot be used (") and reason in message
    assert f"MLFLOW_TRACKING_URI is {shown.format(**values)}. Set" in message and "sqlite:///mlflow.db" in message
    assert "secret" not in message and "\n" not in message


def test_a_server_and_a_database_that_can_be_used_are_no_fault(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert find_uri_fault(f"http://127.0.0.1:{server.getsockname()[1]}") is None
    assert find_uri_fault(f"sqlite:///{tmp_path}/a%20b.db") is None and not list(tmp_path.iterdir())
    (tmp_path / "a b.db").touch()
    assert find_uri_fault(f"sqlite:///{tmp_path}/a%20b.db") is None
    assert find_uri_fault("databricks") is None and find_uri_fault("sqlite://") is None
