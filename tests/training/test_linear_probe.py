"""Heads fitted on training rows agree with scikit-learn on the same features."""

import copy
import shutil
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from device_results import assert_identical
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegression
from toy_images import draw_toy
from training_probes import RECIPE, SILENT, fit, make

from fastcxr.errors import TrainingError
from fastcxr.inference.predict import predict
from fastcxr.models.bundle import extract_classifier
from fastcxr.models.heads import find_head
from fastcxr.training import feature_split, linear_probe
from fastcxr.training.feature_cache import make_feature_cache
from fastcxr.training.feature_split import make_feature_split
from fastcxr.training.losses import LabelSmoothingCrossEntropy
from fastcxr.training.trainer import train


@pytest.fixture
def one_strength(monkeypatch):
    monkeypatch.setattr(linear_probe, "L2_STRENGTHS", (0.3,))


@pytest.fixture(scope="module")
def uneven(toy_manifest):
    """Six clear, two haze and six opacity images in train."""
    spare = toy_manifest[(toy_manifest["label"] == "haze") & (toy_manifest["split"] == "train")].index[2:]
    return toy_manifest.drop(spare).reset_index(drop=True)


def standardize(cache, split):
    """Return standardized features of all views and class numbers, computed without the head."""
    rows = np.concatenate([cache.features[view][split.rows] for view in range(len(cache.features))]).astype(np.float64)
    scaled = (rows - rows.mean(axis=0)) / np.maximum(rows.std(axis=0), feature_split.MIN_DEVIATION)
    return scaled, np.tile(split.labels.cpu().numpy(), len(cache.features))


def compute_probability(linear, x):
    """Return softmax probabilities, shape (n, k), of standardized features."""
    weight, bias = linear.weight.detach().cpu(), linear.bias.detach().cpu()
    return torch.softmax(torch.from_numpy(x).float() @ weight.T + bias, dim=1).numpy()


def assert_sklearn_agrees(learner, recipe, weights, smoothing=0.0):
    """Compare with scikit-learn; `weights`: expected sample weight of each training row."""
    cache = make_feature_cache(learner, recipe, SILENT)
    x, y = standardize(cache, make_feature_split(learner.dls.train, cache))
    weights, k = np.tile(weights, len(cache.features)), 3
    # scikit-learn has no label smoothing: each row is repeated for every class, with the target as sample weight
    targets = [weights * ((1 - smoothing) * (y == label) + smoothing / k) for label in range(k)]
    model = LogisticRegression(C=1 / (0.3 * weights.sum()), max_iter=10_000, tol=1e-9)
    model.fit(np.tile(x, (k, 1)), np.repeat(range(k), len(x)), sample_weight=np.concatenate(targets))
    head = find_head(learner.model)
    np.testing.assert_allclose(compute_probability(head.linear, x), model.predict_proba(x), atol=2e-3)


def factors(manifest, clear, haze, opacity):
    labels = manifest.loc[manifest["split"] == "train", "label"]
    return labels.map({"clear": clear, "haze": haze, "opacity": opacity}).to_numpy(float)


def test_the_head_agrees_with_scikit_learn(toy_manifest, one_strength):
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
def test_class_weights_and_sampling_change_the_sample_weights(uneven, one_strength, change, clear, haze, opacity):
    recipe = RECIPE.replace(**change)
    learner, _ = fit(uneven, recipe)
    assert_sklearn_agrees(learner, recipe, factors(uneven, clear, haze, opacity))


def test_label_smoothing_agrees_with_scikit_learn(toy_manifest, one_strength):
    recipe = RECIPE.replace(loss="label_smoothing", label_smoothing=0.2)
    learner, _ = fit(toy_manifest, recipe)
    assert_sklearn_agrees(learner, recipe, np.ones(18), smoothing=0.2)


