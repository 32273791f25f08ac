"""Weighted sampling and oversampling affect only training and do not depend on the number of workers."""

from collections import Counter

import pandas as pd
import pytest
import torch
from tiny_network import NAME

from fastcxr.config.recipe import Augmentation, Recipe
from fastcxr.errors import RecipeError
from fastcxr.training.learner import count_labels, make_learner
from fastcxr.training.loaders import make_loaders, make_sampler_options

RECIPE = Recipe(NAME, weights="none", image_size=64, batch_size=6, epochs=1, strategy="full")
OVERSAMPLE, WEIGHTED = RECIPE.replace(oversample=("haze=3",)), RECIPE.replace(sampler="weighted")


@pytest.fixture(scope="module")
def uneven(toy_manifest) -> pd.DataFrame:
    """Six clear, two haze and six opacity images in train."""
    table = toy_manifest
    spare = table[(table["label"] == "haze") & (table["split"] == "train")].index[2:]
    return table.drop(spare).reset_index(drop=True)


def draw_labels(loaders) -> list[str]:
    """Return the labels of the training rows of the next epoch."""
    labels = loaders.train.items["label"].tolist()
    loaders.train.randomize()
    return [labels[i] for i in loaders.train.get_idxs()]


def test_oversampling_repeats_only_the_given_class(uneven):
    loaders = make_loaders(uneven, OVERSAMPLE)
    assert Counter(draw_labels(loaders)) == {"clear": 6, "haze": 6, "opacity": 6}
    assert len(loaders.train) == 3
    assert sum(len(truth) for _, truth in loaders.train) == 18


def test_repeated_images_are_augmented_differently(uneven):
    train = uneven.index[uneven["split"] == "train"]
    single = uneven.drop(train[:-1]).reset_index(drop=True)  # a single training image, an opacity
    loaders = make_loaders(single, RECIPE.replace(oversample=("opacity=6",), augment=Augmentation(p_affine=1.0)))
    sums = [images.sum().item() for images, _ in loaders.train]
    assert len(sums) == len(set(sums)) == 6


def test_weighted_sampling_draws_all_classes_equally_often(uneven):
    loaders = make_loaders(uneven, WEIGHTED)
    draws = Counter(label for _ in range(300) for label in draw_labels(loaders))
    total = sum(draws.values())
    assert total == 300 * 14
    # 4,200 draws: a share of a third has a standard deviation of .0073
    assert all(abs(draws[label] / total - 1 / 3) < 0.03 for label in ("clear", "haze", "opacity"))


def test_sampling_weights_are_reciprocal_class_counts():
    options = make_sampler_options(pd.DataFrame({"label": list("aaab")}), RECIPE.replace(sampler="weighted"))
    assert options == {"weights": [1 / 3, 1 / 3, 1 / 3, 1.0]}


@pytest.mark.parametrize("recipe", [WEIGHTED, OVERSAMPLE])
def test_batches_depend_on_the_seed_and_not_on_the_workers(uneven, recipe):
    batches = [list(make_loaders(uneven, recipe.replace(workers=n)).train) for n in (0, 2)]
    for (images, truth), (others, other_truth) in zip(*batches, strict=True):
        assert torch.equal(truth, other_truth)
        assert torch.equal(images, others)
    other = list(make_loaders(uneven, recipe.replace(seed=7)).train)
    assert not all(torch.equal(batches[0][i][0], other[i][0]) for i in range(len(other)))


@pytest.mark.parametrize("recipe", [WEIGHTED, OVERSAMPLE])
def test_only_training_epochs_repeat_images(uneven, recipe):
    loaders = make_loaders(uneven, recipe)
    assert count_labels(loaders).tolist() == [6, 2, 6]
    assert loaders.valid.get_idxs() == list(range(6))
    learner = make_learner(loaders, recipe)
    with learner.no_bar(), learner.no_logging():
        assert len(learner.get_preds(ds_idx=0)[0]) == 14
        assert len(learner.get_preds()[0]) == 6
    assert len(loaders.test_dl(uneven[uneven["split"] == "test"])) == 1


@pytest.mark.parametrize(("label", "fix"), [("haz", "Did you mean 'haze'?"), ("X", "Choose from clear, haze")])
def test_oversampling_an_unknown_class_raises_with_a_suggestion(uneven, label, fix):
    with pytest.raises(RecipeError) as caught:
        make_loaders(uneven, RECIPE.replace(oversample=(f"{label}=2",)))
    assert fix in str(caught.value)


def test_oversampling_is_logged(uneven, caplog):
    caplog.set_level("INFO", "fastcxr")
    make_loaders(uneven, OVERSAMPLE)
    assert "oversampling (haze x 3): 18 rows per epoch from 14 training images" in caplog.text


@pytest.mark.parametrize("recipe", [WEIGHTED, OVERSAMPLE])
def test_sampling_together_with_class_weights_is_warned_of(uneven, caplog, recipe):
    make_loaders(uneven, recipe.replace(class_weights="balanced"))
    assert "rare classes get more weight twice" in caplog.text
