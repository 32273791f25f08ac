"""The script of a fastai user, from top to bottom: fastai's own calls on the loaders and the learner of fastcxr."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from device_results import assert_identical
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.tracker import SaveModelCallback
from fastai.data.block import CategoryBlock, DataBlock, RegressionBlock
from fastai.data.transforms import Normalize, RandomSplitter, get_image_files, parent_label
from fastai.interpret import ClassificationInterpretation
from fastai.learner import load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import F1Score, error_rate
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageBlock, ImageDataLoaders
from matplotlib import pyplot
from PIL import Image
from sample_images import make_dicom, make_reference, save_dicom
from tiny_network import NAME
from toy_images import write_toys

import fastcxr
from fastcxr import Recipe, make_datablock, make_learner, make_loaders, predict, read_manifest, split_by_patient
from fastcxr.errors import DataError, ModelError, TrainingError
from fastcxr.models.bundle import load_model

RECIPE = Recipe(NAME, weights="none", image_size=64, epochs=1, strategy="full", batch_size=8)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Draw without a window; close the figures afterwards."""
    matplotlib.use("Agg")
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    return write_toys(tmp_path_factory.mktemp("user") / "toys", per_class=20)


@pytest.fixture(scope="module")
def manifest(toys):
    return split_by_patient(read_manifest(toys))


@pytest.fixture(scope="module")
def learner(manifest):
    """A learner trained with three calls of fastai."""
    loaders = make_loaders(manifest, RECIPE)
    loaders.show_batch(max_n=4)
    learner = make_learner(loaders, RECIPE)
    with learner.no_bar(), learner.no_logging():
        assert learner.lr_find(num_it=12, show_plot=False).valley > 0
        learner.fine_tune(1)
        learner.fit_one_cycle(1, lr_max=slice(1e-5, 1e-3))
    return learner


def fit_quietly(learner, *arguments, **options):
    with learner.no_bar(), learner.no_logging():
        learner.fit(*arguments, **options)
    return learner


def test_results_and_interpretation_are_shown(learner):
    learner.show_results(max_n=4)
    interpretation = ClassificationInterpretation.from_learner(learner)
    interpretation.plot_confusion_matrix()
    interpretation.plot_top_losses(4)
    assert interpretation.confusion_matrix().sum() == len(learner.dls.valid_ds)
    assert all(count > 0 for *_, count in interpretation.most_confused(min_val=1))


def test_predictions_of_fastai_agree_with_each_other(learner, manifest):
    probability, truth = learner.get_preds()
    assert probability.shape == (len(learner.dls.valid_ds), 3) and len(truth) == len(probability)
    file = learner.dls.valid.items["file"].iloc[0]
    label, index, one = learner.predict(file)
    assert label == learner.dls.vocab[int(index)]
    torch.testing.assert_close(one, probability[0], atol=2e-3, rtol=0)  # tolerance: bfloat16 in another batch
    assert learner.tta(n=2)[0].shape == probability.shape
    assert len(learner.validate()) == 4
    of_files = learner.get_preds(dl=learner.dls.test_dl(manifest["file"].tolist()[:3]))[0]
    of_rows = learner.get_preds(dl=learner.dls.test_dl(manifest[:3]))[0]
    torch.testing.assert_close(of_files, of_rows)


@pytest.mark.parametrize("kind", ["path", "array", "pil", "row"])
def test_a_path_an_array_an_image_and_a_row_get_the_same_prediction(learner, manifest, kind):
    file = manifest["file"].iloc[0]
    items = {
        "path": Path(file),
        "array": np.asarray(Image.open(file).convert("L")),
        "pil": Image.open(file),
        "row": manifest.iloc[0],
    }
    torch.testing.assert_close(learner.predict(items[kind])[2], learner.predict(file)[2])


@pytest.mark.needs("pydicom")
def test_a_dicom_path_gets_a_class_name_and_probabilities(learner, tmp_path):
    file = save_dicom(tmp_path / "image.dcm", make_dicom(make_reference()))
    label, _, probability = learner.predict(file)
    assert label in learner.dls.vocab
    assert float(probability.sum()) == pytest.approx(1, abs=1e-5)


def test_an_image_of_more_than_eight_bits_needs_its_path(learner):
    with pytest.raises(DataError, match="PIL mode 'F', expected 8 bits per pixel. Pass the path of the file"):
        learner.predict(np.zeros((64, 64), np.float32))


