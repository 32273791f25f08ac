"""What TensorBoard, MLflow and W&B hold of a run that was interrupted and resumed, read from their files."""

import os
from urllib.parse import quote

import pandas as pd
import pytest
from planted_identifiers import NAME
from planted_run import JPEG_BASE64, PNG_BASE64, plant_identifiers
from synthetic_run import build_run, make_history, make_manifest
from wandb_file import read_config, read_history, read_records, read_summary

from fastcxr.io.files import read_json, write_json
from fastcxr.report.run_page import write_run_report
from fastcxr.tracking.base import TRACKING_FILE
from fastcxr.tracking.session import Tracking, read_saved_trackers, track_finished_run
from fastcxr.version import VERSION
from fastcxr.workflows.verify import verify

pytestmark = [pytest.mark.needs("tensorboard"), pytest.mark.needs("mlflow"), pytest.mark.needs("wandb")]
EPOCHS = list(range(1, 8))
SECRET = "zz-other-secret"  # in variables of the environment that trackers read by themselves


def write_epochs(folder, number):
    make_history().head(number).to_csv(folder / "history.csv", index=False)


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in list(os.environ):
            if name.startswith(("MLFLOW_", "WANDB_")):
                monkeypatch.delenv(name)
        yield monkeypatch


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, patch, few_draws, without_figures):
    """A run folder that was tracked by all trackers, killed after epoch 3, interrupted after epoch 5, and resumed."""
    top = tmp_path_factory.mktemp("tracked") / "a %20 é"  # MLflow unquotes the path of its database
    folder = top / "runs" / "first"
    build_run(folder, make_manifest(n=120))
    forbidden = plant_identifiers(folder)
    patch.setenv("USER", f"{NAME}-user")
    patch.setenv("LOGNAME", f"{NAME}-user")
    patch.setenv("HOSTNAME", SECRET)
    patch.setattr("socket.gethostname", lambda: SECRET)
    lines = []
    killed = Tracking(folder, ["tensorboard", "mlflow", "wandb"])
    write_epochs(folder, 2)
    killed.start(lines.append)
    killed.send_epochs()
    write_epochs(folder, 3)
    killed.send_epochs()
    killed.trackers[-1].run.finish()  # W&B refuses a second run of the same number in a process; the others stay open
    started, statuses = read_saved_trackers(folder), []

    def interrupt():
        with Tracking(folder) as interrupted:
            interrupted.start(lines.append)
            write_epochs(folder, 5)
            interrupted.send_epochs()
            statuses.append(find_mlflow_run(top, started).info.status)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    statuses.append(find_mlflow_run(top, started).info.status)
    with Tracking(folder) as resumed:
        resumed.start(lines.append)
        write_epochs(folder, 6)
        resumed.send_epochs()
        write_epochs(folder, 7)
        write_run_report(folder)
        resumed.complete()
    found = {"top": top, "folder": folder, "started": started, "statuses": statuses, "lines": lines}
    return found | {"forbidden": forbidden}


def connect_mlflow(top):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{quote(str(top))}/mlflow.db")


def find_mlflow_run(top, saved):
    return connect_mlflow(top).get_run(saved["mlflow"]["run_id"])


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def find_wandb_file(top):
    (path,) = (top / "wandb").glob("offline-run-*/*.wandb")
    return path


def test_a_resumed_run_continues_the_same_tracked_runs(tracked):
    saved = read_saved_trackers(tracked["folder"])
    assert {name: values.get("run_id") for name, values in saved.items()} == {
        name: values.get("run_id") for name, values in tracked["started"].items()
    }
    assert all(values["is_complete"] for values in saved.values())
    assert tracked["statuses"] == ["RUNNING", "KILLED"]


def test_tensorboard_has_each_epoch_once_the_final_metrics_and_no_image(tracked):
    events, history = read_tensorboard(tracked["folder"]), make_history()
    assert [event.step for event in events.Scalars("epochs/train_loss")] == EPOCHS
    assert [event.value for event in events.Scalars("epochs/auroc")] == pytest.approx(history["auroc"].tolist())
    assert [event.value for event in events.Scalars("epochs/stage")] == [1, 1, 2, 2, 3, 3, 3]
    rates = [event.value for event in events.Scalars("epochs/peak_learning_rate")]
    assert rates == pytest.approx([2.4e-3] * 2 + [6.9e-4] * 2 + [1.4e-4] * 3)
    metrics = read_json(tracked["folder"] / "metrics.json")["test"]
    assert events.Scalars("test/auroc.macro")[0].value == pytest.approx(metrics["auroc"]["macro"])
    final = [tag for tag in events.Tags()["scalars"] if not tag.startswith("epochs/")]
    assert final == ["test/accuracy", "test/auroc.macro"], "one chart for each other metric would hide the curves"
    assert not events.Tags()["images"] and not events.Tags()["graph"]
    low, high = (100 * bound for bound in metrics["intervals"]["of"]["accuracy"])
    row = f"| test/accuracy | {100 * metrics['accuracy']:.1f} % ({low:.1f}–{high:.1f}) |"
    text = events.Tensors("final metrics")[0].tensor_proto.string_val[0].decode()
    assert row in text and f"| test/n_images | {metrics['n_images']} |" in text and ".low" not in text


def test_the_name_of_the_event_file_has_no_host(tracked):
    (file,) = (tracked["folder"] / "tensorboard").iterdir()
    assert SECRET not in file.name


