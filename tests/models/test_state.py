"""State that make_loaders and make_learner set, and errors for Learners and loaders without it."""

from types import SimpleNamespace

import pytest
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from tiny_network import NAME
from torch import nn

from fastcxr import Recipe, make_learner, make_loaders, predict, train
from fastcxr.errors import ModelError
from fastcxr.models import state
from fastcxr.models.bundle import save_model
from fastcxr.models.state import LearnerState, LoadersState, find_learner_state, set_fitted_state
from fastcxr.training.loaders import make_datablock

RECIPE = Recipe(NAME, weights="none", image_size=64, batch_size=4, epochs=1, strategy="full", precision="fp32")


@pytest.fixture(scope="module")
def learner(toy_manifest):
    return make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)


def test_a_learner_and_its_loaders_have_one_additional_attribute(learner):
    assert type(learner.fastcxr) is LearnerState and type(learner.dls.fastcxr) is LoadersState
    assert learner.fastcxr.precision == "fp32" and learner.fastcxr.backbone["name"] == NAME
    assert len(learner.dls.fastcxr.manifest) == len(learner.dls.fastcxr.image_cache.files)
    plain = Learner(
        DataLoaders(learner.dls.train, learner.dls.valid, device=learner.dls.device), learner.model, learner.loss_func
    )
    allowed = {"fastcxr"} | {callback.name for callback in learner.cbs}  # fastai sets an attribute for each callback
    assert set(vars(learner)) - set(vars(plain)) <= allowed
    assert set(vars(learner.dls)) - set(vars(plain.dls)) <= allowed


def test_fits_of_other_weights_are_dropped_and_the_weights_are_hashed_once_per_call(monkeypatch):
    learner = SimpleNamespace(fastcxr=LearnerState(), model=nn.Linear(2, 2))
    calls, hash_weights = [], state.hash_weights
    monkeypatch.setattr(state, "hash_weights", lambda network: (calls.append(network), hash_weights(network))[1])
    assert find_learner_state(learner) is learner.fastcxr
    assert len(calls) == 0
    set_fitted_state(learner, ood_detector="detector")
    assert len(calls) == 1
    assert find_learner_state(learner).ood_detector == "detector"
    learner.model.weight.data += 1
    assert find_learner_state(learner).ood_detector is None
    set_fitted_state(learner, fitted_probe="probe")
    assert (learner.fastcxr.fitted_probe, learner.fastcxr.ood_detector) == ("probe", None)


def test_a_learner_without_state_predicts_in_float32_and_cannot_be_trained_or_saved(learner, toy_manifest, tmp_path):
    stateless = Learner(learner.dls, learner.model, learner.loss_func)
    predictions = predict(stateless, toy_manifest, splits=None)
    assert predictions.table.equals(predict(learner, toy_manifest, splits=None).table)
    with pytest.raises(ModelError, match="this Learner lacks the state that make_learner sets. Make it with make_lea"):
        train(stateless, RECIPE)
    with pytest.raises(ModelError, match="this Learner lacks the state"):
        save_model(tmp_path, stateless, RECIPE, {})


def test_loaders_without_state_raise_an_error_with_the_fix(learner, toy_manifest):
    table = toy_manifest[toy_manifest["split"].isin(["train", "valid"])].reset_index(drop=True)
    loaders = DataBlock.dataloaders(make_datablock(table, RECIPE), table, bs=4)
    stateless = Learner(loaders, learner.model, learner.loss_func)
    with pytest.raises(
        ModelError, match="preprocessing of these DataLoaders is not known.* make_loaders, or make_data"
    ):
        predict(stateless, toy_manifest)
    loaders.fastcxr = learner.dls.fastcxr
    assert len(predict(stateless, toy_manifest, splits=None).table) == len(toy_manifest)
