"""Tests of worker processes: environment, a killed worker, the end of the submitting process, and Dask."""

import logging
import os
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import piece_tasks
import pytest

from fastcxr.errors import DataError, DeviceError, RecipeError
from fastcxr.executors.dask_cluster import _warn_of_lost_worker, connect_dask
from fastcxr.executors.local_pool import LocalPool
from fastcxr.executors.new_process import call_in_new_process
from fastcxr.executors.run_tasks import run_tasks
from fastcxr.executors.shared_folder import SharedFolder
from fastcxr.executors.worker import Task, call_task

SUPPORT = str(Path(piece_tasks.__file__).parent)
ROOT = str(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def pool():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "3")
        patch.setenv("CUDA_VISIBLE_DEVICES", "7")
        with LocalPool(1, ["4"]) as pool:
            yield pool


def test_a_worker_has_its_threads_and_gpu_and_does_not_import_torch(pool):
    found = run_tasks({"one": Task(piece_tasks.describe_process)}, pool)["one"]
    assert found | {"pid": 0} == {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "4", "pid": 0, "torch": False}
    assert found["pid"] != os.getpid()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    assert pool.describe() == "1 worker process, 3 threads each (OMP_NUM_THREADS), one GPU each of 4"


def test_the_task_of_a_killed_worker_is_submitted_again(pool, tmp_path, caplog):
    tasks = {"one": Task(piece_tasks.kill_first, (tmp_path,)), "two": Task(piece_tasks.add, (1, 2))}
    assert run_tasks(tasks, pool) == {"one": 2, "two": 3}
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "worker 1 was killed: a new one continues its piece"
    ]


def test_an_error_of_a_worker_is_raised(pool):
    with pytest.raises(DataError, match="E313: one: bad"):
        run_tasks({"one": Task(piece_tasks.fail, ("bad",))}, pool)


def test_workers_share_the_cpus_without_a_number_of_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("fastcxr.executors.local_pool.count_cpus", lambda: 8)
    with LocalPool(3) as pool:
        assert pool.describe() == "3 worker processes, 2 threads each (8 CPUs)"


def test_a_call_in_a_new_process_is_repeated_after_a_kill_and_raises_its_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([ROOT, SUPPORT]))
    outcome = call_in_new_process(call_task, (Task(piece_tasks.kill_first, (tmp_path,)),))
    assert (outcome.result, outcome.n_restarts) == (2, 1)
    with pytest.raises(DataError, match="bad"):
        call_in_new_process(piece_tasks.fail, ("bad",))


def test_a_new_process_removes_its_temporary_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([ROOT, SUPPORT]))
    assert call_in_new_process(piece_tasks.make_folder_removed_at_exit, (tmp_path,)) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_worker_removes_its_temporary_folders_and_a_hard_stop_shows_no_warning(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        f"sys.path[:0] = [{SUPPORT!r}]\n"
        "import piece_tasks\n"
        "from fastcxr.executors.local_pool import LocalPool\n"
        "if __name__ == '__main__':\n"
        "    pool = LocalPool(1)\n"
        "    print(pool.submit(piece_tasks.make_folder_removed_at_exit, Path(sys.argv[1])).result(), flush=True)\n"
        "    os._exit(130)\n"
    )
    (tmp_path / "folders").mkdir()
    # the output ends once the worker and the resource tracker have ended
    done = subprocess.run(
        [sys.executable, script, tmp_path / "folders"],
        env=os.environ | {"PYTHONPATH": ROOT}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "1\n", "")
    assert list((tmp_path / "folders").iterdir()) == []


def test_the_loss_of_a_dask_worker_with_own_pieces_is_a_warning(caplog):
    client = SimpleNamespace(futures={"call-1": None, "call-2": None})
    lost = {"action": "remove-worker", "worker": "tcp://a:1", "processing-tasks": {"call-2": 1.0, "other": 1.0}}
    for message in (lost, lost | {"processing-tasks": {"other": 1.0}}, lost | {"action": "add-worker"}, "text"):
        _warn_of_lost_worker(client, (0.0, message))
    assert caplog.messages == ["worker tcp://a:1 was lost: other workers continue 1 piece"]


@pytest.mark.slow
def test_a_task_that_kills_each_of_its_workers_is_an_error(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([ROOT, SUPPORT]))
    with LocalPool(1) as pool, pytest.raises(DeviceError, match="E611: one: each of its worker processes was killed"):
        run_tasks({"one": Task(piece_tasks.kill)}, pool)
    with pytest.raises(Exception, match="was killed") as caught:
        call_in_new_process(piece_tasks.kill, ())
    assert not isinstance(caught.value, BrokenProcessPool)


@pytest.mark.slow
def test_workers_end_with_a_killed_submitting_process(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import os, sys, time\n"
        f"sys.path[:0] = [{SUPPORT!r}]\n"
        "import piece_tasks\n"
        "from fastcxr.executors.local_pool import LocalPool\n"
        "if __name__ == '__main__':\n"
        "    pool = LocalPool(1)\n"
        "    print(pool.submit(piece_tasks.describe_process).result()['pid'], flush=True)\n"
        "    pool.submit(time.sleep, 100)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, script], env=os.environ | {"PYTHONPATH": ROOT}, capture_output=True, check=False
    )
    process_id = int(done.stdout)
    for _ in range(300):
        try:
            os.kill(process_id, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the worker still runs")


@pytest.mark.slow
@pytest.mark.needs("distributed")
def test_dask_runs_tasks_in_new_processes_and_rejects_workers_with_several_threads(tmp_path, monkeypatch):
    from distributed import LocalCluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([ROOT, SUPPORT]))
    options = {"dashboard_address": None, "local_directory": str(tmp_path / "dask"), "memory_limit": 0}
    with LocalCluster(n_workers=1, threads_per_worker=1, **options) as cluster:
        address = cluster.scheduler_address
        with connect_dask(address) as executor, SharedFolder(tmp_path, piece_tasks.ignore_stop) as shared:
            tasks = {name: Task(piece_tasks.describe_process) for name in ("one", "two")}
            found = run_tasks(tasks, executor, shared=shared)
            assert found["one"]["pid"] != found["two"]["pid"]
            with pytest.raises(DataError, match="one: bad"):
                run_tasks({"one": Task(piece_tasks.fail, ("bad",))}, executor, shared=shared)
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, **options) as cluster:
        executor = connect_dask(cluster.scheduler_address)
        with pytest.raises(RecipeError, match="E615: .* runs 2 pieces at once.*--nthreads 1"):
            executor.__enter__()
    monkeypatch.setattr("fastcxr.executors.dask_cluster.CONNECT_SECONDS", 1)
    executor = connect_dask(address)
    with pytest.raises(DeviceError, match="E614: no Dask scheduler answers at"):
        executor.__enter__()
