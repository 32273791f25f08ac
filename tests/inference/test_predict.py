"""Predictions have one row per image in the order of the manifest, and an error for each unreadable file."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from device_results import assert_identical
from sample_images import make_dicom, make_reference, save_dicom, save_image
from torch import nn

from fastcxr.config.recipe import Recipe
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.image_table import make_image_table
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.data.imaging.sniff import Remarks
from fastcxr.errors import ModelError
from fastcxr.inference import images as module
from fastcxr.inference import torch_scorer
from fastcxr.inference.predict import predict
from fastcxr.io import threads
from fastcxr.models.bundle import Classifier, Ensemble, extract_classifier
from fastcxr.models.preprocessing import InputSpec
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import make_loaders


class Mean(nn.Module):
    """Network whose logits are the channel means, which reveal its input."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        return images.mean(dim=(2, 3)) * self.scale


CLASSIFIER = Classifier(
    network=Mean(),
    labels=("a", "b", "c"),
    input_spec=InputSpec(image_size=64, mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25)),
)


def test_the_network_receives_the_normalized_image(toy_manifest):
    table = toy_manifest.assign(label="a")
    predictions = predict(CLASSIFIER, table, splits=None)
    gray = np.array([fit_square(read_image(file), 64).mean() / 255 for file in toy_manifest["file"]])
    logits = np.stack([(gray - m) / s for m, s in zip((0.1, 0.2, 0.3), (1.0, 0.5, 0.25), strict=True)], axis=1)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predictions.probability, expected, atol=1e-6)
    assert predictions.table["path"].tolist() == toy_manifest["path"].tolist()


@pytest.mark.parametrize("batch", [1, 4, 7, 100])
def test_an_unreadable_file_yields_one_row_with_an_error_at_any_position(toy_manifest, tmp_path, monkeypatch, batch):
    monkeypatch.setattr(torch_scorer, "choose_batch_size", lambda device: batch)
    monkeypatch.setattr(module, "N_IMAGES_AHEAD", batch)
    table = toy_manifest.assign(label="a")
    (tmp_path / "bad.png").write_bytes(b"no image")
    bad = pd.concat([table[:5], table[5:6].assign(file=str(tmp_path / "bad.png")), table[5:]], ignore_index=True)
    whole, broken = predict(CLASSIFIER, table, splits=None), predict(CLASSIFIER, bad, splits=None)
    assert broken.table["error"].ne("").tolist() == [row == 5 for row in range(len(bad))]
    assert "FCX-E102" in broken.table.loc[5, "error"]
    assert_identical(np.delete(broken.probability, 5, axis=0), whole.probability)


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (5, 5), (1000, 32)])
def test_files_are_read_by_one_thread_per_core_and_a_bounded_number_ahead(monkeypatch, cores, expected):
    started, yielded, n_ahead, n_threads, executor = [], [], [], [], threads.ThreadPoolExecutor

    def read(file, size, depth):
        started.append(file)
        n_ahead.append(len(started) - len(yielded))
        return file, Remarks()

    monkeypatch.setattr(module, "_read_fitted_image", read)
    monkeypatch.setattr(threads, "ThreadPoolExecutor", lambda count: (n_threads.append(count), executor(count))[1])
    monkeypatch.setattr(module, "count_cpus", lambda: cores)
    files = [str(number) for number in range(400)]
    for image in module.read_fitted_images(files, 64, None):
        yielded.append(image)
    assert yielded == files
    assert n_threads == [expected]
    assert max(n_ahead) <= module.N_IMAGES_AHEAD + 1


def test_train_rows_are_predicted_only_on_request(toy_manifest):
    table = toy_manifest.assign(label="a")
    assert set(predict(CLASSIFIER, table).table["split"]) == {"valid", "test"}
    assert set(predict(CLASSIFIER, table, splits=("train",)).table["split"]) == {"train"}


def test_predictions_equal_those_of_fastai(learner, toy_manifest):
    with learner.no_bar(), learner.no_logging():
        theirs, _ = learner.get_preds()
    ours = predict(learner, toy_manifest, splits=("valid",))
    np.testing.assert_allclose(ours.probability, theirs.numpy(), atol=1e-5)


RECIPE = Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=6, strategy="full", precision="fp32")


