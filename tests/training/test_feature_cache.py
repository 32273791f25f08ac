"""Features are computed once per backbone, image set and preprocessing."""

import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from recording_progress import Counted
from toy_images import draw_toy
from training_probes import RECIPE, SILENT, make

from fastcxr.models.heads import find_head
from fastcxr.models.preprocessing import normalize
from fastcxr.training import feature_cache as module
from fastcxr.training.feature_cache import (
    find_frozen_network,
    make_cache_key,
    make_feature_cache,
    output_head_features,
)


def test_folds_and_later_learners_of_a_backbone_share_one_pass(toy_manifest, passes):
    first = make_feature_cache(make(toy_manifest), RECIPE, SILENT)
    fold = toy_manifest.assign(split=toy_manifest["split"].map({"train": "test", "valid": "train", "test": "valid"}))
    other = RECIPE.replace(loss="focal", batch_size=4, epochs=7, class_weights="balanced")
    for manifest, recipe in ((fold, RECIPE), (toy_manifest, other)):
        assert np.array_equal(make_feature_cache(make(manifest, recipe), recipe, SILENT).features, first.features)
    assert passes == [60]


@pytest.mark.parametrize("limit", ["0", "0.000001"])
def test_folds_share_one_pass_without_disk_cache(toy_manifest, passes, temporary, monkeypatch, limit):
    monkeypatch.setenv("FASTCXR_CACHE_GB", limit)
    fold = toy_manifest.assign(split=toy_manifest["split"].map({"train": "test", "valid": "train", "test": "valid"}))
    first, second = (make_feature_cache(make(manifest), RECIPE, SILENT) for manifest in (toy_manifest, fold))
    assert np.array_equal(first.features, second.features)
    assert passes == [60]


@pytest.mark.parametrize("change", [{"seed": 1}, {"image_size": 65}, {"precision": "bf16"}, {"precision": "fp16"}])
def test_another_backbone_or_preprocessing_needs_another_pass(toy_manifest, passes, change):
    make_feature_cache(make(toy_manifest), RECIPE, SILENT)
    recipe = RECIPE.replace(**change)
    make_feature_cache(make(toy_manifest, recipe), recipe, SILENT)
    assert passes == [60, 60]


@pytest.mark.parametrize("first", [True, False])
def test_a_cache_with_flipped_images_shares_the_other_images(toy_manifest, passes, first):
    recipes = [RECIPE.replace(hflip_tta=first), RECIPE.replace(hflip_tta=not first), RECIPE]
    caches = [make_feature_cache(make(toy_manifest, recipe), recipe, SILENT) for recipe in recipes]
    assert [len(cache.features) for cache in caches] == [1 + first, 2 - first, 2]
    assert all(np.array_equal(cache.features[0], caches[0].features[0]) for cache in caches)
    assert passes == ([60] if first else [30, 30])


@pytest.mark.parametrize("stopped_at", [1, 2, 4])
def test_an_interrupted_pass_is_continued_with_an_equal_result(
    toy_manifest, passes, tmp_path, monkeypatch, caplog, stopped_at
):
    monkeypatch.setattr(module, "choose_batch_size", lambda device: 12)  # 3 batches of each view
    expected = make_feature_cache(make(toy_manifest), RECIPE, SILENT).features
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    calls = []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == stopped_at + 1:
            raise KeyboardInterrupt
        return normalize(*arguments)

    monkeypatch.setattr(module, "normalize", stop)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        make_feature_cache(make(toy_manifest), RECIPE, SILENT)
    caplog.set_level(logging.INFO, "fastcxr")
    progress = Counted()
    found = make_feature_cache(make(toy_manifest), RECIPE, progress).features
    assert np.array_equal(found, expected)
    n_done = {1: 12, 2: 24, 4: 42}[stopped_at]
    assert passes == [60, 60, 60 - n_done]
    assert progress.seen[-1] == 6 and (60, "computing features") in progress.seen
    assert progress.seen[progress.seen.index((60, "computing features")) + 1] == n_done, "the bar starts there"
    shown = f"{n_done} of 30 images" if stopped_at < 3 else "12 of 30 flipped images"
    assert f"an interrupted run has computed the features of {shown}" in caplog.text
    assert interrupt.value.__notes__ == [f"{shown} are done"]


def test_an_interrupted_pass_without_disk_cache_is_not_called_done(toy_manifest, temporary, monkeypatch):
    monkeypatch.setenv("FASTCXR_CACHE_GB", "0")
    monkeypatch.setattr(module, "choose_batch_size", lambda device: 12)
    calls = []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return normalize(*arguments)

    monkeypatch.setattr(module, "normalize", stop)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        make_feature_cache(make(toy_manifest), RECIPE, SILENT)
    assert not hasattr(interrupt.value, "__notes__")


def test_changed_pixels_under_the_same_name_need_another_pass(toy_manifest, passes, tmp_path):
    copy = tmp_path / "copy.png"
    shutil.copy(toy_manifest["file"][0], copy)
    table = toy_manifest.assign(file=[str(copy), *toy_manifest["file"][1:]])
    make_feature_cache(make(table), RECIPE, SILENT)
    make_feature_cache(make(table.drop(index=29)), RECIPE, SILENT)
    Image.fromarray(draw_toy("haze", 99)).save(copy)
    make_feature_cache(make(table), RECIPE, SILENT)
    assert passes == [60, 58, 60]


def test_the_key_ignores_image_cache_slots_and_is_random_without_checksums(toy_manifest):
    learner = make(toy_manifest)
    frozen = find_frozen_network(learner)
    cache, key = frozen.images.cache, make_cache_key(frozen)
    frozen.images.cache = type(cache)(cache.files, 64, cache.mapped, cache.locations + [100, 0])
    assert make_cache_key(frozen) == key
    frozen.images.cache = type(cache)(cache.files, 64, None, np.zeros_like(cache.locations))
    assert make_cache_key(frozen) != make_cache_key(frozen)


def compute_features(learner, images):
    with torch.no_grad(), output_head_features(find_head(learner.model)):
        return learner.model.eval()(images).cpu().numpy()


def test_the_cache_has_the_head_inputs_of_each_image_and_its_flipped_image(toy_manifest):
    learner = make(toy_manifest)
    cache = make_feature_cache(learner, RECIPE, SILENT)
    images, _ = learner.dls.valid.one_batch()
    rows = cache.find_rows(learner.dls.valid.items["file"])
    images = torch.as_tensor(images)
    np.testing.assert_allclose(cache.features[0][rows], compute_features(learner, images), atol=1e-4, rtol=1e-3)
    np.testing.assert_allclose(cache.features[1][rows], compute_features(learner, images.flip(3)), atol=1e-4, rtol=1e-3)
    assert not np.allclose(cache.features[0][rows], cache.features[1][rows], atol=1e-2)


def test_the_network_returns_logits_again_after_an_exception(toy_manifest):
    learner = make(toy_manifest)
    with pytest.raises(KeyboardInterrupt), output_head_features(find_head(learner.model)):
        raise KeyboardInterrupt
    assert learner.model.eval()(torch.zeros(1, 3, 64, 64, device=learner.dls.device)).shape == (1, 3)
