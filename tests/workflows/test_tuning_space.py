"""Tests of the search space of a tuning: options that have an effect, their values, and the recipe of a trial."""

import pytest

from fastcxr.config.components import Augmentation
from fastcxr.config.recipe import Recipe, Stage
from fastcxr.config.tasks import MULTI_LABEL, SINGLE_LABEL
from fastcxr.errors import RecipeError
from fastcxr.workflows.tuning_space import (
    LP_FT_HEAD_RATES,
    Dimension,
    apply_options,
    find_outside_options,
    find_recipe_options,
    list_image_sizes,
    make_space,
)

PROBE = Recipe(backbone="resnet18", strategy="linear_probe")
FULL = Recipe(backbone="resnet18", strategy="full")
PROBE_OPTIONS = {"image_size", "loss", "label_smoothing", "focal_gamma", "class_weights", "hflip_tta"}
RATE_OPTIONS = {"learning_rate", "weight_decay", "augment"}
FULL_OPTIONS = PROBE_OPTIONS - {"hflip_tta"} | RATE_OPTIONS | {"layer_lr_ratio"}


def list_names(recipe, task=SINGLE_LABEL, search=None, fixed=()):
    return {dimension.name for dimension in make_space(recipe, task, search, fixed)}


def get_dimension(recipe, name, task=SINGLE_LABEL, search=None) -> Dimension:
    return next(d for d in make_space(recipe, task, search) if d.name == name)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (PROBE, PROBE_OPTIONS),
        (FULL, FULL_OPTIONS),
        (FULL.replace(strategy="lp_ft"), PROBE_OPTIONS | RATE_OPTIONS),
        (FULL.replace(strategy="gradual"), PROBE_OPTIONS - {"hflip_tta"} | RATE_OPTIONS),
        (FULL.replace(strategy="lp_ft", weights="none"), FULL_OPTIONS),
        (FULL.replace(strategy=(Stage(),)), FULL_OPTIONS),
    ],
)  # fmt: skip
def test_a_strategy_searches_the_options_that_it_uses(recipe, expected):
    assert list_names(recipe) == expected


def test_a_learning_rate_that_is_found_is_not_searched():
    assert "learning_rate" not in list_names(FULL.replace(learning_rate="find"))


def test_options_that_are_given_are_fixed():
    assert list_names(PROBE.replace(image_size=160), fixed=("hflip_tta",)) == PROBE_OPTIONS - {
        "image_size",
        "hflip_tta",
    }
    assert list_names(PROBE.replace(loss="focal")) == {"image_size", "focal_gamma", "class_weights", "hflip_tta"}
    assert "augment" not in list_names(FULL.replace(augment=Augmentation(max_rotate=3)))


def test_losses_are_not_compared_by_their_values():
    assert list_names(PROBE.replace(monitor="valid_loss")) == {"image_size", "hflip_tta"}
    with pytest.raises(RecipeError, match="loss cannot be searched with monitor valid_loss"):
        make_space(PROBE.replace(monitor="valid_loss"), SINGLE_LABEL, ["loss"])


def test_findings_have_the_losses_of_findings():
    assert get_dimension(PROBE, "loss", MULTI_LABEL).choices == ("binary_cross_entropy", "focal", "asymmetric")
    smoothing = get_dimension(PROBE, "label_smoothing", MULTI_LABEL)
    assert smoothing.loss is None and smoothing.low == 0  # used with every loss


def test_sizes_are_those_that_the_network_accepts():
    assert list_image_sizes(PROBE) == (128, 160, 224, 288)
    assert list_image_sizes(Recipe(backbone="torchvision:vit_b_16", weights="none")) == (224,)
    assert list_image_sizes(Recipe(backbone="vit_tiny_patch16_224", weights="none")) == (128, 160, 224, 288)
    assert list_image_sizes(Recipe(backbone="eva-x-tiny", weights="none", image_size=112)) == (
        64,
        80,
        112,
        144,
    )  # of patches


def test_a_layer_ratio_of_lp_ft_replaces_its_rates_and_is_searched_on_request():
    recipe = FULL.replace(strategy="lp_ft")
    assert "layer_lr_ratio" not in list_names(recipe)
    rate = get_dimension(recipe, "learning_rate", search=["layer-lr-ratio", "learning-rate"])
    assert (rate.low, rate.high) == LP_FT_HEAD_RATES