@pytest.mark.slow
def test_an_exported_learner_predicts_in_a_process_that_does_not_import_fastcxr(learner, manifest, tmp_path):
    learner.export(tmp_path / "export.pkl")
    file = manifest["file"].iloc[0]
    expected = learner.predict(file)
    code = f"""import json, warnings
warnings.simplefilter("ignore")
from fastai.learner import load_learner
learner = load_learner({str(tmp_path / "export.pkl")!r}, cpu={learner.dls.device.type == "cpu"})
with learner.no_bar():
    label, _, probability = learner.predict({file!r})
print(json.dumps([label, probability.tolist()]))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    label, probability = json.loads(done.stdout.splitlines()[-1])
    assert label == expected[0]
    assert_identical(probability, expected[2].numpy(), cpu_tolerance=1e-6)


@pytest.mark.filterwarnings("ignore:load_learner")
def test_an_exported_learner_has_no_path_of_an_image_and_no_features(manifest, tmp_path):
    recipe = RECIPE.replace(strategy="linear_probe")
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    fastcxr.train(learner, recipe)
    assert learner.fastcxr.fitted_probe is not None
    learner.export(tmp_path / "export.pkl")
    assert str(Path(manifest["file"].iloc[0]).parent).encode() not in (tmp_path / "export.pkl").read_bytes()
    assert load_learner(tmp_path / "export.pkl").fastcxr.fitted_probe is None


class CountBatches(Callback):
    """A callback of the user."""

    n_batches = 0

    def after_batch(self):
        """Count training batches."""
        self.n_batches += self.training


def test_own_callback_metric_and_loss(learner, manifest):
    own = make_learner(make_loaders(manifest, RECIPE), RECIPE)
    own.metrics = [error_rate, F1Score(average="macro")]
    own.loss_func = CrossEntropyLossFlat()
    own.add_cbs([CountBatches(), SaveModelCallback()])
    fit_quietly(own, 1)
    assert own.count_batches.n_batches == len(own.dls.train)
    assert own.recorder.metric_names[1:5] == ["train_loss", "valid_loss", "error_rate", "f1_score"]
    own.loss_func = lambda logits, truth: torch.nn.functional.cross_entropy(logits, truth)
    assert np.isfinite(fit_quietly(own, 1).recorder.values[-1]).all()


def test_own_metrics_are_computed_for_a_head_fitted_on_features(manifest):
    recipe = RECIPE.replace(strategy="linear_probe")
    learner = make_learner(make_loaders(manifest, recipe), recipe)
    learner.metrics = [error_rate, F1Score(average="macro")]
    row = fastcxr.train(learner, recipe).history.iloc[0]
    assert row["error_rate"] == pytest.approx(learner.validate()[1], abs=0.35)
    assert 0 <= row["f1_score"] <= 1
    learner.loss_func = CrossEntropyLossFlat()
    with pytest.raises(TrainingError, match=r"cannot be fitted on cached features .* Pass Recipe\(strategy='full'\)"):
        fastcxr.train(learner, recipe)


@pytest.mark.parametrize("mixing", [MixUp, CutMix])
@pytest.mark.parametrize("loss", ["label_smoothing", "focal", "cross_entropy", "mse", "binary_cross_entropy"])
def test_mixup_and_cutmix_train_with_every_loss_and_class_weights(manifest, loss, mixing):
    recipe = RECIPE.replace(loss=loss, class_weights="balanced")
    learner = fit_quietly(make_learner(make_loaders(manifest, recipe), recipe), 1, cbs=mixing())
    assert np.isfinite(learner.recorder.values[-1][:2]).all()
    assert learner.loss_func.func.reduction == "mean"


def test_mixed_precision_of_fastai_can_be_requested(manifest):
    learner = make_learner(make_loaders(manifest, RECIPE), RECIPE).to_fp16()
    assert np.isfinite(fit_quietly(learner, 1).recorder.values[-1][:2]).all()


def test_the_datablock_reads_a_folder_or_a_manifest_and_leaves_out_the_test_split(toys, manifest):
    for source in (toys, manifest):
        block = make_datablock(source, RECIPE)
        loaders = block.dataloaders(source, bs=4)
        used = {*loaders.train.items["path"], *loaders.valid.items["path"]}
        assert used == set(manifest.loc[manifest["split"] != "test", "path"])
        assert loaders.train.bs == 4
    learner = fit_quietly(make_learner(loaders, RECIPE), 1)
    assert learner.predict(manifest["file"].iloc[0])[0] in loaders.vocab
    assert set(predict(learner, manifest).table["split"]) == {"valid", "test"}


def test_item_transforms_of_the_user_are_applied_to_the_images_of_the_manifest(manifest):
    block = make_datablock(manifest, RECIPE)
    loaders = block.new([*block.item_tfms, Darken()], block.batch_tfms).dataloaders()
    plain = make_datablock(manifest, RECIPE).dataloaders()
    assert loaders.valid.one_batch()[0].mean() < plain.valid.one_batch()[0].mean()


def Darken():  # noqa: N802
    """Return an item transform that halves the gray values."""
    from fasttransform import Transform

    from fastcxr.training.loaders import Radiograph

    def halve(image: Radiograph) -> Radiograph:
        return Radiograph.create(np.asarray(image) // 2)

    return Transform(halve)


def make_own_loaders(toys, **options):
    block = DataBlock(
        blocks=options.pop("blocks", (ImageBlock, CategoryBlock)),
        get_items=get_image_files,
        get_y=options.pop("get_y", parent_label),
        splitter=RandomSplitter(seed=1),
        item_tfms=Resize(options.pop("size", 64)),
        batch_tfms=[*aug_transforms(do_flip=False), *options.pop("more", ())],
    )
    return block.dataloaders(toys, bs=8, **options)


def test_a_datablock_of_the_user_trains_and_predicts_with_fastai(toys, manifest):
    recipe = RECIPE.replace(class_weights="balanced")
    for loaders in (
        make_own_loaders(toys),
        ImageDataLoaders.from_folder(toys, valid_pct=0.2, item_tfms=Resize(64), bs=8),
    ):
        learner = fit_quietly(make_learner(loaders, recipe), 1)
        assert learner.predict(manifest["file"].iloc[0])[0] in loaders.vocab
    with pytest.raises(ModelError, match=r"preprocessing of these DataLoaders is not known.* or make_datablock\("):
        predict(learner, manifest)


def test_own_loaders_that_do_not_fit_the_network_name_the_fix(toys):
    with pytest.raises(DataError, match=r"shape \(3, 96, 96\), .* expects \(3, 64, 64\). .* item_tfms=Resize\(64\)"):
        make_learner(make_own_loaders(toys, size=96), RECIPE)
    with pytest.raises(DataError, match=r"no batch: 48 images, batch size 64. Pass a smaller batch size, as bs=8"):
        make_learner(ImageDataLoaders.from_folder(toys, valid_pct=0.2, item_tfms=Resize(64)), RECIPE)
    with pytest.raises(DataError, match=r"expected images and one class number per image. Pass blocks=\(ImageBlock"):
        make_learner(make_own_loaders(toys, blocks=(ImageBlock, RegressionBlock), get_y=lambda file: 1.0), RECIPE)


@pytest.mark.parametrize("is_normalized", [True, False])
def test_pretrained_weights_on_loaders_without_normalization_give_a_warning(toys, caplog, is_normalized):
    from fastcxr.models.backbones import find_backbone
    from fastcxr.training.own_loaders import validate_own_loaders

    more = [Normalize.from_stats(*([0.5] * 3,) * 2)] if is_normalized else []
    loaders, recipe = make_own_loaders(toys, more=more), RECIPE.replace(weights="pretrained")
    validate_own_loaders(loaders, find_backbone("resnet10t"), recipe)
    assert ("Add Normalize.from_stats" in caplog.text) is not is_normalized


@pytest.mark.usefixtures("without_figures", "without_maps")
def test_a_report_after_own_calls_of_fit_states_them(learner, manifest, tmp_path):
    predictions = predict(learner, manifest)
    page = fastcxr.write_report(tmp_path / "run", RECIPE, learner, predictions=predictions)
    choices = json.loads((tmp_path / "run" / "model.json").read_text())["choices"]
    assert choices["own_training"] is True
    assert [row["stage"] for row in choices["learning_rates"]] == ["fit 1", "fit 2", "fit 3"]
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert len(history) == 3 and not history["best"].any()
    np.testing.assert_allclose(history["valid_loss"].iloc[-1], learner.validate()[0], rtol=1e-3)
    assert "Trained by own calls of fastai" in page.read_text()
    assert load_model(tmp_path / "run").labels == ("clear", "haze", "opacity")
    metrics = predictions.metrics()
    assert {"split", "class", "metric", "value", "low", "high"} <= set(metrics.columns)
    assert fastcxr.plot_roc(predictions).ax_ is not None


def test_a_report_of_an_untrained_learner_is_refused(manifest, tmp_path):
    learner = make_learner(make_loaders(manifest, RECIPE), RECIPE)
    with pytest.raises(TrainingError, match=r"not trained. Call train\(learner, recipe\), or learner.fine_tune"):
        fastcxr.write_report(tmp_path / "run", RECIPE, learner)
    assert not (tmp_path / "run").exists()


def test_a_slice_of_learning_rates_sets_the_rates_of_the_default_strategy(tmp_path):
    from fastcxr.training.trainer import resolve_stages

    recipe = Recipe(learning_rate=slice(1e-5, 1e-3))
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert Recipe.from_json(tmp_path / "recipe.json") == recipe
    (stage,) = resolve_stages(recipe, 5)
    assert stage.multiples is None and stage.scale == 1 and stage.layer_lr_ratio == pytest.approx(100)
