"""A name becomes an optimizer: fastai's own, with the numbers that papers mean by the name, or one of timm's."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial

import torch
from fastai.optimizer import SGD, Adam, OptimWrapper, RAdam
from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError

# fastai calls its AdamW Adam. Here adam is Kingma and Ba's, with their numbers and L2 where weight decay is asked for;
# adamw and radam decay the weights apart from the gradient, with fastai's numbers (second moment .99, epsilon 1e-5)
FASTAI_OPTIMIZERS = {
    "radam": partial(RAdam, decouple_wd=True),
    "adam": partial(Adam, decouple_wd=False, sqr_mom=0.999, eps=1e-8),
    "adamw": partial(Adam, decouple_wd=True),
    "sgd": partial(SGD, decouple_wd=False, mom=0.9),
}
DEFAULT_WEIGHT_DECAY = {"radam": 0.01, "adamw": 0.01}  # when the recipe gives none; 0 for every other optimizer
TIMM_MOMENTUM = 0.9  # timm's own default, which its classes leave to the caller


def find_optimizer(name: str) -> Callable:
    """What fastai's Learner takes as opt_func: one of our names, or timm:NAME. Raises RecipeError for another name.

    fastai's optimizers spare biases and batch norm from weight decay, timm's decay every weight.
    """
    if name in FASTAI_OPTIMIZERS:
        return FASTAI_OPTIMIZERS[name]
    timm_name = name.removeprefix("timm:")
    if timm_name not in list_optimizers():
        close = get_close_matches(timm_name, [*list_optimizers()], n=1)
        fix = f"Did you mean 'timm:{close[0]}'?" if close else "timm.optim.list_optimizers() names them"
        raise RecipeError(f"timm has no optimizer called {timm_name!r}", fix)
    return partial(OptimWrapper, opt=_make_timm_factory(timm_name))


def find_weight_decay(recipe: Recipe) -> float:
    """The recipe's weight decay, or what goes without saying for its optimizer."""
    return DEFAULT_WEIGHT_DECAY.get(recipe.optimizer, 0.0) if recipe.weight_decay is None else recipe.weight_decay


def _make_timm_factory(name: str) -> Callable:
    """The class with the numbers that timm itself would give it, tried once on a single weight."""
    information = get_optimizer_info(name)
    if information.second_order:
        raise RecipeError(f"timm:{name} needs second derivatives", "Take another, such as timm:adamw")
    momentum = {"momentum": TIMM_MOMENTUM} if information.has_momentum else {}
    try:
        factory = partial(get_optimizer_class(name, bind_defaults=True), **momentum)
        factory([nn.Parameter(torch.zeros(1, 1))], lr=1e-3)
    except (ImportError, AssertionError, ValueError, TypeError, RuntimeError) as error:  # for want of a library, a GPU
        raise RecipeError(f"timm:{name} cannot be used here ({error})", "Take another, such as timm:adamw") from error
    return factory
