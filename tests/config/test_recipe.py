"""A recipe refuses what cannot be, survives JSON, and carries words for every choice."""

from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from fastcxr.cli.app import make_options_class
from fastcxr.config.recipe import Augmentation, Recipe, Stage, make_data_name, read_recipe
from fastcxr.errors import ModelError, RecipeError


def test_a_recipe_cannot_be_changed_but_gives_a_changed_one():
    recipe = Recipe(epochs=3)
    with pytest.raises(FrozenInstanceError):
        recipe.epochs = 4
    assert (recipe.replace(epochs=4).epochs, recipe.epochs) == (4, 3)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe("resnet50", learning_rate="find", augment=Augmentation(do_flip=True)),
        Recipe(data=("a", "b.h5"), relabel=("Bacteria=pneumonia",), classes=("a", "b"), where=("view=PA,AP",)),
        Recipe(
            head=(512, 64), dropout=0.1, oversample=("COVID-19=5", "a=b=2"), optimizer="timm:lamb", weight_decay=0.0
        ),
        Recipe(strategy=(Stage(name="head", groups=1, epochs=2), Stage(multiples=(0.1, 0.5, 1.0)))),
    ],
)
def test_a_recipe_survives_json(recipe, tmp_path):
    (tmp_path / "recipe.json").write_text(recipe.to_json(), encoding="utf-8")
    assert read_recipe(tmp_path / "recipe.json") == recipe


