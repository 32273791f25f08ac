"""Loaders normalize for the backbone, keep the whole image, and draw reproducible batches."""

import matplotlib
import numpy as np
import pytest
import torch
from fastai.data.transforms import IntToFloatTensor

from fastcxr.config.recipe import Augmentation, Recipe
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.data.pack import pack_dataset
from fastcxr.errors import DataError, RecipeError
from fastcxr.models.devices import find_device
from fastcxr.training.loaders import ExpandChannels, Radiograph, make_loaders, seed_everything

matplotlib.use("Agg")
NO_AUGMENTATION = Augmentation(max_rotate=0, max_zoom=1, min_zoom=1, max_warp=0, max_lighting=0)
RECIPE = Recipe("vit_tiny_patch16_224", weights="none", image_size=64, batch_size=4)


def test_batches_have_the_whole_image_normalized_for_the_backbone(toy_manifest):
    loaders = make_loaders(toy_manifest, RECIPE)
    images, _ = loaders.valid.one_batch()
    file = toy_manifest.loc[toy_manifest["split"] == "valid", "file"].iloc[0]
    expected = (fit_square(read_image(file), 64) / 255 - 0.5) / 0.5
    assert images.shape[1:] == (3, 64, 64)
    for channel in images[0].cpu().numpy():
        np.testing.assert_allclose(channel, expected, atol=1e-5)  # tolerance: fastai's lighting also applies to these


def test_labels_are_sorted_and_splits_are_kept(toy_manifest):
    loaders = make_loaders(toy_manifest, RECIPE)
    assert list(loaders.vocab) == ["clear", "haze", "opacity"]
    assert (len(loaders.train_ds), len(loaders.valid_ds)) == (18, 6)
    assert set(loaders.train.items["split"]) == {"train"}
    assert set(loaders.valid.items["split"]) == {"valid"}


def test_batches_depend_on_the_seed(toy_manifest):
    first, second, other = (
        make_loaders(toy_manifest, RECIPE.replace(seed=seed)).train.one_batch()[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_validation_images_are_never_augmented(toy_manifest):
    plain = make_loaders(toy_manifest, RECIPE.replace(augment=NO_AUGMENTATION))
    augmented = make_loaders(toy_manifest, RECIPE.replace(augment=Augmentation(max_rotate=45, p_affine=1.0)))
    assert torch.equal(plain.valid.one_batch()[0], augmented.valid.one_batch()[0])
    assert not torch.equal(plain.train.one_batch()[0], augmented.train.one_batch()[0])


def test_augmentation_gives_three_equal_channels(toy_manifest):
    images, _ = make_loaders(toy_manifest, RECIPE.replace(augment=Augmentation(do_flip=True, mult=2))).train.one_batch()
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])


def test_augmenting_one_channel_equals_augmenting_three(toy_manifest, monkeypatch):
    recipe = RECIPE.replace(augment=Augmentation(mult=2, do_flip=True, p_affine=1.0, p_lighting=1.0))
    seed_everything(7)
    one_channel, _ = make_loaders(toy_manifest, recipe).train.one_batch()
    monkeypatch.setattr(ExpandChannels, "order", IntToFloatTensor.order + 1)  # before every augmentation
    seed_everything(7)
    three_channels, _ = make_loaders(toy_manifest, recipe).train.one_batch()
    torch.testing.assert_close(one_channel, three_channels, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "option", [{"flip_vert": True, "do_flip": True}, {"min_scale": 0.5}, {"pad_mode": "reflection"}, {"batch": True}]
)
def test_options_of_aug_transforms_can_be_set(toy_manifest, option):
    images, _ = make_loaders(toy_manifest, RECIPE.replace(augment=Augmentation(**option))).train.one_batch()
    assert images.shape == (4, 3, 64, 64)


def test_show_batch_does_not_invert_images(toy_manifest):
    loaders = make_loaders(toy_manifest, RECIPE.replace(augment=NO_AUGMENTATION))
    loaders.valid.show_batch(max_n=2)
    shown = matplotlib.pyplot.gcf().axes[0].images[0].get_array()
    file = toy_manifest.loc[toy_manifest["split"] == "valid", "file"].iloc[0]
    assert np.corrcoef(np.asarray(shown)[..., 0].ravel(), fit_square(read_image(file), 64).ravel())[0, 1] > 0.99


@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_empty_split_raises_with_a_fix(toy_manifest, split):
    with pytest.raises(DataError, match="Call split_by_patient first"):
        make_loaders(toy_manifest[toy_manifest["split"] != split], RECIPE)


def test_an_unavailable_device_raises():
    with pytest.raises(RecipeError, match="`device='auto'`"):
        find_device("cuda:77")


def test_the_batch_size_is_limited_to_the_training_split(toy_manifest):
    assert make_loaders(toy_manifest, RECIPE.replace(batch_size=500)).train.one_batch()[0].shape[0] == 18


@pytest.mark.needs("h5py")
def test_a_packed_image_equals_its_file(toy_manifest, tmp_path):
    packed = pack_dataset(toy_manifest, tmp_path / "toys.h5")
    for number in (0, 7):
        image, expected = (Radiograph.create(file) for file in (f"{packed}#{number}", toy_manifest["file"][number]))
        assert np.array_equal(np.asarray(image), np.asarray(expected))
