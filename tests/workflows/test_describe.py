"""fastcxr describe as a person meets it: a page, a table, bad files named, no torch."""

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
from fastcxr.workflows.describe import describe


@pytest.fixture
def call(monkeypatch, capfd):
    """The command within this process."""

    def calling(*words) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["fastcxr", "describe", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return subprocess.CompletedProcess(words, ended.value.code, *capfd.readouterr())

    return calling


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """Toys in the folder where the command is given."""
    monkeypatch.chdir(tmp_path)
    return write_toys(tmp_path / "toys", per_class=10)


def test_a_cohort_is_described_in_a_folder_of_its_own(call, toys, tmp_path):
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
    said = [line.split() for line in call("--data", "toys").stderr.splitlines()]
    assert ["train", "valid", "test", "all"] in said
    assert [row for row in said if row[:1] == ["haze"] and row[-1] == "10"]


def test_a_class_too_small_to_split_is_shown_and_told(call, toys, tmp_path):
    write_toys(tmp_path / "more", per_class=1, labels=("haze",), first=100)
    (tmp_path / "more" / "haze").rename(toys / "rare")
    done = call("--data", "toys", "--out", "page")
    assert done.returncode == 0, done.stderr
    text = "warning: a run would refuse this data: FCX-E004: too few patients for train and test in class 'rare'"
    assert text in done.stderr
    said = [line.split() for line in done.stderr.splitlines()]
    assert ["all"] in said and ["rare", "1"] in said
    assert "a run would refuse this data" in (tmp_path / "page" / "describe.html").read_text(encoding="utf-8")


def test_the_split_is_the_one_that_train_draws(call, toys, tmp_path):
    from fastcxr.workflows.load import assign_recipe_splits, read_recipe_manifest

    call("--data", "toys", "--seed", "7", "--out", "seven")
    found = pd.read_csv(tmp_path / "seven" / "manifest.csv", dtype=str)
    recipe = Recipe(data="toys", seed=7)
    assert found["split"].tolist() == assign_recipe_splits(read_recipe_manifest(recipe), recipe)["split"].tolist()
    assert "draws with seed 7" in (tmp_path / "seven" / "describe.html").read_text(encoding="utf-8")


def test_bad_files_do_not_stop_it_and_are_listed(call, toys, tmp_path):
    victims = sorted((toys / "clear").glob("*.png"))
    victims[0].write_bytes(b"")
    victims[1].write_bytes(b"<html>404</html>")
    done = call("--data", "toys", "--out", "described")
    assert done.returncode == 2, "some files could not be read"
    assert "FCX-E101 clear/00000000_000.png" in done.stderr and "2 unreadable images skipped" in done.stderr
    skipped = pd.read_csv(tmp_path / "described" / "skipped.csv")
    assert skipped["code"].tolist() == ["E101", "E102"]
    page = (tmp_path / "described" / "describe.html").read_text(encoding="utf-8")
    assert "2 images left out" in page and "clear/00000000_001.png" in page


def test_exact_copies_are_one_patient_and_placeholders_that_cannot_be_read_are_not(call, toys, tmp_path):
    for label in ("clear", "haze"):
        shutil.copy(min((toys / "opacity").iterdir()), toys / label / f"again-{label}.png")
        Image.new("L", (80, 80)).save(toys / label / f"00000{LABELS.index(label)}00_009.png")
    call("--data", "toys", "--out", "shown")
    rows = pd.read_csv(tmp_path / "shown" / "manifest.csv", dtype=str).set_index("path")
    copies = rows[rows.index.str.contains("again") | (rows["patient"] == "00002000")]
    assert copies["patient"].tolist() == ["00002000"] * 4
    assert copies["split"].nunique() == 1
    assert rows["patient"].nunique() == 15


def test_columns_are_kept_by_name_and_no_other_reaches_a_file(call, toys, tmp_path):
    rows = [f"{file.relative_to(toys)},{file.parent.name},s1,120,coughs" for file in sorted(toys.glob("*/*.png"))]
    (toys / "mine.csv").write_text("\n".join(["path,label,scanner,kVp,clinical_notes", *rows]) + "\n")
    done = call("--data", "toys/mine.csv", "--keep-columns", "scanner,kvp", "--out", "shown")
    assert done.returncode == 0, done.stderr
    assert {"scanner", "kVp"} <= set(pd.read_csv(tmp_path / "shown" / "manifest.csv").columns)
    assert not [file for file in (tmp_path / "shown").rglob("*") if file.is_file() and b"coughs" in file.read_bytes()]


def test_warnings_stand_on_the_page(call, toys, tmp_path):
    for number, file in enumerate(sorted(toys.glob("*/*.png"))):
        file.rename(file.parent / f"x{number:02d}y.png")
    done = call("--data", "toys", "--out", "described")
    assert "warning: no patient identifiers found" in done.stderr
    said = json.loads((tmp_path / "described" / "run.json").read_text())["messages"]
    assert [line for line in said if line["level"] == "warning"]
    assert "no patient identifiers found" in (tmp_path / "described" / "describe.html").read_text(encoding="utf-8")


def test_report_redraws_it_byte_for_byte(call, toys, tmp_path, monkeypatch):
    call("--data", "toys", "--out", "described")
    page = tmp_path / "described" / "describe.html"
    before = page.read_bytes()
    page.write_text("gone")
    monkeypatch.setattr(sys, "argv", ["fastcxr", "report", "described"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, page.read_bytes()) == (0, before)


@pytest.mark.parametrize(
    ("words", "code", "remedy"),
    [
        (["--data", "nowhere"], 66, "no such file or folder. Check the name"),
        (["--data", "toys", "--out", "toys"], 73, "Choose another --out"),
        (["--data", "toys", "--splt", "image"], 64, "Did you mean --split"),
        (["--data", "toys", "--split", "imag"], 64, 'Did you mean "image"'),
        (["--data", "toys", "--epochs", "3"], 64, "--epochs"),
    ],
)
def test_every_mistake_is_one_line_with_its_remedy(call, toys, tmp_path, words, code, remedy):
    done = call(*words)
    assert done.returncode == code, done.stderr
    assert remedy in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("runs/*")), "what failed leaves no folder"


def test_every_flag_says_what_it_says_in_train():
    shared = DescribeOptions.__dataclass_fields__
    assert {name: item.metadata["help"] for name, item in shared.items()} == {
        name: Recipe.__dataclass_fields__[name].metadata["help"] for name in shared
    }


def test_trouble_in_the_middle_leaves_no_folder(toys, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OutputError("disk full", "Free some room")

    monkeypatch.setattr("fastcxr.workflows.describe.write_thumbnails", fail)
    with pytest.raises(OutputError):
        describe(Recipe(data=str(toys)), tmp_path / "described")
    assert not (tmp_path / "described").exists()


def test_torch_is_never_loaded(toys):
    code = (
        "import sys; from fastcxr.cli.main import app; sys.argv = ['fastcxr'];"
        "app(['describe', '--data', 'toys', '--out', 'described'], result_action='return_value');"
        "print(sorted({'torch', 'fastai', 'timm', 'torchvision', 'sklearn', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_toys_have_three_classes(call, toys, tmp_path):
    call("--data", "toys", "--out", "described")
    histograms = pd.read_csv(tmp_path / "described" / "histograms.csv")
    assert histograms["label"].unique().tolist() == list(LABELS)
    assert histograms.groupby("label")["mean"].sum().tolist() == pytest.approx([1, 1, 1])
