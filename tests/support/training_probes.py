"""Learners with a fitted head, for tests of the feature cache, linear probes and strategies."""

from tiny_network import NAME

from fastcxr.config.recipe import Recipe
from fastcxr.progress.base import Progress
from fastcxr.training.learner import make_learner
from fastcxr.training.linear_probe import fit_head
from fastcxr.training.loaders import make_loaders

RECIPE = Recipe(
    NAME, weights="none", image_size=64, batch_size=6, epochs=1, strategy="linear_probe", precision="fp32",
    loss="cross_entropy",
)  # fmt: skip
SILENT = Progress()


def make(manifest, recipe=RECIPE):
    return make_learner(make_loaders(manifest, recipe), recipe)


def fit(manifest, recipe=RECIPE):
    learner = make(manifest, recipe)
    return learner, fit_head(learner, recipe, SILENT)
