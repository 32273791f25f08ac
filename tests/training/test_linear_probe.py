"""Fitted heads are what scikit-learn finds on the same features, from training rows alone."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegression
from toy_images import draw_toy
from training_probes import RECIPE, SILENT, fit, make

from fastcxr.errors import TrainingError
from fastcxr.inference.predict import predict
from fastcxr.models.bundle import extract_classifier
from fastcxr.models.heads import find_head
from fastcxr.training import linear_probe
from fastcxr.training.feature_bank import make_feature_bank
from fastcxr.training.linear_probe import make_feature_split
from fastcxr.training.losses import LabelSmoothingCrossEntropy
from fastcxr.training.trainer import train


@pytest.fixture
def one_strength(monkeypatch):
    monkeypatch.setattr(linear_probe, "L2_STRENGTHS", (0.3,))
    monkeypatch.setattr(linear_probe, "MAX_LBFGS_STEPS", 400)


@pytest.fixture(scope="module")
def uneven(toy_manifest):
    """Six clear, two haze and six opacity images in train."""
    spare = toy_manifest[(toy_manifest["label"] == "haze") & (toy_manifest["split"] == "train")].index[2:]
    return toy_manifest.drop(spare).reset_index(drop=True)


def standardised(learner, bank, part):
    """Training features of all views, as scikit-learn takes them, by its own arithmetic; and the class numbers."""
    rows = np.concatenate([bank.features[view, part.rows] for view in range(len(bank.features))]).astype(np.float64)
    scaled = (rows - rows.mean(axis=0)) / np.maximum(rows.std(axis=0), linear_probe.MIN_DEVIATION)
    return scaled, np.tile(part.labels.numpy(), len(bank.features))


def assert_sklearn_agrees(learner, recipe, weights, smoothing=0.0):
    """`weights`: one factor a training row, as the recipe ought to weigh it."""
    bank = make_feature_bank(learner, recipe, SILENT)
    x, y = standardised(learner, bank, make_feature_split(learner.dls.train, bank))
    weights, k = np.tile(weights, len(bank.features)), 3
    # smoothing is a vote of every class for each row, and scikit-learn knows weighted rows
    votes = [weights * ((1 - smoothing) * (y == label) + smoothing / k) for label in range(k)]
    model = LogisticRegression(C=1 / (0.3 * weights.sum()), max_iter=10_000, tol=1e-9)
    model.fit(np.tile(x, (k, 1)), np.repeat(range(k), len(x)), sample_weight=np.concatenate(votes))
    head = find_head(learner.model)
    ours = torch.softmax(torch.from_numpy(x).float() @ head.linear.weight.T + head.linear.bias, dim=1)
    np.testing.assert_allclose(ours.detach().numpy(), model.predict_proba(x), atol=2e-3)


def factors(manifest, clear, haze, opacity):
    labels = manifest.loc[manifest["split"] == "train", "label"]
    return labels.map({"clear": clear, "haze": haze, "opacity": opacity}).to_numpy(float)


def test_the_head_is_scikit_learns_on_the_same_features(toy_manifest, one_strength):
    learner, _ = fit(toy_manifest)
    assert_sklearn_agrees(learner, RECIPE, np.ones(18))


@pytest.mark.parametrize(
    ("change", "clear", "haze", "opacity"),
    [
        ({"class_weights": "balanced"}, 14 / 18, 14 / 6, 14 / 18),
        ({"oversample": ("haze=4",)}, 1, 4, 1),
        ({"sampler": "weighted"}, 1 / 6, 1 / 2, 1 / 6),
        ({"class_weights": "balanced", "oversample": ("clear=3",)}, 3 * 14 / 18, 14 / 6, 14 / 18),
        ({"hflip_tta": False}, 1, 1, 1),
    ],
)
def test_classes_and_drawn_rows_weigh_what_the_recipe_says(uneven, one_strength, change, clear, haze, opacity):
    recipe = RECIPE.replace(**change)
    learner, _ = fit(uneven, recipe)
    assert_sklearn_agrees(learner, recipe, factors(uneven, clear, haze, opacity))


def test_label_smoothing_is_honoured(toy_manifest, one_strength):
    recipe = RECIPE.replace(loss="label_smoothing", label_smoothing=0.2)
    learner, _ = fit(toy_manifest, recipe)
    assert_sklearn_agrees(learner, recipe, np.ones(18), smoothing=0.2)


def steepness(learner, recipe, gamma):
    """Length of the gradient of the mean focal loss and the penalty at the head's weights, written out once more."""
    bank = make_feature_bank(learner, recipe, SILENT)
    x, y = map(torch.from_numpy, standardised(learner, bank, make_feature_split(learner.dls.train, bank)))
    linear = find_head(learner.model).linear
    weight = linear.weight.detach().double().requires_grad_()
    own = torch.softmax(x @ weight.T + linear.bias.detach().double(), dim=1)[torch.arange(len(y)), y]
    (-((1 - own) ** gamma) * own.log()).mean().add(0.3 / 2 * weight.square().sum()).backward()
    return weight.grad.norm().item()


