"""Recipes: validation, JSON, aliases, and help texts of all options."""

import inspect
import pydoc
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import pytest
from cyclopts import App, Parameter

from fastcxr.cli.app import make_options_class
from fastcxr.config.fields import GROUPS, list_options, list_path_options
from fastcxr.config.recipe import STRATEGY_ALIASES, Augmentation, Recipe, Stage
from fastcxr.config.recipe_paths import make_data_name
from fastcxr.errors import InputMissingError, ModelError, RecipeError


def test_a_recipe_is_immutable_and_replace_returns_a_changed_one():
    recipe = Recipe(epochs=3)
    with pytest.raises(FrozenInstanceError):
        recipe.epochs = 4
    assert (recipe.replace(epochs=4).epochs, recipe.epochs) == (4, 3)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe("resnet50", learning_rate="find", augment=Augmentation(do_flip=True)),
        Recipe(data=("a", "b.h5"), relabel=("Bacteria=pneumonia",), classes=("a", "b"), filter=("view=PA,AP",)),
        Recipe(
            head_hidden=(512, 64),
            dropout=0.1,
            oversample=("COVID-19=5", "a=b=2"),
            optimizer="timm:lamb",
            weight_decay=0.0,
        ),
        Recipe(strategy=(Stage(name="head", groups=1, epochs=2), Stage(multiples=(0.1, 0.5, 1.0)))),
    ],
)
def test_a_recipe_is_the_same_after_json(recipe, tmp_path):
    (tmp_path / "recipe.json").write_text(recipe.to_json(), encoding="utf-8")
    assert Recipe.from_json(tmp_path / "recipe.json") == recipe
    assert Recipe.from_json(tmp_path) == recipe


@pytest.mark.parametrize(
    ("options", "fix"),
    [
        ({"loss": "focl"}, "Did you mean 'focal'?"),
        ({"strategy": "gradul"}, "Did you mean 'gradual'?"),
        ({"epochs": 0}, "must be at least 1"),
        ({"data": ("a", "")}, "`data` is empty"),
        ({"patient_table": ""}, "`patient_table` is empty"),
        ({"epochs": "five"}, "must be int"),
        ({"epochs": True}, "must be int"),
        ({"learning_rate": "fnd"}, "Did you mean 'find'?"),
        ({"learning_rate": -1.0}, "at least"),
        ({"learning_rate": float("nan")}, "at least"),
        ({"label_smoothing": 1.0}, "below 1"),
        ({"strategy": ()}, "Pass a Stage"),
        ({"epoch": 3}, "Did you mean 'epochs'?"),
        ({"split": "patients"}, "Did you mean 'patient'?"),
        ({"data_format": "coronahak"}, "Did you mean 'coronahack'?"),
        ({"ignore_given_splits": "yes"}, "must be bool"),
        ({"classes": "COVID-19"}, "it must be a tuple, as ('COVID-19',)"),
        ({"relabel": (1,)}, "it must be str"),
        ({"data": ("a", 1)}, "it must be str"),
        ({"loss": "mean_squared"}, "Choose from auto, label_smoothing"),
        ({"loss": "binary_cros_entropy"}, "Did you mean 'binary_cross_entropy'?"),
        ({"sampler": "weighte"}, "Did you mean 'weighted'?"),
        ({"schedule": "onecycle"}, "Did you mean 'one_cycle'?"),
        ({"step_epochs": 0}, "at least 1"),
        ({"step_factor": 0.0}, "from 1e-06"),
        ({"step_factor": 2.0}, "below 1"),
        ({"optimizer": "adamW"}, "Did you mean 'adamw'?"),
        ({"optimizer": "lamb"}, "timm:NAME"),
        ({"weight_decay": -0.1}, "at least 0"),
        ({"lr_find_min": 1e-2, "lr_find_max": 1e-3}, "it must be below lr_find_max, 0.001"),
        ({"head_hidden": (512, 0)}, "head_hidden is 0, it must be at least 1"),
        ({"head_hidden": (0.5,)}, "it must be int"),
        ({"head_hidden": 512}, "it must be a tuple, as (512,)"),
        ({"uncertain": None}, "uncertain is None, it must be tuple"),
        ({"dropout": 1.0}, "below 1"),
        ({"oversample": ("COVID-19",)}, "Write LABEL=N with a whole number, as COVID-19=5"),
        ({"oversample": ("COVID-19=0",)}, "Write LABEL=N"),
        ({"oversample": ("COVID-19=2.5",)}, "Write LABEL=N"),
        ({"oversample": ("=5",)}, "Write LABEL=N"),
        ({"oversample": ("a=2", "a=3")}, "Pass one LABEL=N per class"),
        ({"oversample": ("a=2",), "sampler": "weighted"}, "Leave one of them out"),
    ],
)
def test_an_invalid_option_is_rejected_with_a_fix(options, fix):
    with pytest.raises(RecipeError) as caught:
        Recipe().replace(**options)
    assert fix in str(caught.value)
    assert caught.value.exit_code == 64


