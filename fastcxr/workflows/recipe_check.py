"""Check that a recipe is the one with which a learner and its loaders were made and trained."""

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from fastcxr.config.fields import list_options
from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError
from fastcxr.models.state import get_learner_state, get_loaders_state

if TYPE_CHECKING:  # fastai takes seconds to import
    from fastai.learner import Learner

# options that describe the data, that make_loaders reads, and that train reads; make_learner reads the others
DATA_OPTIONS = (*list_options(Recipe, "Data"), *list_options(Recipe, "Split"))
LOADER_OPTIONS = ("image_size", "batch_size", "augment", "sampler", "oversample")
TRAINING_OPTIONS = (
    "strategy", "hflip_tta", "epochs", "learning_rate", "layer_lr_ratio", "lr_find_min", "lr_find_max", "schedule",
    "step_epochs", "step_factor", "monitor", "patience", "time_limit", "deterministic",
)  # fmt: skip
# the report reads the evaluation options; device and workers change no result
FREE_OPTIONS = (*list_options(Recipe, "Evaluation"), "device", "workers")
LEARNER_OPTIONS = tuple(
    field.name
    for field in fields(Recipe)
    if field.name not in (*DATA_OPTIONS, *LOADER_OPTIONS, *TRAINING_OPTIONS, *FREE_OPTIONS)
)
DEFAULTS = Recipe()


def reject_other_recipe(learner: "Learner", recipe: Recipe) -> None:
    """Raise RecipeError if the loaders or the learner were made, or the learner was trained, with other options.

    A state that the caller made has no recipe and is not checked. Data and split options are compared if the recipe of
    the loaders has them: read_manifest and split_by_patient take arguments, so it may have none.
    """
    state, loaders_recipe = get_learner_state(learner), get_loaders_state(learner.dls).recipe
    data_options = [
        name for name in DATA_OPTIONS if loaders_recipe and getattr(loaders_recipe, name) != getattr(DEFAULTS, name)
    ]
    differences = [
        *_list_differences(recipe, loaders_recipe, (*LOADER_OPTIONS, *data_options)),
        *_list_differences(recipe, state.recipe, LEARNER_OPTIONS),
        *_list_differences(recipe, state.training_recipe, TRAINING_OPTIONS),
    ]
    if differences:
        raise RecipeError(
            f"the recipe is not that of the learner: {'; '.join(differences)}",
            "Pass the recipe that make_loaders, make_learner and train received, or train a learner with this recipe",
        )


def _list_differences(recipe: Recipe, used: Recipe | None, names: tuple[str, ...]) -> list[str]:
    if used is None:
        return []
    given, expected = _flatten(recipe, names), _flatten(used, names)
    return [
        f"{name}: got {given[name]!r}, expected {expected[name]!r}" for name in given if given[name] != expected[name]
    ]


def _flatten(recipe: Recipe, names: tuple[str, ...]) -> dict[str, Any]:
    """Return these options by name; those of the augmentation as `augment.max_rotate`."""
    values = {name: getattr(recipe, name) for name in names if name != "augment"}
    augment = asdict(recipe.augment) if "augment" in names else {}
    return values | {f"augment.{name}": value for name, value in augment.items()}
