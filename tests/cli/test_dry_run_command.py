"""The command train --dry-run: the plan on 80 columns, and as JSON."""

import json
import shutil
from dataclasses import replace
from io import StringIO

import torch
from cli_calls import TRAIN
from rich.console import Console

from fastcxr.cli.dry_run import show_dry_run
from fastcxr.config.recipe import Recipe
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
    busy = replace(plans[0], times=plans[0].times | {"decoded_images_per_second": 1150.4, "run_seconds": 172.0})
    for width in range(50, 90):  # a number and its unit are on one line
        page = StringIO()
        show_dry_run(Console(width=width, file=page), busy)
        assert "1,150 decoded/s" in page.getvalue() and "2 min 52 s" in page.getvalue()
        assert not any(line.rstrip()[-1:].isdigit() for line in page.getvalue().partition("model")[2].splitlines())

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1_000))
    plans.clear()
    done = call(*TRAIN, "--data", toy_folder, "--dry-run", "--json", where=tmp_path)
    assert done.returncode == 74 and "Free disk space and repeat the command" in done.stderr
    assert json.loads(done.stdout)["error"]["exit_code"] == 74


def test_a_dry_run_ends_with_the_error_of_the_run(call, toy_folder, tmp_path, monkeypatch):
    words = [*TRAIN, "--data", toy_folder, "--out", "run", "--dry-run"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    done = call(*words, "--gpus", "2", where=tmp_path)
    assert done.returncode == 71 and "FCX-E601" in done.stderr
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = []
    monkeypatch.setattr("fastcxr.cli.train.start_dry_run", lambda *words: found.append(words[-1]) or 0)
    assert call(*words, "--gpus", "2", where=tmp_path).returncode == 0 and found == [2]
    monkeypatch.undo()
    done = call(*words, "--gpus", "2", "--jobs", "2", where=tmp_path)
    assert done.returncode == 64 and "--jobs and --gpus cannot be combined" in done.stderr

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("x")
    done = call(*words, where=tmp_path)
    assert done.returncode == 73 and "this folder is not empty" in done.stderr
    (tmp_path / "run" / "recipe.json").write_text(Recipe("resnet18", data=str(toy_folder)).to_json())
    done = call(*words, where=tmp_path)
    assert done.returncode == 73 and "a run with a different recipe (backbone was 'resnet18'" in done.stderr
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["notes.txt", "recipe.json"]
