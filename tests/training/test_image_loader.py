"""Batches from the image cache equal those that fastai reads file by file."""

import shutil

import matplotlib
import numpy as np
import pytest
import torch

from fastcxr.config.recipe import Augmentation, Recipe
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.training import loaders as loaders_module
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import ImageLoader, find_cache_rows, load_to_gpu, make_loaders

matplotlib.use("Agg")
RECIPE = Recipe(
    "mobilenetv2_035", weights="none", image_size=64, batch_size=4, strategy="full", precision="fp32",
    augment=Augmentation(mult=2, do_flip=True),
)  # fmt: skip
SAMPLERS = [{}, {"sampler": "weighted"}, {"oversample": ("haze=3",)}]


def list_batches(loaders) -> list[tuple]:
    return [batch for loader in (loaders.train, loaders.valid) for batch in loader]


def assert_same(batches, others) -> None:
    for one, other in zip(batches, others, strict=True):
        assert [type(part) for part in one] == [type(part) for part in other]
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def file_by_file(monkeypatch):
    """Return a function that makes loaders without the image cache."""

    def make(manifest, recipe):
        with monkeypatch.context() as patch:
            patch.setattr(loaders_module, "find_cache_rows", lambda dataset, image_cache: None)
            return make_loaders(manifest, recipe)

    return make


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batches_equal_those_read_file_by_file(toy_manifest, file_by_file, sampler):
    recipe = RECIPE.replace(**sampler)
    plain = file_by_file(toy_manifest, recipe)
    assert plain.train.cache_rows is None
    expected = list_batches(plain)
    assert_same(list_batches(make_loaders(toy_manifest, recipe)), expected)


def test_no_file_is_read_after_the_image_cache_is_filled(toy_manifest, monkeypatch):
    loaders = make_loaders(toy_manifest, RECIPE)
    monkeypatch.setattr(loaders_module, "read_image", None)
    assert sum(len(truth) for _, truth in list_batches(loaders)) == 22  # the last incomplete training batch is dropped


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batches_do_not_depend_on_the_number_of_workers(toy_manifest, sampler):
    single, parallel = (list_batches(make_loaders(toy_manifest, RECIPE.replace(workers=n, **sampler))) for n in (0, 2))
    for (images, truth), (others, other_truth) in zip(single, parallel, strict=True):
        assert torch.equal(truth, other_truth)
        assert images.shape == others.shape
    assert torch.equal(single[-1][0], parallel[-1][0])  # validation images are not augmented


def test_batches_from_the_gpu_are_the_same(toy_manifest):
    loaders = make_loaders(toy_manifest, RECIPE)
    expected = list(loaders.valid)
    loaders.valid.gpu_images = torch.from_numpy(loaders.fastcxr.image_cache.read(loaders.valid.cache_rows))
    loaders.valid.image_cache = None
    assert_same(list(loaders.valid), expected)


def test_images_are_not_copied_without_a_gpu(toy_manifest):
    loader = make_loaders(toy_manifest, RECIPE).train
    assert loader.gpu_images is None
    assert load_to_gpu(loader.image_cache, loader.cache_rows, torch.device("cpu")) is None


@pytest.mark.parametrize(("free_bytes", "fits"), [(18 * 64**2 / 0.3 + 9, True), (18 * 64**2 / 0.3 - 9, False)])
def test_images_are_copied_to_the_gpu_if_they_fit_into_the_memory_share(toy_manifest, monkeypatch, free_bytes, fits):
    loader = make_loaders(toy_manifest, RECIPE).train
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_bytes, 0))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor)
    assert (load_to_gpu(loader.image_cache, loader.cache_rows, torch.device("cuda")) is not None) == fits


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_new_loader_shows_each_row_once_from_the_image_cache(toy_manifest, monkeypatch, sampler):
    loaders = make_loaders(toy_manifest, RECIPE.replace(**sampler))
    monkeypatch.setattr(loaders_module, "read_image", None)
    new = loaders.train.new(shuffle=False, bs=5, drop_last=False)
    assert isinstance(new, ImageLoader) and new.weights is None and new.rows is None
    labels = [loaders.vocab[k] for _, truth in new for k in truth]
    assert labels == loaders.train.items["label"].tolist()
    assert len(new) == 4


def test_a_test_loader_uses_the_image_cache_unless_its_files_are_others(toy_manifest, tmp_path):
    loaders = make_loaders(toy_manifest, RECIPE)
    table = toy_manifest[toy_manifest["split"] == "test"].reset_index(drop=True)
    cached = loaders.test_dl(table)
    copies = [shutil.copy(file, tmp_path / f"{n}.png") for n, file in enumerate(table["file"])]
    uncached = loaders.test_dl(table.assign(file=list(map(str, copies))))
    assert cached.cache_rows.tolist() == toy_manifest.index[toy_manifest["split"] == "test"].tolist()
    assert uncached.cache_rows is None
    for (images,), (others,) in zip(cached, uncached, strict=True):
        assert torch.equal(images, others)
    with_labels = loaders.test_dl(table, with_labels=True)
    assert [loaders.vocab[k] for _, truth in with_labels for k in truth] == table["label"].tolist()


def test_get_preds_and_show_results_work(toy_manifest):
    learner = make_learner(make_loaders(toy_manifest, RECIPE), RECIPE)
    torch.nn.init.normal_(learner.model.classifier.weight)
    with learner.no_bar(), learner.no_logging():
        valid, truth = learner.get_preds()
        train, _ = learner.get_preds(ds_idx=0)
        again, _ = learner.get_preds(dl=learner.dls.test_dl(learner.dls.valid.items))
        learner.show_results(max_n=2)
    assert (valid.shape, train.shape) == ((6, 3), (18, 3))
    torch.testing.assert_close(again, valid, atol=1e-4, rtol=1e-4)
    assert [learner.dls.vocab[k] for k in truth] == learner.dls.valid.items["label"].tolist()


def test_show_batch_shows_images_with_their_labels(toy_manifest):
    loaders = make_loaders(toy_manifest, RECIPE)
    loaders.valid.show_batch(max_n=2)
    axes = matplotlib.pyplot.gcf().axes[:2]
    rows = loaders.valid.items[:2]
    assert [axis.get_title() for axis in axes] == rows["label"].tolist()
    shown = np.asarray(axes[0].images[0].get_array())[..., 0].ravel()
    assert np.corrcoef(shown, fit_square(read_image(rows["file"].iloc[0]), 64).ravel())[0, 1] > 0.99


def test_cache_rows_are_found_only_if_all_files_are_in_the_cache(toy_manifest):
    class Table:
        items = toy_manifest[5:9]

    image_cache = open_image_cache(toy_manifest["file"], 32)
    assert find_cache_rows(Table, image_cache).tolist() == [5, 6, 7, 8]
    assert find_cache_rows(Table, open_image_cache(toy_manifest["file"][:7], 32)) is None
    assert find_cache_rows(Table, None) is None
    Table.items = toy_manifest[["path"]]
    assert find_cache_rows(Table, image_cache) is None
    for items in (toy_manifest["file"].tolist(), ["file"], None):
        Table.items = items
        assert find_cache_rows(Table, image_cache) is None