@pytest.fixture
def learner(toy_manifest):
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)
    nn.init.normal_(learner.model.classifier.weight, std=0.05)
    return learner


@pytest.mark.parametrize("splits", [("valid", "test"), ("train",), None])
def test_cached_images_and_files_give_the_same_predictions(learner, toy_manifest, monkeypatch, splits):
    expected = predict(extract_classifier(learner), toy_manifest, splits=splits)
    monkeypatch.setattr(module, "read_image", None)
    found = predict(learner, toy_manifest, splits=splits)
    assert_identical(found.probability, expected.probability)
    assert found.table["path"].tolist() == expected.table["path"].tolist()


def test_files_that_are_not_cached_are_read_from_disk(learner, toy_manifest, tmp_path):
    shutil.copy(toy_manifest["file"][3], tmp_path / "other.png")
    table = toy_manifest[:5].assign(file=[*toy_manifest["file"][:4], str(tmp_path / "other.png")])
    expected = predict(extract_classifier(learner), table, splits=None)
    found = predict(learner, table, splits=None)
    assert_identical(found.probability, expected.probability)
    np.testing.assert_allclose(found.probability[3], found.probability[4])


def test_a_cached_image_of_a_different_size_is_not_used(learner, toy_manifest):
    expected = predict(extract_classifier(learner), toy_manifest).probability
    learner.dls.fastcxr.image_cache = open_image_cache(toy_manifest["file"], 32)
    assert_identical(predict(learner, toy_manifest).probability, expected)


def test_a_damaged_cached_image_without_its_file_yields_one_row_with_an_error(learner, toy_manifest, tmp_path):
    table = toy_manifest.assign(
        file=[shutil.copy(file, tmp_path / f"{n}.png") for n, file in enumerate(toy_manifest["file"])]
    )
    table = table.assign(file=table["file"].map(str))
    image_cache = open_image_cache(table["file"], 64)
    expected = predict(extract_classifier(learner), table, splits=None)
    (tmp_path / "4.png").unlink()
    learner.dls.fastcxr.image_cache = replace(image_cache, mapped=None, locations=np.zeros_like(image_cache.locations))
    found = predict(learner, table, splits=None)
    assert found.table["error"].ne("").tolist() == [row == 4 for row in range(30)]
    assert "FCX-E113" in found.table.loc[4, "error"]
    assert_identical(np.delete(found.probability, 4, axis=0), np.delete(expected.probability, 4, axis=0))


def test_probabilities_sum_to_one_in_double_precision(toy_manifest):
    sums = predict(CLASSIFIER, toy_manifest.assign(label="a"), splits=None).probability.sum(axis=1)
    np.testing.assert_allclose(sums, 1.0, atol=1e-12)


