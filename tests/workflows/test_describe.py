"""Tests of fastcxr describe: its page, terminal output, unreadable files and imports."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
from PIL import Image
from toy_images import LABELS, write_toys

from fastcxr.cli.app import DescribeOptions
from fastcxr.cli.main import main
from fastcxr.config.recipe import Recipe
from fastcxr.errors import OutputError
from fastcxr.workflows.describe import describe, select_decoded


@pytest.fixture
def call(monkeypatch, capfd):
    """Return a function that runs the command in this process."""

    def run_command(*words) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["fastcxr", "describe", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(words, ended.value.code, *capfd.readouterr())

    return run_command


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """Write toy images into the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_toys(tmp_path / "toys", per_class=10)


def test_describe_writes_tables_and_a_page_into_a_new_folder(call, toys, tmp_path):
    done = call("--data", "toys")
    assert (done.returncode, done.stdout.strip()) == (0, "runs/describe-toys-1/describe.html"), done.stderr
    folder = tmp_path / "runs" / "describe-toys-1"
    assert {path.name for path in folder.iterdir()} == {
        "manifest.csv", "histograms.csv", "file_stats.csv", "run.json", "describe.html", "figures",
    }  # fmt: skip
    page = (folder / "describe.html").read_text(encoding="utf-8")
    assert "3 classes, 30 images, 15 patients from NIH file names" in page
    assert "draws with seed 42" in page
    assert not [path for path in folder.rglob("*") if path.is_file() and str(tmp_path).encode() in path.read_bytes()]


def test_the_terminal_shows_classes_and_splits(call, toys):
    rows = [line.split() for line in call("--data", "toys").stderr.splitlines()]
    assert ["train", "valid", "test", "all"] in rows
    assert [row for row in rows if row[:1] == ["haze"] and row[-1] == "10"]


def test_a_class_too_small_to_split_is_shown_with_a_warning(call, toys, tmp_path):
    write_toys(tmp_path / "more", per_class=1, labels=("haze",), first=100)
    (tmp_path / "more" / "haze").rename(toys / "rare")
    done = call("--data", "toys", "--out", "page")
    assert done.returncode == 0, done.stderr
    assert (
        "warning: training is not possible with this data: FCX-E004: too few patients for train and test" in done.stderr
    )
    rows = [line.split() for line in done.stderr.splitlines()]
    assert ["all"] in rows and ["rare", "1"] in rows
    assert "training is not possible with this data" in (tmp_path / "page" / "describe.html").read_text(
        encoding="utf-8"
    )


def test_the_splits_are_those_of_a_training_run(call, toys, tmp_path):
    from fastcxr.workflows.load import assign_recipe_splits, read_recipe_manifest

    call("--data", "toys", "--seed", "7", "--out", "seven")
    described = pd.read_csv(tmp_path / "seven" / "manifest.csv", dtype=str)
    recipe = Recipe(data="toys", seed=7)
    assert described["split"].tolist() == assign_recipe_splits(read_recipe_manifest(recipe), recipe)["split"].tolist()
    assert "draws with seed 7" in (tmp_path / "seven" / "describe.html").read_text(encoding="utf-8")


def test_unreadable_files_are_listed_in_skipped_csv(call, toys, tmp_path):
    files = sorted((toys / "clear").glob("*.png"))
    files[0].write_bytes(b"")
    files[1].write_bytes(b"<html>404</html>")
    done = call("--data", "toys", "--out", "described")
    assert done.returncode == 2, "some files are unreadable"
    assert "FCX-E101 clear/00000000_000.png" in done.stderr and "2 unreadable images skipped" in done.stderr
    skipped = pd.read_csv(tmp_path / "described" / "skipped.csv")
    assert skipped["code"].tolist() == ["E101", "E102"]
    page = (tmp_path / "described" / "describe.html").read_text(encoding="utf-8")
    assert "2 images left out" in page and "clear/00000000_001.png" in page


def test_exact_duplicates_share_a_patient_unless_they_are_unreadable(call, toys, tmp_path):
    for label in ("clear", "haze"):
        shutil.copy(min((toys / "opacity").iterdir()), toys / label / f"again-{label}.png")
        Image.new("L", (80, 80)).save(toys / label / f"00000{LABELS.index(label)}00_009.png")
    call("--data", "toys", "--out", "shown")
    rows = pd.read_csv(tmp_path / "shown" / "manifest.csv", dtype=str).set_index("path")
    duplicates = rows[rows.index.str.contains("again") | (rows["patient"] == "00002000")]
    assert duplicates["patient"].tolist() == ["00002000"] * 4
    assert duplicates["split"].nunique() == 1
    assert rows["patient"].nunique() == 15


