"""Loaders, Learner and training of findings: unknown labels, policies, fastai's own calls."""

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.mixup import MixUp
from safetensors.torch import save_file
from tiny_network import NAME

from fastcxr import Recipe, make_learner, make_loaders, predict, read_manifest, split_by_patient, train
from fastcxr.errors import RecipeError
from fastcxr.models.heads import find_head
from fastcxr.training.learner import compute_finding_auroc_from_logits

FINDINGS = ["haze", "opacity", "Mass"]
RECIPE = Recipe(NAME, weights="none", image_size=64, batch_size=8, epochs=1, strategy="full", device="cpu")


def with_findings(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return the toy manifest with findings: one per class but "clear", and one that only some images label."""
    labels = manifest["label"].mask(manifest["label"] == "clear", "No Finding")
    columns = {f"finding_{name}": (labels == name).astype("Int8") for name in FINDINGS[:2]}
    mass = pd.Series([(1, 0, -1, -2, pd.NA)[row % 5] for row in range(len(manifest))], manifest.index, dtype="Int8")
    return manifest.assign(label=labels, **columns, finding_Mass=mass)


@pytest.fixture(scope="module")
def manifest(toy_manifest) -> pd.DataFrame:
    return with_findings(toy_manifest)


@pytest.fixture(scope="module")
def learner(manifest):
    learner = make_learner(make_loaders(manifest, RECIPE), RECIPE)
    train(learner, RECIPE)
    return learner


def find_targets(manifest: pd.DataFrame, **options) -> pd.DataFrame:
    loaders = make_loaders(manifest, RECIPE.replace(**options))
    targets = loaders.train.targets[0].numpy()
    return pd.DataFrame(targets, columns=list(loaders.vocab), index=loaders.train.items["path"])


def test_targets_are_the_labels_in_the_order_of_the_vocabulary(manifest):
    targets = find_targets(manifest)
    rows = manifest.set_index("path").loc[targets.index]
    assert targets.columns.tolist() == FINDINGS
    assert (targets["haze"] == rows["finding_haze"].astype(float)).all()
    assert (targets["Mass"][rows["finding_Mass"] == -2] == 0).all()
    is_unknown = rows["finding_Mass"].isna() | (rows["finding_Mass"] == -1)
    assert (targets["Mass"].isna() == is_unknown).all()


@pytest.mark.parametrize(("entry", "value"), [("positive", 1), ("Mass=negative", 0), ("haze=positive", np.nan)])
def test_the_recipe_decides_on_uncertain_labels_of_training_images(manifest, entry, value):
    targets = find_targets(manifest, uncertain=(entry,))
    is_uncertain = manifest.set_index("path").loc[targets.index, "finding_Mass"] == -1
    np.testing.assert_array_equal(targets["Mass"][is_uncertain.fillna(False)].unique(), [value])


def test_a_batch_has_images_and_a_number_per_finding(manifest):
    loaders = make_loaders(manifest, RECIPE)
    images, targets = loaders.one_batch()
    assert targets.shape == (len(images), 3) and targets.dtype == torch.float32
    assert loaders.train.decode_batch((images, targets), max_n=1)[0][1] is not None


def test_the_bias_starts_at_the_prevalence(manifest):
    learner = make_learner(make_loaders(manifest, RECIPE), RECIPE)
    targets = find_targets(manifest)
    bias = [layer for layer in find_head(learner.model).modules() if isinstance(layer, torch.nn.Linear)][-1].bias
    counts = [(targets[name].eq(1).sum() + 1) / (targets[name].eq(0).sum() + 1) for name in FINDINGS]
    np.testing.assert_allclose(bias.detach(), np.log(counts), rtol=1e-5)


def test_a_loaded_head_keeps_its_bias(manifest, tmp_path):
    new = make_learner(make_loaders(manifest, RECIPE), RECIPE)
    state = new.model.state_dict()
    state["fc.bias"] = torch.tensor([1.0, 2, 3])
    save_file(state, tmp_path / "weights.safetensors")
    recipe = RECIPE.replace(weights=str(tmp_path / "weights.safetensors"))
    loaded = make_learner(make_loaders(manifest, recipe), recipe)
    assert loaded.model.state_dict()["fc.bias"].tolist() == [1, 2, 3]


def test_predictions_have_a_probability_and_the_truth_of_each_finding(learner, manifest):
    predictions = predict(learner, manifest, splits=("test",))
    rows = manifest[manifest["split"] == "test"]
    assert predictions.is_multi_label and predictions.labels == tuple(FINDINGS)
    assert ((predictions.probability > 0) & (predictions.probability < 1)).all()
    np.testing.assert_array_equal(predictions.truth[:, 0], rows["finding_haze"].astype(float))
    is_unknown = (rows["finding_Mass"].isna() | (rows["finding_Mass"] == -1)).to_numpy()
    np.testing.assert_array_equal(np.isnan(predictions.truth[:, 2]), is_unknown)


def test_the_calls_of_fastai_work(learner, manifest):
    probability, targets = learner.get_preds()
    expected = predict(learner, manifest, splits=("valid",))
    np.testing.assert_allclose(probability, expected.probability, atol=1e-5)
    assert targets.shape == probability.shape
    names, decisions, one = learner.predict(manifest["file"].iloc[0])
    assert list(names) == [name for name, is_present in zip(FINDINGS, decisions, strict=True) if is_present]
    np.testing.assert_allclose(one, predict(learner, [manifest["file"].iloc[0]]).probability[0], atol=1e-5)
    learner.dls.show_batch(max_n=2)
    learner.show_results(max_n=2)


def test_mixup_trains_with_unknown_labels(manifest):
    learner = make_learner(make_loaders(manifest, RECIPE), RECIPE)
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, 1e-3, cbs=MixUp())
    assert all(torch.isfinite(parameter).all() for parameter in learner.model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "mse"}, "the loss mse is for one class per image"),
        ({"monitor": "accuracy"}, "accuracy is not defined for findings"),
        ({"oversample": ("haze=2",)}, "`oversample` has no meaning for findings"),
        ({"abstain_rate": 0.1}, "`abstain_rate` has no meaning for findings"),
    ],
)
def test_options_for_one_class_per_image_are_refused(manifest, options, message):
    with pytest.raises(RecipeError, match=message):
        make_learner(make_loaders(manifest, RECIPE), RECIPE.replace(**options))


def test_rare_findings_are_sampled_more_often(manifest):
    assert make_loaders(manifest, RECIPE).train.weights is None
    loaders = make_loaders(manifest, RECIPE.replace(sampler="weighted"))
    assert len(loaders.train.weights) == len(loaders.train.items)


def test_the_macro_auroc_leaves_out_findings_with_one_class():
    logits, nan = torch.tensor([[2.0, 1, 0], [1, 1, 0], [0, 3, 0]]), float("nan")
    truth = torch.tensor([[1.0, 1, nan], [nan, 1, nan], [0, 1, 1]])
    assert compute_finding_auroc_from_logits(logits, truth) == 1
    assert np.isnan(compute_finding_auroc_from_logits(logits, torch.full((3, 3), nan)))


def test_class_folders_can_be_trained_as_findings(toy_folder):
    rows = split_by_patient(read_manifest(toy_folder, task="multi_label", relabel=("clear=No Finding",)), seed=0)
    assert list(make_loaders(rows, RECIPE).vocab) == ["haze", "opacity"]
