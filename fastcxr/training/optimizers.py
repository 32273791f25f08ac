"""Find fastai and timm optimizers by name, with the hyperparameters that papers mean by the name."""

from collections.abc import Callable
from difflib import get_close_matches
from functools import partial

import torch
from fastai.optimizer import OptimWrapper
from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers  # pyright: ignore[reportPrivateImportUsage]
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.errors import RecipeError
from fastcxr.training.foreach_optimizers import SGD, Adam, RAdam

# adam has the hyperparameters of Kingma and Ba and L2 regularization; adamw and radam have
# decoupled weight decay and fastai's hyperparameters (second moment 0.99, epsilon 1e-5)
FASTAI_OPTIMIZERS = {
    "radam": partial(RAdam, decouple_wd=True),
    "adam": partial(Adam, decouple_wd=False, sqr_mom=0.999, eps=1e-8),
    "adamw": partial(Adam, decouple_wd=True),
    "sgd": partial(SGD, decouple_wd=False, mom=0.9),
}
DEFAULT_WEIGHT_DECAY = {"radam": 0.01, "adamw": 0.01}  # if the recipe has none; 0 for other optimizers
TIMM_MOMENTUM = 0.9  # timm's default, which its optimizer classes do not set


class TimmOptimizer(OptimWrapper):
    """An optimizer of timm with the interface of fastai and the mask of ForeachOptimizer."""

    def step(self, closure: Callable | None = None, skip: torch.Tensor | None = None) -> None:
        """Update the parameters unless `skip` is true, which the host reads: timm's optimizers have no mask."""
        if skip is None or not skip:
            self.opt.step(closure)


def find_optimizer(name: str) -> Callable:
    """Return the opt_func of a fastai Learner for a name in FASTAI_OPTIMIZERS or timm:NAME.

    fastai's optimizers do not decay biases and batch norm; timm's decay every weight.
    Raises RecipeError for an unknown or unusable optimizer.
    """
    if name in FASTAI_OPTIMIZERS:
        return FASTAI_OPTIMIZERS[name]
    timm_name = name.removeprefix("timm:")
    if timm_name not in list_optimizers():
        close = get_close_matches(timm_name, [*list_optimizers()], n=1)
        fix = f"Did you mean 'timm:{close[0]}'?" if close else "Pass a name from timm.optim.list_optimizers()"
        raise RecipeError(f"unknown timm optimizer {timm_name!r}", fix)
    return partial(TimmOptimizer, opt=_make_timm_factory(timm_name))


def find_weight_decay(recipe: Recipe) -> float:
    """Return the recipe's weight decay, or the default of its optimizer."""
    return DEFAULT_WEIGHT_DECAY.get(recipe.optimizer, 0.0) if recipe.weight_decay is None else recipe.weight_decay


def _make_timm_factory(name: str) -> Callable:
    """Return the optimizer class with timm's default arguments, after a test on a single weight."""
    information, fix = get_optimizer_info(name), "Choose another optimizer, such as timm:adamw"
    if information.second_order:
        raise RecipeError(f"timm:{name} needs second derivatives, which are not supported", fix)
    momentum = {"momentum": TIMM_MOMENTUM} if information.has_momentum else {}
    try:
        factory = partial(get_optimizer_class(name, bind_defaults=True), **momentum)
        factory([nn.Parameter(torch.zeros(1, 1))], lr=1e-3)
    except (ImportError, AssertionError, ValueError, TypeError, RuntimeError) as error:  # missing library or GPU
        raise RecipeError(f"timm:{name} cannot be used on this machine ({error})", fix) from error
    return factory
