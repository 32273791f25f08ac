"""Scouting ranks what has weights, marks what has none, and leaves a table and a figure."""

import numpy as np
import pandas as pd
import pytest
import timm
from rich.console import Console
from safetensors.torch import save_file
from toy_images import write_toys

from fastcxr.cli.main import main
from fastcxr.cli.tables import show_scout_table
from fastcxr.config.recipe import Recipe
from fastcxr.errors import InputMissingError, RecipeError, TrainingError
from fastcxr.progress.base import Progress
from fastcxr.workflows.scout import (
    MIN_CLASS_IMAGES,
    N_SAMPLE_IMAGES,
    evaluate_candidate,
    parse_weights,
    sample_manifest,
    scout,
)


@pytest.fixture(scope="module")
def scouted(tmp_path_factory):
    """A table of one backbone with a weights file and one whose weights are out of reach, and its folder."""
    place = tmp_path_factory.mktemp("scout")
    data = write_toys(place / "toys", per_class=14)
    save_file(timm.create_model("mobilenetv2_035").state_dict(), place / "w.safetensors")
    recipe = Recipe(data=str(data), strategy="linear_probe", image_size=64)
    names, weights = ("resnet10t", "mobilenetv2_035"), {"mobilenetv2_035": str(place / "w.safetensors")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcxr.models.backbones._find_cached_file", lambda backbone: None)
        patch.setattr("fastcxr.models.backbones._validate_host", refuse)
        return scout(recipe, names, weights, place / "out"), place / "out"


def refuse(backbone):
    from fastcxr.models.backbones import _make_unreachable_error

    raise _make_unreachable_error(backbone)


def test_a_backbone_with_weights_is_scored_on_patients_that_its_head_has_not_seen(scouted):
    row = scouted[0].iloc[0]
    assert row["backbone"] == "mobilenetv2_035"
    assert 0 <= row["auroc"] <= 1 and row["auroc_sd"] >= 0 and 0 <= row["accuracy"] <= 1
    assert row["images_per_second"] > 0 and row["parameters"] > 300_000


def test_a_backbone_without_weights_is_marked_and_not_ranked(scouted):
    row = scouted[0].iloc[1]
    assert row["backbone"] == "resnet10t"
    assert np.isnan(row["auroc"])
    assert row["note"] == "no pretrained weights here"
    assert row["images_per_second"] > 0


def test_the_table_and_the_figure_are_left_in_the_folder(scouted):
    table, folder = scouted
    assert pd.read_csv(folder / "scout.csv")["backbone"].tolist() == table["backbone"].tolist()
    figure = (folder / "scout.svg").read_text()
    assert "mobilenetv2_035" in figure and "resnet10t" not in figure


NONE, NO_HEAD, OTHER, GOOD = "mobilenetv2_075", "torchvision:squeezenet1_1", "mobilenetv2_050", "mobilenetv2_035"


@pytest.fixture(scope="module")
def hindered(tmp_path_factory):
    """A table of four of which the last can be ranked: no weights anywhere, no head that fits, another's weights."""
    place = tmp_path_factory.mktemp("hindered")
    data = write_toys(place / "toys", per_class=14)
    save_file(timm.create_model(GOOD).state_dict(), place / "w.safetensors")
    recipe = Recipe(data=str(data), strategy="linear_probe", image_size=64)
    weights = dict.fromkeys((NO_HEAD, OTHER, GOOD), str(place / "w.safetensors"))
    return scout(recipe, (NONE, NO_HEAD, OTHER, GOOD), weights, place / "out"), place / "out"


def test_a_candidate_that_cannot_be_ranked_costs_its_own_figures_alone(hindered):
    table = hindered[0].set_index("backbone")
    assert hindered[0].loc[0, "backbone"] == GOOD
    assert table["auroc"].notna().to_dict() == {GOOD: True, NONE: False, NO_HEAD: False, OTHER: False}
    assert table.loc[NONE, "note"] == "no pretrained weights here"
    assert "this backbone has a Conv2d" in table.loc[NO_HEAD, "note"]
    assert "weights do not fit" in table.loc[OTHER, "note"] and table.loc[GOOD, "note"] == ""
    assert table["images_per_second"].notna().to_dict() == {GOOD: True, NONE: True, NO_HEAD: False, OTHER: True}


def test_a_table_with_gaps_is_written_and_shown(hindered, capsys):
    written = pd.read_csv(hindered[1] / "scout.csv", dtype={"parameters": "Int64"}).set_index("backbone")
    assert written["parameters"].isna().to_dict() == {GOOD: False, NONE: False, NO_HEAD: True, OTHER: False}
    show_scout_table(Console(width=200), hindered[0])
    line = next(line for line in capsys.readouterr().out.splitlines() if NO_HEAD in line)
    assert line.split()[1:5] == ["-"] * 4 and "nan" not in line


@pytest.mark.parametrize(
    ("names", "weights", "error", "remedy"),
    [
        (("mobilenetv2_035", "mobilenetv2_1000"), {}, RecipeError, "Did you mean 'mobilenetv2_100'"),
        (("mobilenetv2_035", "mobilenetv2_100.typo"), {}, RecipeError, "Choose from ra_in1k"),
        (("mobilenetv2_035",), {"mobilenetv2_035": "gone.pth"}, InputMissingError, "weights file not found"),
    ],
)
def test_a_typo_is_an_error_before_anything_is_read(tmp_path, monkeypatch, names, weights, error, remedy):
    monkeypatch.setattr("fastcxr.workflows.scout.load_dataset", None)
    with pytest.raises(error, match=remedy):
        scout(Recipe(strategy="linear_probe"), names, weights, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_here_is_an_error_and_no_note_in_every_row(tmp_path):
    with pytest.raises(RecipeError, match="Pass --device auto"):
        scout(Recipe(strategy="linear_probe", device="cuda:99"), ("mobilenetv2_035",), {}, tmp_path / "out")


def row_of(recipe, *_):
    return {"backbone": recipe.backbone, "parameters": 1, "images_per_second": 1.0, "note": "", "auroc": 0.5}


def test_a_scout_that_is_broken_off_keeps_every_finished_candidate(tmp_path, toy_folder, monkeypatch):
    def look(recipe, *rest):
        if recipe.backbone == "resnet50":
            raise KeyboardInterrupt
        return row_of(recipe, *rest)

    monkeypatch.setattr("fastcxr.workflows.scout.evaluate_candidate", look)
    with pytest.raises(KeyboardInterrupt):
        scout(Recipe(data=str(toy_folder)), ("resnet18", "resnet34", "resnet50"), {}, tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "scout.csv")["backbone"].tolist() == ["resnet18", "resnet34"]
    assert (tmp_path / "out" / "run.json").exists()


def test_a_scout_that_finished_nothing_leaves_no_folder(tmp_path, toy_folder, monkeypatch):
    monkeypatch.setattr("fastcxr.workflows.scout.evaluate_candidate", None)
    with pytest.raises(TypeError):
        scout(Recipe(data=str(toy_folder)), ("resnet18",), {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_fit_that_gives_no_number_is_a_note(monkeypatch):
    def fail(*_):
        raise TrainingError("no number", "Give --precision fp32")

    monkeypatch.setattr("fastcxr.workflows.scout.measure_candidate", fail)
    row = evaluate_candidate(Recipe("resnet18"), pd.DataFrame(), Progress())
    assert row["note"] == "no number" and np.isnan(row["auroc"])


def test_a_large_cohort_is_sampled_by_class_and_small_classes_stay_whole():
    labels = ["common"] * 3000 + ["rare"] * 40
    table = pd.DataFrame({"label": labels, "patient": range(3040), "path": map(str, range(3040))})
    counts = sample_manifest(table, Recipe())["label"].value_counts()
    assert counts["common"] == round(3000 * N_SAMPLE_IMAGES / 3040)
    assert counts["rare"] == MIN_CLASS_IMAGES


def test_weights_of_a_backbone_that_is_no_candidate_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="no candidate: 'resnet1'.*resnet18"):
        scout(Recipe(), ["resnet18"], {"resnet1": "a.pth"}, tmp_path / "scout")


def test_weights_without_a_name_are_refused():
    assert parse_weights(["resnet18=a=b.pth"]) == {"resnet18": "a=b.pth"}
    with pytest.raises(RecipeError, match="Write NAME=FILE"):
        parse_weights(["file.pth"])


def test_the_command_says_where_the_figure_is(tmp_path, capfd, monkeypatch):
    data = write_toys(tmp_path / "toys", per_class=12)
    save_file(timm.create_model("mobilenetv2_035").state_dict(), tmp_path / "w.safetensors")
    words = ["scout", "mobilenetv2_035", "--weights", f"mobilenetv2_035={tmp_path / 'w.safetensors'}"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fastcxr", *words, "--data", str(data), "--image-size", "64", "--out", "found"])
    with pytest.raises(SystemExit) as end:
        main()
    shown = capfd.readouterr()
    assert end.value.code == 0 and shown.out.strip() == "found/scout.svg"
    assert "mobilenetv2_035" in shown.err
