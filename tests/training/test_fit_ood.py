"""A gate measures how far a picture is from the training images, and takes its limit from others."""

import logging

import numpy as np
import pytest
from sklearn.decomposition import PCA
from training_probes import RECIPE, SILENT, make

from fastcxr.models.heads import find_stages
from fastcxr.models.preprocessing import make_blank_image
from fastcxr.training import fit_ood as module
from fastcxr.training.fit_ood import compute_conformal_limit, fit_mahalanobis, fit_ood_detector
from fastcxr.training.trainer import train


def trained(manifest, **choices):
    learner = make(manifest, RECIPE.replace(**choices))
    train(learner, RECIPE.replace(**choices), SILENT)
    return learner


def features_of(learner, split):
    items = {"train": learner.dls.train, "valid": learner.dls.valid}[split].items
    return module._compute_features(
        learner, items["file"].tolist(), learner.fastcxr.ood_detector.stage_channels, SILENT
    )


def test_the_distance_is_mahalanobis_under_the_covariance_of_probabilistic_pca():
    draw = np.random.default_rng(0)
    known, others = (draw.normal(size=(n, 6)) @ draw.normal(size=(6, 24)) + draw.normal(size=(n, 24)) for n in (80, 9))
    scaled = (known - known.mean(axis=0)) / known.std(axis=0)
    inverse = np.linalg.inv(PCA(6).fit(scaled).get_covariance())
    apart = (others - known.mean(axis=0)) / known.std(axis=0)
    expected = np.einsum("nd,de,ne->n", apart, inverse, apart)
    np.testing.assert_allclose(fit_mahalanobis(known, {"stage": 24}).compute_scores(others), expected, rtol=1e-4)


def test_a_channel_that_never_spoke_in_training_does_not_shut_out_whoever_wakes_it_a_little():
    known = np.random.default_rng(0).normal(size=(40, 8))
    known[:, 3] = 0.5
    gate, woken = fit_mahalanobis(known, {"stage": 8}), known + 0.005 * (np.arange(8) == 3)
    assert gate.compute_scores(woken).max() < 2 * gate.compute_scores(known).max()


def test_features_that_are_no_numbers_give_no_gate(many_toys, monkeypatch, caplog):
    monkeypatch.setattr(module, "_compute_features", lambda learner, files, *rest: np.full((len(files), 8), np.nan))
    with caplog.at_level(logging.INFO, logger="fastcxr"):
        assert fit_ood_detector(make(many_toys), SILENT) is None
    assert "no OOD detector: what its stages see is no number" in caplog.text


@pytest.mark.parametrize(("count", "rank"), [(1, 1), (19, 19), (33, 33), (66, 65), (99, 97), (999, 970)])
def test_the_limit_is_a_conformal_quantile(count, rank):
    scores = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    assert compute_conformal_limit(scores) == rank


def test_a_further_image_passes_the_limit_as_seldom_as_was_asked():
    draw = np.random.default_rng(0)
    beyond = [(draw.normal(size=500) > compute_conformal_limit(draw.normal(size=99))).mean() for _ in range(300)]
    assert np.mean(beyond) == pytest.approx(module.FALSE_POSITIVE_RATE, abs=0.004)


@pytest.mark.parametrize(
    "strategy", ["linear_probe", "full"]
)  # features of a bank, and of a pass through the trained network
def test_validation_images_set_the_limit_and_training_images_the_distance(many_toys, strategy):
    learner = trained(many_toys, strategy=strategy)
    gate, known, others = learner.fastcxr.ood_detector, features_of(learner, "train"), features_of(learner, "valid")
    assert (gate.images, gate.patients) == (len(others), 20)
    assert compute_conformal_limit(gate.compute_scores(others)) == pytest.approx(1)
    np.testing.assert_allclose(gate.mean, known.mean(axis=0), rtol=1e-5)


def test_the_bank_and_a_pass_of_its_own_give_the_same_features(many_toys):
    learner = trained(many_toys)
    from_bank = features_of(learner, "valid")
    learner.fastcxr.fitted_probe = None
    np.testing.assert_allclose(features_of(learner, "valid"), from_bank, atol=1e-5)


def test_looking_leaves_no_hook_behind(many_toys):
    learner = trained(many_toys, strategy="full")
    stages = [learner.model.get_submodule(name) for name in learner.fastcxr.ood_detector.stage_channels]
    assert stages and not any(stage._forward_hooks for stage in stages)


def test_without_enough_validation_patients_there_is_no_gate_and_it_says_so(toy_manifest, caplog):
    with caplog.at_level(logging.INFO, logger="fastcxr"):
        assert trained(toy_manifest).fastcxr.ood_detector is None
    assert "no OOD detector: 3 validation patients, at least 19 are needed" in caplog.text


def test_a_network_whose_stages_are_not_known_has_no_gate(many_toys, caplog):
    learner = make(many_toys, RECIPE.replace(backbone="torchvision:squeezenet1_1", strategy="full"))
    with caplog.at_level(logging.INFO, logger="fastcxr"):
        assert fit_ood_detector(learner, SILENT) is None
    assert "no OOD detector: its stages are not known" in caplog.text


def test_of_a_large_cohort_only_a_part_is_looked_at(many_toys, monkeypatch):
    monkeypatch.setattr(module, "MAX_SPLIT_IMAGES", 25)
    learner, seen = make(many_toys, RECIPE.replace(strategy="full")), []
    see = module._compute_features
    monkeypatch.setattr(
        module, "_compute_features", lambda learner, files, *rest: (seen.append(files), see(learner, files, *rest))[1]
    )
    assert fit_ood_detector(learner, SILENT).images == 25
    assert [len(set(files)) for files in seen] == [25, 25]
    assert {file.split("/")[-2] for file in seen[0]} == {"clear", "haze", "opacity"}


def test_the_gate_looks_at_stages_and_not_at_the_last_layer(many_toys):
    learner = trained(many_toys)
    assert dict(learner.fastcxr.ood_detector.stage_channels) == find_stages(
        learner.model, make_blank_image(learner.dls.fastcxr.input_spec)
    )
    assert len(learner.fastcxr.ood_detector.mean) == sum(learner.fastcxr.ood_detector.stage_channels.values())
