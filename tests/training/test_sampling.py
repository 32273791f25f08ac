"""What an epoch shows: weighted and repeated rows in training alone, the same for one seed whatever the workers."""

from collections import Counter

import pandas as pd
import pytest
import torch

from fastcxr.config.recipe import Augmentation, Recipe
from fastcxr.errors import RecipeError
from fastcxr.training.learner import count_labels, make_learner
from fastcxr.training.loaders import make_loaders, make_sampler_options

RECIPE = Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=6, epochs=1, strategy="full")
OVERSAMPLE, WEIGHTED = RECIPE.replace(oversample=("haze=3",)), RECIPE.replace(sampler="weighted")


@pytest.fixture(scope="module")
def uneven(toy_manifest) -> pd.DataFrame:
    """Six clear, two haze and six opacity images in train."""
    table = toy_manifest
    spare = table[(table["label"] == "haze") & (table["split"] == "train")].index[2:]
    return table.drop(spare).reset_index(drop=True)


def shown(loaders) -> list[str]:
    """Labels of the training rows that the next epoch shows."""
    labels = loaders.train.items["label"].tolist()
    loaders.train.randomize()
    return [labels[i] for i in loaders.train.get_idxs()]


def test_a_repeated_class_is_shown_so_often_and_the_others_once(uneven):
    loaders = make_loaders(uneven, OVERSAMPLE)
    assert Counter(shown(loaders)) == {"clear": 6, "haze": 6, "opacity": 6}
    assert len(loaders.train) == 3
    assert sum(len(truth) for _, truth in loaders.train) == 18


def test_each_copy_is_augmented_anew(uneven):
    train = uneven.index[uneven["split"] == "train"]
    lone = uneven.drop(train[:-1]).reset_index(drop=True)  # a single training image, an opacity
    loaders = make_loaders(lone, RECIPE.replace(oversample=("opacity=6",), augment=Augmentation(p_affine=1.0)))
    sums = [images.sum().item() for images, _ in loaders.train]
    assert len(sums) == len(set(sums)) == 6


def test_weighted_draws_show_every_class_equally_often(uneven):
    loaders = make_loaders(uneven, WEIGHTED)
    draws = Counter(label for _ in range(300) for label in shown(loaders))
    total = sum(draws.values())
    assert total == 300 * 14
    # 4,200 draws: a share of a third has a standard deviation of .0073
    assert all(abs(draws[label] / total - 1 / 3) < 0.03 for label in ("clear", "haze", "opacity"))


def test_the_weights_are_the_reciprocals_of_the_class_counts():
    options = make_sampler_options(pd.Series(list("aaab")), RECIPE.replace(sampler="weighted"))
    assert options == {"weights": [1 / 3, 1 / 3, 1 / 3, 1.0]}


@pytest.mark.parametrize("recipe", [WEIGHTED, OVERSAMPLE])
def test_one_seed_draws_the_same_whatever_the_workers(uneven, recipe):
    batches = [list(make_loaders(uneven, recipe.replace(workers=n)).train) for n in (0, 2)]
    for (images, truth), (others, other_truth) in zip(*batches, strict=True):
        assert torch.equal(truth, other_truth)
        assert torch.equal(images, others)
    other = list(make_loaders(uneven, recipe.replace(seed=7)).train)
    assert not all(torch.equal(batches[0][i][0], other[i][0]) for i in range(len(other)))


@pytest.mark.parametrize("recipe", [WEIGHTED, OVERSAMPLE])
def test_nothing_but_training_sees_a_copy(uneven, recipe):
    loaders = make_loaders(uneven, recipe)
    assert count_labels(loaders).tolist() == [6, 2, 6]
    assert loaders.valid.get_idxs() == list(range(6))
    learner = make_learner(loaders, recipe)
    with learner.no_bar(), learner.no_logging():
        assert len(learner.get_preds(ds_idx=0)[0]) == 14
        assert len(learner.get_preds()[0]) == 6
    assert len(loaders.test_dl(uneven[uneven["split"] == "test"])) == 1


@pytest.mark.parametrize(("label", "remedy"), [("haz", "Did you mean 'haze'?"), ("X", "Choose from clear, haze")])
def test_an_unknown_class_is_refused_with_a_suggestion(uneven, label, remedy):
    with pytest.raises(RecipeError) as caught:
        make_loaders(uneven, RECIPE.replace(oversample=(f"{label}=2",)))
    assert remedy in str(caught.value)


def test_oversampling_is_said_aloud(uneven, caplog):
    caplog.set_level("INFO", "fastcxr")
    make_loaders(uneven, OVERSAMPLE)
    assert "haze 3 times; an epoch shows 18 of 14 training images" in caplog.text


@pytest.mark.parametrize("recipe", [WEIGHTED, OVERSAMPLE])
def test_favouring_rare_classes_twice_is_said_loudly(uneven, caplog, recipe):
    make_loaders(uneven, recipe.replace(class_weights="balanced"))
    assert "together they do so twice" in caplog.text