def test_the_focal_loss_is_honoured(toy_manifest, one_strength):
    recipe = RECIPE.replace(loss="focal", focal_gamma=3.0)
    learner, _ = fit(toy_manifest, recipe)
    assert steepness(learner, recipe, gamma=3.0) < 1e-3 < 0.1 < steepness(learner, recipe, gamma=0.0)


def test_the_strength_is_the_one_that_validation_patients_prefer(toy_manifest, monkeypatch, caplog):
    caplog.set_level("INFO", "fastcxr")
    monkeypatch.setattr(linear_probe, "L2_STRENGTHS", (3.0, 0.03))
    fit(toy_manifest)
    assert "(ridge 0.03)" in caplog.text
    caplog.clear()
    turned = toy_manifest["label"].map({"clear": "haze", "haze": "opacity", "opacity": "clear"})
    _, row = fit(toy_manifest.assign(label=toy_manifest["label"].where(toy_manifest["split"] != "valid", turned)))
    assert "(ridge 3)" in caplog.text
    assert row["valid_loss"] > row["train_loss"]


def test_labels_and_pixels_of_test_images_change_nothing_in_the_head(toy_manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(linear_probe, "L2_STRENGTHS", (1.0, 0.1))
    is_test = toy_manifest["split"] == "test"
    files = []
    for number, file in enumerate(toy_manifest["file"]):
        Image.fromarray(draw_toy("haze", 100 + number)).save(tmp_path / f"{number}.png")
        files.append(str(tmp_path / f"{number}.png") if is_test[number] else file)
    other = toy_manifest.assign(file=files, label=toy_manifest["label"].mask(is_test, "clear"))
    one, two = (find_head(fit(table)[0].model).state_dict() for table in (toy_manifest, other))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-4)
    shifted = toy_manifest.assign(label=toy_manifest["label"].where(is_test, toy_manifest["label"].iloc[::-1].tolist()))
    assert not torch.allclose(find_head(fit(shifted)[0].model).linear.weight, one["linear.weight"], atol=1e-2)


def test_a_few_rows_at_once_give_the_same_head_as_all(uneven, one_strength, monkeypatch):
    recipe = RECIPE.replace(class_weights="balanced", oversample=("haze=3",))
    whole, row = fit(uneven, recipe)
    monkeypatch.setattr(linear_probe, "CHUNK_ROWS", 4)
    pieces, same_row = fit(uneven, recipe)
    bank = make_feature_bank(pieces, recipe, SILENT)
    sizes = [len(chunk) for chunk, _, _ in make_feature_split(pieces.dls.train, bank).chunks()]
    assert sizes == [4, 4, 4, 2] * 2
    for name, tensor in find_head(whole.model).state_dict().items():
        torch.testing.assert_close(find_head(pieces.model).state_dict()[name], tensor, atol=1e-3, rtol=1e-2)
    assert same_row == pytest.approx(row, abs=1e-3)


def test_a_feature_that_never_moves_says_nothing(toy_manifest, one_strength):
    learner, row = fit(toy_manifest)
    head = find_head(learner.model)
    still = head.std <= linear_probe.MIN_DEVIATION
    assert still.any(), "some channels of a random network are dead"
    assert head.linear.weight[:, still].abs().max() < head.linear.weight[:, ~still].abs().max()
    assert np.isfinite(row["train_loss"])


def test_the_figures_of_a_fit_are_those_of_fastai(toy_manifest):
    learner, row = fit(toy_manifest, RECIPE.replace(hflip_tta=False))
    with learner.no_bar():
        figures = dict(zip(["valid_loss", "accuracy", "auroc", "top2_accuracy"], learner.validate(), strict=True))
    assert {name: row[name] for name in figures} == pytest.approx(figures, abs=1e-3)


