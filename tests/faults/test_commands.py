"""Tests of five commands on a folder with patient names in all metadata and unreadable files of every type."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import BACKBONE
from planted_identifiers import NAME, ODD, tree_hash, write_bad, write_cohort

from fastcxr.cli.main import main

TRAIN = [BACKBONE, "--weights", "none", "--image-size", "64", "--epochs", "1", "--strategy", "full",
         "--batch-size", "8"]  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run every command; return outputs, terminal output and checksums of the data, which is outside the outputs."""
    root = tmp_path_factory.mktemp("commands")
    data = write_cohort(root / NAME / "data")
    other = write_cohort(root / NAME / "other")
    bad = write_bad(data)
    for folder in (data, *data.iterdir()):
        folder.chmod(0o555)
    before = tree_hash(root / NAME)
    done, out = {}, root / "out"
    (out / "config").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(out / "config"))
        patch.setenv("XDG_CACHE_HOME", str(out / "cache"))
        for name, words in {
            "describe": ["describe", "--data", data, "--out", out / "describe"],
            "audit": ["audit", "--data", data, "--out", out / "audit"],
            "rejected": ["train", *TRAIN, "--data", data, "--out", out / "rejected"],
            "train": ["train", *TRAIN, "--data", data, "--skip-bad", "--out", out / "train"],
            "predict": ["predict", out / "train", data, "--csv", out / "predict.csv"],
            "names": ["predict", out / "train", data / "haze", "--csv", out / "names.csv"],
            "evaluate": ["evaluate", out / "train", "--data", other, "--out", out / "evaluate"],
        }.items():
            done[name] = call(patch, words)
            (out / f"{name}.log").write_text(done[name].stdout + done[name].stderr)
    after = tree_hash(root / NAME)
    for folder in (data, *data.iterdir()):
        folder.chmod(0o755)
    return {"out": out, "done": done, "bad": bad, "before": before, "after": after, "data": data}


def call(patch, words) -> subprocess.CompletedProcess:
    """Run a command in this process, which has already imported torch."""
    from contextlib import redirect_stdout
    from io import StringIO

    from fastcxr.cli.app import console

    patch.setattr(sys, "argv", ["fastcxr", *map(str, words)])
    with redirect_stdout(StringIO()) as stdout, console.capture() as stderr, pytest.raises(SystemExit) as ended:
        main()
    return subprocess.CompletedProcess(words, ended.value.code, stdout.getvalue(), stderr.get())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_no_output_log_model_or_cache_contains_the_patient_name(results):
    hits = [path for path in results["out"].rglob("*") if path.is_file() and NAME.encode() in path.read_bytes()]
    assert hits == []
    assert len(list(results["out"].rglob("*"))) > 60
    patients = {
        row["patient"] for row in rows(results["out"] / "train" / "manifest.csv") if row["patient_origin"] == "dicom"
    }
    assert len(patients) == 6 and all(patient.startswith("dicom-") for patient in patients)


def test_all_commands_report_the_same_unreadable_files_and_codes(results):
    for name in ("describe", "audit", "train"):
        assert {row["path"]: row["code"] for row in rows(results["out"] / name / "skipped.csv")} == results["bad"], name
    errors = {row["path"]: row["error"] for row in rows(results["out"] / "predict.csv") if row["error"]}
    assert {path: text[4:8] for path, text in errors.items()} == results["bad"]
    rejected = results["done"]["rejected"]
    assert all(f"FCX-{code} {path}: " in rejected.stderr for path, code in results["bad"].items())


def test_each_command_has_its_exit_code(results):
    codes = {name: done.returncode for name, done in results["done"].items()}
    assert codes == {"describe": 2, "audit": 65, "rejected": 65, "train": 0, "predict": 2, "names": 0, "evaluate": 0}
    assert not any("Traceback" in done.stderr for done in results["done"].values())


def test_an_unreadable_file_yields_one_row_and_unusual_names_are_predicted(results):
    table = rows(results["out"] / "predict.csv")
    good = [row for row in table if not row["error"]]
    assert len(good) == 36 + len(ODD) and len(table) == len(good) + len(results["bad"])
    assert all(float(row["prob_haze"]) > 0 for row in good)


def test_no_csv_cell_starts_a_formula(results):
    tables = list(results["out"].rglob("*.csv"))
    assert len(tables) > 10
    for path in tables:
        with path.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "@", "\t")], path
    assert ",'=cmd|' C calc'!A0.png" in (results["out"] / "names.csv").read_text()


def test_the_data_folder_is_not_changed(results):
    assert results["before"] == results["after"]


def test_commands_and_recipes_keep_the_last_part_of_a_path(results):
    command = json.loads((results["out"] / "train" / "run.json").read_text())["command"]
    assert "--data data --skip-bad --out train" in command
    assert json.loads((results["out"] / "train" / "recipe.json").read_text())["data"] == "data"
    assert str(results["out"]) not in "".join(
        path.read_text() for path in results["out"].rglob("*") if path.suffix in (".json", ".md", ".html")
    )


def test_circular_links_pipes_and_hidden_files_are_skipped_with_a_message(results):
    stderr = results["done"]["describe"].stderr
    for words in ("skipped 3 hidden or system files", "links to folders already listed: clear/loop", "clear/pipe.png"):
        assert words in stderr
