"""Search space of a tuning: the options of a recipe that trials change, and the recipe of a trial."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastcxr.config.components import Augmentation
from fastcxr.config.recipe import Recipe
from fastcxr.config.tasks import MULTI_LABEL, SEARCHED_OPTIONS, resolve_task
from fastcxr.errors import FastcxrError, RecipeError
from fastcxr.io.formatting import join_names
from fastcxr.models.backbones import find_backbone, make_network
from fastcxr.models.encoders import CHEST_PREFIX, ENCODERS, find_image_size, find_patch_size
from fastcxr.models.heads import head_config
from fastcxr.progress.base import silence_logging
from fastcxr.training.optimizers import find_weight_decay

LEARNING_RATES = (2e-4, 2e-2)  # ten times around the default rate
LP_FT_HEAD_RATES = (3e-5, 3e-3)  # of lp_ft with a layer ratio, which replaces the factors on its rates
LAYER_LR_RATIOS = (1.0, 100.0)
DECOUPLED_WEIGHT_DECAYS, L2_WEIGHT_DECAYS = (1e-3, 0.3), (1e-6, 1e-2)
LABEL_SMOOTHINGS, FOCAL_GAMMAS = (0.01, 0.3), (0.5, 5.0)
LOSSES = {True: ("binary_cross_entropy", "focal", "asymmetric"), False: ("cross_entropy", "label_smoothing", "focal")}
AUGMENTATION_FACTORS = {"none": 0.0, "light": 0.5, "default": 1.0, "strong": 2.0}
SIZE_FACTORS, SIZE_STEP_PIXELS = (4 / 7, 5 / 7, 9 / 7), 32  # 128, 160 and 288 px around 224 px
LOSS_OPTIONS = ("loss", "label_smoothing", "focal_gamma", "class_weights")
RANGE = re.compile(r"(.+)\.\.(.+)")


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """An option that trials change: choices, or a range of numbers.

    Attributes:
        name: name of the option of Recipe.
        choices: values; empty for a range.
        low: lowest number of a range.
        high: highest number of a range.
        is_log: whether the logarithm is drawn evenly.
        loss: the loss that uses the option; None: every loss.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = True
    loss: str | None = None

    def describe(self) -> str:
        """Return the values as text, such as `128, 160, 224` or `0.0002 to 0.02 (log)`."""
        values = f"{self.low:g} to {self.high:g}{' (log)' * self.is_log}"
        return (", ".join(map(str, self.choices)) or values) + (f" with loss {self.loss}" if self.loss else "")

    def contains(self, value: Any) -> bool:
        """Return whether a trial can have this value."""
        return value in self.choices if self.choices else self.low <= value <= self.high


def make_space(
    recipe: Recipe, task: str, search: Sequence[str] | None = None, fixed: Sequence[str] = ()
) -> tuple[Dimension, ...]:
    """Return the dimensions of the search.

    Args:
        recipe: the recipe that trials change.
        task: task of the data, single_label or multi_label.
        search: options to search, as NAME, NAME=VALUE,VALUE or NAME=LOW..HIGH; by default all that the strategy and
            the task use and that have their default value.
        fixed: options that are not searched although they have their default value.

    Raises:
        RecipeError: an option is unknown, has no effect, or is given and searched; or nothing is left to search.
    """
    has_ratio = recipe.layer_lr_ratio != 1 or any(entry.startswith(("layer_lr", "layer-lr")) for entry in search or ())
    known = {dimension.name: dimension for dimension in list_dimensions(recipe, task, has_ratio=has_ratio)}
    changed = set(fixed) | {name for name in SEARCHED_OPTIONS if getattr(recipe, name) != getattr(Recipe(), name)}
    if search is None:
        optional = {"layer_lr_ratio"} if find_strategy(recipe) == "lp_ft" else set()
        space = [dimension for name, dimension in known.items() if name not in changed | optional]
    else:
        names = [_find_name(entry) for entry in search]
        if given := sorted(set(fixed).intersection(names)):
            problem = f"{join_names(given)} cannot be fixed and searched"
            raise RecipeError(problem, "Leave the option out, or remove it from `search`", code="E741")
        if repeated := {name: None for name in names if names.count(name) > 1}:
            raise RecipeError(f"search has {join_names(list(repeated))} twice", "Name each option once", code="E741")
        space = [parse_dimension(entry, known, recipe, task) for entry in search]
    losses = next((d.choices for d in space if d.name == "loss"), (resolve_task(recipe, task).loss,))
    space = [dimension for dimension in space if dimension.loss is None or dimension.loss in losses]
    if not space:
        problem = f"no option is left to search with strategy {recipe.strategy}"
        raise RecipeError(problem, "Leave out options, or name some with `search`", code="E741")
    return tuple(space)


