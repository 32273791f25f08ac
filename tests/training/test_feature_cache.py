"""Features are computed once per backbone, image set and preprocessing."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from toy_images import draw_toy
from training_probes import RECIPE, SILENT, make

from fastcxr.models.heads import find_head
from fastcxr.training.feature_cache import make_cache_key, make_feature_cache, output_head_features


def test_folds_and_later_learners_of_a_backbone_share_one_pass(toy_manifest, passes):
    first = make_feature_cache(make(toy_manifest), RECIPE, SILENT)
    fold = toy_manifest.assign(split=toy_manifest["split"].map({"train": "test", "valid": "train", "test": "valid"}))
    other = RECIPE.replace(loss="focal", batch_size=4, epochs=7, class_weights="balanced")
    for manifest, recipe in ((fold, RECIPE), (toy_manifest, other)):
        assert np.array_equal(make_feature_cache(make(manifest, recipe), recipe, SILENT).features, first.features)
    assert passes == [30]


@pytest.mark.parametrize("limit", ["0", "0.000001"])
def test_folds_share_one_pass_without_disk_cache(toy_manifest, passes, temporary, monkeypatch, limit):
    monkeypatch.setenv("FASTCXR_CACHE_GB", limit)
    fold = toy_manifest.assign(split=toy_manifest["split"].map({"train": "test", "valid": "train", "test": "valid"}))
    first, second = (make_feature_cache(make(manifest), RECIPE, SILENT) for manifest in (toy_manifest, fold))
    assert np.array_equal(first.features, second.features)
    assert passes == [30]


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"image_size": 65}, {"hflip_tta": False}, {"precision": "bf16"}, {"precision": "fp16"}]
)
def test_another_backbone_or_preprocessing_needs_another_pass(toy_manifest, passes, change):
    make_feature_cache(make(toy_manifest), RECIPE, SILENT)
    recipe = RECIPE.replace(**change)
    make_feature_cache(make(toy_manifest, recipe), recipe, SILENT)
    assert passes == [30, 30]


def test_changed_pixels_under_the_same_name_need_another_pass(toy_manifest, passes, tmp_path):
    copy = tmp_path / "copy.png"
    shutil.copy(toy_manifest["file"][0], copy)
    table = toy_manifest.assign(file=[str(copy), *toy_manifest["file"][1:]])
    make_feature_cache(make(table), RECIPE, SILENT)
    make_feature_cache(make(table.drop(index=29)), RECIPE, SILENT)
    Image.fromarray(draw_toy("haze", 99)).save(copy)
    make_feature_cache(make(table), RECIPE, SILENT)
    assert passes == [30, 29, 30]


def test_the_key_ignores_image_cache_slots_and_is_random_without_checksums(toy_manifest):
    learner = make(toy_manifest)
    cache = learner.dls.fastcxr.image_cache
    key = make_cache_key(learner, RECIPE)
    learner.dls.fastcxr.image_cache = type(cache)(cache.files, 64, cache.mapped, cache.locations + [100, 0])
    assert make_cache_key(learner, RECIPE) == key
    learner.dls.fastcxr.image_cache = type(cache)(cache.files, 64, None, np.zeros_like(cache.locations))
    assert make_cache_key(learner, RECIPE) != make_cache_key(learner, RECIPE)


def compute_features(learner, images):
    with torch.no_grad(), output_head_features(find_head(learner.model)):
        return learner.model.eval()(images).cpu().numpy()


def test_the_cache_has_the_head_inputs_of_each_image_and_its_flipped_image(toy_manifest):
    learner = make(toy_manifest)
    cache = make_feature_cache(learner, RECIPE, SILENT)
    images, _ = learner.dls.valid.one_batch()
    rows = cache.find_rows(learner.dls.valid.items["file"])
    images = torch.as_tensor(images)
    np.testing.assert_allclose(cache.features[0, rows], compute_features(learner, images), atol=1e-4, rtol=1e-3)
    np.testing.assert_allclose(cache.features[1, rows], compute_features(learner, images.flip(3)), atol=1e-4, rtol=1e-3)
    assert not np.allclose(cache.features[0, rows], cache.features[1, rows], atol=1e-2)


def test_the_network_returns_logits_again_after_an_exception(toy_manifest):
    learner = make(toy_manifest)
    with pytest.raises(KeyboardInterrupt), output_head_features(find_head(learner.model)):
        raise KeyboardInterrupt
    assert learner.model.eval()(torch.zeros(1, 3, 64, 64, device=learner.dls.device)).shape == (1, 3)
