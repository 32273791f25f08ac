"""The command line as a person meets it: the main job, its files, and one line for every mistake."""

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, roc_auc_score
from toys import LABELS, write_toys

from fastcxr.cli import app, main
from fastcxr.data.cache.banks import open_bank
from fastcxr.data.store import open_pictures
from fastcxr.inference.bundle import load_model

TRAIN = ["train", "mobilenetv2_035", "--weights", "none", "--image-size", "64", "--epochs", "1", "--strategy", "deep"]


def fastcxr(*words, where: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fastcxr", *map(str, words)]
    return subprocess.run(command, cwd=where, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.fixture
def call(monkeypatch, capfd):
    """The command within this process, which has paid for importing torch already."""

    def calling(*words, where: Path | None = None) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["fastcxr", *map(str, words)])
        if where:
            monkeypatch.chdir(where)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(words, ended.value.code, *capfd.readouterr())

    return calling


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, its data folder, and what the terminal said."""
    place = tmp_path_factory.mktemp("finished")
    data = write_toys(place / "toys", per_class=20)
    done = fastcxr(*TRAIN, "--data", "toys", "--out", "run", "--score-train", "--batch-size", "8", where=place)
    assert done.returncode == 0, done.stderr
    return place / "run", data, done


def test_a_run_leaves_its_files_and_ends_with_the_report(finished):
    run, _, done = finished
    assert done.stdout.strip() == str(Path("run") / "report.html")
    assert done.stderr.count("layout: ") == 1
    files = {path.name for path in run.iterdir()}
    assert files == {
        "recipe.json", "manifest.csv", "history.csv", "model.safetensors", "model.json", "predictions.csv",
        "metrics.json", "report.html", "run.json", "figures", "histograms.csv", "files.csv",
        "audit.json", "MODEL_CARD.md", "CLAIM.md", "SHA256SUMS", "explain.csv", "explain.json",
    }  # fmt: skip


def test_the_report_shows_the_cohort_with_its_gray_values(finished):
    run = finished[0]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Gray values of each class" in page and 'id="histogram_3-figure_1"' in page
    assert pd.read_csv(run / "histograms.csv")["label"].value_counts().to_dict() == dict.fromkeys(LABELS, 64)


def test_the_terminal_says_what_was_found_and_shows_the_headline(finished):
    said = finished[2].stderr
    assert "3 classes, 60 images, 30 patients from NIH file names" in said
    assert "train 42 images of 21 patients" in said or "train" in said
    assert "AUROC" in said
    assert re.search(r"^arithmetic: (bfloat16|float32), channels last \(this device ", said, re.MULTILINE)
    assert "Traceback" not in said
    assert "\r" not in said, "no live bar in a pipe"


def test_the_report_names_the_arithmetic(finished):
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    precision = json.loads((finished[0] / "model.json").read_text())["choices"]["precision"]
    assert f"<dt>precision</dt><dd>{precision}</dd>" in page
    assert "<li>arithmetic: " in page


def test_metrics_agree_with_scikit_learn_computed_afresh_from_predictions(finished):
    metrics = json.loads((finished[0] / "metrics.json").read_text())
    table = pd.read_csv(finished[0] / "predictions.csv", dtype={"error": str})
    assert set(metrics) == {"train", "valid", "test"}
    for split, found in metrics.items():
        check_against_scikit_learn(table[table["split"] == split], found)


def check_against_scikit_learn(part: pd.DataFrame, found: dict) -> None:
    labels = found["labels"]
    probability = part[[f"prob_{label}" for label in labels]].to_numpy()
    onehot = (part["label"].to_numpy()[:, None] == np.array(labels)).astype(int)
    assert found["n_images"] == len(part)
    assert found["n_patients"] == part["patient"].nunique()
    assert found["accuracy"] == pytest.approx(accuracy_score(part["label"], part["predicted"]), abs=1e-9)
    assert found["balanced_accuracy"] == pytest.approx(
        balanced_accuracy_score(part["label"], part["predicted"]), abs=1e-9
    )
    for average in ("macro", "micro"):
        assert found["auroc"][average] == pytest.approx(roc_auc_score(onehot, probability, average=average), abs=1e-9)
        assert found["average_precision"][average] == pytest.approx(
            average_precision_score(onehot, probability, average=average), abs=1e-9
        )


def test_a_report_is_redrawn_byte_for_byte(call, finished):
    before = hashlib.sha256((finished[0] / "report.html").read_bytes()).hexdigest()
    done = call("report", finished[0])
    assert done.returncode == 0
    assert hashlib.sha256((finished[0] / "report.html").read_bytes()).hexdigest() == before


def test_the_same_command_gives_identical_predictions(call, finished, tmp_path):
    run, data, _ = finished
    done = call(*TRAIN, "--data", data, "--out", tmp_path / "again", "--score-train", "--batch-size", "8")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()


def test_no_absolute_path_of_the_machine_reaches_an_output(finished):
    run, data, _ = finished
    for path in run.rglob("*"):
        if path.is_file():
            assert str(data).encode() not in path.read_bytes(), path


def test_an_earlier_run_keeps_every_patient_in_place(call, finished, tmp_path):
    run, data, _ = finished
    done = call(*TRAIN, "--data", data, "--split-from", run, "--seed", "7", "--out", tmp_path / "later")
    assert done.returncode == 0, done.stderr
    before, after = (pd.read_csv(f / "manifest.csv", dtype=str) for f in (run, tmp_path / "later"))
    assert after["split"].tolist() == before["split"].tolist()
    assert set(after["split_from"]) == {"kept"}


def test_predict_writes_a_row_a_file_and_an_error_row_for_each_bad_one(call, finished, tmp_path):
    run, data, _ = finished
    (tmp_path / "new").mkdir()
    good = sorted((data / "haze").glob("*.png"))[:3]
    for file in good:
        (tmp_path / "new" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "new" / "broken.png").write_bytes(good[0].read_bytes()[:600])
    done = call("predict", run, tmp_path / "new", good[0], "--csv", tmp_path / "out.csv")
    assert done.returncode == 2, "some files could not be read"
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [*sorted([f.name for f in good] + ["broken.png"]), good[0].name]
    bad = [row for row in rows if row["error"]]
    assert [row["path"] for row in bad] == ["broken.png"]
    assert "FCX-E103" in bad[0]["error"]
    assert sum(float(rows[0][name]) for name in rows[0] if name.startswith("prob_")) == pytest.approx(1)
    assert "4 images classified, 1 not readable" in done.stderr


def test_predict_without_a_file_writes_to_standard_output(call, finished):
    run, data, _ = finished
    done = call("predict", run, data / "clear")
    assert done.returncode == 0
    assert len(list(csv.DictReader(done.stdout.splitlines()))) == 20


def test_explain_makes_a_page_a_table_and_pictures_and_a_row_for_each_bad_file(call, finished, tmp_path):
    run, data, _ = finished
    (tmp_path / "broken.png").write_bytes(b"no image")
    good = sorted((data / "haze").glob("*.png"))[:2]
    done = call("explain", run, *good, tmp_path / "broken.png", "--class", "opacity", "--out", tmp_path / "maps")
    assert done.returncode == 2, "one file could not be read"
    assert done.stdout.strip() == str(tmp_path / "maps" / "explain.html")
    assert "2 images explained, 1 not readable" in done.stderr
    with (tmp_path / "maps" / "explain.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows if row["error"]] == ["broken.png"]
    assert {row["class"] for row in rows if row["path"] == good[0].name} >= {"opacity"}
    before = (tmp_path / "maps" / "explain.html").read_bytes()
    assert call("report", tmp_path / "maps").returncode == 0
    assert (tmp_path / "maps" / "explain.html").read_bytes() == before
    for row in rows:
        assert bool(row["file"]) == (not row["note"]), "a picture for each map, or the reason why there is none"
        assert not row["file"] or (tmp_path / "maps" / row["file"]).is_file()


def test_explain_names_the_classes_to_one_who_asks_for_another(call, finished, tmp_path):
    run, data, _ = finished
    done = call("explain", run, data / "haze", "--class", "opacitty", "--out", tmp_path / "maps")
    assert done.returncode == 64
    assert "no class called 'opacitty'. Did you mean 'opacity'? It knows clear, haze, opacity" in done.stderr
    assert not (tmp_path / "maps").exists()


def test_openvino_gives_the_classes_that_torch_gives(call, finished):
    run, data, _ = finished
    tables = [call("predict", run, data / "clear", "--engine", name).stdout for name in ("torch", "openvino")]
    eager, graph = (list(csv.DictReader(table.splitlines())) for table in tables)
    assert [row["path"] for row in eager] == [row["path"] for row in graph]
    for one, other in zip(eager, graph, strict=True):
        assert float(one["prob_clear"]) == pytest.approx(float(other["prob_clear"]), abs=0.02)


@pytest.mark.parametrize(("words", "line"), [((), None), (("--precision", "fp32"), "arithmetic: float32 on cpu")])
def test_predict_says_its_arithmetic_and_takes_another(call, finished, words, line):
    run, data, _ = finished
    done = call("predict", run, data / "clear", *words, "--device", "cpu")
    trained = {"bf16": "bfloat16", "fp32": "float32"}[load_model(run, device="cpu").precision]
    assert (line or f"arithmetic: {trained} on cpu") in done.stderr.splitlines()


@pytest.mark.parametrize("command", ["predict", "explain", "evaluate"])
def test_a_device_that_is_not_here_is_told_in_a_line(call, finished, command):
    run, data, _ = finished
    done = call(command, run, *(["--data"] if command == "evaluate" else []), data, "--device", "cuda:77")
    assert "device 'cuda:77' is not here" in done.stderr.splitlines()[-1]


def test_openvino_takes_no_gpu(call, finished):
    done = call("predict", finished[0], finished[1] / "clear", "--engine", "openvino", "--device", "cuda")
    assert "Leave one of them out" in done.stderr.splitlines()[-1]


def test_pictures_that_the_model_was_trained_on_are_left_out_of_a_test_and_counted(call, finished, tmp_path):
    run, data, _ = finished
    other = write_toys(tmp_path / "other", per_class=6, first=100)
    split = pd.read_csv(run / "manifest.csv", dtype=str)
    for part in ("train", "valid", "test"):
        path = split.loc[split["split"] == part, "path"].iloc[0]
        shutil.copy(data / path, other / path.split("/")[0] / f"{part}.png")
    done = call("evaluate", run, "--data", other, "--out", tmp_path / "there")
    assert done.returncode == 0, done.stderr
    assert "2 images left out: the model was trained or chosen on them" in done.stderr
    skipped = pd.read_csv(tmp_path / "there" / "skipped.csv", dtype=str)
    assert sorted(Path(path).name for path in skipped["path"]) == ["train.png", "valid.png"]
    scored = pd.read_csv(tmp_path / "there" / "predictions.csv", dtype=str)["path"].map(lambda path: Path(path).name)
    assert "test.png" in set(scored) and not {"train.png", "valid.png"} & set(scored)


def test_a_test_on_the_training_images_alone_is_refused(call, finished, tmp_path):
    run, data, _ = finished
    split = pd.read_csv(run / "manifest.csv", dtype=str)
    for path in split.loc[split["split"] == "train", "path"]:
        (tmp_path / "again" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / path, tmp_path / "again" / path)
    done = call("evaluate", run, "--data", tmp_path / "again")
    assert done.returncode == 65
    assert "trained on all" in done.stderr.splitlines()[-1]


def test_a_test_elsewhere_never_writes_into_a_finished_run(call, finished):
    run, data, _ = finished
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = call("evaluate", run, "--data", data, "--out", run)
    assert done.returncode == 73
    assert "this folder is not empty" in done.stderr
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_model_is_tested_on_other_data_with_labels_matched(call, finished, tmp_path):
    other = write_toys(tmp_path / "other", per_class=6, first=100)
    (other / "haze").rename(other / "Haze")
    words = ["evaluate", finished[0], "--data", other, "--out", tmp_path / "there"]
    done = call(*words)
    assert done.returncode == 65
    assert "--map 'Haze=haze'" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "there").exists()
    done = call(*words, "--map", "Haze=haze", "--precision", "bf16", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "<li>arithmetic: bfloat16 on cpu</li>" in (tmp_path / "there" / "report.html").read_text()
    metrics = json.loads((tmp_path / "there" / "metrics.json").read_text())
    assert (set(metrics), metrics["test"]["n_images"]) == ({"test", "internal", "drops"}, 18)
    table = pd.read_csv(tmp_path / "there" / "predictions.csv", dtype={"error": str})
    check_against_scikit_learn(table[table["split"] == "test"], metrics["test"])
    home = json.loads((finished[0] / "metrics.json").read_text())["test"]
    assert metrics["internal"] == home, "the run's own figures, from rows that stand in this folder"
    assert call("verify", tmp_path / "there").returncode == 0
    assert "internal" in done.stderr


def test_a_model_is_tested_on_people_of_one_class_and_patients_it_knows_are_left_out(call, finished, tmp_path):
    other = write_toys(tmp_path / "other", per_class=6, labels=("clear",), first=100)
    split = pd.read_csv(finished[0] / "manifest.csv", dtype=str)
    known = split.loc[(split["split"] == "train") & (split["label"] == "clear"), "patient"].iloc[0]
    first = min((other / "clear").glob("*.png"))
    first.rename(first.with_name(f"{known}_099.png"))
    done = call("evaluate", finished[0], "--data", other, "--layout", "folders", "--out", tmp_path / "there")
    assert done.returncode == 0, done.stderr
    assert "1 images left out: the model was trained or chosen on others of their patients" in done.stderr
    (drop,) = json.loads((tmp_path / "there" / "metrics.json").read_text())["drops"].values()
    assert list(drop["figures"]) == ["per_class.clear.sensitivity"]
    assert "are not compared" in (tmp_path / "there" / "report.html").read_text()


@pytest.fixture
def damaged(tmp_path):
    data = write_toys(tmp_path / "toys", per_class=20)
    victims = sorted((data / "clear").glob("*.png"))
    victims[0].write_bytes(b"")
    victims[1].write_bytes(b"<html>404</html>")
    victims[2].write_bytes(victims[2].read_bytes()[:700])
    return data


def test_bad_files_stop_training_before_the_first_step_with_the_whole_list(call, damaged, tmp_path):
    done = call(*TRAIN, "--data", damaged, "--out", tmp_path / "run")
    assert done.returncode == 65
    assert [code in done.stderr for code in ("FCX-E101", "FCX-E102", "FCX-E103")] == [True] * 3
    assert "--skip-bad" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists(), "the same command works again once the files are mended"


def test_bad_files_can_be_left_out_and_are_counted_in_the_report(call, damaged, tmp_path):
    done = call(*TRAIN, "--data", damaged, "--skip-bad", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert len(list(csv.DictReader((tmp_path / "run" / "skipped.csv").open(newline="")))) == 3
    assert "3 images left out" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "code", "remedy"),
    [
        (["train", "mobilenetv2_035", "--los", "focal"], 64, "Did you mean --loss"),
        (["train", "mobilenetv2_035", "--loss", "focl"], 64, 'Did you mean "focal"'),
        (["train", "mobilenetv2_035", "--epochs", "0"], 64, "at least 1"),
        (["trian"], 64, 'Did you mean "train"'),
        (["train", "resnet5O", "--data", "TOYS", "--weights", "none"], 64, "Did you mean 'resnet50'"),
        (["train", "mobilenetv2_035", "--data", "nowhere"], 66, "no such file or folder. Check the name"),
        (["train", "mobilenetv2_035", "--data", "TOYS", "--weights", "nowhere.pth"], 66, "Give --weights"),
        (
            ["train", "mobilenetv2_035", "--data", "TOYS", "--device", "cuda:99", "--weights", "none"],
            64,
            "--device auto",
        ),
        (["train", "mobilenetv2_035", "--data", "TOYS", "--out", "TOYS"], 73, "Choose another --out"),
        (["report", "nowhere"], 66, "Name the folder of a finished run"),
        (["predict", "nowhere", "a.png"], 66, "Name the folder of a finished run"),
        (["predict", "nowhere"], 66, "Give files or folders"),
        (["models", "no_such_backbone"], 66, "Try a shorter part"),
    ],
)
def test_every_mistake_is_one_line_with_its_remedy(call, words, code, remedy, toy_folder, tmp_path):
    done = call(*[str(toy_folder) if word == "TOYS" else word for word in words], where=tmp_path)
    assert done.returncode == code, done.stderr
    assert remedy in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("runs/*"))


def test_a_mistake_shows_no_traceback(tmp_path):
    done = fastcxr("train", "mobilenetv2_035", "--data", "nowhere", where=tmp_path)
    assert done.returncode == 66
    assert "Traceback" not in done.stderr


def test_a_wrong_folder_is_told_before_torch_loads(tmp_path):
    code = (
        "import sys; from fastcxr.cli import main; sys.argv = ['fastcxr', 'train', '--data', 'nowhere']\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["66", "False"], done.stderr


def test_models_lists_parameters_size_and_weights(call):
    lines = call("models", "vgg16").stdout.splitlines()
    assert lines[1].split() == ["vgg16", "timm", "138.4", "M", "224", "yes"]
    assert any(line.startswith("torchvision:vgg16 ") for line in lines)


def test_without_data_the_class_folders_in_data_are_used_and_said(call, tmp_path):
    write_toys(tmp_path / "data", per_class=20)
    done = call(*TRAIN, where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "using the class folders in data/" in done.stderr
    assert (tmp_path / "runs" / "data-mobilenetv2_035-1" / "report.html").exists()


def test_the_version_is_told():
    assert fastcxr("--version").stdout.startswith("fastcxr 0.")


def test_two_sources_are_packed_and_trained_from_under_names_of_ones_own(call, toy_folder, tmp_path):
    write_toys(tmp_path / "more", per_class=4, labels=("clear", "opacity"))
    chosen = ("--classes", "clear", "--classes", "ill", "--relabel", "opacity=ill", "--relabel", "haze=ill")
    done = call("pack", toy_folder, "more", "--to", "c.h5", *chosen, "--shuffle", where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "c.h5"
    assert "relabelled: opacity to ill (14), haze to ill (10)" in done.stderr
    assert "left out 8 exact copies: 8 of more that stand in toys" in done.stderr
    done = call(*TRAIN, "--data", "c.h5", "--where", "source=toys", "--batch-size", "8")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "c-mobilenetv2_035-1"
    table = pd.read_csv(run / "manifest.csv")
    assert len(table) == 30
    assert set(table["label"]) == {"clear", "ill"}
    assert not any(str(tmp_path) in (run / name).read_text() for name in ("manifest.csv", "predictions.csv"))
    assert json.loads((run / "recipe.json").read_text())["where"] == ["source=toys"]


def test_two_sources_name_the_run_folder_and_the_report(call, toy_folder, tmp_path):
    write_toys(tmp_path / "more", per_class=4, labels=("clear", "opacity"))
    done = call(*TRAIN, "--data", toy_folder, "--data", "more", "--batch-size", "8", where=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "toys + more" in (tmp_path / "runs" / "toys_more-mobilenetv2_035-1" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["pack", "--to", "c.h5"], "Give a folder, a CSV or a known collection after pack"),
        (["pack", "nowhere", "--to", "c.h5"], "no such file or folder"),
        (["train", "--data", "toys", "--classes", "cler"], "did you mean 'clear'?"),
    ],
)
def test_choices_of_data_that_cannot_be_are_one_line(call, toy_folder, words, remedy):
    done = call(*words, where=toy_folder.parent)
    assert done.returncode in (64, 66)
    assert remedy in done.stderr
    assert "Traceback" not in done.stderr


def test_the_cache_is_shown_and_cleared(call, toy_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "no pictures are kept" in call("cache").stderr
    files = sorted(map(str, toy_folder.glob("*/*.png")))
    open_pictures(files, 48)
    used = open_pictures(files, 200)
    shown = call("cache")
    assert shown.stdout.strip() == str(tmp_path / "fastcxr" / "pictures")
    assert [line.split()[:3] for line in shown.stderr.splitlines()[1:]] == [["200", "px", "30"], ["48", "px", "30"]]
    cleared = call("cache", "--clear").stderr
    assert re.search(r"freed 0\.\d MB\n", cleared)
    assert "in use by a running process, and kept" in cleared and "200 px" in cleared and "48 px" not in cleared
    assert used.read([0]).any()
    del used
    assert re.search(r"freed 1\.\d MB\n", call("cache", "--clear").stderr)
    assert "no pictures are kept" in call("cache").stderr


def test_kept_features_are_one_row_of_the_cache_and_cleared_with_it(call, toy_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, then in (("a", 1_000_000_000), ("b", 1_600_000_000)):
        with open_bank(name, (2, 500, 700)) as (array, _):
            array[:] = 1
        file = next((tmp_path / "fastcxr" / "features").glob(f"{name}-*.npy"))
        os.utime(file, (then, then))
    row = call("cache").stderr.splitlines()[-1].split()
    assert row[:4] == ["features", "2", "banks", "5.6"]
    assert row[4] in ("2020-09-13", "2020-09-14"), "the last use of any"
    open_pictures(sorted(map(str, toy_folder.glob("*/*.png"))), 48)
    assert [line.split()[0] for line in call("cache").stderr.splitlines()] == ["size", "48", "features"]
    assert re.search(r"freed [56]\.\d MB\n", call("cache", "--clear").stderr)
    assert "no pictures are kept" in call("cache").stderr
    assert not (tmp_path / "fastcxr" / "features").exists()


@pytest.mark.parametrize("command", [name for name in app if not name.startswith("-")])
def test_no_two_choices_of_a_command_share_a_flag(command):
    names = [name for choice in app[command].assemble_argument_collection() for name in choice.names]
    assert len(names) == len(set(names))
