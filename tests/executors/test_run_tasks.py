"""Tests of run_tasks: order, errors with the name of the task, warnings, interrupts, and jobs of other libraries."""

import logging
import os
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import piece_tasks
import pytest
from recording_progress import Counted

from fastcxr.errors import DataError, DeviceError, OutputError, PackageError, RecipeError, TrainingError
from fastcxr.executors import run_tasks as module
from fastcxr.executors import worker
from fastcxr.executors.run_tasks import count_workers, run_tasks
from fastcxr.executors.shared_folder import SharedFolder
from fastcxr.executors.worker import Outcome, Task, call_task


class Recording(Executor):
    """An executor that runs each call in `submit`, as a worker would, and records its arguments."""

    def __init__(self):
        self.calls = []

    def submit(self, fn, /, *args):
        self.calls.append((fn, *args))
        future = Future()
        try:
            future.set_result(fn(*args))
        except Exception as error:
            future.set_exception(error)
        return future


SUMS = {f"fold {n}": Task(piece_tasks.add, (n,), {"b": 1}) for n in (3, 1, 2)}


@pytest.mark.parametrize("make", [lambda: None, Recording, lambda: ThreadPoolExecutor(1)])
def test_results_are_in_the_order_of_the_tasks(make):
    assert list(run_tasks(SUMS, make()).items()) == [("fold 3", 4), ("fold 1", 2), ("fold 2", 3)]


def test_only_an_executor_gets_a_bar_and_lines_of_finished_tasks(caplog):
    caplog.set_level(logging.INFO, "fastcxr")
    for executor, expected in ((None, []), (Recording(), [(3, "finished pieces"), 1, 1, 1])):
        progress = Counted()
        run_tasks(SUMS, executor, progress, on_finished=lambda name, outcome: f"sum {outcome.result}")
        assert progress.seen == expected
        assert [line.rpartition(": ")[2] for line in caplog.messages] == ["sum 4", "sum 2", "sum 3"] * bool(expected)


def test_the_first_error_has_the_name_of_its_task_and_stops_the_later_ones():
    executor = Recording()
    failing = Task(piece_tasks.fail, ("bad",))
    tasks = {"fold 1": SUMS["fold 1"], "fold 2": failing, "fold 3": SUMS["fold 3"]}
    for chosen in (executor, None):
        with pytest.raises(DataError, match=r"^FCX-E313: fold 2: bad. Correct it$") as caught:
            run_tasks(tasks, chosen)
        assert caught.value.exit_code == 65
    assert len(executor.calls) == 2


def test_an_unexpected_error_has_a_note_with_the_name_of_its_task():
    with pytest.raises(ZeroDivisionError) as caught:
        run_tasks({"fold 2": Task(piece_tasks.fail_with_bug)})
    assert caught.value.__notes__ == ["in fold 2"]


def test_after_an_error_running_tasks_finish_and_waiting_ones_do_not_start(tmp_path):
    class OneThread(Executor):
        """The first task fails, the second one runs, and the others wait until no further task may start."""

        def submit(self, fn, /, task, token):
            name = task.args[0].name
            if name == "failing":
                return threads.submit(piece_tasks.fail, "bad")
            if name == "waiting":
                return threads.submit(lambda: (closed.wait(10), fn(task, token)))
            return threads.submit(lambda: (fn(task, token), closed.wait(10)))

    closed = threading.Event()
    with SharedFolder(tmp_path, piece_tasks.ignore_stop) as shared, ThreadPoolExecutor(3) as threads:
        close = shared.close
        shared.close = lambda: (close(), closed.set())
        tasks = {name: Task(piece_tasks.touch, (tmp_path / name,)) for name in ("running", "waiting", "failing")}
        with pytest.raises(DataError, match="failing: bad"):
            run_tasks(tasks, OneThread(), shared=shared)
    assert [path.name for path in tmp_path.iterdir()] == ["running"]


def test_an_interrupt_stops_running_tasks_and_leaves_no_token(tmp_path, monkeypatch):
    monkeypatch.setattr(piece_tasks, "stopped", [])
    started = tmp_path / "started"

    def interrupt(futures):
        while not started.exists():
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "as_completed", interrupt)
    with ThreadPoolExecutor(1) as pool:
        tasks = {
            "fold 1": Task(piece_tasks.wait_for_stop, (started,)),
            "fold 2": Task(piece_tasks.touch, (tmp_path / "other",)),
        }
        with (
            pytest.raises(KeyboardInterrupt),
            SharedFolder(tmp_path, piece_tasks.stop_when) as shared,
        ):
            run_tasks(tasks, pool, shared=shared)
    assert [path.name for path in tmp_path.iterdir()] == ["started"]