def compute_gradient_norm(learner, recipe, gamma):
    """Return the gradient norm of mean focal loss plus penalty at the head's weights."""
    cache = make_feature_cache(learner, recipe, SILENT)
    x, y = map(torch.from_numpy, standardize(cache, make_feature_split(learner.dls.train, cache)))
    linear = copy.deepcopy(find_head(learner.model).linear).cpu()
    weight = linear.weight.detach().double().requires_grad_()
    p = torch.softmax(x @ weight.T + linear.bias.detach().double(), dim=1)[torch.arange(len(y)), y]
    (-((1 - p) ** gamma) * p.log()).mean().add(0.3 / 2 * weight.square().sum()).backward()
    return weight.grad.norm().item()


def test_the_head_minimizes_the_focal_loss(toy_manifest, one_strength):
    recipe = RECIPE.replace(loss="focal", focal_gamma=3.0)
    learner, _ = fit(toy_manifest, recipe)
    assert (
        compute_gradient_norm(learner, recipe, gamma=3.0)
        < 1e-3
        < 0.1
        < compute_gradient_norm(learner, recipe, gamma=0.0)
    )


def test_the_penalty_with_the_lowest_validation_loss_is_selected(toy_manifest, monkeypatch, caplog):
    caplog.set_level("INFO", "fastcxr")
    monkeypatch.setattr(linear_probe, "L2_STRENGTHS", (3.0, 0.03))
    fit(toy_manifest)
    assert "(L2 penalty 0.03)" in caplog.text
    caplog.clear()
    shifted = toy_manifest["label"].map({"clear": "haze", "haze": "opacity", "opacity": "clear"})
    _, row = fit(toy_manifest.assign(label=toy_manifest["label"].where(toy_manifest["split"] != "valid", shifted)))
    assert "(L2 penalty 3)" in caplog.text
    assert row["valid_loss"] > row["train_loss"]


def test_labels_and_pixels_of_test_images_do_not_change_the_head(toy_manifest, tmp_path, monkeypatch):
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


def test_the_chunk_size_does_not_change_the_head(uneven, one_strength, monkeypatch):
    recipe = RECIPE.replace(class_weights="balanced", oversample=("haze=3",))
    expected, row = fit(uneven, recipe)
    monkeypatch.setattr(feature_split, "CHUNK_ROWS", 4)
    chunked, same_row = fit(uneven, recipe)
    cache = make_feature_cache(chunked, recipe, SILENT)
    sizes = [len(chunk) for chunk, _, _ in make_feature_split(chunked.dls.train, cache).chunks()]
    assert sizes == [4, 4, 4, 2] * 2
    for name, tensor in find_head(expected.model).state_dict().items():
        torch.testing.assert_close(find_head(chunked.model).state_dict()[name], tensor, atol=1e-3, rtol=1e-2)
    assert same_row == pytest.approx(row, abs=1e-3)


def test_constant_features_get_small_weights(toy_manifest, one_strength):
    learner, row = fit(toy_manifest)
    head = find_head(learner.model)
    is_constant = head.std <= feature_split.MIN_DEVIATION
    assert is_constant.any(), "some channels of a random network are dead"
    assert head.linear.weight[:, is_constant].abs().max() < head.linear.weight[:, ~is_constant].abs().max()
    assert np.isfinite(row["train_loss"])


def test_metrics_of_a_fit_agree_with_fastai(toy_manifest):
    learner, row = fit(toy_manifest, RECIPE.replace(hflip_tta=False))
    with learner.no_bar():
        metrics = dict(zip(["valid_loss", "accuracy", "auroc", "top2_accuracy"], learner.validate(), strict=True))
    assert {name: row[name] for name in metrics} == pytest.approx(metrics, abs=1e-3)


def test_metrics_of_a_fit_use_logits_averaged_over_both_views(toy_manifest):
    learner, row = fit(toy_manifest)
    predictions = predict(extract_classifier(learner), toy_manifest, splits=("valid",))
    truth = [predictions.labels.index(label) for label in predictions.table["label"]]
    p = predictions.probability[np.arange(len(truth)), truth]
    assert row["valid_loss"] == pytest.approx(-np.log(p).mean(), abs=1e-3)