@pytest.mark.parametrize(("multiples", "message"), [((), "multiples is empty"), ((0.1, -1.0), "must be at least 0")])
def test_a_stage_without_a_factor_or_with_a_negative_one_is_rejected(multiples, message):
    with pytest.raises(RecipeError, match=message):
        Stage(multiples=multiples)


def test_lists_become_tuples_paths_become_text_and_one_source_is_unpacked():
    recipe = Recipe(data=[Path("a"), "b"], classes=["x", "y"])
    assert (recipe.data, recipe.classes) == (("a", "b"), ("x", "y"))
    assert Recipe(data=(Path("a"),)).data == "a"
    assert Recipe(data=()).data is None


def test_the_name_of_a_dataset_is_that_of_its_folder_or_file():
    assert [make_data_name(data) for data in (None, "x/a.csv", ("x/a", "y/b.h5/"))] == ["", "a", "a+b"]


def test_the_current_folder_and_its_parent_have_names(tmp_path, monkeypatch):
    (tmp_path / "xrays" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "xrays" / "inner")
    assert [make_data_name(data) for data in (".", "..", "./")] == ["inner", "xrays", "inner"]


def test_a_command_can_have_some_of_the_options_with_their_help():
    made = make_options_class("Some", "classes", "seed")
    assert [(item.name, item.metadata["help"]) for item in fields(made)] == [
        (item.name, item.metadata["help"]) for item in fields(Recipe) if item.name in ("classes", "seed")
    ]
    assert made() == made(classes=(), seed=42)


def test_lists_are_accepted_in_place_of_tuples():
    assert Recipe(head_hidden=[512], oversample=["a=2"]) == Recipe(head_hidden=(512,), oversample=("a=2",))


def test_oversampling_factors_are_parsed_for_any_label():
    assert Recipe(oversample=("COVID-19=5", "a=b=2")).oversample_factors == {"COVID-19": 5, "a=b": 2}


def test_every_option_has_a_help_text_in_lower_case_without_a_full_stop():
    for item in (item for options in (Recipe, Augmentation, Stage) for item in fields(options)):
        text = item.metadata["help"]
        assert text and not text.endswith("."), item.name
        assert text[0].islower() or text.split()[0].rstrip(":,").isupper() or "=" in text.split()[0], item.name


def test_every_option_of_a_recipe_belongs_to_one_group():
    names = [name for group in GROUPS for name in list_options(Recipe, group)]
    assert sorted(names) == sorted(item.name for item in fields(Recipe))
    assert all(list_options(Recipe, group) for group in GROUPS)


def test_lists_of_options_are_derived_from_the_groups():
    assert list_path_options(Recipe) == ("data", "split_file", "patient_table", "reuse_split", "weights")
    assert list_options(Recipe, "Data", without=["data"]) == list_options(Recipe, "Data")[1:]


@pytest.mark.parametrize(("alias", "name"), list(STRATEGY_ALIASES.items()))
def test_an_alias_of_a_strategy_is_stored_under_the_standard_name(alias, name):
    recipe = Recipe(strategy=alias)
    assert recipe == Recipe(strategy=name)
    assert f'"strategy": "{name}"' in recipe.to_json()


@pytest.mark.parametrize(("alias", "name"), list(STRATEGY_ALIASES.items()))
def test_the_command_line_accepts_an_alias_of_a_strategy(alias, name):
    app = App(name="some")
    made = make_options_class("Some", "strategy")

    @app.default
    def command(options: Annotated[made, Parameter(name="*")] = made()):  # noqa: B008
        return options.strategy

    assert app(["--strategy", alias], exit_on_error=False, result_action="return_value") == name


def test_a_learning_rate_can_be_an_integer():
    assert Recipe(learning_rate=1).learning_rate == 1


@pytest.mark.parametrize("strategy", ["lp_ft", "full"])
def test_a_slice_of_rates_sets_the_head_rate_and_the_layer_lr_ratio(tmp_path, strategy):
    recipe = Recipe(learning_rate=slice(1e-5, 1e-3), strategy=strategy)
    assert (recipe.learning_rate, recipe.layer_lr_ratio) == (1e-3, pytest.approx(100))
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert Recipe.from_json(tmp_path / "recipe.json") == recipe


