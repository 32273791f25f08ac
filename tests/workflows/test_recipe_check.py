"""write_report rejects a recipe that is not the learner's, and names the options that differ."""

from dataclasses import fields
from types import SimpleNamespace

import pytest
from tiny_network import NAME

from fastcxr.config.components import Augmentation
from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError
from fastcxr.models.state import LearnerState, LoadersState
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders
from fastcxr.training.trainer import train
from fastcxr.workflows import recipe_check
from fastcxr.workflows.recipe_check import reject_other_recipe
from fastcxr.workflows.train_dir import write_report

RECIPE = Recipe(NAME, weights="none", image_size=64, batch_size=4, epochs=1, strategy="full", precision="fp32")


def make_stub(loaders_recipe=RECIPE, recipe=RECIPE, training_recipe=RECIPE):
    loaders_state = LoadersState(input_spec=None, manifest=None, image_cache=None, recipe=loaders_recipe)
    learner_state = LearnerState(recipe=recipe, training_recipe=training_recipe)
    return SimpleNamespace(dls=SimpleNamespace(fastcxr=loaders_state), fastcxr=learner_state)


def test_a_report_with_another_recipe_is_rejected_before_a_folder_is_made(toy_manifest, tmp_path):
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)
    training = train(learner, RECIPE)
    other = RECIPE.replace(epochs=50, learning_rate=0.1, image_size=224)
    with pytest.raises(RecipeError) as caught:
        write_report(tmp_path / "run", other, learner, training, None)
    message = str(caught.value)
    for part in ("image_size: got 224, expected 64", "epochs: got 50, expected 1", "learning_rate: got 0.1"):
        assert part in message
    assert "Pass the recipe that make_loaders, make_learner and train received" in message and "\n" not in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "resnet18"}, {"weights": "pretrained"}, {"loss": "focal"}, {"seed": 7}, {"precision": "auto"},
        {"batch_size": 5}, {"augment": Augmentation(max_rotate=1.0)}, {"strategy": "gradual"}, {"monitor": "auroc"},
    ],
)  # fmt: skip
def test_each_option_of_loaders_learner_and_training_is_compared(changes):
    name = next(iter(changes))
    with pytest.raises(RecipeError, match="augment.max_rotate: got 1.0" if name == "augment" else f"{name}: got"):
        reject_other_recipe(make_stub(), RECIPE.replace(**changes))


@pytest.mark.parametrize(
    "changes", [{"sensitivity": 0.8}, {"abstain_rate": 0.1}, {"device": "cpu"}, {"workers": 2}, {"data": "named"}]
)
def test_options_of_the_report_and_the_machine_may_differ(changes):
    reject_other_recipe(make_stub(), RECIPE.replace(**changes))


def test_data_options_are_compared_if_the_recipe_of_the_loaders_has_them():
    learner = make_stub(loaders_recipe=RECIPE.replace(data="a"))
    with pytest.raises(RecipeError, match="data: got 'b', expected 'a'"):
        reject_other_recipe(learner, RECIPE.replace(data="b"))


def test_the_options_of_a_training_with_another_recipe_are_those_of_that_training():
    learner = make_stub(training_recipe=RECIPE.replace(epochs=3))
    reject_other_recipe(learner, RECIPE.replace(epochs=3))
    with pytest.raises(RecipeError, match="epochs: got 1, expected 3"):
        reject_other_recipe(learner, RECIPE)


def test_a_state_without_recipes_is_not_compared():
    reject_other_recipe(make_stub(None, None, None), RECIPE.replace(epochs=3))


def test_every_option_belongs_to_one_step():
    names = [
        *recipe_check.DATA_OPTIONS, *recipe_check.LOADER_OPTIONS, *recipe_check.TRAINING_OPTIONS,
        *recipe_check.LEARNER_OPTIONS, *recipe_check.FREE_OPTIONS,
    ]  # fmt: skip
    assert sorted(names) == sorted(field.name for field in fields(Recipe))
