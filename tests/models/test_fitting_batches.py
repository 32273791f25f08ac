"""Inference halves its batches until they fit into memory, and gives the results of full batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from device_results import assert_identical
from torch import nn
from training_probes import RECIPE as TINY_RECIPE
from training_probes import fit, make

from fastcxr import explain, predict
from fastcxr.errors import DeviceError
from fastcxr.models.bundle import Classifier, extract_classifier
from fastcxr.models.fitting_batches import CPU_BATCH_SIZE, FittingBatches, choose_batch_size
from fastcxr.models.preprocessing import InputSpec, normalize
from fastcxr.progress.base import Progress
from fastcxr.training.fit_ood import _compute_features
from fastcxr.workflows.scout import measure_throughput

WARNING = "out of memory"
RECIPE = TINY_RECIPE.replace(backbone="mobilenetv2_035")  # these tests name its layers


class SmallMemory:
    """A forward hook that raises the error of a full GPU for batches of more than `limit` images."""

    def __init__(self, limit: int):
        self.limit, self.sizes = limit, []

    def __deepcopy__(self, memo: dict) -> "SmallMemory":
        return self  # copies of the network share it

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.sizes.append(len(inputs[0]))
        if len(inputs[0]) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def normalize_few(images: torch.Tensor, input_spec: InputSpec) -> torch.Tensor:
    """Normalize up to five images; raise the error of a full GPU for more."""
    SmallMemory(5)(nn.Identity(), (images,))
    return normalize(images, input_spec)


def list_warnings(caplog) -> list[str]:
    return [message for message in caplog.messages if WARNING in message]


def test_every_row_is_computed_once_and_in_order(caplog):
    sizes = []

    def double(rows: slice) -> np.ndarray:
        sizes.append(rows.stop - rows.start)
        if sizes[-1] > 3:
            raise MemoryError
        return 2 * np.arange(20)[rows]

    batches = FittingBatches(16)
    np.testing.assert_array_equal(np.concatenate(list(batches.compute(double, 20))), 2 * np.arange(20))
    assert sizes == [16, 8, 4, *[2] * 10]
    assert list(batches.compute(len, 0)) == []
    assert [rows.stop for rows in batches.compute(lambda rows: rows, 5)] == [2, 4, 5]
    assert list_warnings(caplog) == ["out of memory with 16 images: this and further batches are halved until they fit"]


def test_one_image_that_does_not_fit_is_an_error_of_the_user():
    def fail(rows: slice) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceError, match=r"out of memory\. End other programs"):
        list(FittingBatches(4).compute(fail, 9))


def test_a_lost_gpu_is_not_tried_again():
    sizes = []

    def fail(rows: slice) -> None:
        sizes.append(rows.stop - rows.start)
        raise RuntimeError("CUDA error: unspecified launch failure")

    with pytest.raises(DeviceError, match="the GPU was lost"):
        list(FittingBatches(4).compute(fail, 9))
    assert sizes == [4]


def test_cudnn_searches_no_algorithms_while_a_batch_is_computed(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)  # as fastai sets it
    searches = list(FittingBatches(2).compute(lambda batch: torch.backends.cudnn.benchmark, 4))
    assert searches == [False, False]
    assert torch.backends.cudnn.benchmark


def test_the_first_batch_is_larger_on_a_gpu():
    assert choose_batch_size(torch.device("cpu")) == CPU_BATCH_SIZE == 32
    assert choose_batch_size(torch.device("cuda")) > CPU_BATCH_SIZE


@pytest.fixture(scope="module")
def classifier(toy_manifest) -> Classifier:
    found = extract_classifier(make(toy_manifest, RECIPE.replace(strategy="full")))
    nn.init.normal_(found.network.classifier.weight, std=0.05)
    return found


@pytest.mark.parametrize("compute", [predict, explain])
def test_predict_and_explain_continue_with_smaller_batches(classifier, toy_manifest, caplog, compute):
    table = toy_manifest.drop(columns="split")
    expected = compute(classifier, table).table
    memory = SmallMemory(3)
    with classifier.network.conv_stem.register_forward_pre_hook(memory):
        found = compute(replace(classifier), table).table
    assert_identical(found.select_dtypes("number"), expected.select_dtypes("number"), cpu_tolerance=1e-5)
    assert found["path"].equals(expected["path"])
    assert max(memory.sizes) > 3
    assert len(list_warnings(caplog)) <= 3  # of predictions, of the sanity check's predictions, and of the maps


def test_the_feature_pass_continues_with_smaller_batches(toy_manifest, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "expected"))
    expected = fit(toy_manifest)[0].fastcxr.fitted_probe.cache.features
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "found"))
    monkeypatch.setattr("fastcxr.training.feature_cache.normalize", normalize_few)
    found = fit(toy_manifest)[0].fastcxr.fitted_probe.cache.features
    assert_identical(np.stack(found), np.stack(expected), cpu_tolerance=1e-5)
    assert len(list_warnings(caplog)) == 1


def test_the_features_of_the_ood_detector_continue_with_smaller_batches(toy_manifest, monkeypatch, caplog):
    learner = make(toy_manifest, RECIPE.replace(strategy="full"))
    files, stages = toy_manifest["file"].tolist(), {"blocks.0": 8}
    expected = _compute_features(learner, files, stages, Progress())
    monkeypatch.setattr("fastcxr.training.fit_ood.normalize", normalize_few)
    assert_identical(_compute_features(learner, files, stages, Progress()), expected, cpu_tolerance=1e-5)
    assert len(list_warnings(caplog)) == 1


def test_scout_measures_a_backbone_whose_batch_does_not_fit(toy_manifest, caplog):
    learner, memory = make(toy_manifest, RECIPE), SmallMemory(3)
    with learner.model.conv_stem.register_forward_pre_hook(memory):
        assert measure_throughput(learner) > 0
    assert sum(size for size in memory.sizes if size <= 3) >= 4 * learner.dls.train.bs
    assert len(list_warnings(caplog)) == 1