class OnAppleGpu(torch.Tensor):
    """Tensor of an Apple GPU: float64 is available only on the CPU."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        found = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(found, cls) and found.dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64")
        return found


def test_float64_is_not_used_on_a_device_without_it(toy_manifest):
    class AppleGpuMean(Mean):
        def forward(self, images):
            return super().forward(images).as_subclass(OnAppleGpu)

    table = toy_manifest.assign(label="a")
    found = predict(replace(CLASSIFIER, network=AppleGpuMean(), hflip_tta=True), table, splits=None)
    expected = predict(replace(CLASSIFIER, hflip_tta=True), table, splits=None)
    assert_identical(found.probability, expected.probability)


LATERAL = "FCX-W207 the header names a lateral view"
BURNED_IN = "FCX-W214 BurnedInAnnotation is YES: the pixels may contain the name of the patient"
NAMED = "FCX-W215 the path contains the patient name or the birth date of the DICOM header"


@pytest.fixture
def doubtful(tmp_path):
    """A gray image, an unreadable one, a colour image and a lateral view with text, in a folder with a name."""
    (tmp_path / "new").mkdir()
    save_image(make_reference(), tmp_path / "new" / "a.png")
    (tmp_path / "new" / "b.png").write_bytes(b"no image")
    save_image(np.dstack([make_reference(), 255 - make_reference(), make_reference()]), tmp_path / "new" / "c.png")
    tags = {"PatientName": "ZZDOE^ZZJOHN", "ViewPosition": "LL", "BurnedInAnnotation": "YES"}
    save_dicom(tmp_path / "new" / "zzdoe.dcm", make_dicom(make_reference(seed=3), **tags))
    return tmp_path / "new"


def test_the_warnings_on_an_image_are_in_its_row(doubtful):
    table = predict(CLASSIFIER, make_image_table([doubtful]), splits=None).table
    assert table["path"].tolist() == ["a.png", "b.png", "c.png", "zzdoe.dcm"]
    colour = "FCX-W203 an image in colour: check that it is not a screenshot or a photograph"
    assert table["warnings"].tolist() == ["", "", colour, f"{LATERAL}; {BURNED_IN}; {NAMED}"]
    assert table.columns[-1] == "warnings"


def test_hashed_names_appear_in_no_column_and_no_message(doubtful, caplog):
    (doubtful / "zzjohn.png").symlink_to("gone.png")
    images = make_image_table([doubtful], log_names=False)
    plain = predict(CLASSIFIER, images, splits=None)
    caplog.clear()
    hashed = predict(CLASSIFIER, make_image_table([doubtful], log_names=False), splits=None, hash_names=True)
    text = hashed.table.to_csv() + caplog.text
    assert "FCX-W214 1 image" in caplog.text and "skipped 1 special files" in caplog.text
    assert not [word for word in ("zzdoe", "zzjohn", "a.png", "c.png", "new") if word in text]
    assert_identical(plain.probability, hashed.probability)
    assert hashed.table["path"].is_unique and hashed.table["warnings"][3] == f"{LATERAL}; {BURNED_IN}"


def test_cached_images_keep_their_warnings(toy_manifest, tmp_path, caplog):
    recipe = Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=6, precision="fp32")
    lateral = save_dicom(tmp_path / "lateral.dcm", make_dicom(make_reference(), ViewPosition="LL"))
    table = toy_manifest.assign(file=toy_manifest["file"].mask(toy_manifest.index == 7, str(lateral)))
    learner = make_learner(make_loaders(table, recipe), recipe)
    caplog.clear()
    warnings = predict(learner, table, splits=None).table["warnings"]
    assert warnings[warnings != ""].to_dict() == {7: LATERAL}
    assert "W207" not in caplog.text, "it was logged when the images were read"


def test_a_model_without_an_ood_detector_states_it_in_its_text_and_in_the_log(toy_manifest, caplog):
    ensemble = Ensemble(members=(CLASSIFIER, CLASSIFIER))
    settings = "3 classes: a, b, c; 64 x 64 pixels"
    missing = "no OOD detector: every image gets a class"
    assert repr(CLASSIFIER) == f"<Classifier: {settings}; float32 on cpu; {missing}>"
    assert repr(ensemble) == f"<Ensemble: {settings}; mean of 2 models, float32 on cpu; {missing}>"
    with caplog.at_level("INFO", logger="fastcxr"):
        predictions = predict(CLASSIFIER, toy_manifest["file"][0])
    assert "this model has no out-of-distribution detector: every readable image gets a class" in caplog.messages
    assert predictions.table["predicted"][0] in CLASSIFIER.labels


def test_float16_inference_agrees_with_float32_and_an_overflow_is_an_error(toy_manifest):
    recipe = Recipe("mobilenetv2_035", weights="none", image_size=64, batch_size=6, precision="fp32")
    learner = make_learner(make_loaders(toy_manifest, recipe), recipe)
    torch.nn.init.normal_(learner.model.classifier.weight, std=0.1)
    classifier = extract_classifier(learner)
    half = replace(classifier, precision="fp16")
    table, dtypes = toy_manifest.assign(label="clear"), []
    hook = learner.model.conv_head.register_forward_hook(lambda *arguments: dtypes.append(arguments[2].dtype))
    expected, found = (predict(one, table, splits=None).probability for one in (classifier, half))
    hook.remove()
    assert dtypes[-1] == torch.float16
    np.testing.assert_allclose(found, expected, atol=0.01)
    with torch.no_grad():
        learner.model.conv_stem.weight.mul_(1e8)
    with pytest.raises(ModelError, match="NaN or infinite in float16, .* Pass `precision='fp32'`"):
        predict(half, table, splits=None)
    assert np.isfinite(predict(classifier, table, splits=None).probability).all()
