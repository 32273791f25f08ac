"""Tests of scout: ranking of backbones, notes for those without weights, table and figure."""

import numpy as np
import pandas as pd
import pytest
import timm
from rich.console import Console
from safetensors.torch import save_file
from tiny_network import NAME
from toy_images import write_toys

from fastcxr.cli.main import main
from fastcxr.cli.tables import show_scout_table
from fastcxr.config.recipe import Recipe
from fastcxr.data.splits import split_into_folds
from fastcxr.errors import InputMissingError, RecipeError, TrainingError, WeightsError
from fastcxr.models.encoder_network import make_encoder_network
from fastcxr.models.encoders import ENCODERS, find_image_size
from fastcxr.progress.base import Progress
from fastcxr.training import feature_cache
from fastcxr.training.feature_cache import make_feature_cache
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.workflows.scout import (
    MIN_CLASS_IMAGES,
    N_SAMPLE_IMAGES,
    REFERENCE_BACKBONE,
    evaluate_candidate,
    make_candidate_learner,
    make_out_of_reach_row,
    make_ranking,
    measure_throughput,
    parse_weights,
    sample_manifest,
    scout,
    scout_encoders,
)


@pytest.fixture(scope="module")
def scouted(tmp_path_factory):
    """Scout a backbone with a weights file and one without available weights; return table and folder."""
    folder = tmp_path_factory.mktemp("scout")
    data = write_toys(folder / "toys", per_class=14)
    save_file(timm.create_model("mobilenetv2_035").state_dict(), folder / "w.safetensors")
    recipe = Recipe(data=str(data), strategy="linear_probe", image_size=64)
    names, weights = ("resnet10t", "mobilenetv2_035"), {"mobilenetv2_035": str(folder / "w.safetensors")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastcxr.models.backbones._find_cached_file", lambda backbone: None)
        patch.setattr("fastcxr.models.backbones._validate_host", raise_unreachable)
        return scout(recipe, names, weights, folder / "out"), folder / "out"


def raise_unreachable(backbone):
    from fastcxr.models.backbones import _make_unreachable_error

    raise _make_unreachable_error(backbone)


def test_a_backbone_with_weights_has_cross_validated_metrics(scouted):
    row = scouted[0].iloc[0]
    assert row["backbone"] == "mobilenetv2_035"
    assert 0 <= row["auroc"] <= 1 and row["auroc_sd"] >= 0 and 0 <= row["accuracy"] <= 1
    assert row["images_per_second"] > 0 and row["parameters"] > 300_000 and row["image_size"] == 64
    assert row["seconds_per_1000_images"] == pytest.approx(1000 / row["images_per_second"], rel=0.01)


def test_a_backbone_without_weights_has_a_note_and_no_auroc(scouted):
    row = scouted[0].iloc[1]
    assert row["backbone"] == "resnet10t"
    assert np.isnan(row["auroc"])
    assert row["note"] == "pretrained weights not available"
    assert row["images_per_second"] > 0


def test_the_folder_contains_table_and_figure(scouted):
    table, folder = scouted
    assert pd.read_csv(folder / "scout.csv")["backbone"].tolist() == table["backbone"].tolist()
    figure = (folder / "scout.svg").read_text()
    assert "mobilenetv2_035" in figure and "resnet10t" not in figure


NONE, NO_HEAD, OTHER, GOOD = "mobilenetv2_075", "torchvision:squeezenet1_1", "mobilenetv2_050", "mobilenetv2_035"


@pytest.fixture(scope="module")
def partly_ranked(tmp_path_factory):
    """Scout four backbones of which one can be ranked: no weights, unsupported head, weights of another backbone."""
    folder = tmp_path_factory.mktemp("partly_ranked")
    data = write_toys(folder / "toys", per_class=14)
    save_file(timm.create_model(GOOD).state_dict(), folder / "w.safetensors")
    recipe = Recipe(data=str(data), strategy="linear_probe", image_size=64)
    weights = dict.fromkeys((NO_HEAD, OTHER, GOOD), str(folder / "w.safetensors"))
    return scout(recipe, (NONE, NO_HEAD, OTHER, GOOD), weights, folder / "out"), folder / "out"


def test_a_candidate_that_fails_has_a_note_and_the_others_are_ranked(partly_ranked):
    table = partly_ranked[0].set_index("backbone")
    assert partly_ranked[0].loc[0, "backbone"] == GOOD
    assert table["auroc"].notna().to_dict() == {GOOD: True, NONE: False, NO_HEAD: False, OTHER: False}
    assert table.loc[NONE, "note"] == "pretrained weights not available"
    assert "this backbone has a Conv2d" in table.loc[NO_HEAD, "note"]
    assert "weights do not fit" in table.loc[OTHER, "note"] and table.loc[GOOD, "note"] == ""
    assert table["images_per_second"].notna().to_dict() == {GOOD: True, NONE: True, NO_HEAD: False, OTHER: True}


def test_a_table_with_missing_values_is_written_and_shown(partly_ranked, capsys):
    table = pd.read_csv(partly_ranked[1] / "scout.csv", dtype={"parameters": "Int64"}).set_index("backbone")
    assert table["parameters"].isna().to_dict() == {GOOD: False, NONE: False, NO_HEAD: True, OTHER: False}
    show_scout_table(Console(width=200), partly_ranked[0])
    lines = capsys.readouterr().out.splitlines()
    row, note = (line for line in lines if NO_HEAD in line)
    assert row.split()[1:] == ["-"] * 5 and "nan" not in row
    assert lines.index(note) > lines.index("not ranked") and "this backbone has a Conv2d" in note
    row, note = (line for line in lines if NONE in line)
    assert row.split()[3] == "64" and note == f"  {NONE}: pretrained weights not available"


def test_without_a_candidate_only_the_encoders_out_of_reach_are_shown(capsys):
    show_scout_table(Console(width=80), make_ranking([make_out_of_reach_row("ark6")]))
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["out of reach", "  ark6"]


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """No weights of encoders in the caches, and no network."""
    monkeypatch.setattr("fastcxr.models.encoder_files.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("fastcxr.models.encoder_files.XRV_FOLDER", tmp_path / "xrv")
    monkeypatch.setattr("fastcxr.models.encoder_files.find_spec", lambda _: None)
    monkeypatch.setattr("fastcxr.models.backbones._find_cached_file", lambda _: None)
    monkeypatch.setattr("fastcxr.models.encoder_files.urllib.request.getproxies", dict)
    monkeypatch.setattr("fastcxr.models.encoder_files.socket.getaddrinfo", raise_no_network)


def raise_no_network(*_):
    raise OSError("no network")


@pytest.mark.usefixtures("no_weights")
def test_encoders_with_a_file_are_ranked_and_the_others_are_listed_with_their_pages(tmp_path, capsys):
    data, file = write_toys(tmp_path / "toys", per_class=14), tmp_path / "eva.safetensors"
    save_file(make_encoder_network(ENCODERS["eva-x-tiny"], 3, 64).state_dict(), file)
    recipe = Recipe(data=str(data), strategy="linear_probe", image_size=64)
    table = scout_encoders(recipe, (), {"eva-x-tiny": str(file)}, tmp_path / "out").set_index("backbone")
    assert table.index[0] == "eva-x-tiny" and table["auroc"].notna().sum() == 1
    assert set(table.index) == {*ENCODERS, REFERENCE_BACKBONE}
    others = table.drop("eva-x-tiny")
    assert others["note"].str.startswith("out of reach: ").all() and others["images_per_second"].isna().all()
    assert ENCODERS["chexfound"].page in others.loc["chexfound", "note"]
    assert "reference, name it to download it" in others.loc[REFERENCE_BACKBONE, "note"]
    assert 'pip install "fastcxr[xrv]", then name it' in others.loc["densenet121-res224-all", "note"]
    assert others.loc[REFERENCE_BACKBONE, "parameters"] == 3_504_872
    assert others.loc["rad-dino", "parameters"] == 86_579_712
    assert pd.read_csv(tmp_path / "out" / "scout.csv")["backbone"].tolist() == table.index.tolist()
    show_scout_table(Console(width=80), table.reset_index())
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown[:2]] == ["backbone", "eva-x-tiny"] and shown[2].startswith("s/1,000:")
    assert "  chexfound: teacher_checkpoint.pth: get it from https://github.com/RPIDIAL/CheXFound" in shown
    assert all(len(line) <= 80 for line in shown if "https://" not in line)


@pytest.mark.usefixtures("no_weights")
def test_a_named_encoder_out_of_reach_is_a_note_and_is_not_timed(monkeypatch):
    monkeypatch.setattr("fastcxr.workflows.scout.make_candidate_learner", None)
    row = evaluate_candidate(Recipe("chest:rad-dino"), pd.DataFrame(), Progress())
    assert row["backbone"] == "chest:rad-dino" and np.isnan(row["images_per_second"])
    assert row["note"] == "out of reach: model.safetensors: get it from https://huggingface.co/microsoft/rad-dino"


def test_encoders_at_hand_and_the_reference_are_candidates_with_their_image_sizes(tmp_path, toy_folder, monkeypatch):
    found = {"rad-dino", "mobilenetv2_100"}
    monkeypatch.setattr("fastcxr.workflows.scout.is_cached", lambda backbone: backbone.name in found)
    sizes = {}

    def evaluate(recipe, *rest):
        sizes[recipe.backbone] = find_image_size(recipe)
        return make_row(recipe, *rest)

    monkeypatch.setattr("fastcxr.workflows.scout.evaluate_candidate", evaluate)
    scout_encoders(Recipe(data=str(toy_folder)), ("resnet18",), {}, tmp_path / "out")
    assert sizes == {"resnet18": 224, "rad-dino": 518, "mobilenetv2_100": 224}


@pytest.mark.usefixtures("no_weights")
def test_a_scout_that_neither_ranks_nor_times_a_candidate_is_an_error(toy_folder, tmp_path, monkeypatch, capfd):
    words = ["scout", "rad-dino", "--chest", "--data", str(toy_folder), "--out", "scouted"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fastcxr", *words])
    with pytest.raises(SystemExit) as end:
        main()
    shown = capfd.readouterr()
    assert end.value.code == WeightsError.exit_code and shown.out == ""
    reason, error = shown.err.splitlines()[-2:]
    assert "rad-dino is not ranked: the weights of rad-dino cannot be downloaded" in reason
    assert f"scouted/scout.csv: no candidate was ranked: {len(ENCODERS) + 1} without weights" in error
    assert error.endswith("Pass --weights NAME=FILE, or name an open encoder while online")
    assert len(pd.read_csv(tmp_path / "scouted" / "scout.csv")) == len(ENCODERS) + 1
    assert not (tmp_path / "scouted" / "scout.svg").exists()


def test_candidates_that_all_fail_are_an_error(toy_folder, tmp_path, monkeypatch):
    def fail(*_):
        raise TrainingError("NaN loss", "Pass --precision fp32")

    monkeypatch.setattr("fastcxr.workflows.scout.measure_candidate", fail)
    with pytest.raises(TrainingError, match="no candidate was ranked: 1 failed, see the notes"):
        scout(Recipe(data=str(toy_folder)), ("resnet18",), {}, tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "scout.csv")["note"].tolist() == ["NaN loss"]


def test_an_unknown_name_among_the_encoders_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr("fastcxr.workflows.scout.load_dataset", None)
    with pytest.raises(RecipeError, match="Did you mean 'eva-x-small'"):
        scout_encoders(Recipe(), (), {"eva-x-smal": "w.pt"}, tmp_path / "out")


def test_a_slow_network_is_timed_with_few_images(toy_manifest, monkeypatch):
    recipe = Recipe("mobilenetv2_035", strategy="linear_probe", weights="none", image_size=32)
    learner, sizes = make_candidate_learner(recipe, split_into_folds(toy_manifest, 5), Progress()), []
    with learner.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0]))):
        monkeypatch.setattr("fastcxr.workflows.scout.MAX_BATCH_SECONDS", 0.0)
        measure_throughput(learner)
    assert set(sizes) == {1}