def test_values_and_ranges_can_be_given():
    search = ["image_size=96, 128", "learning_rate=1e-5..1e-3", "weight_decay=0..0.1", "loss=focal,cross_entropy"]
    size, rate, decay, loss = make_space(FULL, SINGLE_LABEL, search)
    assert size.choices == (96, 128) and size.describe() == "96, 128"
    assert (rate.low, rate.high, rate.is_log) == (1e-5, 1e-3, True)
    assert (decay.low, decay.high, decay.is_log) == (0, 0.1, False)  # zero has no logarithm
    assert loss.choices == ("focal", "cross_entropy")
    assert get_dimension(PROBE, "hflip_tta", search=["hflip_tta=false"]).choices == (False,)
    assert get_dimension(FULL, "learning_rate", search=["learning_rate=1e-3,1e-2"]).choices == (1e-3, 1e-2)


@pytest.mark.parametrize(
    ("recipe", "search", "message"),
    [
        (PROBE, ["lr"], "tuning cannot search 'lr'"),
        (
            PROBE,
            ["batch_size=8..64"],
            "cannot search 'batch_size'. Search image_size, loss, label_smoothing",
        ),
        (PROBE, ["class_weights=none,none"], "search is 'class_weights=none,none'. Name each value once"),
        (PROBE, ["loss", "hflip-tta", "loss=focal"], "search has loss twice"),
        (PROBE, ["learning_rate"], "learning_rate cannot be searched with strategy linear_probe"),
        (PROBE, ["loss=mse"], "Pass loss=A,B of cross_entropy, label_smoothing, focal"),
        (PROBE, ["image_size=big"], "search is 'image_size=big'"),
        (PROBE, ["image_size=8"], "image_size is 8, it must be at least 16"),
        (FULL, ["learning_rate=1e-2..1e-3"], "Pass learning_rate=LOW..HIGH"),
        (FULL, ["learning_rate=a..b"], "Pass learning_rate=LOW..HIGH"),
        (FULL, ["label_smoothing=0..2"], "label_smoothing is 2.0"),
    ],
)
def test_an_invalid_search_is_an_error_with_the_fix(recipe, search, message):
    with pytest.raises(RecipeError, match=message):
        make_space(recipe, SINGLE_LABEL, search)


def test_an_option_is_not_given_and_searched():
    with pytest.raises(RecipeError, match="image_size cannot be fixed and searched"):
        make_space(PROBE, SINGLE_LABEL, ["image_size=64..128"], fixed=("image_size",))  # before its values are read


def test_a_search_without_options_is_an_error():
    with pytest.raises(RecipeError, match="no option is left to search with strategy linear_probe"):
        make_space(PROBE.replace(monitor="valid_loss"), SINGLE_LABEL, fixed=("image_size", "hflip_tta"))


def test_the_first_trial_has_the_options_of_the_recipe():
    space = make_space(FULL, SINGLE_LABEL)
    assert find_recipe_options(FULL, SINGLE_LABEL, space) == {
        "learning_rate": 2e-3, "layer_lr_ratio": 1.0, "weight_decay": 0.01, "augment": "default", "image_size": 224,
        "loss": "label_smoothing", "label_smoothing": 0.1, "focal_gamma": 2.0, "class_weights": "none",
    }  # fmt: skip
    small = make_space(PROBE, SINGLE_LABEL, ["image_size=96,128", "hflip_tta"])
    assert find_recipe_options(PROBE, SINGLE_LABEL, small) == {"hflip_tta": True}  # 224 px is not searched
    assert find_outside_options(PROBE, SINGLE_LABEL, small) == {"image_size": 224}
    assert find_outside_options(FULL, SINGLE_LABEL, space) == {}
    other = make_space(PROBE.replace(loss="cross_entropy"), SINGLE_LABEL, ["label_smoothing=0.2..0.3", "loss"])
    assert find_outside_options(PROBE.replace(loss="cross_entropy"), SINGLE_LABEL, other) == {}  # not used by this loss


def test_the_recipe_of_a_trial_differs_in_the_searched_options_only():
    recipe = apply_options(FULL, {"learning_rate": 1e-3, "augment": "light", "image_size": 128})
    assert recipe.replace(learning_rate=2e-3, augment=Augmentation(), image_size="auto") == FULL
    assert recipe.augment == Augmentation(
        max_rotate=3.5, max_warp=0.05, max_lighting=0.1, min_zoom=0.975, max_zoom=1.05
    )
    assert apply_options(FULL, {"augment": "default"}) == FULL


def test_an_augmentation_of_none_keeps_the_flips_and_changes_no_image():
    augment = apply_options(FULL.replace(augment=Augmentation(do_flip=True)), {"augment": "none"}).augment
    assert augment.do_flip and augment.p_affine == augment.p_lighting == 0