@pytest.mark.parametrize("rates", [slice(1e-3), slice(1e-3, 1e-5), slice(0, 1e-3), slice(1e-5, 1e-3, 2)])
def test_a_slice_without_two_ascending_rates_is_rejected(rates):
    with pytest.raises(RecipeError, match="Pass the first group's rate and then the head's"):
        Recipe(learning_rate=rates, strategy="full")


@pytest.mark.parametrize("strategy", ["linear_probe", "head", "gradual"])
def test_a_layer_lr_ratio_that_the_strategy_does_not_use_is_rejected(strategy):
    with pytest.raises(RecipeError, match="Choose `strategy='lp_ft'` or"):
        Recipe(layer_lr_ratio=10, strategy=strategy)


def test_the_augmentation_options_are_those_of_fastai_and_quarter_turns():
    import inspect

    from fastai.vision.augment import aug_transforms

    names = set(inspect.signature(aug_transforms).parameters) - {"xtra_tfms", "size"}
    assert {item.name for item in fields(Augmentation)} == names | {"quarter_turns"}


@pytest.mark.parametrize("content", ["", "[]", "{", '{"epochs": 5}', '{"format": 1}', '{"format": 2, "nonsense": 1}'])
def test_an_invalid_recipe_file_is_rejected(tmp_path, content):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises((ModelError, RecipeError)):
        Recipe.from_json(tmp_path / "recipe.json")


def test_a_missing_recipe_file_is_an_error_with_a_fix(tmp_path):
    with pytest.raises(ModelError, match="Name a run folder that fastcxr made"):
        Recipe.from_json(tmp_path / "recipe.json")


def test_a_written_recipe_is_read_with_its_stages_and_augmentation(tmp_path):
    recipe = Recipe("resnet18", learning_rate=slice(1e-4, 1e-2), strategy="full", augment=Augmentation(max_rotate=3))
    for number, one in enumerate(
        (recipe, recipe.replace(strategy=(Stage(name="head", groups=1),), layer_lr_ratio=1.0))
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(one.to_json(), encoding="utf-8")
        assert Recipe.from_json(path) == Recipe.from_json(str(path)) == one


@pytest.mark.parametrize("options_class", [Recipe, Augmentation, Stage])
def test_help_shows_every_option_with_its_help_text_and_default(options_class):
    shown = " ".join(pydoc.render_doc(options_class, renderer=pydoc.plaintext).replace("|", " ").split())
    for item in fields(options_class):
        assert f"{item.name}: {item.metadata['help']}" in shown
    assert (
        options_class is not Recipe
        or "number of epochs with all layers trained (strategy head: the head only) [default: 5]" in shown
    )


def test_the_data_formats_of_a_recipe_are_those_of_the_readers():
    from fastcxr.data.readers.detect import LAYOUTS

    assert get_args(get_type_hints(Recipe)["data_format"]) == LAYOUTS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe(lr=1e-3), "Recipe has no option called 'lr'. Did you mean 'learning_rate'?"),
        (lambda: Recipe(epoch=3), "Recipe has no option called 'epoch'. Did you mean 'epochs'?"),
        (lambda: Recipe(arch="resnet18"), "Did you mean 'backbone'?"),
        (lambda: Recipe().replace(bs=8), "Recipe has no option called 'bs'. Did you mean 'batch_size'?"),
        (lambda: Recipe(xyzzy=1), "help.Recipe. lists them"),
        (lambda: Recipe("resnet18", "my_xrays"), "Recipe takes 1 value without a name, got 2. .* as data='my_xrays'"),
        (lambda: Augmentation(rotate=3), "Augmentation has no option called 'rotate'. Did you mean 'max_rotate'?"),
        (lambda: Stage("head"), "Stage takes 0 values without a name, got 1. Name each option, as name='head'"),
        (lambda: Recipe(weights=None), "weights is None, it must be a name or a file. Pass `weights='none'`"),
        (lambda: Recipe(class_weights=None), "class_weights is None, .*Pass `class_weights='none'`"),
    ],
)
def test_a_wrong_name_or_none_is_an_error_with_the_right_option(make, message):
    with pytest.raises(RecipeError, match=message):
        make()


def test_the_signature_of_a_recipe_has_its_options():
    parameters = inspect.signature(Recipe).parameters
    assert list(parameters) == [item.name for item in fields(Recipe)]
    assert parameters["epochs"].default == 5


def test_a_recipe_of_a_missing_folder_is_an_error_that_names_it(tmp_path):
    with pytest.raises(InputMissingError, match="nowhere: the folder does not exist. Pass the folder of a"):
        Recipe.from_json(tmp_path / "nowhere")
