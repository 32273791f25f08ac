"""A picture unlike the training images is given no class, on every road; a gate is read as it was written."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fastcxr.config.recipe import Recipe
from fastcxr.data.manifest import read_unlabelled
from fastcxr.errors import InputMissingError, ModelError
from fastcxr.inference import predict as module
from fastcxr.inference.openvino import to_openvino
from fastcxr.inference.predict import predict
from fastcxr.metrics.thresholds import apply_thresholds
from fastcxr.models.bundle import extract_classifier, load_model, save_model
from fastcxr.progress.base import Progress
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.trainer import train

PROBE = Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=6, epochs=1, strategy="linear_probe",
               precision="fp32")  # fmt: skip
COLUMNS = ["ood_score", "in_distribution"]


def learn(manifest, recipe):
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    train(learner, recipe, Progress())
    return learner


@pytest.fixture(scope="module")
def learner(many_toys):
    return learn(many_toys, PROBE)


@pytest.fixture(scope="module")
def folder(learner, tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    save_model(place, learner, PROBE, {"precision": "fp32"})
    return place


@pytest.fixture
def copy(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """Noise, a gradient and a checkerboard."""
    place = tmp_path_factory.mktemp("strangers")
    squares = np.indices((64, 64)).sum(axis=0) // 8 % 2 * 255
    draw = np.random.default_rng(0)
    for name, picture in {
        "noise": draw.integers(0, 256, (64, 64)),
        "gradient": np.tile(np.arange(64) * 4, (64, 1)),
        "board": squares,
    }.items():
        Image.fromarray(picture.astype(np.uint8)).save(place / f"{name}.png")
    return read_unlabelled([place])


@pytest.mark.parametrize("strategy", ["linear_probe", "full"])
def test_a_picture_of_something_else_is_given_no_class(many_toys, strangers, strategy):
    model = learn(many_toys, PROBE.replace(strategy=strategy))
    table = predict(model, strangers, splits=None).table
    assert table["predicted"].tolist() == ["", "", ""]
    assert table["in_distribution"].tolist() == ["no", "no", "no"]
    assert (table["ood_score"] > 1).all()


def test_held_out_pictures_of_the_same_kind_are_given_one(learner, many_toys):
    table = predict(learner, many_toys, splits=("test",)).table
    assert (table["predicted"] != "").mean() > 0.9
    assert (table["in_distribution"] == "yes").tolist() == (table["predicted"] != "").tolist()


def test_the_probabilities_of_a_stranger_stay_so_that_figures_can_be_measured(learner, strangers):
    np.testing.assert_allclose(predict(learner, strangers, splits=None).probability.sum(axis=1), 1)


def test_no_threshold_is_reached_by_a_stranger_and_its_answer_is_uncertain(learner, strangers):
    decisions = {"thresholds": {label: {"threshold": 0.0} for label in ("clear", "haze", "opacity")}}
    table = apply_thresholds(predict(learner, strangers, splits=None), decisions).table
    assert table["above_threshold"].tolist() == ["", "", ""]
    assert table["uncertain"].tolist() == ["yes", "yes", "yes"]


def test_a_file_that_cannot_be_read_is_neither_like_nor_unlike(learner, strangers, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    both = pd.concat([strangers, read_unlabelled([tmp_path / "bad.png"])], ignore_index=True)
    table = predict(learner, both, splits=None).table
    assert table["in_distribution"].tolist() == ["no", "no", "no", ""]
    assert np.isnan(table["ood_score"].iloc[3])


def test_a_bank_is_measured_a_bounded_number_of_rows_at_once(learner, many_toys, monkeypatch):
    files, ask, asked = many_toys["file"].tolist(), module.read_cached_features, []
    whole = learner.fastcxr.ood_detector.compute_scores(
        ask(learner, files, learner.fastcxr.ood_detector.stage_channels)
    )
    monkeypatch.setattr(module, "BANK_CHUNK_ROWS", 50)
    monkeypatch.setattr(
        module, "read_cached_features", lambda learner, few, depths: (asked.append(few), ask(learner, few, depths))[1]
    )
    found = predict(learner, many_toys, splits=None).table["ood_score"]
    np.testing.assert_allclose(found, whole, rtol=1e-9)
    assert [len(few) for few in asked] == [50, 50, 20] and sum(asked, []) == files


def test_features_of_a_bank_are_a_copy_of_what_was_asked_for_and_no_more(learner, many_toys):
    few, bank, width = (
        many_toys["file"].tolist()[3:6],
        learner.fastcxr.fitted_probe.cache,
        sum(learner.fastcxr.ood_detector.stage_channels.values()),
    )
    found = module.read_cached_features(learner, few, learner.fastcxr.ood_detector.stage_channels)
    np.testing.assert_array_equal(found, bank.features[0][bank.find_rows(few)][:, :width])
    assert found.base is None or found.base.size == 3 * width
    assert not np.shares_memory(found, bank.features)


def test_a_reloaded_gate_measures_what_the_trained_one_did(learner, folder, many_toys):
    before, after = (predict(model, many_toys, splits=None).table for model in (learner, load_model(folder)))
    np.testing.assert_allclose(after["ood_score"], before["ood_score"], rtol=1e-4)
    assert after["in_distribution"].tolist() == before["in_distribution"].tolist()


@pytest.mark.needs("openvino")
def test_the_compiled_graph_measures_what_the_network_does(learner, many_toys):
    classifier = extract_classifier(learner)
    eager = predict(classifier, many_toys, splits=None)
    graph = predict(to_openvino(classifier), many_toys, splits=None)
    np.testing.assert_allclose(graph.table["ood_score"], eager.table["ood_score"], rtol=1e-2)
    np.testing.assert_allclose(graph.probability, eager.probability, atol=1e-4)


def test_models_of_earlier_versions_have_no_gate_and_say_nothing_of_likeness(copy, strangers):
    facts = json.loads((copy / "model.json").read_text())
    del facts["ood"]
    (copy / "model.json").write_text(json.dumps(facts))
    table = predict(load_model(copy), strangers, splits=None).table
    assert load_model(copy).ood_detector is None
    assert not set(COLUMNS) & set(table.columns) and (table["predicted"] != "").all()


def test_a_gate_that_was_left_behind_is_missed(copy):
    (copy / "ood.safetensors").unlink()
    with pytest.raises(
        InputMissingError, match="missing, but model.json lists an OOD detector. Copy the whole run folder"
    ):
        load_model(copy)


def test_one_changed_bit_in_the_gate_is_refused(copy):
    content = bytearray((copy / "ood.safetensors").read_bytes())
    content[-10] ^= 1
    (copy / "ood.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="sha256 differs from model.json.*Copy it again"):
        load_model(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"stage_channels": {"blocks.0": 8}},
        {"stage_channels": 7},
        {"threshold": 0},
        {"threshold": float("nan")},
        {"threshold": "1"},
        {"sha256": None},
    ],
)
def test_facts_that_do_not_fit_the_gate_are_refused(copy, change):
    facts = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(facts | {"ood": facts["ood"] | change}))
    with pytest.raises(ModelError, match=r"invalid OOD detector|this is no model\.json"):
        load_model(copy)


def test_a_gate_of_another_network_is_refused(copy):
    facts = json.loads((copy / "model.json").read_text())
    depths = {f"other.{name}": channels for name, channels in facts["ood"]["stage_channels"].items()}
    (copy / "model.json").write_text(json.dumps(facts | {"ood": facts["ood"] | {"stage_channels": depths}}))
    with pytest.raises(ModelError, match="its OOD detector reads other stages"):
        load_model(copy)


def test_a_gate_is_small(folder):
    assert (folder / "ood.safetensors").stat().st_size < 1_000_000
