"""The OOD detector is fitted on training images, its threshold on validation images."""

import logging

import numpy as np
import pytest
import torch
from device_results import assert_identical
from sklearn.decomposition import PCA
from training_probes import RECIPE, SILENT, make

from fastcxr.inference.predict import predict
from fastcxr.models.bundle import extract_classifier
from fastcxr.models.heads import find_stages
from fastcxr.models.preprocessing import make_blank_image
from fastcxr.models.state import set_fitted_state
from fastcxr.training import fit_ood as module
from fastcxr.training.fit_ood import compute_conformal_limit, fit_mahalanobis, fit_ood_detector
from fastcxr.training.linear_probe import fit_head
from fastcxr.training.trainer import train


def train_learner(manifest, **options):
    learner = make(manifest, RECIPE.replace(**options))
    train(learner, RECIPE.replace(**options), SILENT)
    return learner


def compute_features(learner, split):
    items = {"train": learner.dls.train, "valid": learner.dls.valid}[split].items
    return module._compute_features(
        learner, items["file"].tolist(), learner.fastcxr.ood_detector.stage_channels, SILENT
    )


def test_scores_are_mahalanobis_distances_under_a_probabilistic_pca_covariance():
    rng = np.random.default_rng(0)
    train_features, other_features = (
        rng.normal(size=(n, 6)) @ rng.normal(size=(6, 24)) + rng.normal(size=(n, 24)) for n in (80, 9)
    )
    mean, deviation = train_features.mean(axis=0), train_features.std(axis=0)
    scaled = (train_features - mean) / deviation
    inverse = np.linalg.inv(PCA(6).fit(scaled).get_covariance())
    difference = (other_features - mean) / deviation
    expected = np.einsum("id,de,ie->i", difference, inverse, difference)
    detector = fit_mahalanobis(torch.from_numpy(train_features), {"stage": 24})
    np.testing.assert_allclose(detector.compute_scores(torch.from_numpy(other_features)), expected, rtol=1e-4)


def test_fewer_images_than_features_give_the_same_detector_as_their_covariance():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 6)) @ rng.normal(size=(6, 90)) + rng.normal(size=(60, 90))
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    pca, detector = PCA(15).fit(scaled), fit_mahalanobis(torch.from_numpy(features), {"stage": 90})
    np.testing.assert_allclose(detector.variances, pca.explained_variance_, rtol=1e-5)
    np.testing.assert_allclose(detector.noise, pca.noise_variance_, rtol=1e-5)
    np.testing.assert_allclose(np.abs((detector.directions * pca.components_).sum(axis=1)), 1, rtol=1e-4)