def test_mlflow_has_each_epoch_once_the_recipe_the_final_metrics_and_the_report(tracked):
    client = connect_mlflow(tracked["top"])
    run = find_mlflow_run(tracked["top"], tracked["started"])
    run_id = run.info.run_id
    assert [one.step for one in client.get_metric_history(run_id, "epochs/valid_loss")] == EPOCHS
    assert [one.value for one in client.get_metric_history(run_id, "epochs/auroc")] == pytest.approx(
        make_history()["auroc"].tolist()
    )
    assert [one.step for one in client.get_metric_history(run_id, "epochs/peak_learning_rate")] == EPOCHS
    assert run.info.status == "FINISHED" and run.info.run_name == "first" and run.info.user_id == "unknown"
    assert run.data.params["backbone"] == "mobilenetv2_100" and run.data.params["augment.max_rotate"] == "7.0"
    metrics = read_json(tracked["folder"] / "metrics.json")["test"]
    assert run.data.metrics["test/accuracy"] == pytest.approx(metrics["accuracy"])
    label = metrics["labels"][1]
    assert run.data.metrics[f"test/auroc.per_class.{label}"] == pytest.approx(metrics["auroc"]["per_class"][label])
    assert set(run.data.tags) == {"fastcxr.version", "fastcxr.kind", "mlflow.runName"}
    assert VERSION in run.data.tags["fastcxr.version"]
    assert [one.path for one in client.list_artifacts(run_id)] == ["report.html"]
    assert "</html>" in next((tracked["top"] / "mlartifacts").glob("*/artifacts/report.html")).read_text()


def test_wandb_has_each_epoch_once_the_recipe_the_final_metrics_and_the_report(tracked):
    path = find_wandb_file(tracked["top"])
    rows = [row for row in read_history(path) if "epochs/train_loss" in row]
    assert [row["epoch"] for row in rows] == EPOCHS
    assert [row["epochs/auroc"] for row in rows] == pytest.approx(make_history()["auroc"].tolist())
    metrics = read_json(tracked["folder"] / "metrics.json")["test"]
    assert read_summary(path)["test/auroc.macro"] == pytest.approx(metrics["auroc"]["macro"])
    assert read_config(path)["backbone"] == "mobilenetv2_100"
    assert [one.name for one in path.parent.iterdir() if one.is_dir()] == ["files"]
    assert [one.name for one in (path.parent / "files").iterdir()] == ["report.html"]
    (run,) = [record.run for record in read_records(path) if record.WhichOneof("record_type") == "run"][:1]
    assert not run.host and not run.git.commit and run.display_name == "first"


def test_nothing_that_is_written_names_a_patient_path_host_or_user_and_has_no_image(tracked):
    top, folder = tracked["top"], tracked["folder"]
    folders = [folder / "tensorboard", top / "mlartifacts", top / "wandb"]
    files = [path for directory in folders for path in directory.rglob("*") if path.is_file()]
    files += [top / "mlflow.db", folder / TRACKING_FILE]
    assert len(files) == 6
    forbidden = {*tracked["forbidden"], SECRET, "patients.csv"}
    for path in files:
        content = path.read_bytes()
        found = [text for text in forbidden if text.encode() in content or text.encode("utf-16-le") in content]
        assert not found, path
    assert {NAME, JPEG_BASE64, PNG_BASE64} <= forbidden


def test_the_search_for_identifiers_finds_one_in_the_run_folder(tracked):
    assert NAME.encode() in (tracked["folder"] / "manifest.csv").read_bytes()


def test_the_checksums_of_the_run_folder_include_the_tracking_files(tracked):
    faults, _ = verify(tracked["folder"])
    assert not [fault for fault in faults if fault.path.name == TRACKING_FILE or "tensorboard" in fault.path.parts]
    sums = (tracked["folder"] / "SHA256SUMS").read_text()
    assert TRACKING_FILE in sums and "tensorboard/" in sums


def test_the_lines_at_the_start_name_the_places_and_the_commands(tracked):
    text, top = "\n".join(tracked["lines"]), tracked["top"]
    assert f"`tensorboard --logdir '{top}/runs'`" in text
    assert f"`mlflow ui --backend-store-uri sqlite:///{quote(str(top))}/mlflow.db`" in text
    assert f"`wandb sync '{top}/wandb/offline-run-" in text


def test_a_complete_run_is_not_sent_again(tracked):
    assert track_finished_run(tracked["folder"], ["mlflow"], print) == ["mlflow"]


def test_the_rest_of_a_run_that_a_tracker_missed_is_sent_once(tracked):
    client, folder = connect_mlflow(tracked["top"]), tracked["folder"]
    run_id = tracked["started"]["mlflow"]["run_id"]
    saved = read_json(folder / TRACKING_FILE)
    del saved["trackers"]["mlflow"]["is_complete"]
    write_json(folder / TRACKING_FILE, saved)
    history = pd.concat([make_history(), make_history().tail(1).assign(epoch=8)])
    history.to_csv(folder / "history.csv", index=False)
    track_finished_run(folder, ["mlflow"], print)
    assert [one.step for one in client.get_metric_history(run_id, "epochs/valid_loss")] == [*EPOCHS, 8]
    assert [one.step for one in client.get_metric_history(run_id, "epochs/peak_learning_rate")] == [*EPOCHS, 8]
    assert len(client.search_runs(["1"])) == 1