def test_only_columns_named_with_keep_columns_are_written(call, toys, tmp_path):
    rows = [f"{file.relative_to(toys)},{file.parent.name},s1,120,coughs" for file in sorted(toys.glob("*/*.png"))]
    (toys / "mine.csv").write_text("\n".join(["path,label,scanner,kVp,clinical_notes", *rows]) + "\n")
    done = call("--data", "toys/mine.csv", "--keep-columns", "scanner,kvp", "--out", "shown")
    assert done.returncode == 0, done.stderr
    assert {"scanner", "kVp"} <= set(pd.read_csv(tmp_path / "shown" / "manifest.csv").columns)
    assert not [file for file in (tmp_path / "shown").rglob("*") if file.is_file() and b"coughs" in file.read_bytes()]


def test_warnings_are_shown_on_the_page(call, toys, tmp_path):
    for number, file in enumerate(sorted(toys.glob("*/*.png"))):
        file.rename(file.parent / f"x{number:02d}y.png")
    done = call("--data", "toys", "--out", "described")
    assert "warning: no patient identifiers found" in done.stderr
    messages = json.loads((tmp_path / "described" / "run.json").read_text())["messages"]
    assert [line for line in messages if line["level"] == "warning"]
    assert "no patient identifiers found" in (tmp_path / "described" / "describe.html").read_text(encoding="utf-8")


def test_report_writes_the_same_page_again(call, toys, tmp_path, monkeypatch):
    call("--data", "toys", "--out", "described")
    page = tmp_path / "described" / "describe.html"
    before = page.read_bytes()
    page.write_text("old")
    monkeypatch.setattr(sys, "argv", ["fastcxr", "report", "described"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, page.read_bytes()) == (0, before)


@pytest.mark.parametrize(
    ("words", "code", "fix"),
    [
        (["--data", "missing"], 66, "no such file or folder. Check the name"),
        (["--data", "toys", "--out", "toys"], 73, "Choose another --out"),
        (["--data", "toys", "--splt", "image"], 64, "Did you mean --split"),
        (["--data", "toys", "--split", "imag"], 64, 'Did you mean "image"'),
        (["--data", "toys", "--epochs", "3"], 64, "--epochs"),
    ],
)
def test_every_error_is_one_line_with_its_fix(call, toys, tmp_path, words, code, fix):
    done = call(*words)
    assert done.returncode == code, done.stderr
    assert fix in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("runs/*")), "no folder is left after an error"


def test_every_option_has_the_same_help_as_in_train():
    shared = DescribeOptions.__dataclass_fields__
    assert {name: item.metadata["help"] for name, item in shared.items()} == {
        name: Recipe.__dataclass_fields__[name].metadata["help"] for name in shared
    }


def test_an_error_leaves_no_folder(toys, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OutputError("disk full", "Free disk space")

    monkeypatch.setattr("fastcxr.workflows.describe.write_thumbnails", fail)
    with pytest.raises(OutputError):
        describe(Recipe(data=str(toys)), tmp_path / "described")
    assert not (tmp_path / "described").exists()


@pytest.fixture
def findings(toys):
    """Write a table of the findings of the toy images: a third has none, one, and two."""
    label_by_class = {"clear": "No Finding", "haze": "Haze", "opacity": "Haze|Opacity"}
    files = sorted(toys.glob("*/*.png"))
    lines = [f"{file.relative_to(toys)},{label_by_class[file.parent.name]},{file.name[:8]}" for file in files]
    (toys / "findings.csv").write_text("\n".join(["path,label,patient", *lines]))
    return toys / "findings.csv"


def test_findings_are_described_instead_of_combinations_of_them(call, findings, tmp_path):
    done = call("--data", "toys/findings.csv", "--out", "described")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stderr.splitlines()]
    headings = ["train", "valid", "test", "present", "patients", "absent", "prevalence"]
    assert next(row for row in rows if "present" in row) == headings
    assert ["20", "10", "10", "66.7", "%"] in [row[-5:] for row in rows if row[:1] == ["Haze"]]
    assert ["10", "5", "20", "33.3", "%"] in [row[-5:] for row in rows if row[:1] == ["Opacity"]]
    assert "Images by number of findings: 10 with 0, 10 with 1 and 10 with 2" in done.stderr
    assert "2 findings, 30 images, 15 patients from the patient column" in done.stderr
    assert "train: fastcxr train --data toys/findings.csv\n" in done.stderr
    step = "or train one label per image: fastcxr train --data toys/findings.csv --classes 'No Finding,Haze'"
    assert step in done.stderr
    histograms = pd.read_csv(tmp_path / "described" / "histograms.csv")
    assert histograms["label"].unique().tolist() == ["Haze", "No Finding", "Opacity"]
    images = pd.read_csv(tmp_path / "described" / "figures" / "images.csv")
    assert not images.duplicated(["source", "path"]).any()


def test_json_has_the_counts_of_findings(call, findings):
    document = json.loads(call("--data", "toys/findings.csv", "--json", "--out", "described").stdout)
    haze = document["findings"]["Haze"]
    assert (haze["present"], haze["patients"], haze["absent"], haze["unknown"]) == (20, 10, 10, 0)
    assert sum(haze["splits"].values()) == 20 and haze["prevalence"] == pytest.approx(2 / 3)
    test = haze["states"]["test"]
    assert test["present"] == haze["splits"]["test"]
    assert test["prevalence"] == pytest.approx(test["present"] / (test["present"] + test["absent"]))
    assert document["images_by_number_of_findings"] == {"0": 10, "1": 10, "2": 10}
    assert (document["images_without_known_finding"], document["training_classes"]) == (0, ["No Finding", "Haze"])