def test_a_warning_of_several_workers_is_shown_once(caplog):
    tasks = {str(n): Task(piece_tasks.warn, (text,)) for n, text in enumerate(("few images", "few images", "no sex"))}
    assert list(run_tasks(tasks, Recording()).values()) == ["few images", "few images", "no sex"]
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == ["few images", "no sex"]


@pytest.mark.parametrize(("n_restarts", "text"), [(0, []), (1, ["killed once"]), (2, ["killed 2 times"])])
def test_a_killed_process_is_a_warning_with_the_name_of_the_piece(caplog, n_restarts, text):
    executor = SimpleNamespace(submit=lambda *call: SimpleNamespace(result=lambda: Outcome(4, 1.0, (), n_restarts)))
    assert run_tasks({"fold 1": SUMS["fold 1"]}, executor) == {"fold 1": 4}
    expected = [f"fold 1: its process was {one}, and a new one continued it" for one in text]
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == expected


def test_a_second_task_in_a_process_is_rejected_and_an_interrupted_one_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(piece_tasks, "stopped", [True])
    with pytest.raises(TrainingError, match="stopped by a test. Repeat the command"):
        call_task(Task(piece_tasks.wait_for_stop, (tmp_path / "x",)))
    with worker._is_busy, pytest.raises(RecipeError, match="E615.*another piece runs in the same process"):
        call_task(SUMS["fold 1"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BrokenProcessPool(), "E611: fold 1: each of its worker processes"),
        (type("KilledWorker", (Exception,), {})(), "E611"),
    ],
)
def test_a_lost_worker_is_an_error_with_the_name_of_the_piece(error, expected):
    executor = SimpleNamespace(submit=lambda *call: SimpleNamespace(result=lambda: (_ for _ in ()).throw(error)))
    with pytest.raises(DeviceError, match=expected):
        run_tasks({"fold 1": SUMS["fold 1"]}, executor)


def test_a_job_that_only_has_a_result_is_accepted_and_a_cancelled_one_is_an_error():
    executor = SimpleNamespace(submit=lambda fn, *args: SimpleNamespace(result=lambda: fn(*args)))
    assert run_tasks({"fold 1": SUMS["fold 1"]}, executor) == {"fold 1": 2}
    cancelled = Future()
    cancelled.cancel()
    cancelled.set_running_or_notify_cancel()
    with pytest.raises(DeviceError, match="E614: fold 1: the connection to the cluster is lost"):
        run_tasks({"fold 1": SUMS["fold 1"]}, SimpleNamespace(submit=lambda *call: cancelled))


def test_the_number_of_workers_is_that_of_the_executor_or_one():
    with ThreadPoolExecutor(3) as pool:
        assert [count_workers(None), count_workers(pool), count_workers(Recording())] == [1, 3, 1]


def test_a_worker_checks_version_and_folder_and_uses_the_working_directory_of_the_caller(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with SharedFolder(tmp_path, piece_tasks.ignore_stop) as shared:
        token = shared.token
        monkeypatch.chdir(tmp_path)
        assert call_task(Task(os.getcwd), token).result == str(tmp_path / "here")
        assert os.getcwd() == str(tmp_path)
        monkeypatch.setattr("fastcxr.executors.shared_folder.VERSION", "9.9")
        with pytest.raises(PackageError, match=r"E613.* worker has fastcxr 9.9"):
            call_task(SUMS["fold 1"], token)
        monkeypatch.undo()
    with pytest.raises(OutputError, match="E612 .*file system that all workers share"):
        call_task(SUMS["fold 1"], token)


def test_the_token_of_a_later_call_is_not_removed(tmp_path):
    first = SharedFolder(tmp_path, piece_tasks.ignore_stop).__enter__()
    with SharedFolder(tmp_path, piece_tasks.ignore_stop) as second:
        assert first.token.is_removed(), "tasks of the first call stop"
        first.stop()
        assert not second.token.is_removed()
