"""Batches put together from the store are those that fastai makes item by item, whatever is asked of the loader."""

import shutil

import matplotlib
import numpy as np
import pytest
import torch

from fastcxr.config.recipe import Augmentation, Recipe
from fastcxr.data.cache.images import open_image_cache
from fastcxr.data.imaging.read import fit_square, read_image
from fastcxr.training import loaders as loaders_module
from fastcxr.training import loaders as pictures
from fastcxr.training.learner import make_learner
from fastcxr.training.loaders import ImageLoader, find_cache_rows, load_to_gpu, make_loaders

matplotlib.use("Agg")
RECIPE = Recipe(
    "mobilenetv2_035", weights="none", image_size=64, batch_size=4, strategy="full", precision="fp32",
    augment=Augmentation(mult=2, do_flip=True),
)  # fmt: skip
DRAWS = [{}, {"sampler": "weighted"}, {"oversample": ("haze=3",)}]


def all_batches(loaders) -> list[tuple]:
    return [batch for loader in (loaders.train, loaders.valid) for batch in loader]


def assert_same(batches, others) -> None:
    for one, other in zip(batches, others, strict=True):
        assert [type(part) for part in one] == [type(part) for part in other]
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def item_by_item(monkeypatch):
    """Loaders made in the block read as fastai does."""

    def make(manifest, recipe):
        with monkeypatch.context() as patch:
            patch.setattr(pictures, "find_cache_rows", lambda dataset, found: None)
            return make_loaders(manifest, recipe)

    return make


@pytest.mark.parametrize("draw", DRAWS)
def test_batches_are_those_that_are_read_item_by_item(toy_manifest, item_by_item, draw):
    recipe = RECIPE.replace(**draw)
    plain = item_by_item(toy_manifest, recipe)
    assert plain.train.cache_rows is None
    expected = all_batches(plain)
    assert_same(all_batches(make_loaders(toy_manifest, recipe)), expected)


def test_no_file_is_opened_once_the_pictures_are(toy_manifest, monkeypatch):
    loaders = make_loaders(toy_manifest, RECIPE)
    monkeypatch.setattr(loaders_module, "read_image", None)
    assert sum(len(truth) for _, truth in all_batches(loaders)) == 22  # training leaves the last two of 18 out


@pytest.mark.parametrize("draw", DRAWS)
def test_workers_read_the_same_batches(toy_manifest, draw):
    alone, helped = (all_batches(make_loaders(toy_manifest, RECIPE.replace(workers=n, **draw))) for n in (0, 2))
    for (images, truth), (others, other_truth) in zip(alone, helped, strict=True):
        assert torch.equal(truth, other_truth)
        assert images.shape == others.shape
    assert torch.equal(alone[-1][0], helped[-1][0])  # of validation, which is not augmented


def test_squares_on_the_device_are_the_same_squares(toy_manifest):
    loaders = make_loaders(toy_manifest, RECIPE)
    expected = list(loaders.valid)
    loaders.valid.gpu_images = torch.from_numpy(loaders.fastcxr.image_cache.read(loaders.valid.cache_rows))
    loaders.valid.image_cache = None
    assert_same(list(loaders.valid), expected)


def test_squares_stay_where_they_are_without_a_gpu(toy_manifest):
    loaders = make_loaders(toy_manifest, RECIPE)
    assert loaders.train.gpu_images is None
    assert load_to_gpu(loaders.train) is None


@pytest.mark.parametrize(("free", "stays"), [(18 * 64**2 / 0.3 + 9, True), (18 * 64**2 / 0.3 - 9, False)])
def test_a_gpu_takes_what_fits_into_its_share(toy_manifest, monkeypatch, free, stays):
    loader = make_loaders(toy_manifest, RECIPE).train
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor)
    monkeypatch.setattr(type(loader), "device", torch.device("cuda"))
    assert (load_to_gpu(loader) is not None) == stays


@pytest.mark.parametrize("draw", DRAWS)
def test_a_new_loader_shows_each_row_once_and_reads_from_the_store(toy_manifest, monkeypatch, draw):
    loaders = make_loaders(toy_manifest, RECIPE.replace(**draw))
    monkeypatch.setattr(loaders_module, "read_image", None)
    new = loaders.train.new(shuffle=False, bs=5, drop_last=False)
    assert isinstance(new, ImageLoader) and new.weights is None and new.rows is None
    labels = [loaders.vocab[k] for _, truth in new for k in truth]
    assert labels == loaders.train.items["label"].tolist()
    assert len(new) == 4


def test_a_test_loader_of_the_cohort_reads_from_the_store_and_one_of_other_files_reads_them(toy_manifest, tmp_path):
    loaders = make_loaders(toy_manifest, RECIPE)
    table = toy_manifest[toy_manifest["split"] == "test"].reset_index(drop=True)
    known = loaders.test_dl(table)
    copies = [shutil.copy(file, tmp_path / f"{n}.png") for n, file in enumerate(table["file"])]
    foreign = loaders.test_dl(table.assign(file=list(map(str, copies))))
    assert known.cache_rows.tolist() == toy_manifest.index[toy_manifest["split"] == "test"].tolist()
    assert foreign.cache_rows is None
    for (images,), (others,) in zip(known, foreign, strict=True):
        assert torch.equal(images, others)
    with_labels = loaders.test_dl(table, with_labels=True)
    assert [loaders.vocab[k] for _, truth in with_labels for k in truth] == table["label"].tolist()


def test_a_learner_predicts_and_shows_through_it(toy_manifest):
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


def test_a_batch_is_shown_with_its_labels(toy_manifest):
    loaders = make_loaders(toy_manifest, RECIPE)
    loaders.valid.show_batch(max_n=2)
    axes = matplotlib.pyplot.gcf().axes[:2]
    rows = loaders.valid.items[:2]
    assert [axis.get_title() for axis in axes] == rows["label"].tolist()
    shown = np.asarray(axes[0].images[0].get_array())[..., 0].ravel()
    assert np.corrcoef(shown, fit_square(read_image(rows["file"].iloc[0]), 64).ravel())[0, 1] > 0.99


def test_places_are_found_for_tables_whose_files_are_all_known(toy_manifest):
    class Table:
        items = toy_manifest[5:9]

    known = open_image_cache(toy_manifest["file"], 32)
    assert find_cache_rows(Table, known).tolist() == [5, 6, 7, 8]
    assert find_cache_rows(Table, open_image_cache(toy_manifest["file"][:7], 32)) is None
    assert find_cache_rows(Table, None) is None
    Table.items = toy_manifest[["path"]]
    assert find_cache_rows(Table, known) is None
    for items in (toy_manifest["file"].tolist(), ["file"], None):
        Table.items = items
        assert find_cache_rows(Table, known) is None