def test_the_figures_of_a_fit_are_of_answers_to_both_views(toy_manifest):
    learner, row = fit(toy_manifest)
    found = predict(extract_classifier(learner), toy_manifest, splits=("valid",))
    own = found.probability[np.arange(len(found.table)), [found.labels.index(label) for label in found.table["label"]]]
    assert row["valid_loss"] == pytest.approx(-np.log(own).mean(), abs=1e-3)


def test_in_the_end_the_head_is_fitted_on_validation_images_too(toy_manifest, one_strength, caplog):
    caplog.set_level("INFO", "fastcxr")
    learner, _ = fit(toy_manifest)
    before = find_head(learner.model).linear.weight.clone()
    train(learner, RECIPE)
    bank = make_feature_bank(learner, RECIPE, SILENT)
    parts = [make_feature_split(loader, bank) for loader in learner.dls]
    x, _ = standardised(learner, bank, parts[0])
    both = parts[0].concat(parts[1])
    rows = np.concatenate([bank.features[view, both.rows] for view in range(2)]).astype(np.float64)
    rows = (rows - learner.model.classifier.mean.numpy()) / learner.model.classifier.std.numpy()
    model = LogisticRegression(C=1 / (0.3 * 48), max_iter=10_000, tol=1e-9).fit(rows, np.tile(both.labels, 2))
    linear = find_head(learner.model).linear
    ours = torch.softmax(torch.from_numpy(x).float() @ linear.weight.T + linear.bias, dim=1).detach().numpy()
    np.testing.assert_allclose(ours, model.predict_proba(x), atol=2e-3)
    assert not torch.allclose(before, linear.weight, atol=1e-3)
    assert "fitted again on 24 images, those of validation among them" in caplog.text


def test_a_fitted_learner_answers_from_its_bank_as_its_network_would(toy_manifest, monkeypatch):
    learner = make(toy_manifest)
    train(learner, RECIPE)
    expected = predict(extract_classifier(learner), toy_manifest, splits=("train", "test")).probability
    monkeypatch.setattr("fastcxr.inference.predict.score_images_or_errors", None)
    found = predict(learner, toy_manifest, splits=("train", "test"))
    np.testing.assert_allclose(found.probability, expected, atol=1e-3)
    assert found.table["error"].eq("").all()
    np.testing.assert_allclose(found.probability.sum(axis=1), 1.0, atol=1e-12)


def test_an_answer_is_the_mean_over_an_image_and_its_mirror_image(toy_manifest, tmp_path):
    learner = make(toy_manifest)
    train(learner, RECIPE)
    both = extract_classifier(learner)
    assert both.hflip_tta
    turned = []
    for number, file in enumerate(toy_manifest["file"]):
        ImageOps.mirror(Image.open(file)).save(tmp_path / f"{number}.png")
        turned.append(str(tmp_path / f"{number}.png"))
    tables = (toy_manifest, toy_manifest.assign(file=turned))
    found, same = (predict(both, table).probability for table in tables)
    np.testing.assert_allclose(found, same, atol=1e-4)
    one, other = (np.log(predict(replace(both, hflip_tta=False), table).probability) for table in tables)
    assert not np.allclose(one, other, atol=1e-2)
    mean = np.exp((one + other) / 2)
    np.testing.assert_allclose(found, mean / mean.sum(axis=1, keepdims=True), atol=1e-4)


def test_a_head_without_mirrored_images_answers_for_one_view(toy_manifest):
    learner = make(toy_manifest, RECIPE.replace(hflip_tta=False))
    train(learner, RECIPE.replace(hflip_tta=False))
    assert not extract_classifier(learner).hflip_tta


def test_validation_images_are_answered_by_the_head_that_had_not_seen_them(toy_manifest):
    fitted, _ = fit(toy_manifest)
    expected = predict(extract_classifier(fitted), toy_manifest, splits=("valid",)).probability
    learner = make(toy_manifest)
    train(learner, RECIPE)
    np.testing.assert_allclose(predict(learner, toy_manifest, splits=("valid",)).probability, expected, atol=1e-3)
    assert not np.allclose(predict(extract_classifier(learner), toy_manifest, splits=("valid",)).probability, expected)


