"""The state that make_loaders and make_learner set, and what is said of Learners and loaders without it."""

import pytest
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from tiny_network import NAME

from fastcxr import Recipe, make_learner, make_loaders, predict, train
from fastcxr.errors import ModelError
from fastcxr.models.bundle import save_model
from fastcxr.models.state import LearnerState, LoadersState
from fastcxr.training.loaders import make_datablock

RECIPE = Recipe(NAME, weights="none", image_size=64, batch_size=4, epochs=1, strategy="full", precision="fp32")


@pytest.fixture(scope="module")
def learner(toy_manifest):
    return make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)


def test_a_learner_and_its_loaders_have_a_declared_state_and_no_other_attributes(learner):
    assert type(learner.fastcxr) is LearnerState and type(learner.dls.fastcxr) is LoadersState
    assert learner.fastcxr.precision == "fp32" and learner.fastcxr.backbone["name"] == NAME
    assert len(learner.dls.fastcxr.manifest) == len(learner.dls.fastcxr.image_cache.files)
    plain = Learner(
        DataLoaders(learner.dls.train, learner.dls.valid, device=learner.dls.device), learner.model, learner.loss_func
    )
    ours = {"fastcxr"} | {callback.name for callback in learner.cbs}  # fastai itself sets those of callbacks
    assert set(vars(learner)) - set(vars(plain)) <= ours
    assert set(vars(learner.dls)) - set(vars(plain.dls)) <= ours


def test_a_learner_of_ones_own_predicts_in_full_precision_and_is_not_trained_or_saved_as_ours(
    learner, toy_manifest, tmp_path
):
    own = Learner(learner.dls, learner.model, learner.loss_func)
    predictions = predict(own, toy_manifest, splits=None)
    assert predictions.table.equals(predict(learner, toy_manifest, splits=None).table)
    with pytest.raises(ModelError, match="this Learner lacks the state that make_learner sets. Make it with make_lea"):
        train(own, RECIPE)
    with pytest.raises(ModelError, match="this Learner lacks the state"):
        save_model(tmp_path, own, RECIPE, {})


def test_loaders_of_ones_own_are_told_what_they_lack(learner, toy_manifest):
    table = toy_manifest[toy_manifest["split"].isin(["train", "valid"])].reset_index(drop=True)
    loaders = make_datablock(table, RECIPE).dataloaders(table, bs=4)
    own = Learner(loaders, learner.model, learner.loss_func)
    with pytest.raises(ModelError, match="these DataLoaders lack the state .* set loaders.fastcxr to a fastcxr.models"):
        predict(own, toy_manifest)
    loaders.fastcxr = learner.dls.fastcxr
    assert len(predict(own, toy_manifest, splits=None).table) == len(toy_manifest)