@pytest.mark.parametrize(
    ("names", "weights", "error", "fix"),
    [
        (("mobilenetv2_035", "mobilenetv2_1000"), {}, RecipeError, "Did you mean 'mobilenetv2_100'"),
        (("mobilenetv2_035", "mobilenetv2_100.typo"), {}, RecipeError, "Choose from ra_in1k"),
        (("mobilenetv2_035",), {"mobilenetv2_035": "gone.pth"}, InputMissingError, "weights file not found"),
    ],
)
def test_an_unknown_name_is_rejected_before_the_data_is_read(tmp_path, monkeypatch, names, weights, error, fix):
    monkeypatch.setattr("fastcxr.workflows.scout.load_dataset", None)
    with pytest.raises(error, match=fix):
        scout(Recipe(strategy="linear_probe"), names, weights, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_device_is_an_error_and_not_a_note(tmp_path):
    with pytest.raises(RecipeError, match="Pass `device='auto'`"):
        scout(Recipe(strategy="linear_probe", device="cuda:99"), ("mobilenetv2_035",), {}, tmp_path / "out")


def make_row(recipe, *_):
    sizes = {"image_size": 64, "parameters": 1, "images_per_second": 1.0}
    return {"backbone": recipe.backbone, "note": "", "auroc": 0.5} | sizes


def test_an_interrupted_scout_keeps_the_finished_candidates(tmp_path, toy_folder, monkeypatch):
    def evaluate(recipe, *rest):
        if recipe.backbone == "resnet50":
            raise KeyboardInterrupt
        return make_row(recipe, *rest)

    monkeypatch.setattr("fastcxr.workflows.scout.evaluate_candidate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        scout(Recipe(data=str(toy_folder)), ("resnet18", "resnet34", "resnet50"), {}, tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "scout.csv")["backbone"].tolist() == ["resnet18", "resnet34"]
    assert (tmp_path / "out" / "run.json").exists()


def test_a_scout_without_finished_candidates_leaves_no_folder(tmp_path, toy_folder, monkeypatch):
    monkeypatch.setattr("fastcxr.workflows.scout.evaluate_candidate", None)
    with pytest.raises(TypeError):
        scout(Recipe(data=str(toy_folder)), ("resnet18",), {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_fit_is_a_note(monkeypatch):
    def fail(*_):
        raise TrainingError("NaN loss", "Pass --precision fp32")

    monkeypatch.setattr("fastcxr.workflows.scout.measure_candidate", fail)
    row = evaluate_candidate(Recipe("resnet18"), pd.DataFrame(), Progress())
    assert row["note"] == "NaN loss" and np.isnan(row["auroc"])


def test_a_large_dataset_is_sampled_by_class_with_a_minimum_per_class():
    labels = ["common"] * 3000 + ["rare"] * 40
    table = pd.DataFrame({"label": labels, "patient": range(3040), "path": map(str, range(3040))})
    counts = sample_manifest(table, Recipe())["label"].value_counts()
    assert counts["common"] == round(3000 * N_SAMPLE_IMAGES / 3040)
    assert counts["rare"] == MIN_CLASS_IMAGES


def test_a_dataset_that_needs_no_sample_shares_its_features_with_a_training(toy_manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe = Recipe(NAME, weights="none", image_size=64, strategy="linear_probe", precision="fp32", device="cpu")
    learner = make_candidate_learner(recipe, sample_manifest(toy_manifest, recipe), Progress())
    expected = make_feature_cache(learner, recipe, Progress())
    monkeypatch.setattr(feature_cache, "fill_feature_cache", None)
    found = make_feature_cache(make_learner(make_loaders(toy_manifest, recipe), recipe), recipe, Progress())
    assert np.array_equal(found.features, expected.features)


def test_weights_of_a_backbone_that_is_not_listed_are_rejected(tmp_path):
    with pytest.raises(RecipeError, match="not in the list: 'resnet1'.*resnet18"):
        scout(Recipe(), ["resnet18"], {"resnet1": "a.pth"}, tmp_path / "scout")


def test_weights_without_a_backbone_are_rejected():
    assert parse_weights(["resnet18=a=b.pth"]) == {"resnet18": "a=b.pth"}
    with pytest.raises(RecipeError, match="Pass NAME=FILE"):
        parse_weights(["file.pth"])


@pytest.mark.slow
def test_the_command_prints_the_path_of_the_figure(tmp_path, capfd, monkeypatch):
    data = write_toys(tmp_path / "toys", per_class=12)
    save_file(timm.create_model("mobilenetv2_035").state_dict(), tmp_path / "w.safetensors")
    words = ["scout", "mobilenetv2_035", "--weights", f"mobilenetv2_035={tmp_path / 'w.safetensors'}"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fastcxr", *words, "--data", str(data), "--image-size", "64", "--out", "scouted"])
    with pytest.raises(SystemExit) as end:
        main()
    shown = capfd.readouterr()
    assert end.value.code == 0 and shown.out.strip() == "scouted/scout.svg"
    assert "mobilenetv2_035" in shown.err