@pytest.mark.parametrize(
    ("choices", "remedy"),
    [
        ({"loss": "focl"}, "Did you mean 'focal'?"),
        ({"strategy": "shalow"}, "Did you mean 'shallow'?"),
        ({"epochs": 0}, "must be at least 1"),
        ({"data": ("a", "")}, "--data is empty"),
        ({"patients": ""}, "--patients is empty"),
        ({"epochs": "five"}, "must be int"),
        ({"epochs": True}, "must be int"),
        ({"learning_rate": "fnd"}, "Did you mean 'find'?"),
        ({"learning_rate": -1.0}, "at least"),
        ({"learning_rate": float("nan")}, "at least"),
        ({"label_smoothing": 1.0}, "below 1"),
        ({"strategy": ()}, "Give at least one Stage"),
        ({"epoch": 3}, "Did you mean 'epochs'?"),
        ({"split": "patients"}, "Did you mean 'patient'?"),
        ({"layout": "coronahak"}, "Did you mean 'coronahack'?"),
        ({"given_splits": "ignor"}, "Did you mean 'ignore'?"),
        ({"classes": "COVID-19"}, "must be tuple"),
        ({"relabel": (1,)}, "it must be str"),
        ({"data": ("a", 1)}, "it must be str"),
        ({"loss": "mean_squared"}, "Choose from label_smoothing"),
        ({"loss": "binary_cros_entropy"}, "Did you mean 'binary_cross_entropy'?"),
        ({"sampler": "wieghted"}, "Did you mean 'weighted'?"),
        ({"schedule": "onecycle"}, "Did you mean 'one_cycle'?"),
        ({"step_epochs": 0}, "at least 1"),
        ({"step_factor": 0.0}, "from 1e-06"),
        ({"step_factor": 2.0}, "below 1"),
        ({"optimizer": "adamW"}, "Did you mean 'adamw'?"),
        ({"optimizer": "lamb"}, "timm:NAME"),
        ({"weight_decay": -0.1}, "at least 0"),
        ({"find_from": 1e-2, "find_to": 1e-3}, "Give a find_to above find_from"),
        ({"head": (512, 0)}, "head is 0, it must be at least 1"),
        ({"head": (0.5,)}, "it must be int"),
        ({"head": 512}, "it must be tuple"),
        ({"dropout": 1.0}, "below 1"),
        ({"oversample": ("COVID-19",)}, "Write LABEL=N with a whole number, as COVID-19=5"),
        ({"oversample": ("COVID-19=0",)}, "Write LABEL=N"),
        ({"oversample": ("COVID-19=2.5",)}, "Write LABEL=N"),
        ({"oversample": ("=5",)}, "Write LABEL=N"),
        ({"oversample": ("a=2", "a=3")}, "Give each class one LABEL=N"),
        ({"oversample": ("a=2",), "sampler": "weighted"}, "Choose one of the two"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_with_a_remedy(choices, remedy):
    with pytest.raises(RecipeError) as caught:
        Recipe().replace(**choices)
    assert remedy in str(caught.value)
    assert caught.value.exit_code == 64


@pytest.mark.parametrize(("multiples", "remedy"), [((), "multiples is empty"), ((0.1, -1.0), "must be at least 0")])
def test_a_stage_without_a_factor_or_with_one_below_nought_is_refused(multiples, remedy):
    with pytest.raises(RecipeError, match=remedy):
        Stage(multiples=multiples)


def test_lists_and_paths_become_tuples_and_texts_and_one_source_is_no_several():
    recipe = Recipe(data=[Path("a"), "b"], classes=["x", "y"])
    assert (recipe.data, recipe.classes) == (("a", "b"), ("x", "y"))
    assert Recipe(data=(Path("a"),)).data == "a"
    assert Recipe(data=()).data is None


def test_data_is_named_in_a_word():
    assert [make_data_name(data) for data in (None, "x/a.csv", ("x/a", "y/b.h5/"))] == ["", "a", "a+b"]


def test_the_current_folder_and_the_one_above_have_names_too(tmp_path, monkeypatch):
    (tmp_path / "xrays" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "xrays" / "inner")
    assert [make_data_name(data) for data in (".", "..", "./")] == ["inner", "xrays", "inner"]


def test_a_command_may_take_some_of_the_choices_words_and_all():
    made = make_options_class("Some", "classes", "seed")
    assert [(item.name, item.metadata["help"]) for item in fields(made)] == [
        (item.name, item.metadata["help"]) for item in fields(Recipe) if item.name in ("classes", "seed")
    ]
    assert made() == made(classes=(), seed=42)


def test_a_list_is_as_good_as_a_tuple():
    assert Recipe(head=[512], oversample=["a=2"]) == Recipe(head=(512,), oversample=("a=2",))


def test_copies_are_counts_by_label_whatever_signs_the_label_holds():
    assert Recipe(oversample=("COVID-19=5", "a=b=2")).oversample_factors == {"COVID-19": 5, "a=b": 2}


def test_every_choice_carries_words():
    for kind in (Recipe, Augmentation, Stage):
        assert all(item.metadata["help"] for item in fields(kind))


def test_whole_numbers_are_rates_too():
    assert Recipe(learning_rate=1).learning_rate == 1


def test_a_slice_of_rates_is_the_heads_rate_and_how_far_the_first_layers_lie_below(tmp_path):
    recipe = Recipe(learning_rate=slice(1e-5, 1e-3), strategy="deep")
    assert (recipe.learning_rate, recipe.spread) == (1e-3, pytest.approx(100))
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert read_recipe(tmp_path / "recipe.json") == recipe


@pytest.mark.parametrize("rates", [slice(1e-3), slice(1e-3, 1e-5), slice(0, 1e-3), slice(1e-5, 1e-3, 2)])
def test_a_slice_that_gives_no_two_rates_is_refused(rates):
    with pytest.raises(RecipeError, match="Give the first group's rate and then the head's"):
        Recipe(learning_rate=rates, strategy="deep")


@pytest.mark.parametrize("strategy", ["rapid", "probe", "shallow", "fine"])
def test_a_spread_that_no_stage_would_take_is_refused(strategy):
    with pytest.raises(RecipeError, match="Choose --strategy deep"):
        Recipe(spread=10, strategy=strategy)


def test_the_knobs_are_those_of_fastai_and_one_of_ours():
    import inspect

    from fastai.vision.augment import aug_transforms

    knobs = set(inspect.signature(aug_transforms).parameters) - {"xtra_tfms", "size"}
    assert {item.name for item in fields(Augmentation)} == knobs | {"quarter_turns"}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"epochs": 5}', '{"format": 1}', '{"format": 2, "nonsense": 1}'])
def test_a_foreign_recipe_file_is_refused(tmp_path, content):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises((ModelError, RecipeError)):
        read_recipe(tmp_path / "recipe.json")


def test_a_missing_recipe_file_says_what_to_name(tmp_path):
    with pytest.raises(ModelError, match="Name a run folder that fastcxr made"):
        read_recipe(tmp_path / "recipe.json")


def test_the_layouts_of_a_recipe_are_those_that_can_be_read():
    from fastcxr.data.readers.detect import LAYOUTS

    assert get_args(get_type_hints(Recipe)["layout"]) == LAYOUTS
