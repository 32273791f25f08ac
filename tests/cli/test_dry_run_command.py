"""The command train --dry-run: the plan on 80 columns, and as JSON."""

import json
import shutil
from io import StringIO

from cli_calls import TRAIN
from rich.console import Console

from fastcxr.cli.dry_run import show_dry_run
from fastcxr.workflows import dry_run as module


def test_a_dry_run_prints_a_plan_and_starts_nothing(call, toy_folder, tmp_path, monkeypatch):
    plans, dry_run = [], module.dry_run
    monkeypatch.setattr(module, "dry_run", lambda *words: plans.append(dry_run(*words)) or plans[0])
    done = call(*TRAIN, "--data", toy_folder, "--dry-run", "--json", where=tmp_path)
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert {"data", "model", "machine", "times", "disk", "memory", "runs", "unknown", "error"} == set(document)
    assert document["model"]["weights"] == "random weights" and document["error"] is None
    assert not list(tmp_path.iterdir())
    page = StringIO()
    show_dry_run(Console(width=80, file=page), plans[0])
    lines = page.getvalue().splitlines()
    headings = [line.split()[0] for line in lines if line[:1].strip()]
    assert {"class", "images", "patients", "model", "device", "time", "disk", "memory"} <= set(headings)
    assert max(map(len, lines)) <= 80

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1_000))
    plans.clear()
    done = call(*TRAIN, "--data", toy_folder, "--dry-run", "--json", where=tmp_path)
    assert done.returncode == 74 and "Free disk space and repeat the command" in done.stderr
    assert json.loads(done.stdout)["error"]["exit_code"] == 74
