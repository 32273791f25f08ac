"""Scouting ranks what has weights, marks what has none, and leaves a table and a figure."""

import numpy as np
import pandas as pd
import pytest
import timm
from safetensors.torch import save_file
from toys import write_toys

from fastcxr.cli import main
from fastcxr.errors import RecipeError
from fastcxr.recipe import Recipe
from fastcxr.scout import SAMPLE, SMALLEST_CLASS, read_weights, sample_cohort, scout


@pytest.fixture(scope="module")
def scouted(tmp_path_factory):
    """A table of one backbone with a weights file and one whose weights are out of reach, and its folder."""
    place = tmp_path_factory.mktemp("scout")
    data = write_toys(place / "toys", per_class=14)
    save_file(timm.create_model("mobilenetv2_035").state_dict(), place / "w.safetensors")
    recipe = Recipe(data=str(data), strategy="probe", image_size=64)
    names, weights = ("resnet10t", "mobilenetv2_035"), {"mobilenetv2_035": str(place / "w.safetensors")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcxr.training.backbones._cached_file", lambda backbone: None)
        patch.setattr("fastcxr.training.backbones._require_host", refuse)
        return scout(recipe, names, weights, place / "out"), place / "out"


def refuse(backbone):
    from fastcxr.training.backbones import _unreachable

    raise _unreachable(backbone)


def test_a_backbone_with_weights_is_scored_on_patients_that_its_head_has_not_seen(scouted):
    row = scouted[0].iloc[0]
    assert row["backbone"] == "mobilenetv2_035"
    assert 0 <= row["auroc"] <= 1 and row["spread"] >= 0 and 0 <= row["accuracy"] <= 1
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


def test_a_large_cohort_is_sampled_by_class_and_small_classes_stay_whole():
    labels = ["common"] * 3000 + ["rare"] * 40
    table = pd.DataFrame({"label": labels, "patient": range(3040), "path": map(str, range(3040))})
    counts = sample_cohort(table, Recipe())["label"].value_counts()
    assert counts["common"] == round(3000 * SAMPLE / 3040)
    assert counts["rare"] == SMALLEST_CLASS


def test_weights_without_a_name_are_refused():
    assert read_weights(["resnet18=a=b.pth"]) == {"resnet18": "a=b.pth"}
    with pytest.raises(RecipeError, match="Write NAME=FILE"):
        read_weights(["file.pth"])


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