def test_the_final_head_is_refitted_on_training_and_validation_images(toy_manifest, one_strength, caplog):
    caplog.set_level("INFO", "fastcxr")
    learner, _ = fit(toy_manifest)
    before = find_head(learner.model).linear.weight.clone()
    train(learner, RECIPE)
    cache = make_feature_cache(learner, RECIPE, SILENT)
    splits = [make_feature_split(loader, cache) for loader in learner.dls]
    x, _ = standardize(cache, splits[0])
    both = splits[0].concat(splits[1])
    rows = np.concatenate([cache.features[view][both.rows] for view in range(2)]).astype(np.float64)
    rows = (rows - learner.model.fc.mean.cpu().numpy()) / learner.model.fc.std.cpu().numpy()
    model = LogisticRegression(C=1 / (0.3 * 48), max_iter=10_000, tol=1e-9).fit(rows, np.tile(both.labels.cpu(), 2))
    linear = find_head(learner.model).linear
    np.testing.assert_allclose(compute_probability(linear, x), model.predict_proba(x), atol=2e-3)
    assert not torch.allclose(before, linear.weight, atol=1e-3)
    assert "refitted the head on 24 images, validation images included" in caplog.text


def test_predictions_from_cached_features_equal_those_of_the_network(toy_manifest, monkeypatch):
    learner = make(toy_manifest)
    train(learner, RECIPE)
    expected = predict(extract_classifier(learner), toy_manifest, splits=("train", "test")).probability
    monkeypatch.setattr("fastcxr.inference.predict.score_images_or_errors", None)
    predictions = predict(learner, toy_manifest, splits=("train", "test"))
    assert_identical(predictions.probability, expected)
    assert predictions.table["error"].eq("").all()
    np.testing.assert_allclose(predictions.probability.sum(axis=1), 1.0, atol=1e-12)


def test_logits_are_averaged_over_the_image_and_the_flipped_image(toy_manifest, tmp_path):
    learner = make(toy_manifest)
    train(learner, RECIPE)
    both = extract_classifier(learner)
    assert both.hflip_tta
    flipped = []
    for number, file in enumerate(toy_manifest["file"]):
        ImageOps.mirror(Image.open(file)).save(tmp_path / f"{number}.png")
        flipped.append(str(tmp_path / f"{number}.png"))
    tables = (toy_manifest, toy_manifest.assign(file=flipped))
    probability, same = (predict(both, table).probability for table in tables)
    np.testing.assert_allclose(probability, same, atol=1e-4)
    one, other = (np.log(predict(replace(both, hflip_tta=False), table).probability) for table in tables)
    assert not np.allclose(one, other, atol=1e-2)
    mean = np.exp((one + other) / 2)
    np.testing.assert_allclose(probability, mean / mean.sum(axis=1, keepdims=True), atol=1e-4)


def test_a_head_fitted_without_flipped_images_predicts_from_one_view(toy_manifest):
    learner = make(toy_manifest, RECIPE.replace(hflip_tta=False))
    train(learner, RECIPE.replace(hflip_tta=False))
    assert not extract_classifier(learner).hflip_tta


def test_validation_images_are_predicted_by_the_head_fitted_without_them(toy_manifest):
    fitted, _ = fit(toy_manifest)
    expected = predict(extract_classifier(fitted), toy_manifest, splits=("valid",)).probability
    learner = make(toy_manifest)
    train(learner, RECIPE)
    np.testing.assert_allclose(predict(learner, toy_manifest, splits=("valid",)).probability, expected, atol=1e-3)
    assert not np.allclose(predict(extract_classifier(learner), toy_manifest, splits=("valid",)).probability, expected)


def test_predictions_use_the_network_after_further_training(toy_manifest):
    learner = make(toy_manifest)
    train(learner, RECIPE)
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, 1e-3)
    expected = predict(extract_classifier(learner), toy_manifest).probability
    assert_identical(predict(learner, toy_manifest).probability, expected)


def test_predictions_use_the_network_after_a_change_of_the_head(toy_manifest):
    learner = make(toy_manifest)
    train(learner, RECIPE)
    with torch.no_grad():
        find_head(learner.model).linear.bias[0] += 5.0
    expected = predict(extract_classifier(learner), toy_manifest).probability
    assert_identical(predict(learner, toy_manifest).probability, expected)