def list_dimensions(recipe: Recipe, task: str, *, has_ratio: bool) -> list[Dimension]:
    """Return every dimension that has an effect on the validation metric of this recipe, with default values.

    `has_ratio`: whether the layer ratio is given or searched.
    """
    strategy, dimensions = find_strategy(recipe), []
    if strategy != "linear_probe":
        if recipe.learning_rate != "find":
            low, high = LP_FT_HEAD_RATES if strategy == "lp_ft" and has_ratio else LEARNING_RATES
            dimensions.append(Dimension(name="learning_rate", low=low, high=high))
        if strategy in ("full", "lp_ft") or not isinstance(strategy, str):
            dimensions.append(Dimension(name="layer_lr_ratio", low=LAYER_LR_RATIOS[0], high=LAYER_LR_RATIOS[1]))
        is_decoupled = recipe.optimizer in ("radam", "adamw")
        low, high = DECOUPLED_WEIGHT_DECAYS if is_decoupled else L2_WEIGHT_DECAYS
        dimensions.append(Dimension(name="weight_decay", low=low, high=high))
        dimensions.append(Dimension(name="augment", choices=tuple(AUGMENTATION_FACTORS)))
    if len(sizes := list_image_sizes(recipe)) > 1:
        dimensions.append(Dimension(name="image_size", choices=sizes))
    if recipe.monitor != "valid_loss":  # the values of two losses cannot be compared
        dimensions += list_loss_dimensions(is_multi_label=task == MULTI_LABEL)
    if strategy in ("linear_probe", "lp_ft"):
        dimensions.append(Dimension(name="hflip_tta", choices=(True, False)))
    return dimensions


def list_loss_dimensions(*, is_multi_label: bool) -> list[Dimension]:
    """Return the dimensions of the loss."""
    smoothing = None if is_multi_label else "label_smoothing"  # findings have it with every loss
    low, high = LABEL_SMOOTHINGS
    return [
        Dimension(name="loss", choices=LOSSES[is_multi_label]),
        Dimension(name="label_smoothing", low=0 if is_multi_label else low, high=high, is_log=False, loss=smoothing),
        Dimension(name="focal_gamma", low=FOCAL_GAMMAS[0], high=FOCAL_GAMMAS[1], is_log=False, loss="focal"),
        Dimension(name="class_weights", choices=("none", "balanced")),
    ]


def find_strategy(recipe: Recipe) -> Any:
    """Return the strategy that is trained: with random weights, lp_ft and gradual are full."""
    return "full" if recipe.weights == "none" and recipe.strategy in ("lp_ft", "gradual") else recipe.strategy


def list_image_sizes(recipe: Recipe) -> tuple[int, ...]:
    """Return the size of the recipe and those around it that the network accepts, in pixels."""
    native, encoder = find_image_size(recipe), ENCODERS.get(recipe.backbone.removeprefix(CHEST_PREFIX))
    has_patches = encoder is not None and encoder.is_transformer and "_patch" in encoder.architecture
    step = find_patch_size(encoder) if encoder and has_patches else SIZE_STEP_PIXELS
    sizes = {max(SIZE_STEP_PIXELS, round(native * factor / step) * step) for factor in SIZE_FACTORS}
    return tuple(sorted(size for size in sizes | {native} if size == native or accepts_size(recipe, size)))


def accepts_size(recipe: Recipe, size: int) -> bool:
    """Return whether the network of a recipe can be constructed for this image size; its weights are not loaded."""
    backbone = find_backbone(recipe.backbone, recipe.weights)
    try:
        find_image_size(recipe.replace(image_size=size))
        if backbone.fixed_size:
            with torch.random.fork_rng(devices=[]), torch.device("meta"), silence_logging():  # without values
                make_network(backbone, 2, "none", size, head_config(recipe))
    except (FastcxrError, AssertionError, RuntimeError, ValueError):  # of timm, for sizes that are no multiple
        return False
    return True