def test_principal_components_of_a_real_size_are_exact():
    """scikit-learn's default solver is randomized at this size: its last variances are some percent too small."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(700, 520)) @ (rng.normal(size=(520, 520)) * np.linspace(1, 0.1, 520))
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    detector = fit_mahalanobis(torch.from_numpy(features), {"stage": 520})
    expected = np.linalg.eigvalsh(np.cov(scaled.T))[::-1]
    np.testing.assert_allclose(detector.variances, expected[:50], rtol=1e-5)
    np.testing.assert_allclose(detector.noise, expected[50:].mean(), rtol=1e-5)


def test_identical_images_give_finite_scores():
    features = torch.ones(40, 12)
    detector = fit_mahalanobis(features, {"stage": 12})
    assert np.isfinite(detector.compute_scores(features + 1)).all()
    wide = fit_mahalanobis(torch.ones(8, 12).cumsum(dim=1), {"stage": 12})
    assert np.isfinite(wide.compute_scores(torch.ones(8, 12))).all()


def test_a_small_change_of_a_constant_channel_does_not_raise_the_score_much():
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(40, 8)))
    features[:, 3] = 0.5
    detector, changed = fit_mahalanobis(features, {"stage": 8}), features + 0.005 * (torch.arange(8) == 3)
    assert detector.compute_scores(changed).max() < 2 * detector.compute_scores(features).max()


def test_no_detector_is_fitted_on_nan_features(many_toys, monkeypatch, caplog):
    monkeypatch.setattr(
        module, "_compute_features", lambda learner, files, *arguments: np.full((len(files), 8), np.nan)
    )
    with caplog.at_level(logging.INFO, logger="fastcxr"):
        assert fit_ood_detector(make(many_toys), SILENT)[0] is None
    assert "no OOD detector: features of its stages are NaN or infinite" in caplog.text


@pytest.mark.parametrize(("count", "rank"), [(1, 1), (19, 19), (33, 33), (66, 65), (99, 97), (999, 970)])
def test_the_threshold_is_a_conformal_quantile(count, rank):
    scores = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    assert compute_conformal_limit(scores) == rank


def test_new_images_exceed_the_threshold_at_the_false_positive_rate():
    rng = np.random.default_rng(0)
    rates = [(rng.normal(size=500) > compute_conformal_limit(rng.normal(size=99))).mean() for _ in range(300)]
    assert np.mean(rates) == pytest.approx(module.FALSE_POSITIVE_RATE, abs=0.004)


@pytest.mark.parametrize("strategy", ["linear_probe", "full"])  # with and without a feature cache
def test_the_threshold_is_fitted_on_validation_images_and_the_distance_on_training_images(many_toys, strategy):
    learner = train_learner(many_toys, strategy=strategy)
    detector = learner.fastcxr.ood_detector
    train_features, valid_features = compute_features(learner, "train"), compute_features(learner, "valid")
    assert (detector.images, detector.patients) == (len(valid_features), 20)
    assert compute_conformal_limit(detector.compute_scores(torch.from_numpy(valid_features))) == pytest.approx(1)
    np.testing.assert_allclose(detector.mean, train_features.mean(axis=0), rtol=1e-5)


def test_cached_and_recomputed_features_are_equal(many_toys):
    learner = train_learner(many_toys)
    cached = compute_features(learner, "valid")
    learner.fastcxr.fitted_probe = None
    assert_identical(compute_features(learner, "valid"), cached, cpu_tolerance=1e-5)


def test_fitting_removes_all_forward_hooks(many_toys):
    learner = train_learner(many_toys, strategy="full")
    stages = [learner.model.get_submodule(name) for name in learner.fastcxr.ood_detector.stage_channels]
    assert stages and not any(stage._forward_hooks for stage in stages)


def test_no_detector_is_fitted_on_too_few_validation_patients(toy_manifest, caplog):
    with caplog.at_level(logging.INFO, logger="fastcxr"):
        assert train_learner(toy_manifest).fastcxr.ood_detector is None
    assert "no OOD detector: got 3 validation patients, expected at least 19" in caplog.text


def test_no_detector_is_fitted_without_known_stages(many_toys, caplog):
    learner = make(many_toys, RECIPE.replace(backbone="torchvision:squeezenet1_1", strategy="full"))
    with caplog.at_level(logging.INFO, logger="fastcxr"):
        assert fit_ood_detector(learner, SILENT)[0] is None
    assert "no OOD detector: the network's stages are unknown" in caplog.text


def test_large_splits_are_subsampled(many_toys, monkeypatch):
    monkeypatch.setattr(module, "MAX_SPLIT_IMAGES", 25)
    learner, file_lists = make(many_toys, RECIPE.replace(strategy="full")), []
    compute = module._compute_features

    def record_and_compute(learner, files, *arguments):
        file_lists.append(files)
        return compute(learner, files, *arguments)

    monkeypatch.setattr(module, "_compute_features", record_and_compute)
    assert fit_ood_detector(learner, SILENT)[0].images == 25
    assert [len(set(files)) for files in file_lists] == [25, 25]
    assert {file.split("/")[-2] for file in file_lists[0]} == {"clear", "haze", "opacity"}


def test_the_detector_uses_stage_features_without_those_of_the_last_layer(many_toys):
    learner = train_learner(many_toys)
    assert dict(learner.fastcxr.ood_detector.stage_channels) == find_stages(
        learner.model, make_blank_image(learner.dls.fastcxr.input_spec, learner.dls.device)
    )
    assert len(learner.fastcxr.ood_detector.mean) == sum(learner.fastcxr.ood_detector.stage_channels.values())


def test_the_feature_map_has_the_images_of_the_detector_without_another_pass(many_toys, monkeypatch):
    learner, n_images = make(many_toys, RECIPE.replace(strategy="full")), []
    compute = module._compute_features

    def count_and_compute(learner, files, *arguments):
        n_images.append(len(files))
        return compute(learner, files, *arguments)

    monkeypatch.setattr(module, "_compute_features", count_and_compute)
    detector, feature_map = fit_ood_detector(learner, SILENT)
    assert detector and n_images == [len(learner.dls.train.items), len(learner.dls.valid.items)]
    images = many_toys[many_toys["split"] != "test"]
    assert sorted(feature_map["path"]) == sorted(images["path"])
    patients = images.set_index("path")["patient"]
    assert (patients[feature_map["nearest_path"]].to_numpy() != feature_map["patient"].to_numpy()).all()


def test_large_maps_are_subsampled_evenly(many_toys, monkeypatch):
    monkeypatch.setattr(module, "MAX_MAP_IMAGES", 40)
    feature_map = train(make(many_toys), RECIPE, SILENT).feature_map
    assert len(feature_map) == 40
    assert feature_map["split"].value_counts().to_dict() == {"train": 20, "valid": 20}
    assert feature_map["label"].nunique() == 3


def test_a_map_that_cannot_be_made_costs_no_detector(many_toys, monkeypatch, caplog):
    def fail(images, features):
        raise ValueError("no map")

    monkeypatch.setattr(module, "make_feature_map", fail)
    detector, feature_map = fit_ood_detector(make(many_toys), SILENT)
    assert detector and feature_map.empty
    assert "feature map left out: ValueError: no map" in caplog.text


def test_few_patients_have_a_map_but_no_detector(toy_manifest):
    detector, feature_map = fit_ood_detector(make(toy_manifest), SILENT)
    assert detector is None
    assert set(feature_map["split"]) == {"train", "valid"}


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", ["linear_probe", "full"])  # with and without a feature cache
def test_scores_on_the_gpu_are_those_of_the_cpu(many_toys, strategy):
    recipe, scores = RECIPE.replace(strategy=strategy), []
    for device in ("cpu", "cuda"):
        learner = make(many_toys, recipe.replace(device=device))
        if strategy == "linear_probe":
            fit_head(learner, recipe, SILENT)
        set_fitted_state(learner, ood_detector=fit_ood_detector(learner, SILENT)[0])
        scores.append(predict(extract_classifier(learner), many_toys, splits=None).table["ood_score"])
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-2)
    assert ((scores[0] > 1) == (scores[1] > 1))[(scores[0] - 1).abs() > 1e-2].all()