def test_a_nan_validation_loss_raises(toy_manifest, monkeypatch):
    monkeypatch.setattr(linear_probe, "compute_mean_losses", lambda *parts: torch.tensor([1.0, float("nan")]))
    with pytest.raises(TrainingError, match="Pass `precision='fp32'`"):
        train(make(toy_manifest), RECIPE)


def test_files_without_cached_features_are_predicted_by_the_network(toy_manifest, tmp_path):
    learner = make(toy_manifest)
    train(learner, RECIPE)
    shutil.copy(toy_manifest["file"][3], tmp_path / "other.png")
    table = toy_manifest[3:4].assign(file=str(tmp_path / "other.png"))
    expected = predict(learner, toy_manifest[3:4], splits=None).probability
    np.testing.assert_allclose(predict(learner, table, splits=None).probability, expected, atol=1e-3)


class CountingFeatures:
    """Features of one view that count read operations."""

    def __init__(self, features):
        self.array, self.shape, self.reads = features, features.shape, 0

    def __getitem__(self, key):
        self.reads += 1
        return self.array[key]


def make_random_split(rows=60, features=5, offset=0.0):
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, rows))
    values = (rng.normal(size=(rows, features)) + np.eye(3, features)[labels] + offset).astype(np.float32)
    return feature_split.FeatureSplit((CountingFeatures(values),), np.arange(rows), labels, torch.ones(rows))


def make_random_head(split):
    width = split.features[0].shape[1]
    return SimpleNamespace(linear=torch.nn.Linear(width, 3), mean=torch.zeros(width), std=torch.ones(width))


def fit_random_split(split):
    head = make_random_head(split)
    return linear_probe.fit_probe(head, LabelSmoothingCrossEntropy(0.0), split, replace(split), SILENT)


def test_a_fit_reads_features_once_if_they_fit_into_memory(monkeypatch):
    monkeypatch.setattr(feature_split, "CHUNK_ROWS", 8)
    limit_memory(monkeypatch, 60 * 5 * 4)
    split = make_random_split()
    fit_random_split(split)
    assert split.features[0].reads == 2 * 8, "8 chunks each for training and validation"


def limit_memory(monkeypatch, n_bytes):
    """Let the features of a split use this memory."""
    available = n_bytes / feature_split.MAX_MEMORY_SHARE
    monkeypatch.setattr(feature_split, "read_available_memory", lambda: available)


def test_each_pass_over_features_on_disk_serves_all_penalties(monkeypatch):
    limit_memory(monkeypatch, 0)
    reads = {}
    for strengths in ((0.01,), (3.0, 1.0, 0.1, 0.01)):
        monkeypatch.setattr(linear_probe, "L2_STRENGTHS", strengths)
        split = make_random_split()
        fit_random_split(split)
        reads[len(strengths)] = split.features[0].reads
    assert reads[4] <= 1.5 * reads[1]


def test_each_penalty_is_fitted_as_if_it_were_the_only_one():
    split = make_random_split(rows=300, features=40)
    head = make_random_head(split)
    linear_probe.set_standardization(head, split)
    loss, start = LabelSmoothingCrossEntropy(0.1, torch.tensor([1.0, 2.0, 3.0])), torch.zeros(3, 3, 41)
    together = linear_probe.fit_lbfgs(start, head, split, loss, (3.0, 0.1, 0.001))
    for weight, l2 in zip(together, (3.0, 0.1, 0.001), strict=True):
        alone = linear_probe.fit_lbfgs(start[:1], head, split, loss, (l2,))
        logits, alone_logits = (linear_probe.compute_all_logits(one, head, split) for one in (weight, alone[0]))
        torch.testing.assert_close(logits.softmax(dim=1), alone_logits.softmax(dim=1), atol=1e-4, rtol=0)


