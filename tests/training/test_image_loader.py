"""Batches from the image cache equal those that fastai reads file by file."""

import shutil
import weakref
from contextlib import contextmanager

import matplotlib
import numpy as np
import pytest
import torch
from tiny_network import NAME

from fastcxr.config.recipe import Augmentation, Recipe
from fastcxr.data.cache.images import ImageCache, open_image_cache
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.models import device_images
from fastcxr.training import loaders as loaders_module
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import ImageLoader, encode_targets, find_cache_rows, make_datablock, make_loaders

matplotlib.use("Agg")
RECIPE = Recipe(
    NAME, weights="none", image_size=64, batch_size=4, strategy="full", precision="fp32",
    augment=Augmentation(mult=2, do_flip=True),
)  # fmt: skip
SAMPLERS = [{}, {"sampler": "weighted"}, {"oversample": ("haze=3",)}]


def list_batches(loaders) -> list[tuple]:
    return [batch for loader in (loaders.train, loaders.valid) for batch in loader]


def assert_same(batches, others) -> None:
    for one, other in zip(batches, others, strict=True):
        assert [type(part) for part in one] == [type(part) for part in other]
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@contextmanager
def forbid_synchronization():
    """Raise an error in this block if the host waits for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


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


def test_batches_from_a_copy_of_all_images_are_the_same(toy_manifest, monkeypatch):
    loaders = make_loaders(toy_manifest, RECIPE.replace(device="cpu"))  # the copy that replaces theirs is on the CPU
    expected = list(loaders.valid)
    images = torch.from_numpy(loaders.fastcxr.image_cache.read(range(len(toy_manifest))))
    monkeypatch.setattr(loaders.fastcxr.images, "find_copy", lambda device: images)
    monkeypatch.setattr(ImageCache, "read", None)
    assert_same(list(loaders.valid), expected)


def test_all_loaders_and_the_state_share_the_images(toy_manifest):
    loaders = make_loaders(toy_manifest, RECIPE)
    test_loader = loaders.test_dl(toy_manifest[toy_manifest["split"] == "test"])
    assert loaders.train.images is loaders.valid.images is test_loader.images is loaders.fastcxr.images


def test_equal_labels_are_encoded_once(toy_manifest, monkeypatch):
    loaders = make_loaders(toy_manifest, RECIPE)
    target_list, rows = loaders.train.dataset.tls[1], []
    monkeypatch.setattr(type(target_list), "_after_item", lambda self, item: rows.append(item) or self.tfms(item))
    targets = encode_targets(target_list)
    assert len(rows) == 3
    assert [loaders.vocab[k] for k in targets] == loaders.train.items["label"].tolist()


def test_targets_of_another_reader_are_encoded_row_by_row(toy_manifest):
    block = make_datablock(toy_manifest, RECIPE)
    block.type_tfms[1].insert(0, lambda row: {"clear": "haze"}.get(row.label, row.label))
    block.getters[1] = lambda row: row
    loaders = block.dataloaders()
    targets = encode_targets(loaders.train.dataset.tls[1])
    expected = loaders.train.items["label"].replace({"clear": "haze"}).tolist()
    assert [loaders.vocab[k] for k in targets] == expected


@pytest.mark.gpu
def test_a_batch_for_the_gpu_makes_the_host_wait_for_nothing(toy_manifest):
    augment = Augmentation(do_flip=True, flip_vert=True, min_scale=0.5)
    loaders = make_loaders(toy_manifest, RECIPE.replace(augment=augment, device="cuda", workers=2))
    loaders.train.one_batch()  # copies the images
    with forbid_synchronization():
        n_batches = len([*loaders.train, *loaders.valid])
    assert n_batches == len(loaders.train) + len(loaders.valid)


@pytest.mark.gpu
def test_batches_of_images_that_do_not_fit_into_the_gpu_are_the_same_and_not_waited_for(toy_manifest, monkeypatch):
    loaders = make_loaders(toy_manifest, RECIPE.replace(device="cuda"))
    expected = list(loaders.valid)
    loaders.fastcxr.images.release()
    monkeypatch.setattr("fastcxr.models.device_images.MAX_MEMORY_SHARE", 0)
    assert loaders.fastcxr.images.find_copy(loaders.device) is None
    list(loaders.valid)  # allocates pinned memory
    with forbid_synchronization():
        batches = list(loaders.valid)
    assert_same(batches, expected)


@pytest.mark.gpu
def test_all_loaders_use_one_copy_on_the_gpu_which_release_frees(toy_manifest, monkeypatch):
    copies, original = [], device_images.copy_all_images

    def copy_all_images(cache, device):
        copy = original(cache, device)
        # not the allocated memory, which also changes when Python frees the learners of earlier tests
        copies.append(weakref.ref(copy))
        return copy

    monkeypatch.setattr(device_images, "copy_all_images", copy_all_images)
    loaders = make_loaders(toy_manifest, RECIPE.replace(device="cuda"))
    loaders.train.one_batch(), loaders.valid.one_batch()
    (copy,) = copies
    assert (copy().device.type, len(copy())) == ("cuda", len(toy_manifest))
    loaders.fastcxr.images.release()
    assert copy() is None


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
    torch.nn.init.normal_(learner.model.fc.weight)
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
