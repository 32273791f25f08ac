"""Five commands meet one folder with a patient's name all over it and a bad file of every kind in it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from planted_identifiers import NAME, ODD, tree_hash, write_bad, write_cohort

from fastcxr.cli.main import main

TRAIN = ["mobilenetv2_035", "--weights", "none", "--image-size", "64", "--epochs", "1", "--strategy", "full",
         "--batch-size", "8"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Outputs of every command in a folder, and what the terminal said: nothing of the data is below it."""
    place = tmp_path_factory.mktemp("commands")
    data = write_cohort(place / NAME / "data")
    other = write_cohort(place / NAME / "other")
    bad = write_bad(data)
    for folder in (data, *data.iterdir()):
        folder.chmod(0o555)
    before = tree_hash(place / NAME)
    done, out = {}, place / "out"
    (out / "config").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(out / "config"))
        patch.setenv("XDG_CACHE_HOME", str(out / "cache"))
        for name, words in {
            "describe": ["describe", "--data", data, "--out", out / "describe"],
            "audit": ["audit", "--data", data, "--out", out / "audit"],
            "refused": ["train", *TRAIN, "--data", data, "--out", out / "refused"],
            "train": ["train", *TRAIN, "--data", data, "--skip-bad", "--out", out / "train"],
            "predict": ["predict", out / "train", data, "--csv", out / "predict.csv"],
            "names": ["predict", out / "train", data / "haze", "--csv", out / "names.csv"],
            "evaluate": ["evaluate", out / "train", "--data", other, "--out", out / "evaluate"],
        }.items():
            done[name] = call(patch, words)
            (out / f"{name}.log").write_text(done[name].stdout + done[name].stderr)
    after = tree_hash(place / NAME)
    for folder in (data, *data.iterdir()):
        folder.chmod(0o755)
    return {"out": out, "done": done, "bad": bad, "before": before, "after": after, "data": data}


def call(patch, words) -> subprocess.CompletedProcess:
    """The command within this process, which has paid for importing torch already."""
    from contextlib import redirect_stdout
    from io import StringIO

    from fastcxr.cli.app import console

    patch.setattr(sys, "argv", ["fastcxr", *map(str, words)])
    with redirect_stdout(StringIO()) as said, console.capture() as told, pytest.raises(SystemExit) as ended:
        main()
    return subprocess.CompletedProcess(words, ended.value.code, said.getvalue(), told.get())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_name_of_the_patient_reaches_no_output_no_log_no_model_and_no_cache(place):
    hits = [path for path in place["out"].rglob("*") if path.is_file() and NAME.encode() in path.read_bytes()]
    assert hits == []
    assert len(list(place["out"].rglob("*"))) > 60
    patients = {
        row["patient"] for row in rows(place["out"] / "train" / "manifest.csv") if row["patient_origin"] == "dicom"
    }
    assert len(patients) == 6 and all(patient.startswith("dicom-") for patient in patients)


def test_every_command_names_the_same_bad_files_with_the_same_codes(place):
    for name in ("describe", "audit", "train"):
        assert {row["path"]: row["code"] for row in rows(place["out"] / name / "skipped.csv")} == place["bad"], name
    errors = {row["path"]: row["error"] for row in rows(place["out"] / "predict.csv") if row["error"]}
    assert {path: words[4:8] for path, words in errors.items()} == place["bad"]
    refused = place["done"]["refused"]
    assert all(f"FCX-{code} {path}: " in refused.stderr for path, code in place["bad"].items())


def test_exit_codes_tell_what_happened(place):
    codes = {name: done.returncode for name, done in place["done"].items()}
    assert codes == {"describe": 2, "audit": 65, "refused": 65, "train": 0, "predict": 2, "names": 0, "evaluate": 0}
    assert not any("Traceback" in done.stderr for done in place["done"].values())


def test_a_bad_file_costs_one_row_and_every_odd_name_is_predicted(place):
    table = rows(place["out"] / "predict.csv")
    good = [row for row in table if not row["error"]]
    assert len(good) == 36 + len(ODD) and len(table) == len(good) + len(place["bad"])
    assert all(float(row["prob_haze"]) > 0 for row in good)


def test_no_cell_of_a_table_can_be_run_as_a_formula(place):
    tables = list(place["out"].rglob("*.csv"))
    assert len(tables) > 10
    for path in tables:
        with path.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "@", "\t")], path
    assert ",'=cmd|' C calc'!A0.png" in (place["out"] / "names.csv").read_text()


def test_the_data_folder_is_read_and_nothing_else(place):
    assert place["before"] == place["after"]


def test_commands_and_recipes_keep_the_last_part_of_a_path(place):
    said = json.loads((place["out"] / "train" / "run.json").read_text())["command"]
    assert "--data data --skip-bad --out train" in said
    assert json.loads((place["out"] / "train" / "recipe.json").read_text())["data"] == "data"
    assert str(place["out"]) not in "".join(
        path.read_text() for path in place["out"].rglob("*") if path.suffix in (".json", ".md", ".html")
    )


def test_links_in_circles_pipes_and_hidden_files_are_passed_over_and_said(place):
    said = place["done"]["describe"].stderr
    for words in ("skipped 3 hidden or system files", "links to folders already listed: clear/loop", "clear/pipe.png"):
        assert words in said
