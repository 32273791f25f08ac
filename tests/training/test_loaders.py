"""Loaders speak the backbone's pixels, keep the whole picture, and draw the same batches from the same seed."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from fastai.data.transforms import IntToFloatTensor
from fastai.torch_core import TensorImageBW
from fasttransform import Pipeline

from fastcxr.config.recipe import Augmentation, Recipe
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.data.pack import pack_dataset
from fastcxr.errors import DataError, RecipeError
from fastcxr.models.devices import find_device
from fastcxr.training.loaders import ExpandChannels, Radiograph, make_augmentation, make_loaders, seed_everything

matplotlib.use("Agg")
STILL = Augmentation(max_rotate=0, max_zoom=1, min_zoom=1, max_warp=0, max_lighting=0)
RECIPE = Recipe("vit_tiny_patch16_224", weights="none", image_size=64, batch_size=4)


def test_the_network_sees_the_whole_picture_normalized_for_its_weights(toy_manifest):
    loaders = make_loaders(toy_manifest, RECIPE)
    images, _ = loaders.valid.one_batch()
    file = toy_manifest.loc[toy_manifest["split"] == "valid", "file"].iloc[0]
    expected = (fit_square(read_image(file), 64) / 255 - 0.5) / 0.5
    assert images.shape[1:] == (3, 64, 64)
    for channel in images[0].numpy():
        np.testing.assert_allclose(channel, expected, atol=1e-5)  # fastai sends even these through its lighting


def test_labels_are_in_order_and_splits_are_obeyed(toy_manifest):
    loaders = make_loaders(toy_manifest, RECIPE)
    assert list(loaders.vocab) == ["clear", "haze", "opacity"]
    assert (len(loaders.train_ds), len(loaders.valid_ds)) == (18, 6)
    assert set(loaders.train.items["split"]) == {"train"}
    assert set(loaders.valid.items["split"]) == {"valid"}


def test_one_seed_draws_the_same_batches_and_another_draws_others(toy_manifest):
    first, second, other = (
        make_loaders(toy_manifest, RECIPE.replace(seed=seed)).train.one_batch()[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_nothing_is_augmented_when_every_knob_is_zero_and_validation_never_is(toy_manifest):
    still = make_loaders(toy_manifest, RECIPE.replace(augment=STILL))
    moved = make_loaders(toy_manifest, RECIPE.replace(augment=Augmentation(max_rotate=45, p_affine=1.0)))
    torch.testing.assert_close(still.valid.one_batch()[0], moved.valid.one_batch()[0], atol=1e-5, rtol=0)
    assert not torch.equal(still.train.one_batch()[0], moved.train.one_batch()[0])


def test_gray_augmentation_gives_three_equal_channels(toy_manifest):
    images, _ = make_loaders(toy_manifest, RECIPE.replace(augment=Augmentation(do_flip=True, mult=2))).train.one_batch()
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])


def test_three_channels_that_are_augmented_give_the_same_numbers_as_one_that_is_copied_afterwards(
    toy_manifest, monkeypatch
):
    recipe = RECIPE.replace(augment=Augmentation(mult=2, do_flip=True, p_affine=1.0, p_lighting=1.0))
    seed_everything(7)
    copied, _ = make_loaders(toy_manifest, recipe).train.one_batch()
    monkeypatch.setattr(ExpandChannels, "order", IntToFloatTensor.order + 1)  # before every augmentation
    seed_everything(7)
    augmented, _ = make_loaders(toy_manifest, recipe).train.one_batch()
    torch.testing.assert_close(copied, augmented, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "knob", [{"flip_vert": True, "do_flip": True}, {"min_scale": 0.5}, {"pad_mode": "reflection"}, {"batch": True}]
)
def test_every_knob_of_aug_transforms_can_be_set(toy_manifest, knob):
    images, _ = make_loaders(toy_manifest, RECIPE.replace(augment=Augmentation(**knob))).train.one_batch()
    assert images.shape == (4, 3, 64, 64)


FLIPS = Augmentation(do_flip=True, flip_vert=True, max_rotate=0, min_zoom=1, max_zoom=1, max_warp=0, max_lighting=0)


@pytest.mark.parametrize(("quarter_turns", "kinds"), [(False, 4), (True, 8)])
def test_both_flips_are_drawn_apart_where_nothing_is_turned(quarter_turns, kinds):
    picture = torch.rand(1, 1, 8, 8)
    moves = make_augmentation(replace(FLIPS, quarter_turns=quarter_turns), 8)
    seed_everything(0)
    seen = Pipeline(moves, split_idx=0)(TensorImageBW(picture.expand(4000, -1, -1, -1).clone()))
    straight = [picture.flip(axes) for axes in ((), (3,), (2,), (2, 3))]
    turned = [square.transpose(2, 3) for square in straight]
    shares = torch.tensor(
        [torch.isclose(seen, square, atol=1e-4).all(dim=(1, 2, 3)).float().mean() for square in straight + turned]
    )
    assert shares.sum() == pytest.approx(1)
    assert (shares > 0.03).sum() == kinds
    if not quarter_turns:
        torch.testing.assert_close(shares[:4], torch.full((4,), 0.25), atol=0.03, rtol=0)


def test_show_batch_draws_positives_not_negatives(toy_manifest):
    loaders = make_loaders(toy_manifest, RECIPE.replace(augment=STILL))
    loaders.valid.show_batch(max_n=2)
    shown = matplotlib.pyplot.gcf().axes[0].images[0].get_array()
    file = toy_manifest.loc[toy_manifest["split"] == "valid", "file"].iloc[0]
    assert np.corrcoef(np.asarray(shown)[..., 0].ravel(), fit_square(read_image(file), 64).ravel())[0, 1] > 0.99


@pytest.mark.parametrize("part", ["train", "valid"])
def test_a_missing_split_says_what_to_do(toy_manifest, part):
    with pytest.raises(DataError, match="Call split_by_patient first"):
        make_loaders(toy_manifest[toy_manifest["split"] != part], RECIPE)


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(RecipeError, match="Pass --device auto or --device cpu"):
        find_device("cuda:77")


def test_a_batch_larger_than_the_cohort_becomes_the_cohort(toy_manifest):
    assert make_loaders(toy_manifest, RECIPE.replace(batch_size=500)).train.one_batch()[0].shape[0] == 18


@pytest.mark.needs("h5py")
def test_a_packed_radiograph_is_that_of_its_file(toy_manifest, tmp_path):
    packed = pack_dataset(toy_manifest, tmp_path / "toys.h5")
    for number in (0, 7):
        ours, theirs = (Radiograph.create(file) for file in (f"{packed}#{number}", toy_manifest["file"][number]))
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