def test_a_fit_converges_without_reaching_the_limit_of_evaluations(monkeypatch):
    """Correlated features, one of them with a large mean: the variance of the first axis is 40 times that of others."""
    rng = np.random.default_rng(0)
    split = make_random_split(rows=400, features=80)
    common = rng.normal(size=(400, 1)).astype(np.float32)
    split.features[0].array += 5 * common * (np.arange(80) < 40) + 100 * (np.arange(80) == 7)
    head = make_random_head(split)
    linear_probe.set_standardization(head, split)
    bars = []
    bar = SimpleNamespace(advance=lambda: bars.append(1))
    l2, loss = (1.0, 0.01), LabelSmoothingCrossEntropy(0.0)
    weights = linear_probe.fit_lbfgs(torch.zeros(2, 3, 81), head, split, loss, l2, bar)
    assert len(bars) <= 60, "without scaling along the principal axes there are more than 100"
    x, y = (torch.from_numpy(split.features[0].array).double() - head.mean) / head.std, split.labels
    for weight, penalty in zip(weights.double(), l2, strict=True):
        weight.requires_grad_()
        losses = torch.nn.functional.cross_entropy(x @ weight[:, :-1].T + weight[:, -1], y)
        (losses + penalty / 2 * weight[:, :-1].square().sum()).backward()
        assert weight.grad.abs().max() < 1e-4


def test_a_fit_of_features_on_disk_equals_that_in_memory(monkeypatch):
    monkeypatch.setattr(feature_split, "CHUNK_ROWS", 8)
    fits = []
    for memory in (60 * 5 * 4, 60 * 5 * 4 - 1):
        limit_memory(monkeypatch, memory)
        split = make_random_split(offset=300.0)
        fits.append(fit_random_split(split))
    assert split.features[0].reads > 100
    assert fits[0].weight.equal(fits[1].weight) and fits[0].l2 == fits[1].l2
    assert fits[0].valid_loss == fits[1].valid_loss


def test_the_memory_of_a_fit_of_features_on_disk_is_that_of_a_few_chunks(monkeypatch):
    monkeypatch.setattr(feature_split, "CHUNK_BYTES", 64 << 10)
    monkeypatch.setattr(linear_probe, "L2_STRENGTHS", (1.0,))
    peaks = []
    for memory in (1 << 30, 0):
        limit_memory(monkeypatch, memory)
        split = make_random_split(rows=20_000, features=32)  # 2.6 MB
        tracemalloc.start()  # counts the arrays of numpy, which hold the features of a CPU
        fit_random_split(split)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] > 2 * 20_000 * 32 * 4, "training and validation features"
    assert peaks[1] < 8 * (64 << 10)


def test_the_probabilities_of_cached_rows_are_computed_in_chunks(monkeypatch):
    monkeypatch.setattr(feature_split, "CHUNK_ROWS", 8)
    limit_memory(monkeypatch, 0)
    split = make_random_split()
    head, weight = make_random_head(split), torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(split.features[0].array) @ weight[:, :-1].T + weight[:, -1]
    torch.testing.assert_close(linear_probe.compute_all_logits(weight, head, split), expected)
    assert split.features[0].reads == 8


def test_a_fitted_learner_does_not_keep_features_in_memory(toy_manifest):
    probe = fit(toy_manifest)[0].fastcxr.fitted_probe
    assert "cached_chunks" not in vars(probe.train) | vars(probe.valid)


@pytest.mark.gpu
@pytest.mark.parametrize("change", [{}, {"class_weights": "balanced", "oversample": ("haze=3",)}, {"loss": "focal"}])
def test_a_linear_probe_on_the_gpu_has_the_probabilities_of_the_cpu(toy_manifest, change):
    probabilities = []
    for device in ("cpu", "cuda"):
        recipe = RECIPE.replace(device=device, **change)
        learner = make(toy_manifest, recipe)
        train(learner, recipe)
        probe = learner.fastcxr.fitted_probe
        assert probe.fit.weight.device.type == probe.train.device.type == device
        probabilities += [predict(model, toy_manifest).probability for model in (learner, extract_classifier(learner))]
    cpu, _, cached, computed = probabilities
    np.testing.assert_allclose(cached, cpu, atol=1e-3)
    is_test = (toy_manifest["split"][toy_manifest["split"] != "train"] == "test").to_numpy()
    np.testing.assert_allclose(cached[is_test], computed[is_test], atol=1e-5)
