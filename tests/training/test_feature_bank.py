"""One pass of a body serves all heads; another look or other pictures are another pass."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from toy_images import draw_toy
from training_probes import RECIPE, SILENT, make

from fastcxr.models.heads import find_head
from fastcxr.training.feature_bank import make_bank_key, make_feature_bank, output_head_features


def test_one_pass_serves_every_fold_and_later_learners_of_the_same_body(toy_manifest, passes):
    first = make_feature_bank(make(toy_manifest), RECIPE, SILENT)
    fold = toy_manifest.assign(split=toy_manifest["split"].map({"train": "test", "valid": "train", "test": "valid"}))
    other = RECIPE.replace(loss="focal", batch_size=4, epochs=7, class_weights="balanced")
    for manifest, recipe in ((fold, RECIPE), (toy_manifest, other)):
        assert np.array_equal(make_feature_bank(make(manifest, recipe), recipe, SILENT).features, first.features)
    assert passes == [30]


@pytest.mark.parametrize("limit", ["0", "0.000001"])
def test_where_nothing_can_be_kept_one_pass_serves_every_fold_all_the_same(
    toy_manifest, passes, temporary, monkeypatch, limit
):
    monkeypatch.setenv("FASTCXR_CACHE_GB", limit)
    fold = toy_manifest.assign(split=toy_manifest["split"].map({"train": "test", "valid": "train", "test": "valid"}))
    first, second = (make_feature_bank(make(manifest), RECIPE, SILENT) for manifest in (toy_manifest, fold))
    assert np.array_equal(first.features, second.features)
    assert passes == [30]


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"image_size": 65}, {"hflip_tta": False}, {"precision": "bf16"}],
)
def test_another_body_or_another_look_is_another_pass(toy_manifest, passes, change):
    make_feature_bank(make(toy_manifest), RECIPE, SILENT)
    recipe = RECIPE.replace(**change)
    make_feature_bank(make(toy_manifest, recipe), recipe, SILENT)
    assert passes == [30, 30]


def test_other_pictures_are_another_pass_even_under_the_same_name(toy_manifest, passes, tmp_path):
    copy = tmp_path / "copy.png"
    shutil.copy(toy_manifest["file"][0], copy)
    table = toy_manifest.assign(file=[str(copy), *toy_manifest["file"][1:]])
    make_feature_bank(make(table), RECIPE, SILENT)
    make_feature_bank(make(table.drop(index=29)), RECIPE, SILENT)
    Image.fromarray(draw_toy("haze", 99)).save(copy)
    make_feature_bank(make(table), RECIPE, SILENT)
    assert passes == [30, 29, 30]


def test_a_store_that_begins_anew_leaves_the_bank_as_it_is_and_pixels_without_a_checksum_have_no_name(toy_manifest):
    learner = make(toy_manifest)
    pictures = learner.dls.fastcxr.image_cache
    name = make_bank_key(learner, RECIPE)
    learner.dls.fastcxr.image_cache = type(pictures)(pictures.files, 64, pictures.mapped, pictures.locations + [100, 0])
    assert make_bank_key(learner, RECIPE) == name
    learner.dls.fastcxr.image_cache = type(pictures)(pictures.files, 64, None, np.zeros_like(pictures.locations))
    assert make_bank_key(learner, RECIPE) != make_bank_key(learner, RECIPE)


def seen_by_head(learner, images):
    with torch.no_grad(), output_head_features(find_head(learner.model)):
        return learner.model.eval()(images).numpy()


def test_the_bank_holds_what_the_head_sees_of_each_picture_and_of_its_mirror_image(toy_manifest):
    learner = make(toy_manifest)
    bank = make_feature_bank(learner, RECIPE, SILENT)
    images, _ = learner.dls.valid.one_batch()
    rows = bank.find_rows(learner.dls.valid.items["file"])
    images = torch.as_tensor(images)
    np.testing.assert_allclose(bank.features[0, rows], seen_by_head(learner, images), atol=1e-4, rtol=1e-3)
    np.testing.assert_allclose(bank.features[1, rows], seen_by_head(learner, images.flip(3)), atol=1e-4, rtol=1e-3)
    assert not np.allclose(bank.features[0, rows], bank.features[1, rows], atol=1e-2)


def test_a_network_answers_with_logits_again_after_it_gave_features_even_when_that_failed(toy_manifest):
    learner = make(toy_manifest)
    with pytest.raises(KeyboardInterrupt), output_head_features(find_head(learner.model)):
        raise KeyboardInterrupt
    assert learner.model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
