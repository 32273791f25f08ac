"""Out-of-distribution images get no class in all inference engines; the OOD detector is saved and validated."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fastcxr.config.recipe import Recipe
from fastcxr.data.image_table import make_image_table
from fastcxr.errors import InputMissingError, ModelError
from fastcxr.inference import torch_scorer as module
from fastcxr.inference.openvino import to_openvino
from fastcxr.inference.predict import predict
from fastcxr.metrics.decisions import apply_thresholds
from fastcxr.models.bundle import extract_classifier, load_model, save_model
from fastcxr.progress.base import Progress
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.trainer import train

PROBE = Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=6, epochs=1, strategy="linear_probe",
               precision="fp32")  # fmt: skip
COLUMNS = ["ood_score", "in_distribution"]


def train_learner(manifest, recipe):
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    train(learner, recipe, Progress())
    return learner


@pytest.fixture(scope="module")
def learner(many_toys):
    return train_learner(many_toys, PROBE)


@pytest.fixture(scope="module")
def folder(learner, tmp_path_factory):
    model_folder = tmp_path_factory.mktemp("model")
    save_model(model_folder, learner, PROBE, {"precision": "fp32"})
    return model_folder


@pytest.fixture
def copy(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def ood_images(tmp_path_factory):
    """Noise, a gradient and a checkerboard."""
    image_folder = tmp_path_factory.mktemp("ood_images")
    for name, pixels in {
        "noise": np.random.default_rng(0).integers(0, 256, (64, 64)),
        "gradient": np.tile(np.arange(64) * 4, (64, 1)),
        "checkerboard": np.indices((64, 64)).sum(axis=0) // 8 % 2 * 255,
    }.items():
        Image.fromarray(pixels.astype(np.uint8)).save(image_folder / f"{name}.png")
    return make_image_table([image_folder])


@pytest.mark.parametrize("strategy", ["linear_probe", "full"])
def test_out_of_distribution_images_get_no_class(many_toys, ood_images, strategy):
    model = train_learner(many_toys, PROBE.replace(strategy=strategy))
    table = predict(model, ood_images, splits=None).table
    assert table["predicted"].tolist() == ["", "", ""]
    assert table["in_distribution"].tolist() == ["no", "no", "no"]
    assert (table["ood_score"] > 1).all()


def test_test_images_of_the_same_distribution_get_a_class(learner, many_toys):
    table = predict(learner, many_toys, splits=("test",)).table
    assert (table["predicted"] != "").mean() > 0.9
    assert (table["in_distribution"] == "yes").tolist() == (table["predicted"] != "").tolist()


def test_out_of_distribution_images_keep_their_probabilities(learner, ood_images):
    np.testing.assert_allclose(predict(learner, ood_images, splits=None).probability.sum(axis=1), 1)


def test_out_of_distribution_images_exceed_no_threshold_and_are_uncertain(learner, ood_images):
    decisions = {"thresholds": {label: {"threshold": 0.0} for label in ("clear", "haze", "opacity")}}
    table = apply_thresholds(predict(learner, ood_images, splits=None), decisions).table
    assert table["above_threshold"].tolist() == ["", "", ""]
    assert table["uncertain"].tolist() == ["yes", "yes", "yes"]


def test_an_unreadable_file_has_no_ood_score(learner, ood_images, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    both = pd.concat([ood_images, make_image_table([tmp_path / "bad.png"])], ignore_index=True)
    table = predict(learner, both, splits=None).table
    assert table["in_distribution"].tolist() == ["no", "no", "no", ""]
    assert np.isnan(table["ood_score"].iloc[3])


def test_a_score_does_not_depend_on_the_number_of_rows(learner, many_toys):
    detector = learner.fastcxr.ood_detector
    files = many_toys["file"].tolist()
    features = torch.from_numpy(module.read_cached_features(learner, files, detector.stage_channels))
    scores, one_by_one = detector.compute_scores(features), [detector.compute_scores(row[None])[0] for row in features]
    np.testing.assert_array_equal(one_by_one, scores)
    assert 1.0 in scores, "the validation image that sets the threshold is in distribution"


def test_cached_features_are_scored_in_chunks(learner, many_toys, monkeypatch):
    files, detector = many_toys["file"].tolist(), learner.fastcxr.ood_detector
    read, chunks = module.read_cached_features, []
    expected = detector.compute_scores(torch.from_numpy(read(learner, files, detector.stage_channels)))
    monkeypatch.setattr(module, "FEATURE_CHUNK_ROWS", 50)
    monkeypatch.setattr(
        module,
        "read_cached_features",
        lambda learner, chunk, stages: chunks.append(chunk) or read(learner, chunk, stages),
    )
    found = predict(learner, many_toys, splits=None).table["ood_score"]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert [len(chunk) for chunk in chunks] == [50, 50, 20] and sum(chunks, []) == files


def test_cached_features_of_some_files_are_a_copy_without_the_others(learner, many_toys):
    files, bank = many_toys["file"].tolist()[3:6], learner.fastcxr.fitted_probe.cache
    stage_channels = learner.fastcxr.ood_detector.stage_channels
    found, n_features = module.read_cached_features(learner, files, stage_channels), sum(stage_channels.values())
    np.testing.assert_array_equal(found, bank.features[0][bank.find_rows(files)][:, :n_features])
    assert found.base is None or found.base.size == 3 * n_features
    assert not np.shares_memory(found, bank.features[0])


def test_a_loaded_ood_detector_has_the_same_scores(learner, folder, many_toys):
    before, after = (predict(model, many_toys, splits=None).table for model in (learner, load_model(folder)))
    np.testing.assert_allclose(after["ood_score"], before["ood_score"], rtol=1e-4)
    assert after["in_distribution"].tolist() == before["in_distribution"].tolist()


@pytest.mark.slow
@pytest.mark.needs("openvino")
def test_openvino_has_the_same_scores_as_pytorch(learner, many_toys):
    classifier = extract_classifier(learner)
    eager = predict(classifier, many_toys, splits=None)
    compiled = predict(to_openvino(classifier), many_toys, splits=None)
    np.testing.assert_allclose(compiled.table["ood_score"], eager.table["ood_score"], rtol=1e-2)
    np.testing.assert_allclose(compiled.probability, eager.probability, atol=1e-4)


def test_a_model_without_an_ood_detector_has_no_ood_columns(copy, ood_images):
    model_json = json.loads((copy / "model.json").read_text())
    del model_json["ood"]
    (copy / "model.json").write_text(json.dumps(model_json))
    table = predict(load_model(copy), ood_images, splits=None).table
    assert load_model(copy).ood_detector is None
    assert not set(COLUMNS) & set(table.columns) and (table["predicted"] != "").all()


def test_a_missing_ood_detector_file_raises_an_error(copy):
    (copy / "ood.safetensors").unlink()
    with pytest.raises(InputMissingError, match="OOD detector of model.json is missing. Copy the whole run folder"):
        load_model(copy)


def test_one_changed_bit_in_the_ood_detector_is_detected(copy):
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
def test_invalid_values_of_the_ood_detector_are_rejected(copy, change):
    model_json = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(model_json | {"ood": model_json["ood"] | change}))
    with pytest.raises(ModelError, match=r"invalid OOD detector|not a model\.json"):
        load_model(copy)


def test_an_ood_detector_of_another_network_is_rejected(copy):
    model_json = json.loads((copy / "model.json").read_text())
    stage_channels = {f"other.{name}": channels for name, channels in model_json["ood"]["stage_channels"].items()}
    (copy / "model.json").write_text(
        json.dumps(model_json | {"ood": model_json["ood"] | {"stage_channels": stage_channels}})
    )
    with pytest.raises(ModelError, match="the OOD detector uses stages that the network does not have"):
        load_model(copy)


def test_the_ood_detector_file_is_small(folder):
    assert (folder / "ood.safetensors").stat().st_size < 1_000_000