def test_the_manifest_of_findings_is_read_again_with_the_same_findings(call, findings, toys, tmp_path):
    from fastcxr.data.manifest import read_manifest

    lines = findings.read_text().splitlines()
    columns = {"No Finding": "0,0", "Haze": "1,-1", "Haze|Opacity": ",1"}  # Haze, Opacity
    rows = [f"{path},{patient},{columns[label]}" for path, label, patient in (line.split(",") for line in lines[1:])]
    findings.write_text("\n".join(["path,patient,Haze,Opacity", *rows]))
    assert call("--data", "toys/findings.csv", "--out", "described").returncode == 0
    shutil.copy(tmp_path / "described" / "manifest.csv", toys / "manifest.csv")
    written = pd.read_csv(toys / "manifest.csv", dtype=str, keep_default_na=False)
    assert set(zip(written["finding_Haze"], written["finding_Opacity"], strict=True)) == {
        ("0", "0"), ("1", "-1"), ("", "1"),
    }  # fmt: skip
    first, again = read_manifest(findings), read_manifest(toys / "manifest.csv")
    names = ["path", "label", "patient", "finding_Haze", "finding_Opacity"]
    pd.testing.assert_frame_equal(again[names], first[names])


@pytest.fixture
def small_sample(monkeypatch):
    monkeypatch.setattr("fastcxr.workflows.describe.MAX_DECODED", 12)


def test_a_random_sample_of_a_large_dataset_is_decoded(call, toys, tmp_path, small_sample):
    done = call("--data", "toys", "--out", "described")
    assert done.returncode == 0, done.stderr
    statement = "12 of 30 images were decoded (random sample); unreadable images: 0 of 12"
    assert statement in done.stderr and "--all decodes all" in done.stderr
    assert statement in (tmp_path / "described" / "describe.html").read_text(encoding="utf-8")
    assert len(pd.read_csv(tmp_path / "described" / "manifest.csv")) == 30
    assert json.loads((tmp_path / "described" / "run.json").read_text())["decoded"] == {"images": 12, "all_images": 30}
    files = pd.read_csv(tmp_path / "described" / "file_stats.csv")
    assert files["images"].sum() <= 12
    rows = [line.split() for line in done.stderr.splitlines()]
    assert [row for row in rows if row[:1] == ["haze"] and row[-1] == "10"], "the splits are those of all images"


def test_all_images_are_decoded_with_all_and_up_to_the_size_of_the_sample(call, toys, monkeypatch, small_sample):
    assert "random sample" not in call("--data", "toys", "--all", "--out", "all").stderr
    monkeypatch.setattr("fastcxr.workflows.describe.MAX_DECODED", 30)
    assert "random sample" not in call("--data", "toys", "--out", "described").stderr


def test_unreadable_images_of_a_sample_are_counted(call, toys, tmp_path, small_sample):
    for file in toys.glob("*/*_000.png"):
        file.write_bytes(b"<html>404</html>")
    done = call("--data", "toys", "--out", "described")
    n_bad = len(pd.read_csv(tmp_path / "described" / "skipped.csv"))
    assert 0 < n_bad < 12 and done.returncode == 2, "some files are unreadable"
    assert f"12 of 30 images were decoded (random sample); unreadable images: {n_bad} of 12" in done.stderr
    assert len(pd.read_csv(tmp_path / "described" / "manifest.csv")) == 30 - n_bad, "images that were not decoded stay"


def test_the_sample_keeps_the_bit_depths_of_its_images(toys):
    manifest = pd.DataFrame({"source": "s", "path": ["a", "b", "c"], "bit_depth": ["8", None, None]})
    decoded = manifest.iloc[1:].assign(bit_depth=["12", None])
    assert select_decoded(manifest, decoded)[["path", "bit_depth"]].values.tolist()[0] == ["b", "12"]
    assert "bit_depth" not in select_decoded(manifest, decoded.drop(columns="bit_depth"))


def test_describe_does_not_import_torch(toys):
    code = (
        "import sys; from fastcxr.cli.main import app; sys.argv = ['fastcxr'];"
        "app(['describe', '--data', 'toys', '--out', 'described'], result_action='return_value');"
        "print(sorted({'torch', 'fastai', 'timm', 'torchvision', 'sklearn', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_histograms_csv_has_one_histogram_per_class(call, toys, tmp_path):
    call("--data", "toys", "--out", "described")
    histograms = pd.read_csv(tmp_path / "described" / "histograms.csv")
    assert histograms["label"].unique().tolist() == list(LABELS)
    assert histograms.groupby("label")["mean"].sum().tolist() == pytest.approx([1, 1, 1])