def parse_dimension(entry: str, known: Mapping[str, Dimension], recipe: Recipe, task: str) -> Dimension:
    """Return the dimension of NAME, NAME=VALUE,VALUE or NAME=LOW..HIGH. Raise RecipeError for an invalid one."""
    name, text = _find_name(entry), entry.partition("=")[2].strip()
    if name not in SEARCHED_OPTIONS:
        raise RecipeError(f"tuning cannot search {name!r}", f"Search {join_names(list(known))}", code="E741")
    if name not in known:
        reason = "monitor valid_loss" if name in LOSS_OPTIONS else f"strategy {find_strategy(recipe)} and {task} data"
        raise RecipeError(f"{name} cannot be searched with {reason}", f"Search {join_names(list(known))}", code="E741")
    if not text:
        return known[name]
    default, bounds = known[name], RANGE.fullmatch(text)
    try:
        if bounds and not default.choices:
            low, high = map(float, bounds.groups())
            if not low < high:
                raise ValueError(text)
            values, dimension = (low, high), replace(default, low=low, high=high, is_log=default.is_log and low > 0)
        else:
            values = tuple(_parse_value(part.strip(), default) for part in text.split(","))
            dimension = replace(default, choices=values)
    except ValueError as error:
        form = f"{name}=A,B of {', '.join(map(str, default.choices))}" if default.choices else f"{name}=LOW..HIGH"
        raise RecipeError(f"search is {entry!r}", f"Pass {form}, or only the name", code="E741") from error
    if len(set(values)) < len(values):
        raise RecipeError(f"search is {entry!r}", "Name each value once", code="E741")
    for value in values:
        apply_options(recipe, {name: value})  # raises RecipeError for a value out of range
    return dimension


def _find_name(entry: str) -> str:
    return entry.partition("=")[0].strip().replace("-", "_")


def _parse_value(text: str, default: Dimension) -> Any:
    """Return a value of a choice. Raise ValueError for a text that is none."""
    if not default.choices:
        return float(text)
    if isinstance(default.choices[0], int) and not isinstance(default.choices[0], bool):
        return int(text)
    values = {str(choice).lower(): choice for choice in default.choices}
    if text.lower() not in values:
        raise ValueError(text)
    return values[text.lower()]


def apply_options(recipe: Recipe, options: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a trial. `options`: value of each dimension; of augment, a name in AUGMENTATION_FACTORS."""
    changes = dict(options)
    if "augment" in changes:
        changes["augment"] = scale_augmentation(recipe.augment, AUGMENTATION_FACTORS[changes["augment"]])
    return recipe.replace(**changes)


def scale_augmentation(augment: Augmentation, factor: float) -> Augmentation:
    """Return the augmentation with rotation, lighting, warp and zoom multiplied by a factor; 0: only flips are left."""
    if factor == 1:
        return augment
    if factor == 0:
        return replace(augment, p_affine=0.0, p_lighting=0.0)
    min_zoom, max_zoom = (1 + factor * (zoom - 1) for zoom in (augment.min_zoom, augment.max_zoom))
    max_lighting = min(factor * augment.max_lighting, 0.9)
    return replace(
        augment, max_rotate=factor * augment.max_rotate, max_warp=factor * augment.max_warp, max_lighting=max_lighting,
        min_zoom=max(min_zoom, 0.1), max_zoom=max_zoom,
    )  # fmt: skip


def find_recipe_options(recipe: Recipe, task: str, space: Sequence[Dimension]) -> dict[str, Any]:
    """Return the values of the recipe itself, as far as the space contains them: those of the first trial."""
    values = _list_recipe_values(recipe, task, space)
    return {d.name: values[d.name] for d in space if values[d.name] is not None and d.contains(values[d.name])}


def find_outside_options(recipe: Recipe, task: str, space: Sequence[Dimension]) -> dict[str, Any]:
    """Return the values of the recipe that the space does not contain: with one of them, no trial is the recipe."""
    values, loss = _list_recipe_values(recipe, task, space), resolve_task(recipe, task).loss
    used = [dimension for dimension in space if dimension.loss in (None, loss)]
    return {d.name: values[d.name] for d in used if values[d.name] is not None and not d.contains(values[d.name])}


def _list_recipe_values(recipe: Recipe, task: str, space: Sequence[Dimension]) -> dict[str, Any]:
    resolved = resolve_task(recipe, task)
    values = {dimension.name: getattr(resolved, dimension.name) for dimension in space}
    special = {"image_size": find_image_size(recipe), "weight_decay": find_weight_decay(recipe), "augment": "default"}
    return values | {name: value for name, value in special.items() if name in values}