def test_a_learner_that_was_trained_further_answers_from_its_network_again(toy_manifest):
    learner = make(toy_manifest)
    train(learner, RECIPE)
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, 1e-3)
    expected = predict(extract_classifier(learner), toy_manifest).probability
    np.testing.assert_array_equal(predict(learner, toy_manifest).probability, expected)


def test_a_head_that_was_changed_by_hand_answers_for_validation_images_too(toy_manifest):
    learner = make(toy_manifest)
    train(learner, RECIPE)
    with torch.no_grad():
        find_head(learner.model).linear.bias += torch.tensor([5.0, 0.0, 0.0])
    expected = predict(extract_classifier(learner), toy_manifest).probability
    np.testing.assert_array_equal(predict(learner, toy_manifest).probability, expected)


def test_a_loss_that_is_no_number_is_refused(toy_manifest, monkeypatch):
    monkeypatch.setattr(linear_probe, "compute_mean_loss", lambda *parts: float("nan"))
    with pytest.raises(TrainingError, match="Give --precision fp32"):
        train(make(toy_manifest), RECIPE)


def test_files_that_are_not_in_the_bank_are_looked_at(toy_manifest, tmp_path):
    learner = make(toy_manifest)
    train(learner, RECIPE)
    shutil.copy(toy_manifest["file"][3], tmp_path / "other.png")
    table = toy_manifest[3:4].assign(file=str(tmp_path / "other.png"))
    expected = predict(learner, toy_manifest[3:4], splits=None).probability
    np.testing.assert_allclose(predict(learner, table, splits=None).probability, expected, atol=1e-3)


class CountedBank:
    """Features of one view that count how often rows are read."""

    def __init__(self, features):
        self.all, self.shape, self.reads = features[None], features[None].shape, 0

    def __len__(self):
        return len(self.all)

    def __getitem__(self, place):
        self.reads += 1
        return self.all[place]


def made_up_part(rows=60, features=5, offset=0.0):
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, rows))
    found = (rng.normal(size=(rows, features)) + np.eye(3, features)[labels] + offset).astype(np.float32)
    return linear_probe.FeatureSplit(CountedBank(found), np.arange(rows), labels, torch.ones(rows))


def fit_made_up(part):
    width = part.features.shape[2]
    head = SimpleNamespace(linear=torch.nn.Linear(width, 3), mean=torch.zeros(width), std=torch.ones(width))
    return linear_probe.fit_probe(head, LabelSmoothingCrossEntropy(0.0), part, replace(part), SILENT)


@pytest.mark.parametrize("memory", [60 * 5 * 4, 60 * 5 * 2])
def test_a_fit_reads_each_row_of_the_bank_once_if_a_copy_fits_into_memory(monkeypatch, memory):
    monkeypatch.setattr(linear_probe, "CHUNK_ROWS", 8)
    monkeypatch.setattr(linear_probe, "MAX_CACHED_BYTES", memory)
    part = made_up_part()
    fit_made_up(part)
    assert part.features.reads == 2 * 8, "eight chunks, for training and for validation"


def test_a_fit_on_a_copy_in_half_precision_is_that_on_the_bank(monkeypatch):
    monkeypatch.setattr(linear_probe, "CHUNK_ROWS", 8)
    fits = []
    for memory in (60 * 5 * 4, 60 * 5 * 2, 0):
        monkeypatch.setattr(linear_probe, "MAX_CACHED_BYTES", memory)
        part = made_up_part(offset=300.0)  # which half precision alone would round to a quarter
        fits.append(fit_made_up(part))
    whole, half, none = fits
    assert whole.weight.equal(none.weight) and part.features.reads > 100
    torch.testing.assert_close(half.weight, whole.weight, atol=5e-3, rtol=0)
    assert not half.weight.equal(whole.weight)


def test_features_beyond_the_range_of_half_precision_are_not_copied():
    assert linear_probe.make_half_precision_cache(iter([torch.zeros(2, 3), torch.full((2, 3), 1e6)])) is None


def test_a_fitted_learner_holds_no_copy_of_its_features(toy_manifest):
    learner, _ = fit(toy_manifest)
    assert "copy" not in vars(learner.fastcxr.fitted_probe.train) and "copy" not in vars(
        learner.fastcxr.fitted_probe.valid
    )
